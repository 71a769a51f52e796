"""The built-in channels: which channel types a user has switched on, and how.

A write needs no call of resubscribe: subscription rules see the row change in the log, on every replica.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import psycopg
from psycopg_pool import PoolClosed, PoolTimeout
from starlette.requests import Request
from starlette.responses import Response

from rowcast.core.grants import Grant
from rowcast.errors import BadRequest, NotFound, SetupError, Unavailable
from rowcast.http.bodies import OVERHEAD, compact, read_json
from rowcast.http.responses import Conflict, json
from rowcast.telemetry.journal import get_logger, words

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

logger = get_logger(__name__)

# As text: numbers keep the digits that they were written with.
_COLUMNS = "channel_type, enabled, config::text"
_EMPTY = msgspec.Raw(b"{}")

MAX_TYPE = 128
"""Characters of a channel's type."""

# Makes of one user come one after the other, so that each counts what the one before it made. The lock is a statement
# of its own: the count must be read in a snapshot from after it was had.
_LOCK = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"
_LOCK_CLASS = 0x726F7763  # "rowc"

_INSERT = (
    "INSERT INTO rowcast_channels (user_id, channel_type, enabled, config)"
    " SELECT %(user)s, %(type)s, %(enabled)s, %(config)s::jsonb"
    " WHERE (SELECT count(*) FROM rowcast_channels WHERE user_id = %(user)s) < %(most)s"
    " OR EXISTS (SELECT FROM rowcast_channels WHERE user_id = %(user)s AND channel_type = %(type)s)"
)

_UNFIT = re.compile(r"[\x00-\x1f\x7f/]")


class Channel(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. `config` is any JSON object."""

    channel_type: str
    enabled: bool = True
    config: msgspec.Raw = _EMPTY


class ChannelChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a PUT; the type stands in the path, and may be repeated."""

    channel_type: str | None = None
    enabled: bool = True
    config: msgspec.Raw = _EMPTY


async def ensure_channels(connection: psycopg.AsyncConnection[Any], wanted: bool | None) -> bool:
    """Create the table. Returns whether it is there.

    `wanted` None: it is no error if this role may not create it. Raises `SetupError` with the SQL otherwise.
    """
    if wanted is False:
        return False
    cursor = await connection.execute("SELECT to_regclass('rowcast_channels') IS NOT NULL")
    row = await cursor.fetchone()
    if row is not None and row[0]:
        return True
    statement = files("rowcast.http").joinpath("channels_table.sql").read_text()
    try:
        await connection.execute(statement.encode())
    except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject):
        return True  # another replica that starts now was quicker
    except psycopg.errors.InsufficientPrivilege as error:
        if wanted is None:
            return False
        raise SetupError(
            f"the table rowcast_channels is missing, and this role may not create it ({error}); run, as its "
            f"owner: {' '.join(line for line in statement.splitlines() if not line.startswith('--'))}"
        ) from None
    return True


async def channels(request: Request) -> Response:
    """GET: the user's channels. POST: a new one, 201, or 409 when it is there."""
    cast: Rowcast = request.app.state.cast
    grant = await request.app.state.authenticate(request)
    if request.method != "POST":
        rows = await _rows(
            cast,
            f"SELECT {_COLUMNS} FROM rowcast_channels WHERE user_id = %s ORDER BY channel_type",
            [grant.user],
        )
        return json([_channel(row) for row in rows])
    body = await read_json(request, Channel, cast.config.server.max_event + OVERHEAD)
    arguments = _arguments(cast, grant, _type(body.channel_type), body)
    statement = f"{_INSERT} ON CONFLICT DO NOTHING RETURNING {_COLUMNS}"
    rows = await _rows(cast, statement, arguments, one_of=grant.user)
    if not rows:
        same = "SELECT 1 FROM rowcast_channels WHERE user_id = %s AND channel_type = %s"
        if await _rows(cast, same, [grant.user, body.channel_type]):
            raise Conflict(f"the channel {body.channel_type!r} exists already; change it by PUT")
        raise _too_many(cast)
    where = {"location": f"{request.url.path}/{quote(body.channel_type, safe='')}"}
    return json(_channel(rows[0]), 201, where)


