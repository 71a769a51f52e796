"""Values: from the text that Postgres writes to Python, and on to JSON.

| Postgres | Python | JSON |
| --- | --- | --- |
| boolean | bool | true, false |
| smallint, integer, oid | int | number |
| bigint | int | number; a string beyond ±(2^53 − 1), which a double can't hold |
| real, double precision | float | number; "NaN", "Infinity", "-Infinity" as strings |
| numeric | Decimal | string, as Postgres writes it; with `numeric = "number"` a number |
| json, jsonb | parsed; fractions as Decimal, so that no digit is lost | itself |
| timestamptz | str | RFC 3339 in UTC, "2026-01-02T03:04:05.678Z" |
| timestamp, date, time, timetz | str | RFC 3339's form, without an offset where the type has none |
| interval | str | ISO 8601, "P1DT2H" |
| bytea | str | "\\x" and hexadecimal digits |
| arrays | list (of lists), elements as above | array |
| everything else (uuid, inet, ranges, geometry, enums, text search, …) | str | as Postgres writes it |

"infinity" and years before Christ stay as Postgres writes them. A domain is what its base type is.

Every connection that rows are read through sets SESSION_OPTIONS, so that the same row decodes to equal
values whether it was read by SQL in text form or came in the WAL.

Source: Postgres documentation, chapter 8 "Data Types", and section 8.15.6 for the syntax of arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal, Protocol

import msgspec

SESSION_OPTIONS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
}
"""Session settings that make the text form of a value the same everywhere."""

Numeric = Literal["string", "number"]

MAX_SAFE_INTEGER = 2**53 - 1
"""The largest integer that a JSON reader with doubles surely keeps (RFC 8259, section 6)."""


class Typed(Protocol):
    """What `decode` needs to know of a column."""

    @property
    def type_oid(self) -> int:
        """The type's oid."""
        ...

    @property
    def type_name(self) -> str:
        """The type's name if it is not built in, else ""."""
        ...


_Decode = Callable[[str], Any]


class JsonNumber(Decimal):
    """A number with a fraction inside a json value: a Decimal that stays a number on the wire."""

    __slots__ = ()


class JsonList(list[Any]):
    """A json array, as opposed to a Postgres array: its numbers stay numbers."""

    __slots__ = ()


_json_decode = msgspec.json.Decoder(float_hook=JsonNumber).decode

_YEAR = re.compile(r"\d{4,6}-\d\d-\d\d", re.ASCII)


def _timestamp(text: str) -> str:
    # Infinity and years before Christ have no RFC 3339 form.
    return text.replace(" ", "T", 1) if _YEAR.match(text) and not text.endswith("BC") else text


def _timestamptz(text: str) -> str:
    return _timestamp(text).removesuffix("+00") + "Z" if text.endswith("+00") else text


def _timetz(text: str) -> str:
    """`12:00:00+02` as `12:00:00+02:00`: RFC 3339 wants the minutes of an offset."""
    return text + ":00" if len(text) > 3 and text[-3] in "+-" else text


def _text(text: str) -> str:
    return text


def _json(text: str) -> Any:
    value = _json_decode(text)
    return JsonList(value) if type(value) is list else value


def _bool(text: str) -> bool:
    return text == "t"


_SCALARS: dict[str, tuple[int, int, _Decode]] = {
    # name: (oid, oid of its array, decoder), from pg_type.dat
    "bool": (16, 1000, _bool),
    "int2": (21, 1005, int),
    "int4": (23, 1007, int),
    "int8": (20, 1016, int),
    "oid": (26, 1028, int),
    "float4": (700, 1021, float),
    "float8": (701, 1022, float),
    "numeric": (1700, 1231, Decimal),
    "json": (114, 199, _json),
    "jsonb": (3802, 3807, _json),
    "timestamp": (1114, 1115, _timestamp),
    "timestamptz": (1184, 1185, _timestamptz),
    "timetz": (1266, 1270, _timetz),
}

_TEXT_ARRAYS = (
    *(1001, 1002, 1003, 1006, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015, 1017, 1018, 1019, 1020, 1027),
    *(143, 271, 629, 651, 719, 775, 791, 1034, 1040, 1041, 1182, 1183, 1187, 1263, 1561, 1563, 2201),
    *(2207, 2208, 2209, 2210, 2211, 2949, 2951, 3221, 3643, 3644, 3645, 3735, 3770, 3905, 3907, 3909),
    *(3911, 3913, 3927, 4073, 4090, 4097, 5039, 6150, 6151, 6152, 6153, 6155, 6157),
)
"""Arrays whose elements stay text."""

_BOX_ARRAY = 1020
"""Elements of a box array are separated by a semicolon (pg_type.typdelim)."""

