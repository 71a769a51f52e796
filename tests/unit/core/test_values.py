from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rowcast.core import values
from rowcast.core.change import Column
from rowcast.core.values import JsonNumber, Numeric

OIDS = {
    "bool": 16,
    "int2": 21,
    "int4": 23,
    "int8": 20,
    "oid": 26,
    "float4": 700,
    "float8": 701,
    "numeric": 1700,
    "text": 25,
    "json": 114,
    "jsonb": 3802,
    "date": 1082,
    "time": 1083,
    "timetz": 1266,
    "timestamp": 1114,
    "timestamptz": 1184,
    "uuid": 2950,
    "bytea": 17,
    "bool[]": 1000,
    "int8[]": 1016,
    "text[]": 1009,
    "json[]": 199,
    "float8[]": 1022,
    "numeric[]": 1231,
    "timestamptz[]": 1185,
    "box[]": 1020,
    "unknown": 99_999,
}


def column(name: str) -> Column:
    return Column("c", OIDS[name])


def decode(name: str, text: str) -> Any:
    return values.decode(column(name), text.encode())


def wire(name: str, text: str, numeric: Numeric = "string") -> str:
    return msgspec.json.encode(values.wire(column(name), text.encode(), numeric)).decode()


@pytest.mark.parametrize(
    ("name", "text", "value", "written"),
    [
        ("bool", "t", True, "true"),
        ("bool", "f", False, "false"),
        ("int2", "-32768", -32768, "-32768"),
        ("int8", "9007199254740991", 2**53 - 1, "9007199254740991"),
        ("int8", "9007199254740992", 2**53, '"9007199254740992"'),
        ("int8", "-9223372036854775808", -(2**63), '"-9223372036854775808"'),
        ("oid", "4294967295", 2**32 - 1, "4294967295"),
        ("float4", "0.1", 0.1, "0.1"),
        ("float8", "1e-05", 1e-05, "0.00001"),
        ("float8", "-Infinity", float("-inf"), '"-Infinity"'),
        ("numeric", "1.10", Decimal("1.10"), '"1.10"'),
        ("numeric", "0.0000000001", Decimal("1E-10"), '"0.0000000001"'),
        ("numeric", "Infinity", Decimal("Infinity"), '"Infinity"'),
        ("text", 'a "b"\n\u2028é\\', 'a "b"\n\u2028é\\', '"a \\"b\\"\\n\u2028é\\\\"'),
        ("date", "2026-01-02", "2026-01-02", '"2026-01-02"'),
        ("date", "0044-03-15 BC", "0044-03-15 BC", '"0044-03-15 BC"'),
        ("time", "24:00:00", "24:00:00", '"24:00:00"'),
        ("timetz", "12:00:00.5+02", "12:00:00.5+02:00", '"12:00:00.5+02:00"'),
        ("timetz", "12:00:00-05:30", "12:00:00-05:30", '"12:00:00-05:30"'),
        ("timestamp", "2026-01-02 03:04:05.6", "2026-01-02T03:04:05.6", '"2026-01-02T03:04:05.6"'),
        ("timestamp", "infinity", "infinity", '"infinity"'),
        ("timestamp", "0044-03-15 01:02:03 BC", "0044-03-15 01:02:03 BC", '"0044-03-15 01:02:03 BC"'),
        ("timestamptz", "2026-01-02 03:04:05.6+00", "2026-01-02T03:04:05.6Z", '"2026-01-02T03:04:05.6Z"'),
        ("timestamptz", "-infinity", "-infinity", '"-infinity"'),
        ("timestamptz", "0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00 BC", '"0044-03-15 00:00:00+00 BC"'),
        ("timestamptz", "12026-01-02 00:00:00+00", "12026-01-02 00:00:00+00", '"12026-01-02 00:00:00+00"'),
        ("bytea", r"\x00ff", r"\x00ff", r'"\\x00ff"'),
        ("jsonb", '{"a": [1, null, "é"]}', {"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
        ("jsonb", "null", None, "null"),
        ("json", "[1,\r\n 2]", [1, 2], "[1,2]"),
        ("int8[]", "{1,9007199254740993,NULL}", [1, 2**53 + 1, None], '[1,"9007199254740993",null]'),
        ("numeric[]", "{{1.0},{NaN}}", [[Decimal("1.0")], [Decimal("NaN")]], '[["1.0"],["NaN"]]'),
        ("bool[]", "{t,f}", [True, False], "[true,false]"),
        ("text[]", '[0:1]={"a b",NULL}', ["a b", None], '["a b",null]'),
        ("json[]", r'{"{\"a\": 1}","[2]"}', [{"a": 1}, [2]], '[{"a":1},[2]]'),
        ("timestamptz[]", '{"2026-01-02 03:04:05+00"}', ["2026-01-02T03:04:05Z"], '["2026-01-02T03:04:05Z"]'),
        ("box[]", "{(3,4),(1,2);(1,1),(0,0)}", ["(3,4),(1,2)", "(1,1),(0,0)"], '["(3,4),(1,2)","(1,1),(0,0)"]'),
        ("unknown", "{1,2}", "{1,2}", '"{1,2}"'),
    ],
)
def test_values(name: str, text: str, value: Any, written: str) -> None:
    decoded = decode(name, text)
    assert repr(decoded) == repr(value)
    assert wire(name, text) == written


@pytest.mark.parametrize(
    ("name", "text", "written"),
    [
        ("int8", "9223372036854775807", "9223372036854775807"),
        ("numeric", "-12345678901234567890.10", "-12345678901234567890.10"),
        ("numeric", "0.0000000001", "0.0000000001"),
        ("numeric", "NaN", '"NaN"'),
        ("numeric", "-Infinity", '"-Infinity"'),
        ("float8", "NaN", '"NaN"'),
        ("numeric[]", "{1.50,NULL,Infinity}", '[1.50,null,"Infinity"]'),
        ("int8[]", "{9007199254740993}", "[9007199254740993]"),
    ],
)
def test_numbers_as_numbers(name: str, text: str, written: str) -> None:
    assert wire(name, text, "number") == written


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("int4", "x"),
        ("int8", ""),
        ("float8", "x"),
        ("numeric", "x"),
        ("int8[]", "{x}"),
        ("int8[]", "{1"),
        ("text[]", "x"),
    ],
)
def test_what_is_none_of_its_type(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(name, text)
    assert wire(name, text) == json.dumps(text)


# json


@pytest.mark.parametrize(
    "text",
    ["9007199254740993", "-0", "1.10", "0.1e-7", "1E400", "1e1000000000", "1e99999999999999999999", "1" + "0" * 5000]
    + ['"\\ud800"', '"\\u0000"', "[" * 3000 + "]" * 3000, '{"a":1,"a":2}'],
)
@pytest.mark.parametrize("form", ["{}", "[{},{}]", '{{"x":{{"y":{}}}}}'])
def test_json_is_sent_as_it_was_written(text: str, form: str) -> None:
    document = form.format(text, text)
    assert wire("json", document) == document
    decode("json", document)


def test_a_json_that_msgspec_refuses_is_sent_on_one_line_too() -> None:
    assert wire("json", '["\\ud800",\r\n1]') == '["\\ud800",  1]'


def test_the_digits_of_a_json_are_kept() -> None:
    assert decode("jsonb", "[1.10, 12345678901234567890, 0.1]") == [
        JsonNumber("1.10"),
        12345678901234567890,
        JsonNumber("0.1"),
    ]
    assert isinstance(decode("jsonb", "1.10"), JsonNumber)


@pytest.mark.parametrize("document", ['{"a": "\\ud800"}', "1" + "0" * 5000, '[{"a": 1e99999999999999999999}]'])
def test_a_json_that_python_can_t_take_stays_text(document: str) -> None:
    assert decode("json", document) == document


def test_a_json_may_be_nested_so_far() -> None:
    most = values.MAX_JSON_DEPTH
    for opens, closes in (("[", "]"), ('{"a":', "}")):
        just = opens * most + "1" + closes * most
        assert values.encode(decode("json", just)).decode() == just
        over = opens + just + closes
        assert decode("json", over) == over
    wide = "[" + ",".join(["[1]"] * 1000) + "]"
    assert decode("json", wide) == [[1]] * 1000
    brackets = json.dumps("[" * 1000)
    assert decode("json", brackets) == "[" * 1000


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
SPACE = st.sampled_from(["", " ", "\n", "\r\n\t"])


def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.tuples(SPACE, st.lists(inner, max_size=4)).map(lambda made: f"[{made[0]}{f',{made[0]}'.join(made[1])}]")
    members = st.dictionaries(st.text(max_size=5).map(json.dumps), inner, max_size=4)
    objects = st.tuples(SPACE, members).map(
        lambda made: "{" + f",{made[0]}".join(f"{name}:{made[0]}{value}" for name, value in made[1].items()) + "}"
    )
    return lists | objects


STRINGS = st.tuples(st.text(max_size=9), st.booleans()).map(lambda made: json.dumps(made[0], ensure_ascii=made[1]))
JSON = st.recursive(st.sampled_from(["null", "true", "false"]) | NUMBERS | STRINGS, containers, max_leaves=20)


def loads(text: str | bytes) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@given(JSON)
def test_any_json_is_sent_whole_and_on_one_line(written: str) -> None:
    sent = wire("json", written)
    assert "\n" not in sent
    assert "\r" not in sent
    assert loads(sent) == loads(written)
    # What rules and functions see has all of it too.
    assert loads(values.encode(decode("json", written))) == loads(written)


@given(JSON)
def test_a_line_of_json(written: str) -> None:
    line = msgspec.json.encode(values.json_line(written.encode()))
    assert b"\n" not in line
    assert b"\r" not in line
    assert loads(line) == loads(written)


# Anything


SCALARS = [name for name in OIDS if name not in ("json", "jsonb", "json[]")]


@given(
    st.sampled_from(SCALARS),
    st.binary(max_size=40) | st.text(alphabet='-+.0123456789eEINaNf{},"ty:T ', max_size=12).map(str.encode),
)
def test_whatever_comes_is_sent_as_valid_json(name: str, value: bytes) -> None:
    for numeric in ("string", "number"):
        sent = msgspec.json.encode(values.wire(column(name), value, numeric))  # type: ignore[arg-type]
        sent.decode()
        json.loads(sent)
        assert b"\n" not in sent
        assert b"\r" not in sent


def test_what_is_no_utf8_is_replaced() -> None:
    assert values.decode(column("text"), b"a\xffb") == "a\ufffdb"
    assert values.wire(column("text"), b"a\xffb") == "a\ufffdb"
    assert msgspec.json.encode(values.wire(column("json"), b'"a\xffb"')) == '"a\ufffdb"'.encode()


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40))
def test_a_numeric_is_sent_with_all_its_digits(value: Decimal) -> None:
    written = format(value, "f")
    assume("E" not in written)
    assert json.loads(wire("numeric", written)) == written
    assert wire("numeric", written, "number") == written
    assert values.text(decode("numeric", written)) == written