async def channel(request: Request) -> Response:
    """GET, PUT (whole; 201 when it is new) and DELETE (204) of one channel."""
    cast: Rowcast = request.app.state.cast
    grant = await request.app.state.authenticate(request)
    kind = _type(request.path_params["type"])
    if request.method == "PUT":
        return await _put(request, cast, grant, kind)
    if request.method == "DELETE":
        statement = f"DELETE FROM rowcast_channels WHERE user_id = %s AND channel_type = %s RETURNING {_COLUMNS}"
    else:
        statement = f"SELECT {_COLUMNS} FROM rowcast_channels WHERE user_id = %s AND channel_type = %s"
    rows = await _rows(cast, statement, [grant.user, kind])
    if not rows:
        raise NotFound(f"there is no channel {kind!r}")
    return Response(status_code=204) if request.method == "DELETE" else json(_channel(rows[0]))


async def _put(request: Request, cast: Rowcast, grant: Grant, kind: str) -> Response:
    body = await read_json(request, ChannelChange, cast.config.server.max_event + OVERHEAD)
    if body.channel_type not in (None, kind):
        raise BadRequest(f"the body's channel_type {body.channel_type!r} is not the path's {kind!r}")
    rows = await _rows(
        cast,
        f"{_INSERT} ON CONFLICT (user_id, channel_type) DO UPDATE SET enabled = excluded.enabled,"
        f" config = excluded.config, updated_at = now() RETURNING {_COLUMNS}, xmax = 0",
        _arguments(cast, grant, kind, body),
        one_of=grant.user,
    )
    if not rows:
        raise _too_many(cast)
    return json(_channel(rows[0]), 201 if rows[0][3] else 200)


def _arguments(cast: Rowcast, grant: Grant, kind: str, body: Channel | ChannelChange) -> dict[str, Any]:
    return {
        "user": grant.user,
        "type": kind,
        "enabled": body.enabled,
        "config": _config(body.config),
        "most": cast.config.channels.max_per_user,
    }


def _too_many(cast: Rowcast) -> Conflict:
    most = cast.config.channels.max_per_user
    return Conflict(f"you have {most} channels, as many as a user may have; delete one ([channels] max_per_user)")


async def _rows(
    cast: Rowcast, statement: str, arguments: list[Any] | dict[str, Any], *, one_of: str | None = None
) -> list[tuple[Any, ...]]:
    """Execute a statement. `one_of`: a user, of whom such statements are executed one after the other, everywhere."""
    replica = cast.replica
    if replica.pool is None or not replica.channels:
        raise NotFound("channels are off here: they need [postgres], and [channels] enabled = true")
    try:
        async with replica.pool.connection() as connection:
            if one_of is None:
                cursor = await connection.execute(statement.encode(), arguments)
            else:
                # One round trip and one transaction: Postgres documentation, "Pipeline Mode", and of the protocol
                # "Pipelining".
                async with connection.pipeline():
                    await connection.execute(_LOCK, [_LOCK_CLASS, one_of])
                    cursor = await connection.execute(statement.encode(), arguments)
            return await cursor.fetchall()
    except psycopg.errors.DataError as error:
        raise BadRequest(f"Postgres can't store it: {_line(error)}") from None
    except (psycopg.OperationalError, PoolTimeout, PoolClosed) as error:
        raise Unavailable("Postgres can't be reached", what="postgres") from error
    except psycopg.Error as error:
        # Read-only since a failover, a right or the table taken away: it is the operator's to mend.
        logger.error("channels_unusable", "the channel table can't be used: %s", words(error))
        raise Unavailable(
            "the channel table can't be used now; the log of this replica says why", what="postgres"
        ) from error


def _type(value: str) -> str:
    """Check a channel's type: it must fit into a path. Raises `BadRequest`."""
    if not 0 < len(value) <= MAX_TYPE or _UNFIT.search(value):
        raise BadRequest(f"channel_type must have 1 to {MAX_TYPE} characters, no slash and no control characters")
    return value


def _config(text: msgspec.Raw) -> str:
    """The JSON text of a config. Raises `BadRequest` when it is no object."""
    compacted = bytes(compact(text))
    if not compacted.startswith(b"{"):
        raise BadRequest("config must be a JSON object")
    return compacted.decode()


def _channel(row: tuple[Any, ...]) -> dict[str, Any]:
    return {"channel_type": row[0], "enabled": row[1], "config": msgspec.Raw(row[2].encode())}


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