_BY_OID: dict[int, _Decode] = {oid: decoder for oid, _, decoder in _SCALARS.values()}
_ELEMENTS: dict[int, _Decode] = {array: decoder for _, array, decoder in _SCALARS.values()} | dict.fromkeys(
    _TEXT_ARRAYS, _text
)
_BY_NAME: dict[str, _Decode] = {name: decoder for name, (_, _, decoder) in _SCALARS.items()}

_FIRST_USER_OID = 16384


def decode(column: Typed, value: bytes) -> Any:
    """The Python value of a column's text form (see the table above).

    Raises ValueError when the text is none of its type.
    """
    text = value.decode()
    oid = column.type_oid
    decoder = _BY_OID.get(oid)
    if decoder is not None:
        return decoder(text)
    element = _ELEMENTS.get(oid)
    if element is not None:
        return decode_array(text, element, ";" if oid == _BOX_ARRAY else ",")
    name = column.type_name
    if oid >= _FIRST_USER_OID and name:
        if name.startswith("_") and text[:1] in ("{", "["):
            return decode_array(text, _BY_NAME.get(name[1:], _text))
        return _BY_NAME.get(name, _text)(text)
    return text


_ITEM = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def decode_array(text: str, element: _Decode, delimiter: str = ",") -> list[Any]:
    """Read an array's text form, e.g. `{1,NULL,"a b"}` or `[0:1]={{1},{2}}`, with a decoder for its elements.

    Lower bounds are dropped, as JSON has none. Raises ValueError when it is malformed.
    """
    at = text.index("{")
    plain = re.compile(rf"[^{delimiter}{{}}\"]+")
    stack: list[list[Any]] = []
    while at < len(text):
        char = text[at]
        if char == "{":
            stack.append([])
            at += 1
        elif char == "}":
            done = stack.pop()
            at += 1
            if not stack:
                if at != len(text):
                    break
                return done
            stack[-1].append(done)
        elif char == delimiter:
            at += 1
        elif not stack:
            break
        elif char == '"':
            match = _ITEM.match(text, at)
            if match is None:
                break
            stack[-1].append(element(_ESCAPE.sub(r"\1", match[1])))
            at = match.end()
        else:
            match = plain.match(text, at)
            if match is None:
                break
            item = match[0]
            stack[-1].append(None if item == "NULL" else element(item))
            at = match.end()
    raise ValueError(f"malformed array: {text[:60]!r}")


def text(value: Any) -> str:
    """A value as it stands in topics and user ids: "true", "false", numbers in plain digits, JSON as JSON.

    None has no text: that is the caller's to decide. Raises TypeError for it.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise TypeError("NULL has no text")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, (int, float)):
        return str(value)
    return encode(value).decode()


def plain(value: Decimal) -> str:
    """A Decimal as Postgres writes a numeric: all digits, no exponent."""
    return format(value, "f") if value.is_finite() else ("NaN" if value.is_nan() else _infinity(value))


def _infinity(value: Decimal) -> str:
    return "Infinity" if value > 0 else "-Infinity"


def encode(value: Any, numeric: Numeric = "string") -> bytes:
    """JSON for the wire. `numeric` says how numeric, and integers beyond 2^53, are written.

    A numeric that is no finite number is a string in either case, since JSON has no such number.
    """
    return _encode(jsonable(value, numeric))


_encode = msgspec.json.encode


def jsonable(value: Any, numeric: Numeric = "string") -> Any:
    """A value with everything replaced that JSON can't hold, or that a JSON reader would not keep."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int:
        if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
            return value
        return msgspec.Raw(b"%d" % value) if numeric == "number" else str(value)
    if kind is float:
        if value != value:  # NaN is what differs from itself
            return "NaN"
        return value if abs(value) != float("inf") else ("Infinity" if value > 0 else "-Infinity")
    if kind is Decimal:
        written = plain(value)
        return msgspec.Raw(written.encode()) if numeric == "number" and value.is_finite() else written
    if kind is list:
        return [jsonable(item, numeric) for item in value]
    if kind is JsonNumber:
        return msgspec.Raw(plain(value).encode())
    if kind is JsonList:
        return [_inner(item) for item in value]
    if kind is dict:
        return {name: _inner(item) for name, item in value.items()}
    return value


def _inner(value: Any) -> Any:
    """What stands inside a json value: its numbers stay numbers, with all their digits."""
    return jsonable(value, "number")


def row_jsonable(row: dict[str, Any], numeric: Numeric = "string") -> dict[str, Any]:
    """A row by column name, ready for JSON."""
    return {name: jsonable(value, numeric) for name, value in row.items()}
