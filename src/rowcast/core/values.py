"""Values: from the text that Postgres writes to Python, and to JSON.

| Postgres | Python (`decode`) | JSON (`wire`) |
| --- | --- | --- |
| boolean | bool | true, false |
| smallint, integer, oid | int | number |
| bigint | int | number; a string beyond ±(2^53 − 1), which a double can't hold |
| real, double precision | float | number; "NaN", "Infinity", "-Infinity" as strings |
| numeric | Decimal | string, as Postgres writes it |
| json, jsonb | parsed; fractions as JsonNumber, so that no digit is lost | itself, with all its digits |
| timestamptz | str | RFC 3339 in UTC, "2026-01-02T03:04:05.678Z" |
| timestamp, date, time, timetz | str | RFC 3339's form, without an offset where the type has none |
| interval | str | ISO 8601, "P1DT2H" |
| bytea | str | "\\x" and hexadecimal digits |
| arrays | list (of lists), elements as above | array |
| everything else (uuid, inet, money, ranges, geometry, enums, hstore, text search, …) | str | as Postgres writes it |

With `numeric="number"` bigint and numeric are JSON numbers with all their digits; a numeric that is no finite
number stays a string, since JSON has no such number. What has no RFC 3339 form ("infinity", years before Christ
or beyond 9999) stays as Postgres writes it. A domain is what its base type is; of an array of a domain the
elements are text, since the server tells only the array's name.

A json that Python can't take stays its text in `decode`: one nested deeper than `MAX_JSON_DEPTH`, or with an
integer of over 4,300 digits, an exponent beyond 10^18 or half a surrogate pair in it. On the wire it is itself all
the same. Bytes that are no UTF-8 (a database of encoding SQL_ASCII) become U+FFFD.

`wire` goes from Postgres's text to JSON without the Python value between: 6 µs for a row of ten columns, against 11
for decoding, converting and encoding it. An `enc_hook` is as fast, but msgspec never asks it about integers and
floats, and what is parsed has lost how it was written.

Every connection that rows are read through sets SESSION_OPTIONS, so that the same row decodes to equal
values whether it was read by SQL in text form or came in the WAL.

Source: Postgres documentation, chapter 8 "Data Types"; the oids are those of its pg_type.dat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from math import inf, isfinite
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from rowcast.core import arrays

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

MAX_JSON_DEPTH = 100
"""Lists and objects within each other that a parsed json may have: what walks it must not run out of stack."""

_MAX_PLAIN = 150_000
"""Digits before or behind the point that are written out: Postgres's numeric has up to 131,072 and 16,383."""


class Typed(Protocol):
    """What `decode` and `wire` need to know of a column."""

    @property
    def type_oid(self) -> int:
        """The type's oid."""
        ...

    @property
    def type_name(self) -> str:
        """The type's name if it is not built in, else "". Of a domain the base type's; with its schema
        (`public.mood`) unless that is pg_catalog."""
        ...


_Read = Callable[[str], Any]


class JsonNumber(Decimal):
    """A number with a fraction or an exponent inside a json value, as opposed to a numeric."""

    __slots__ = ()


# Reading


def _text(text: str) -> str:
    return text


def _bool(text: str) -> bool:
    return text == "t"


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text[:60]!r} is no numeric") from None


def _timestamp(text: str) -> str:
    """`2026-01-02 03:04:05` with the T that RFC 3339 wants between date and time."""
    return f"{text[:10]}T{text[11:]}" if text[4:5] == "-" and not text.endswith("BC") else text


def _timestamptz(text: str) -> str:
    return f"{text[:10]}T{text[11:-3]}Z" if text[4:5] == "-" and text.endswith("+00") else text


def _timetz(text: str) -> str:
    """`12:00:00+02` as `12:00:00+02:00`: RFC 3339 wants the minutes of an offset."""
    return text + ":00" if text[-3:-2] in ("+", "-") else text


