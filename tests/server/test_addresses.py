"""Which addresses may be called, in all the ways in which they can be written and resolved."""

import asyncio
import socket
import threading
from ipaddress import ip_address

import pytest

from server.addresses import Addresses, AddressRefused, networks

INSIDE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # metadata of a cloud
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",  # metadata of most clouds
    "172.16.0.1",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4
    "2a00:1450:4001:800:0:5efe:7f00:1",  # ISATAP
    "2a00:1450:4001:800:200:5efe:a00:1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata again
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
OUTSIDE = ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_inside_is_not_called(address: str) -> None:
    assert not Addresses().may_call(ip_address(address))


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_is_public_is_called(address: str) -> None:
    assert Addresses().may_call(ip_address(address))


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"])
def test_networks_may_be_allowed(address: str) -> None:
    allowed = networks("10.0.0.0/8, fd00::/8")
    assert Addresses(allowed).may_call(ip_address(address))
    assert not Addresses(allowed).may_call(ip_address("192.168.0.1"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "localhost", "::1", "0"]
)
def test_a_host_is_what_it_resolves_to_however_it_is_written(host: str) -> None:
    with pytest.raises(AddressRefused):
        asyncio.run(Addresses().of(host, 80))


def test_names_that_do_not_resolve_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(20))

    async def story() -> None:
        addresses = Addresses()
        asked = [asyncio.create_task(addresses.of(f"slow-{number}", 80)) for number in range(100)]
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), 10) == 5
        for each in asked:
            each.cancel()
        go_on.set()

    asyncio.run(story())


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_what_cannot_be_a_name_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="no name of a host"):
        asyncio.run(Addresses().of(host, 80))


def test_a_name_that_is_half_inside_is_refused() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "127.0.0.1"]

    with pytest.raises(AddressRefused):
        asyncio.run(Addresses(resolve=resolve).of("example.com", 443))


def test_networks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        networks("10.0.0.1/8")
