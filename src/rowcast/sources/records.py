"""Records: changes as a webhook tells them, and how they become changes that the router takes.

What comes by webhook has no Relation message and no text form of Postgres, but JSON. So a record becomes a change
of a relation made up for its shape, whose columns are of type json, each holding the JSON text of its value: it is
routed, and then sent, with all its digits. Integers are bigint, whatever their length, so that the route's `numeric`
says how those are written that a double can't hold.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec

from rowcast.core.change import UNCHANGED, Action, Change, Column, RawTuple, Relation
from rowcast.core.position import MINOR_SPACING
from rowcast.errors import BadRequest

JsonRow = dict[str, msgspec.Raw]
"""A row as it is sent: for each column the JSON text of its value."""

ToldRow = Mapping[str, msgspec.Raw | None]
"""A row as it is known: None for a column whose value did not come along."""

MAX_RECORDS = 10_000
"""Records that one delivery may hold."""

MAX_SHAPES = 1_000
"""Relations that are kept; of those used longest ago the router makes its plan anew."""

FIRST_OID = 1 << 32
"""Above every oid of Postgres's, so that no made-up relation is taken for a real one."""

_JSON, _BIGINT = 114, 20
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_MAX_DIGITS = 4000
"""Python reads integers of up to 4,300 digits (sys.int_info.default_max_str_digits)."""


class Record(msgspec.Struct, frozen=True):
    """One change.

    `new` and `old` are the rows after and before it, as far as they are told. `partial`: `old` holds the columns
    of the replica identity only. `commit_time` is in microseconds since the Unix epoch (None: not told). `key`
    tells a record that is delivered again; "" when nothing does.
    """

    action: Action
    schema: str
    table: str
    new: ToldRow | None
    old: ToldRow | None
    partial: bool = False
    commit_time: int | None = None
    key: str = ""

    @property
    def name(self) -> str:
        """`schema.table`."""
        return f"{self.schema}.{self.table}"


class SignedMessage(msgspec.Struct, frozen=True):
    """The content of a logical message with our prefix: something that `publish_sql` put into the WAL."""

    content: bytes


class Refused(msgspec.Struct, frozen=True):
    """A record that can't be taken: the how-manieth of its delivery, from 0, and why."""

    index: int
    reason: str


class Delivery(msgspec.Struct):
    """What one request brought: the records in order, those refused, and how many are of no concern to us."""

    records: list[Record | SignedMessage] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)
    ignored: int = 0


class RecordError(ValueError):
    """A record that can't be taken. The message says why."""


def split(body: bytes) -> list[msgspec.Raw]:
    """The records of a body: one object, an array, or `{"data": [...]}`.

    Raises `BadRequest` for anything else.
    """
    try:
        body.decode()  # what is passed on as it is would not be checked for this
        if body.lstrip(b" \t\r\n").startswith(b"["):
            records = msgspec.json.decode(body, type=list[msgspec.Raw])
        else:
            whole = msgspec.json.decode(body, type=JsonRow)
            if bytes(whole.get("data", b"")).startswith(b"[") and "record" not in whole:
                records = msgspec.json.decode(whole["data"], type=list[msgspec.Raw])
            else:
                records = [msgspec.Raw(body)]
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is no UTF-8: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deep") from None
    except msgspec.ValidationError:
        raise BadRequest('the body must be a record, an array of records, or {"data": [records]}') from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is no JSON: {error}") from None
    if len(records) > MAX_RECORDS:
        raise BadRequest(f"the body holds {len(records)} records; at most {MAX_RECORDS} are taken: send less at once")
    return records


class Shapes:
    """Makes changes of records. `needed` names for each `schema.table` the columns that its routes want.

    Relations are kept and used again, since the router's plans go by them.
    """

    def __init__(self, needed: Mapping[str, Iterable[str]]) -> None:
        self._needed = {table: tuple(sorted(columns)) for table, columns in needed.items()}
        self._relations: OrderedDict[object, Relation] = OrderedDict()

    def change(self, record: Record) -> Change:
        """The change that a record tells of. A column that a route wants and the record lacks is UNCHANGED."""
        new, old = record.new, record.old
        known = dict.fromkeys([*(new or ()), *(old or ())])
        names = dict.fromkeys([*known, *self._needed.get(record.name, ())])
        columns = tuple(
            (name, _type_of(name, new, old), bool(record.partial and old and name in old)) for name in names
        )
        return Change(
            record.action,
            self._relation(record, columns),
            None if new is None else _raw(new, names),
            None if old is None else _raw(old, names),
            old_is_key=record.partial,
            place=(0, MINOR_SPACING),
            commit_time=round(time.time() * 1e6) if record.commit_time is None else record.commit_time,
        )

    def _relation(self, record: Record, columns: tuple[tuple[str, int, bool], ...]) -> Relation:
        shape = (record.name, columns)
        relation = self._relations.get(shape)
        if relation is None:
            oid = FIRST_OID + len(self._relations)
            if len(self._relations) >= MAX_SHAPES:
                oid = self._relations.popitem(last=False)[1].oid
            made = tuple(Column(name, type_oid, key=key) for name, type_oid, key in columns)
            identity = "d" if record.partial else "f"
            relation = self._relations[shape] = Relation(oid, record.schema, record.table, identity, made)
        self._relations.move_to_end(shape)
        return relation


def _raw(row: ToldRow, names: Iterable[str]) -> RawTuple:
    values: list[object] = []
    for name in names:
        value = row.get(name)
        text = UNCHANGED if value is None else bytes(value)
        values.append(None if text == b"null" else text)
    return tuple(values)  # type: ignore[arg-type]  # bytes, None or UNCHANGED, as just made


def _type_of(name: str, *rows: ToldRow | None) -> int:
    """The type of a column: bigint where all values that are told of are integers, else json."""
    longest = 0
    for row in rows:
        raw = None if row is None else row.get(name)
        value = b"null" if raw is None else bytes(raw)
        if value != b"null":
            if not _INTEGER.fullmatch(value):
                return _JSON
            longest = max(longest, len(value))
    return _BIGINT if 0 < longest <= _MAX_DIGITS else _JSON