_parse_json = msgspec.json.Decoder(float_hook=JsonNumber).decode


def _json(text: str) -> Any:
    try:
        value = _parse_json(text)
    except (ValueError, RecursionError, InvalidOperation):
        return text
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and isinstance(value, (dict, list)) and _too_deep(value):
        return text
    return value


def _too_deep(value: dict[str, Any] | list[Any]) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


# Writing: what msgspec then encodes as it must be


def _wire_bigint(text: str) -> int | str:
    value = int(text)
    return value if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER else text


def _wire_float(text: str) -> float | str:
    value = float(text)
    return value if isfinite(value) else text


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)


def _wire_numeric(text: str) -> msgspec.Raw | str:
    return msgspec.Raw(text) if _NUMBER.fullmatch(text) else text


def _wire_json(text: str) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.format(text, indent=-1))
    except (ValueError, RecursionError):
        # Postgres takes more than msgspec: half a surrogate pair, and any depth. A line end in JSON is white space.
        return msgspec.Raw(text.replace("\n", " ").replace("\r", " "))


class _Type(NamedTuple):
    """A type whose values are more than text. `string` and `number` write it, according to `numeric`; None: as
    it is read."""

    oid: int
    array_oid: int
    read: _Read
    string: _Read | None = None
    number: _Read | None = None


_TYPES = {
    "bool": _Type(16, 1000, _bool),
    "int2": _Type(21, 1005, int),
    "int4": _Type(23, 1007, int),
    "int8": _Type(20, 1016, int, string=_wire_bigint),
    "oid": _Type(26, 1028, int),
    "float4": _Type(700, 1021, float, _wire_float, _wire_float),
    "float8": _Type(701, 1022, float, _wire_float, _wire_float),
    "numeric": _Type(1700, 1231, _decimal, _text, _wire_numeric),
    "json": _Type(114, 199, _json, _wire_json, _wire_json),
    "jsonb": _Type(3802, 3807, _json, _wire_json, _wire_json),
    "timestamp": _Type(1114, 1115, _timestamp),
    "timestamptz": _Type(1184, 1185, _timestamptz),
    "timetz": _Type(1266, 1270, _timetz),
}

_TEXT_ARRAYS = (
    *(143, 271, 629, 651, 719, 775, 791, 1001, 1002, 1003, 1006, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015),
    *(1017, 1018, 1019, 1020, 1027, 1034, 1040, 1041, 1182, 1183, 1187, 1263, 1561, 1563, 2201, 2207, 2208, 2209),
    *(2210, 2211, 2949, 2951, 3221, 3643, 3644, 3645, 3735, 3770, 3905, 3907, 3909, 3911, 3913, 3927, 4073, 4090),
    *(4097, 4192, 5039, 6150, 6151, 6152, 6153, 6155, 6157),
)
"""Arrays whose elements stay text."""

_BOX_ARRAY = 1020
_DELIMITERS = {"box": ";", "geometry": ":", "geography": ":"}
"""Elements that are not separated by commas (pg_type.typdelim): the built-in one, and PostGIS's."""


class _Form:
    """One way to turn texts into values, for every type."""

    def __init__(self, types: Iterable[tuple[str, _Type, _Read]]) -> None:
        self._by_name: dict[str, _Read] = {}
        self._by_oid: dict[int, _Read] = {}
        self._by_array: dict[int, _Read] = dict.fromkeys(_TEXT_ARRAYS, _text)
        for name, kind, read in types:
            self._by_name[name] = self._by_oid[kind.oid] = self._by_array[kind.array_oid] = read

    def knows(self, oid: int) -> bool:
        """Whether values of a built-in type are more than text."""
        return oid in self._by_oid or oid in self._by_array

    def read(self, column: Typed, text: str) -> Any:
        """The value of a text. Raises ValueError when it is none of its type."""
        oid = column.type_oid
        read = self._by_oid.get(oid)
        if read is not None:
            return read(text)
        element = self._by_array.get(oid)
        if element is not None:
            return arrays.parse(text, element, ";" if oid == _BOX_ARRAY else ",")
        return self._read_named(column.type_name, text) if column.type_name else text

    def _read_named(self, name: str, text: str) -> Any:
        """A type that is not built in is known by name only, and may be called anything."""
        try:
            bare = name.rpartition(".")[2]
            if bare.startswith("_") and text.startswith(("{", "[")):
                element = self._by_name.get(name.removeprefix("_"), _text)
                return arrays.parse(text, element, _DELIMITERS.get(bare[1:], ","))
            return self._by_name.get(name, _text)(text)
        except ValueError:
            return text


