"""Webhooks: changes that Sequin or Debezium Server send, into the log through the same routes as the WAL's.

An answer in the 2xx says that everything is in the log. Both senders send again whatever was answered otherwise,
or not in time; what is in the log already is not appended again.
"""

from __future__ import annotations

import hmac
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rowcast.auth.webhooks import parse_secret, verify
from rowcast.deliveries import Deliveries, MemoryDeliveries
from rowcast.errors import AuthError, BadRequest, Forbidden, TooLarge
from rowcast.http.bodies import read_body
from rowcast.http.responses import error, json
from rowcast.intake import Intake
from rowcast.logs.messages import Messages
from rowcast.sections import Webhook
from rowcast.sources import debezium as from_debezium
from rowcast.sources import sequin as from_sequin
from rowcast.sources.records import Delivery

if TYPE_CHECKING:
    from rowcast.cast import Rowcast
    from rowcast.config import Config
    from rowcast.replica import Replica

MAX_BODY = 8 << 20
"""Bytes of a request's body, as it is sent and after it was decompressed."""

MAX_REASONS = 100
"""Refused records that an answer names."""

_GZIP = 16 + zlib.MAX_WBITS


class Webhooks:
    """What the webhooks of an application share. `deliveries` remembers what is in a log that does not do so itself."""

    def __init__(self, cast: Rowcast, deliveries: Deliveries | None = None) -> None:
        self._cast = cast
        self._deliveries = deliveries if deliveries is not None else MemoryDeliveries()
        self._made: tuple[Replica, Config, Intake] | None = None
        self._refused = 0
        cast.metrics.poisoned_by(lambda: self.poisoned)

    @property
    def intake(self) -> Intake:
        """The way into the log of the replica that runs now."""
        replica = self._cast.replica
        config = self._cast.config
        if self._made is None or self._made[0] is not replica or self._made[1] is not config:
            self._refused = self.poisoned
            # With a database of our own, its WAL brings the logical messages.
            messages = None if config.postgres is not None else Messages(config.signing_secret)
            self._made = (
                replica,
                config,
                Intake(
                    replica.router.routes,
                    self._cast.append,
                    None if replica.log.remembers else self._deliveries,
                    messages,
                    envelope=config.server.envelope,
                    max_event=config.server.max_event,
                ),
            )
        return self._made[2]

    @property
    def poisoned(self) -> int:
        """Records that could not be taken, and those that a route could not deal with."""
        return self._refused + (0 if self._made is None else self._made[2].router.poisoned)

    def refuse(self, records: int) -> None:
        """So many records could not be taken."""
        self._refused += records

    @property
    def problems(self) -> list[str]:
        """What went wrong with records and still matters, for the operator."""
        return [] if self._made is None else self._made[2].router.problems


async def sequin(request: Request) -> Response:
    """POST /webhooks/sequin: by the secret as a bearer token."""
    cast: Rowcast = request.app.state.cast
    section = cast.config.webhooks.sequin
    secret = _secret(section, "sequin")
    _check_bearer(request, secret)
    return await _take(request, _inflate(request, await read_body(request, MAX_BODY)), from_sequin.parse)


async def debezium(request: Request) -> Response:
    """POST /webhooks/debezium: signed, when the secret begins with whsec_; else by the secret as a bearer token."""
    cast: Rowcast = request.app.state.cast
    section = cast.config.webhooks.debezium
    secret = _secret(section, "debezium")
    key = parse_secret(secret)
    if key is None:
        _check_bearer(request, secret)
    body = await read_body(request, MAX_BODY)
    if key is not None:
        verify(key, request.headers, body, now=time.time())
    return await _take(request, _inflate(request, body), from_debezium.parse)


async def _take(request: Request, body: bytes, parse: Callable[[bytes], Delivery]) -> Response:
    webhooks: Webhooks = request.app.state.webhooks
    delivery = parse(body)
    taken = await webhooks.intake.take(delivery)
    refused = delivery.refused
    webhooks.refuse(len(refused))
    if refused:
        total = taken.records + len(refused) + delivery.ignored
        rest = "; the others are in the log" if taken.records else ""
        return error(
            400,
            f"{len(refused)} of {total} records can't be taken, see records{rest}",
            records=refused[:MAX_REASONS],
        )
    return json(
        {
            "records": taken.records,
            "appended": taken.appended,
            "repeated": taken.repeated,
            "ignored": delivery.ignored,
        }
    )


def _secret(section: Webhook | None, name: str) -> str:
    if section is None:
        raise Forbidden(f"this webhook is off: set [webhooks.{name}] secret, and have the sender use it")
    return section.secret.get_secret_value()


def _check_bearer(request: Request, secret: str) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), secret.encode()):
        raise AuthError("this webhook needs its secret: send Authorization: Bearer <secret>")


def _inflate(request: Request, body: bytes) -> bytes:
    """The body as it was before it was compressed. Raises `BadRequest` or `TooLarge`."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip"):
        raise HTTPException(415, f"content-encoding {coding[:40]!r} is not taken: send gzip, or none")
    inflated = bytearray()
    try:
        while True:
            member = zlib.decompressobj(_GZIP)
            # One byte more than is allowed tells that there would be more, without making it.
            inflated += member.decompress(body, MAX_BODY + 1 - len(inflated))
            if len(inflated) > MAX_BODY:
                raise TooLarge(f"the body has over {MAX_BODY} bytes decompressed, which is all that is accepted")
            if not member.eof:
                raise BadRequest("the body's gzip is cut short")
            # RFC 1952, section 2.2: members may follow each other.
            body = member.unused_data
            if not body:
                return bytes(inflated)
    except zlib.error as broken:
        raise BadRequest(f"the body is no gzip: {broken}") from None