@given(st.integers(-(2**63), 2**63 - 1))
def test_no_reader_with_doubles_loses_a_digit_of_a_bigint(value: int) -> None:
    sent = wire("int8", str(value))
    assert int(json.loads(sent, parse_int=float)) == value
    assert wire("int8", str(value), "number") == str(value)
    assert decode("int8", str(value)) == value


@given(st.floats())
def test_a_double_comes_back(value: float) -> None:
    text = values.text(value)
    assert repr(decode("float8", text)) == repr(value)
    assert repr(float(json.loads(wire("float8", text)))) == repr(value)


# Types that are not built in


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("int4", "5", 5),
        ("numeric", "1.50", Decimal("1.50")),
        ("_int4", "{1,NULL}", [1, None]),
        ("_text", "{a}", ["a"]),
        ("_box", "{(1,1),(0,0);NULL}", ["(1,1),(0,0)", None]),
        ("public.mood", "t", "t"),
        ("public._mood", '{happy,"a b"}', ["happy", "a b"]),
        ("public._mood", "[0:1]={x,NULL}", ["x", None]),
        ("public._geometry", "{0101:0102}", ["0101", "0102"]),
        ("other.bool", "t", "t"),
        ("other.numeric", "many", "many"),
        ("other._int4", "{1,2}", ["1", "2"]),
        # As the catalogue has it, without the schema: what is none of the built-in type is text.
        ("numeric", "many", "many"),
        ("public._odd", "{x", "{x"),
        ("_odd", "plain", "plain"),
    ],
)
def test_types_by_name(type_name: str, text: str, value: Any) -> None:
    assert repr(values.decode(Column("c", 16_400, type_name=type_name), text.encode())) == repr(value)


# Texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        ("", ""),
        (True, "true"),
        (False, "false"),
        (-5, "-5"),
        (2**70, "1180591620717411303424"),
        (100.0, "100"),
        (0.1, "0.1"),
        (-1.5e15, "-1.5e+15"),
        (1e15, "1e+15"),
        (1e16, "1e+16"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (Decimal("1E-10"), "0.0000000001"),
        (Decimal("1E+3"), "1000"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (JsonNumber("1.50"), "1.50"),
        (JsonNumber("1e1000000000"), "1E+1000000000"),
        (JsonNumber("0e-1000000000"), "0E-1000000000"),
        ([Decimal("1.0"), None, float("inf"), "é"], '["1.0",null,"Infinity","é"]'),
        ({"a": [JsonNumber("1E+2"), True]}, '{"a":[100,true]}'),
    ],
)
def test_texts(value: Any, text: str) -> None:
    assert values.text(value) == text


def test_null_has_no_text() -> None:
    with pytest.raises(TypeError, match="NULL"):
        values.text(None)