_PYTHON = _Form((name, kind, kind.read) for name, kind in _TYPES.items())
_WIRE = {
    "string": _Form((name, kind, kind.string or kind.read) for name, kind in _TYPES.items()),
    "number": _Form((name, kind, kind.number or kind.read) for name, kind in _TYPES.items()),
}


def is_text(column: Typed) -> bool:
    """Whether the values of a column are text as Postgres writes it, in Python and in JSON."""
    return not column.type_name and not _PYTHON.knows(column.type_oid)


def decode(column: Typed, value: bytes) -> Any:
    """The Python value of a column's text form (see the table above).

    Raises ValueError when the text is none of its type.
    """
    return _PYTHON.read(column, _utf8(value))


def wire(column: Typed, value: bytes, numeric: Numeric = "string") -> Any:
    """What `msgspec.json.encode` writes as the JSON of a column's text form (see the table above).

    It never fails: a text that is none of its type is a string.
    """
    text = _utf8(value)
    try:
        return _WIRE[numeric].read(column, text)
    except ValueError:
        return text


def json_line(text: bytes) -> msgspec.Raw:
    """JSON text, for `msgspec.json.encode` to write as it is: on one line, and in UTF-8 whatever it was."""
    return _wire_json(_utf8(text))


def _utf8(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode(errors="replace")


# Texts of decoded values


def text(value: Any) -> str:
    """A value as it stands in topics and user ids: "true", "false", numbers as Postgres writes them (a numeric
    and a bigint in plain digits, a double in its shortest form), arrays and objects as JSON.

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
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, int):
        return str(value)
    return encode(value).decode()


def plain(value: Decimal) -> str:
    """A Decimal as Postgres writes a numeric: all digits, no exponent.

    A number in a json can have more digits than any numeric (`1e1000000000`): that one keeps its exponent.
    """
    if not value.is_finite():
        return "NaN" if value.is_nan() else "Infinity" if value > 0 else "-Infinity"
    return format(value, "f") if -_MAX_PLAIN < value.adjusted() < _MAX_PLAIN else str(value)


def _float_text(value: float) -> str:
    if not isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    written = repr(value).removesuffix(".0")
    if 1e15 <= abs(value) < 1e16:
        # Python writes an exponent from 10^16 on, Postgres from 10^15.
        sign, digits = ("-", written[1:]) if value < 0 else ("", written)
        fraction = digits[1:].replace(".", "").rstrip("0")
        return f"{sign}{digits[0]}{'.' if fraction else ''}{fraction}e+15"
    return written


def encode(value: Any) -> bytes:
    """A decoded value as JSON, with all its digits: for keys and texts. What is sent is written by `wire`."""
    return _encode(_jsonable(value))


_encode = msgspec.json.encode


def _jsonable(value: Any) -> Any:
    kind = type(value)
    if kind is Decimal:
        return plain(value)
    if kind is JsonNumber:
        return msgspec.Raw(plain(value))
    if kind is float:
        return value if -inf < value < inf else _float_text(value)
    if kind is list:
        return [_jsonable(item) for item in value]
    if kind is dict:
        return {name: _jsonable(item) for name, item in value.items()}
    return value
