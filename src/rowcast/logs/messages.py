"""Logical messages: how publishing and control travel in the WAL, signed.

Any role may emit logical messages, even a read-only one; without a signature anybody who can connect could
forge a "disconnect". A message is the hexadecimal HMAC-SHA256 of its text, a space, and the text: JSON with
short names.

Source: Postgres documentation, section 9.28.6 "Replication Management Functions", pg_logical_emit_message.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Literal

import msgspec

from rowcast.core.body import body_of
from rowcast.core.change import Message
from rowcast.core.entry import Control, Entry, Kind
from rowcast.errors import ConfigError
from rowcast.ports import Draft

PREFIX = "rowcast"
"""The prefix of messages that become entries."""

MARK = "rowcast.mark"
"""The prefix of messages that only move the head on."""

_VERSION = 1
_SIGNATURE = 64


_NULL = msgspec.Raw(b"null")
_NAMES = {
    "version": "v",
    "nonce": "n",
    "kind": "k",
    "topic": "t",
    "data": "d",
    "event": "e",
    "user": "u",
    "form": "f",
    "trace": "w",
}


class _Text(msgspec.Struct, omit_defaults=True, kw_only=True, rename=_NAMES):
    version: int
    nonce: str
    kind: Literal["data", "resubscribe", "disconnect"]
    at: float
    topic: str = ""
    data: msgspec.Raw = _NULL
    event: str | None = None
    key: str | None = None
    user: str = ""
    form: Literal["data", "event", "sweep"] = "data"
    interval: int = 0
    trace: str = ""


_decode = msgspec.json.Decoder(_Text).decode
_encode = msgspec.json.Encoder().encode


class Messages:
    """Makes and verifies messages. `secret` None: none can be made, and none is accepted."""

    def __init__(self, secret: bytes | None) -> None:
        self._key = None if secret is None else _key(secret)
        self._keys = [] if self._key is None else [self._key]
        self.refused = 0
        """Messages with our prefix that were not signed by us, or that a later version wrote."""

    def accept(self, secret: bytes | None) -> None:
        """Take messages, too, that are signed with this secret. Ours go on being signed as they were, so that replicas
        which do not know of it yet take them."""
        if secret is not None and (key := _key(secret)) not in self._keys:
            self._keys.append(key)
            self._key = self._key or key

    def compose(self, draft: Draft) -> tuple[str, bytes]:
        """A nonce by which the message can be recognised, and its content.

        Raises `ConfigError` when there is nothing to sign with.
        """
        nonce = secrets.token_hex(8)
        text = _Text(
            version=_VERSION,
            nonce=nonce,
            kind=draft.control or "data",
            at=draft.at or time.time(),
            topic=draft.topic,
            data=msgspec.Raw(draft.data) if draft.data else _NULL,
            event=draft.event,
            key=draft.key,
            user=draft.user,
            form=draft.form,
            interval=draft.interval,
            trace=draft.trace,
        )
        encoded = _encode(text)
        return nonce, self._sign(encoded) + b" " + encoded

    def statement(self, draft: Draft) -> str:
        """A SQL statement that emits the message as part of a transaction.

        The content is written in hexadecimal, so that no driver finds a placeholder in it.
        """
        _, content = self.compose(draft)
        return f"SELECT pg_logical_emit_message(true, '{PREFIX}', decode('{content.hex()}', 'hex'))"

    def read(self, message: Message) -> tuple[str, Entry] | None:
        """The nonce and the entry of a message; None when it is not ours or not signed by us."""
        if message.prefix != PREFIX:
            return None
        read = self._verified(message.content)
        return None if read is None else (read.nonce, _entry(read, message))

    def draft(self, content: bytes) -> tuple[str, Draft] | None:
        """The nonce of a message's content, and the draft that it was made of; None when we did not sign it."""
        read = self._verified(content)
        if read is None:
            return None
        draft = Draft(
            topic=read.topic,
            data=bytes(read.data),
            event=read.event,
            key=read.key,
            control=None if read.kind == "data" else read.kind,
            user=read.user,
            form=read.form,
            interval=read.interval,
            trace=read.trace,
        )
        return read.nonce, draft

    def _verified(self, content: bytes) -> _Text | None:
        signature, text = content[:_SIGNATURE], content[_SIGNATURE + 1 :]
        if not any(hmac.compare_digest(signature, _signed(text, key)) for key in self._keys):
            self.refused += 1
            return None
        try:
            read = _decode(text)
        except msgspec.DecodeError:
            self.refused += 1
            return None
        if read.version != _VERSION:
            self.refused += 1
            return None
        return read

    def _sign(self, text: bytes) -> bytes:
        if self._key is None:
            raise ConfigError("publishing and control need something to sign with: set [api] key")
        return _signed(text, self._key)


def _key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"rowcast logical message", "sha256")


def _signed(text: bytes, key: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode()


def _entry(read: _Text, message: Message) -> Entry:
    if read.kind == "data":
        body = body_of(read.form, read.topic, bytes(read.data), read.key, read.trace)
        return Entry(
            Kind.SWEEP if read.form == "sweep" else Kind.DATA,
            message.place,
            body,
            topic=read.topic,
            key=read.key,
            event=read.event,
            time=message.commit_time,
            interval=read.interval,
        )
    control = Control(read.kind, read.user, read.at)
    return Entry(Kind.CONTROL, message.place, control, xid=message.xid, time=message.commit_time)
