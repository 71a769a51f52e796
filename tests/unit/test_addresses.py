"""Client addresses behind proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.addresses import Proxies, counted_as, parse_network

PROXY, OTHER = "10.0.0.1", "10.0.0.2"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # Nobody is believed but trusted proxies.
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        (PROXY, ["198.51.100.1"], "198.51.100.1"),
        # What the client sent itself stands further left.
        (PROXY, ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        (PROXY, ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        (PROXY, [f"{PROXY}, 198.51.100.1"], "198.51.100.1"),
        (PROXY, [f"198.51.100.1, {OTHER}"], "198.51.100.1"),
        (PROXY, [f"1.1.1.1, 198.51.100.1, {OTHER}, {PROXY}"], "198.51.100.1"),
        # Only proxies: the farthest of them asks for itself.
        (PROXY, [OTHER], OTHER),
        (PROXY, [], PROXY),
        (PROXY, [""], PROXY),
        # What is no address ends the search.
        (PROXY, ["198.51.100.1, unknown"], PROXY),
        (PROXY, [f"198.51.100.1, unknown, {OTHER}"], OTHER),
        # Forms.
        (PROXY, ["198.51.100.1:4711"], "198.51.100.1"),
        (PROXY, ["[2001:db8::1]:4711"], "2001:db8::1"),
        (PROXY, ['"[2001:db8::1]"'], "2001:db8::1"),
        (PROXY, ["2001:db8::1"], "2001:db8::1"),
        (PROXY, ["::ffff:198.51.100.1"], "198.51.100.1"),
        (f"::ffff:{PROXY}", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::5", ["198.51.100.1"], "198.51.100.1"),
        ("fe80::1%eth0", [], "fe80::1"),
        (None, ["198.51.100.1"], None),
    ],
)
def test_the_client_is_the_rightmost_that_is_no_proxy(peer: str | None, forwarded: list[str], client: str) -> None:
    found = Proxies(["10.0.0.0/30", "fd00::/8"]).client(peer, forwarded)
    assert (None if found is None else str(found)) == client


def test_by_default_nobody_is_believed() -> None:
    assert str(Proxies().client("127.0.0.1", ["198.51.100.1"])) == "127.0.0.1"


def test_only_the_last_entries_are_looked_at() -> None:
    assert str(Proxies([PROXY]).client(PROXY, [", ".join(["1.1.1.1"] + [PROXY] * 5000)])) == PROXY


def test_ipv6_clients_are_counted_by_network() -> None:
    proxies = Proxies()
    first, same, other = (
        counted_as(proxies.client(text)) for text in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1")
    )
    assert first == same == "2001:db8:1:2::/64"
    assert other != first
    assert counted_as(proxies.client("198.51.100.1")) == counted_as(proxies.client("::ffff:198.51.100.1"))
    assert counted_as(None) == "unknown"


@pytest.mark.parametrize("text", ["", "proxy", "10.0.0.0/33", "10.0.0", "*"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address or network"):
        parse_network(text)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_header_gives_an_address(forwarded: list[str]) -> None:
    assert Proxies([PROXY]).client(PROXY, forwarded) is not None
