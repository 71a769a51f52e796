from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core import arrays


def write(value: Any, delimiter: str = ",") -> str:
    """An array as Postgres's array_out writes it: what is empty, looks like NULL or holds a mark is quoted."""
    if isinstance(value, list):
        return "{" + delimiter.join(write(item, delimiter) for item in value) + "}"
    if value is None:
        return "NULL"
    special = any(char in value for char in f'{{}}"\\{delimiter} \t\n\r\v\f')
    if value == "" or value.upper() == "NULL" or special:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def read(text: str, delimiter: str = ",") -> list[Any]:
    return arrays.parse(text, str, delimiter)


@pytest.mark.parametrize(
    ("text", "array"),
    [
        ("{}", []),
        ("{a}", ["a"]),
        ("{a,NULL,b}", ["a", None, "b"]),
        ('{"NULL",null,nULL}', ["NULL", "null", "nULL"]),
        (r'{"a,b","c\"d","e\\f","","{}"," "}', ["a,b", 'c"d', "e\\f", "", "{}", " "]),
        ("{{a,b},{c,NULL}}", [["a", "b"], ["c", None]]),
        ("{{{a}},{{b}}}", [[["a"]], [["b"]]]),
        ("[0:1]={a,b}", ["a", "b"]),
        ('[-2:-1][5:5]={{a},{"["}}', [["a"], ["["]]),
        ("{\u2028,é,😀}", ["\u2028", "é", "😀"]),
        ('{"a\nb"}', ["a\nb"]),
    ],
)
def test_arrays(text: str, array: list[Any]) -> None:
    assert read(text) == array


def test_elements_are_read_by_their_type_and_null_is_not() -> None:
    assert arrays.parse('{1,"2",NULL}', int) == [1, 2, None]
    assert arrays.parse("{{1},{NULL}}", int) == [[1], [None]]
    with pytest.raises(ValueError, match="invalid literal"):
        arrays.parse("{x}", int)


def test_another_delimiter() -> None:
    assert read("{(1,2),(3,4);NULL}", ";") == ["(1,2),(3,4)", None]
    assert read('{{"a;b";c}}', ";") == [["a;b", "c"]]
    assert read("{a:b}", ":") == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "{",
        "}",
        "{a",
        "a}",
        "{a}}",
        "{{a}",
        "{a,}",
        "{,a}",
        "{a,,b}",
        "{,}",
        '{"a}',
        '{"a"b}',
        '{a"b"}',
        "{a}b",
        '{"a"}b',
        "{{a}}b",
    ]
    + [
        "{{a},}",
        "{a{b}}",
        "{{a}{b}}",
        "{{a}b}",
        "[0:1]",
        "[0:1]=",
        "[x]={a}",
        "={a}",
        r"{a\}",
        r'{"a\"}',
        '"a"',
        ",{a}",
    ]
    + ["{" * 7 + "}" * 7, "{" * 100_000],
)
def test_what_is_malformed(text: str) -> None:
    with pytest.raises(ValueError, match="malformed array"):
        read(text)


def nested(dimensions: int) -> st.SearchStrategy[list[Any]]:
    """Arrays of some dimensions, with the same length in each, as Postgres's are."""
    item: st.SearchStrategy[Any] = (
        st.none() | st.text(max_size=8) | st.sampled_from(["NULL", "null", '"', "\\", "{}", ","])
    )
    lengths = st.lists(st.integers(1, 3), min_size=dimensions, max_size=dimensions)

    def of(left: list[int]) -> st.SearchStrategy[Any]:
        inner = of(left[1:]) if left[1:] else item
        return st.lists(inner, min_size=left[0], max_size=left[0])

    return lengths.flatmap(of)


@given(
    st.integers(1, 6).flatmap(nested), st.sampled_from([",", ";", ":"]), st.sampled_from(["", "[0:1]=", "[-3:4][1:1]="])
)
def test_what_postgres_writes_comes_back(array: list[Any], delimiter: str, bounds: str) -> None:
    assert read(bounds + write(array, delimiter), delimiter) == array


@given(st.text(alphabet='{}",\\a NUL[]=0:1', max_size=30))
def test_any_text_is_an_array_or_refused(text: str) -> None:
    try:
        array = read(text)
    except ValueError:
        return
    assert isinstance(array, list)
    # What was understood was all of it: written again, it is understood the same.
    assert read(write(array)) == array
