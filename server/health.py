"""`python -m server.health`: exit with status 0 if the server of this environment takes requests, else 1.

What a container engine runs beside the server: it reads the same variables, so that address and TLS are those
that the server has. Flags of the server are not known here.
"""

import http.client
import ipaddress
import ssl
import sys
from typing import Final

from server.settings import Settings

PATH: Final = "/readyz"
ANSWER_S: Final = 3.0


def main() -> int:
    """Ask once; why not is one line, which container engines keep."""
    settings = Settings()
    try:
        connection = _connection(settings)
        connection.request("GET", PATH)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    if status != 200:
        sys.stderr.write(f"{PATH} is {status}\n")
    return 0 if status == 200 else 1


def _connection(settings: Settings) -> http.client.HTTPConnection:
    host = _reachable(settings.host)
    if settings.tls_cert is None:
        return http.client.HTTPConnection(host, settings.port, timeout=ANSWER_S)
    context = ssl.create_default_context()
    context.check_hostname = False  # the certificate is for the name that clients know,
    context.verify_mode = ssl.CERT_NONE  # and nothing is told to whoever answers on this address
    return http.client.HTTPSConnection(host, settings.port, timeout=ANSWER_S, context=context)


def _reachable(host: str) -> str:
    """Return where a server that listens on `host` answers: one that listens everywhere does on loopback."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


if __name__ == "__main__":
    sys.exit(main())
