"""Which addresses the server calls when a client names a URL: the public internet, and what a setting allows.

A URL of a client must not reach what only this host can reach: loopback, private networks, the metadata
service of a cloud. Names are resolved here and checked as addresses, in whatever way they were written, and
the caller connects to the very address that was checked, so that no second answer of a name server counts.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[list[str]]]

AT_ONCE: Final = 8  # names that are being resolved
NAT64: Final = IPv6Network("64:ff9b::/96")  # an IPv4 address is in the last 32 bits
# What Python 3.11 calls global and is not, or what carries another address inside.
NOT_PUBLIC: Final[tuple[Network, ...]] = tuple(
    ip_network(each)
    for each in (
        "100.64.0.0/10",  # shared address space of carriers, and of some clouds' metadata
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible
        "64:ff9b:1::/48",  # NAT64 of a local network
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local, as it once was
    )
)
ISATAP: Final = (0x00005EFE, 0x02005EFE)  # the upper half of an interface identifier that ends in IPv4


class AddressRefused(Exception):
    """This host is not to be called; the message names it as the client wrote it."""


class Addresses:
    """Resolves names to addresses that may be called; `allowed` networks may be, whatever they are.

    In threads of its own: a name whose server does not answer holds one for half a minute, and clients choose
    the names.
    """

    def __init__(self, allowed: Iterable[Network] = (), *, resolve: Resolve | None = None) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolve or self._getaddrinfo
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="names")

    async def of(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host`, all of them checked.

        Raises `AddressRefused` if any of them may not be called: a name that is half inside is a trick.
        Raises `OSError` for a name that does not resolve.
        """
        try:
            found = await self._resolve(host, port)
        except UnicodeError:
            raise AddressRefused(f"{host} is no name of a host") from None
        for each in found:
            if not self.may_call(ip_address(each)):
                raise AddressRefused(f"{host} is an address inside a network that is not to be called")
        return found

    def may_call(self, address: Address) -> bool:
        """Tell whether `address` is public or allowed; IPv4 inside of IPv6 counts as what it is."""
        if any(address in network for network in self._allowed if network.version == address.version):
            return True
        inner = _embedded(address)
        return is_public(address) if inner is None else self.may_call(inner)

    async def _getaddrinfo(self, host: str, port: int) -> list[str]:
        call = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: Address) -> bool:
    """Tell whether this is an address of one host on the public internet."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv6Address) and int(address) >> 32 & 0xFFFFFFFF in ISATAP:
        return False
    return not any(address in network for network in NOT_PUBLIC if network.version == address.version)


def networks(text: str) -> tuple[Network, ...]:
    """Read networks such as `10.0.0.0/8, fd00::/8`; raises `ValueError`."""
    return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())


def _embedded(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
