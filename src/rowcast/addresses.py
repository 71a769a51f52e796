"""Client addresses: who asks, also from behind proxies, and what one client is counted as.

X-Forwarded-For is a list that each proxy adds to at its end, so only what trusted proxies have added can be
believed: the client is the rightmost address that is not a trusted proxy's. Whatever stands further left was
sent by that client, who may write there what it likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

IPV6_PREFIX = 64
"""Bits of an IPv6 address that tell one client from another: the rest is the client's own to choose."""

MAX_HOPS = 32
"""Addresses of X-Forwarded-For that are looked at, from the right."""


def parse_network(text: str) -> Network:
    """An address or a network in CIDR notation. Raises ValueError that says what was expected."""
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f'{text!r} is no address or network; write it like "10.0.0.7" or "10.0.0.0/8"') from None


class Proxies:
    """The proxies whose X-Forwarded-For is believed. `trusted`: addresses and networks; none by default.

    Raises ValueError for what is neither.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = [parse_network(text) for text in trusted]

    def client(self, peer: str | None, forwarded: Iterable[str] = ()) -> Address | None:
        """The client's address; None when it has none (a Unix socket).

        `peer` is the other end of the connection, `forwarded` the values of all X-Forwarded-For headers, in order.
        An entry that is no address ends the search: the client is then the proxy that wrote it down.
        """
        found = _parse(peer or "")
        if found is None or not self._trusts(found):
            return found
        entries = [entry for value in forwarded for entry in value.split(",")]
        for entry in reversed(entries[-MAX_HOPS:]):
            address = _parse(entry)
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return found

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def counted_as(address: Address | None) -> str:
    """The text that a client is counted by: an IPv4 address, or the /64 network of an IPv6 address."""
    if isinstance(address, IPv6Address):
        bits = 128 - IPV6_PREFIX
        return f"{IPv6Address(int(address) >> bits << bits)}/{IPV6_PREFIX}"
    return "unknown" if address is None else str(address)


def _parse(text: str) -> Address | None:
    """An address as it stands in X-Forwarded-For, perhaps with a port: `1.2.3.4:80`, `[::1]:80`."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        # Without the zone: `fe80::1%eth0` and `fe80::1` are one client.
        return IPv6Address(int(address))
    return address
