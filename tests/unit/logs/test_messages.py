"""Logical messages: signed, read back, and safe in every driver."""

from __future__ import annotations

import hashlib
import hmac
import re

import msgspec
import pytest

from rowcast.core.change import Message
from rowcast.core.entry import Kind
from rowcast.errors import ConfigError
from rowcast.logs.messages import PREFIX, Messages
from rowcast.ports import Draft

SECRET = b"0123456789abcdef"
DATA = Draft(topic="finance:AAPL", data=b'{"price":1.50}', event="price", key="AAPL")


def message(content: bytes, prefix: str = PREFIX) -> Message:
    return Message(prefix, content, (100, 1 << 20), 7, 1_700_000_000_000_000)


def test_what_was_composed_is_read() -> None:
    messages = Messages(SECRET)
    nonce, content = messages.compose(DATA)
    read = messages.read(message(content))
    assert read is not None
    assert read[0] == nonce
    entry = read[1]
    assert entry.kind is Kind.DATA
    assert (entry.topic, entry.event, entry.key) == ("finance:AAPL", "price", "AAPL")
    assert (entry.place, entry.xid, entry.time) == ((100, 1 << 20), 0, 1_700_000_000_000_000)
    assert entry.body.encode(1000) == b'{"topic":"finance:AAPL","data":{"price":1.50},"key":"AAPL"}'


@pytest.mark.parametrize("action", ["resubscribe", "disconnect"])
def test_control_is_read(action: str) -> None:
    messages = Messages(SECRET)
    _, content = messages.compose(Draft(control=action, user="ann"))  # type: ignore[arg-type]
    read = messages.read(message(content))
    assert read is not None
    assert read[1].kind is Kind.CONTROL
    assert (read[1].body.action, read[1].body.user) == (action, "ann")
    assert read[1].body.at > 1_700_000_000


def test_nothing_is_data_too() -> None:
    messages = Messages(SECRET)
    read = messages.read(message(messages.compose(Draft(topic="t"))[1]))
    assert read is not None
    assert read[1].body.encode(1000) == b'{"topic":"t","data":null}'


def test_nonces_differ() -> None:
    messages = Messages(SECRET)
    assert len({messages.compose(DATA)[0] for _ in range(100)}) == 100


def test_the_form_on_the_wire() -> None:
    """Replicas of other versions read it: the names of the fields and the signature are fixed."""
    _, content = Messages(SECRET).compose(DATA)
    signature, text = content[:64], content[65:]
    key = hmac.digest(SECRET, b"rowcast logical message", "sha256")
    assert signature == hmac.new(key, text, hashlib.sha256).hexdigest().encode()
    fields = msgspec.json.decode(text)
    assert {name: fields[name] for name in ("v", "k", "t", "d", "e", "key")} == {
        "v": 1,
        "k": "data",
        "t": "finance:AAPL",
        "d": {"price": 1.5},
        "e": "price",
        "key": "AAPL",
    }
    assert set(fields) == {"v", "n", "k", "t", "d", "e", "key", "at"}


def signed(text: bytes) -> bytes:
    key = hmac.digest(SECRET, b"rowcast logical message", "sha256")
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode() + b" " + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"0" * 64,
        b"0" * 64 + b' {"v":1,"n":"1","k":"disconnect","u":"ann","at":1}',
        "ü".encode() * 40,
        Messages(b"another secret..").compose(DATA)[1],
        Messages(SECRET).compose(DATA)[1][:-1],
        Messages(SECRET).compose(DATA)[1] + b" ",
        signed(b"not json"),
        signed(b'{"v":1,"n":"1","k":"drop","at":1}'),
        signed(b'{"v":2,"n":"1","k":"data","at":1}'),
    ],
)
def test_what_is_not_ours_is_refused_and_counted(content: bytes) -> None:
    messages = Messages(SECRET)
    assert messages.read(message(content)) is None
    assert messages.refused == 1


def test_other_prefixes_are_none_of_our_business() -> None:
    messages = Messages(SECRET)
    content = messages.compose(DATA)[1]
    assert messages.read(message(content, "rowcast.mark")) is None
    assert messages.read(message(content, "another")) is None
    assert messages.refused == 0


def test_without_a_secret_nothing_is_composed_and_nothing_accepted() -> None:
    messages = Messages(None)
    with pytest.raises(ConfigError, match=r"set \[api\] key"):
        messages.compose(DATA)
    assert messages.read(message(Messages(SECRET).compose(DATA)[1])) is None
    assert messages.refused == 1


def test_a_statement_holds_nothing_that_a_driver_takes_for_a_placeholder() -> None:
    draft = Draft(topic="100%s :name $1 ?", data=b'{"quote":"\'; DROP TABLE x; -- \\\\ %(a)s"}')
    statement = Messages(SECRET).statement(draft)
    found = re.fullmatch(
        r"SELECT pg_logical_emit_message\(true, 'rowcast', decode\('([0-9a-f]+)', 'hex'\)\)", statement
    )
    assert found is not None
    read = Messages(SECRET).read(message(bytes.fromhex(found[1])))
    assert read is not None
    assert read[1].topic == draft.topic
