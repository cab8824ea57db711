"""`python -m server`: read the settings, listen, serve, and end in good order.

Exit status: 0 after SIGTERM or Ctrl+C, 2 for wrong settings or an address in use, 3 for a model that cannot
be loaded.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from server import __version__, logs
from server.app import build_service
from server.engine import Engine
from server.errors import StorageUnavailable
from server.http.connection import Connection
from server.keys import KeysFileError
from server.settings import Settings, unknown_variables

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_CHECKPOINT: Final = 3
CLOSE_S: Final = 5  # for answers that are being written when everything else is done
HANDSHAKE_S: Final = 10.0  # asyncio would wait a minute for a client that opens TLS and says nothing
BACKLOG: Final = 2048

log = structlog.get_logger("server")


def main() -> int:
    """Run the server; every failure to start is one line on stderr."""
    settings = _settings()
    if settings is None:
        return EXIT_USAGE
    logs.configure(log_format=settings.log_format, log_level=settings.log_level)
    addresses = [(settings.host, settings.port)]
    if settings.ops_port is not None:
        addresses.append((settings.ops_host, settings.ops_port))
    try:
        listeners = [_listen(host, port) for host, port in addresses]
    except _CannotListen as error:
        _complain(str(error))
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(_serve(settings, *listeners))


async def _serve(
    settings: Settings, listener: socket.socket, ops_listener: socket.socket | None = None
) -> int:
    try:
        service = build_service(settings)
    except KeysFileError as error:
        _complain(f"--api-keys-file: {error}")
        return EXIT_USAGE
    except StorageUnavailable as error:
        _complain(f"--data-dir {settings.data_dir}: {error.message}")
        return EXIT_USAGE
    config = _config(service.api, settings, tls_cert=settings.tls_cert, tls_key=settings.tls_key)
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        _complain(f"--tls-cert and --tls-key are not a PEM certificate and its key: {error}")
        return EXIT_USAGE
    url = _url(listener, "https" if settings.tls_cert else "http")
    server = _Server(config, announce=partial(log.info, "listening", url=url, version=__version__))
    ending = asyncio.create_task(_end_in_order(server, service.engine, settings.drain_s))
    try:
        async with _operations(service.ops, settings, ops_listener):
            await server.serve(sockets=[listener])
        return ending.result() if ending.done() else EXIT_FAILURE
    finally:
        ending.cancel()


@contextlib.asynccontextmanager
async def _operations(
    app: FastAPI | None, settings: Settings, listener: socket.socket | None
) -> AsyncIterator[None]:
    """Serve the port for operations meanwhile, if there is one."""
    if app is None or listener is None:
        yield
        return
    url = _url(listener, "http")
    announce = partial(log.info, "listening_for_operations", url=url)
    server = _Server(_config(app, settings), announce=announce)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _config(
    app: FastAPI, settings: Settings, *, tls_cert: Path | None = None, tls_key: Path | None = None
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        server_header=False,
        log_config=None,
        access_log=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips,
        root_path=settings.root_path,
        timeout_graceful_shutdown=CLOSE_S,
        timeout_keep_alive=settings.keep_alive_s,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )


async def _end_in_order(server: "_Server", engine: Engine, drain_s: float) -> int:
    """Wait for a signal or a refused checkpoint, drain, and close; a second signal skips the draining."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    stopping = asyncio.create_task(stop.wait())
    refusing = asyncio.create_task(engine.wait_refused())
    await asyncio.wait((stopping, refusing), return_when=asyncio.FIRST_COMPLETED)
    if refused := refusing.done():
        _complain(f"the model cannot be served: {refusing.result()}")
    else:
        log.info("draining", for_s=drain_s, images=engine.stats().in_hand)
    draining = asyncio.create_task(engine.stop(0 if refused else drain_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        await engine.stop(0)
    for task in (stopping, refusing, hurrying):
        task.cancel()
    server.should_exit = True
    return EXIT_CHECKPOINT if refused else 0


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose servers do not wait long for a TLS handshake, which uvicorn has no setting for."""

    handshake_s = HANDSHAKE_S

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:  # noqa: ANN401
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = self.handshake_s
        return await super().create_server(*arguments, **options)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: those end a process with the signal instead of status 0.

    `announce` is called when connections are accepted, and not before: whoever reads an address calls it.
    """

    def __init__(self, config: uvicorn.Config, *, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _settings() -> Settings | None:
    if unknown := unknown_variables(os.environ):
        _complain(f"unknown settings in the environment: {', '.join(unknown)}; see --help")
        return None
    try:
        return Settings(_cli_parse_args=True)
    except ValidationError as error:
        for finding in error.errors(include_url=False):
            name = "--" + "-".join(str(part) for part in finding["loc"]).replace("_", "-")
            _complain(f"{name} {finding['input']!r}: {finding['msg']}" if finding["loc"] else finding["msg"])
    except SettingsError as error:
        _complain(str(error))
    return None


class _CannotListen(Exception):
    pass


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise _CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _complain(line: str) -> None:
    sys.stderr.write(f"schnell-server: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
