"""Templates: placeholders, paths, filters, and what gives no topic."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.template import MAX_TEXTS, Path, Template, fits, fnv1a32
from rowcast.errors import ConfigError


def render(text: str, **row: Any) -> list[str]:
    return Template.parse(text, "here").render(row)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("AAPL", "AAPL"),
        (7, "7"),
        (True, "true"),
        (False, "false"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        ("", ""),
        ("ünï\u2028code", "ünï\u2028code"),
    ],
)
def test_a_value_stands_in_a_topic_as_text(value: Any, text: str) -> None:
    assert render("finance:{symbol}", symbol=value) == [f"finance:{text}"]


@pytest.mark.parametrize("row", [{}, {"symbol": None}, {"symbol": ["a"]}, {"symbol": {"a": 1}}, {"other": "AAPL"}])
def test_what_is_no_scalar_gives_no_topic(row: dict[str, Any]) -> None:
    assert Template.parse("finance:{symbol}", "here").render(row) == []
    assert Template.parse("finance:{symbol|upper}", "here").render(row) == []


CONFIG = {"symbols": ["AAPL", "MSFT"], "market": {"name": "nasdaq", "0": "zero"}, "grid": [[1, 2], [3]], "none": None}


@pytest.mark.parametrize(
    ("text", "topics"),
    [
        ("t:{config.market.name}", ["t:nasdaq"]),
        ("t:{config.market.0}", ["t:zero"]),
        ("t:{config.symbols.1}", ["t:MSFT"]),
        ("t:{config.symbols[1]}", ["t:MSFT"]),
        ("t:{config.symbols[2]}", []),
        ("t:{config.symbols.x}", []),
        ("t:{config.market[0]}", []),
        ("t:{config.symbols[*]}", ["t:AAPL", "t:MSFT"]),
        ("t:{config.grid[*][*]}", ["t:1", "t:2", "t:3"]),
        ("t:{config.grid[*][1]}", ["t:2"]),
        ("t:{config.market[*]}", []),
        ("t:{config.none}", []),
        ("t:{config.none.deeper}", []),
        ("t:{config.nowhere}", []),
        ("t:{config.symbols}", []),
    ],
)
def test_paths_lead_into_json(text: str, topics: list[str]) -> None:
    assert render(text, config=CONFIG) == topics


def test_several_lists_multiply() -> None:
    assert render("{a[*]}-{b[*]}", a=[1, 2], b=["x", "y"]) == ["1-x", "1-y", "2-x", "2-y"]


def test_elements_that_are_no_scalars_are_left_out_and_equal_topics_are_one() -> None:
    assert render("t:{a[*]}", a=["x", None, {"y": 1}, ["z"], "x", True]) == ["t:x", "t:true"]


def test_an_array_column_is_a_list_too() -> None:
    assert render("tag:{tags[*]}", tags=["a", "b"]) == ["tag:a", "tag:b"]


def test_a_text_column_is_parsed_when_a_path_goes_into_it() -> None:
    assert render("t:{config.price}", config='{"price": 1.10}') == ["t:1.10"]
    assert render("t:{config[*]}", config="[1, 2]") == ["t:1", "t:2"]
    assert render("t:{config.a}", config="not json") == []
    assert render("t:{config.a}", config="[" * 100_000) == []
    assert render("t:{config}", config='{"a": 1}') == ['t:{"a": 1}']


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("{v|upper}", "A B/Ü"),
        ("{v|lower}", "a b/ü"),
        ("{v|urlencode}", "a%20B%2F%C3%BC"),
        ("{v|upper|urlencode}", "A%20B%2F%C3%9C"),
        ("{ v | lower }", "a b/ü"),
        ("{v|fnv1a32}", fnv1a32("a B/ü")),
    ],
)
def test_filters_apply_in_order(text: str, topic: str) -> None:
    assert render(text, v="a B/ü") == [topic]


# From the test vectors of the FNV reference code (draft-eastlake-fnv, appendix C).
@pytest.mark.parametrize(
    ("text", "digest"),
    [("", "811c9dc5"), ("a", "e40c292c"), ("b", "e70c2de5"), ("foo", "a9f37ed7"), ("foobar", "bf9cf968")],
)
def test_fnv1a32_has_the_reference_vectors(text: str, digest: str) -> None:
    assert fnv1a32(text) == digest


def test_fnv1a32_keeps_its_leading_zeros() -> None:
    found = [digest for number in range(300) if (digest := fnv1a32(str(number))).startswith("0")]
    assert found
    assert {len(digest) for digest in found} == {8}


def test_doubled_braces_are_braces() -> None:
    assert render("{{a}}:{b}", b=1) == ["{a}:1"]
    assert render("{{{b}}}", b=1) == ["{1}"]


def test_names_in_quotes_may_hold_anything() -> None:
    assert render('{"first name"}', **{"first name": "x"}) == ["x"]
    assert render('{"a}b""c".d}', **{'a}b"c': {"d": 1}}) == ["1"]
    assert render('{a."x.y"}', a={"x.y": 2}) == ["2"]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\n"])
def test_a_topic_with_a_line_end_or_nul_is_left_out_and_counted(value: str) -> None:
    for text in ("t:{v}", "t:{v[*]}", "{v|upper}"):
        template = Template.parse(text, "here")
        assert template.render({"v": [value] if "[" in text else value}) == []
        assert template.unfit == 1


def test_an_empty_topic_is_left_out() -> None:
    template = Template.parse("{v}", "here")
    assert template.render({"v": ""}) == []
    assert template.unfit == 1


def test_a_row_that_would_give_too_many_topics_is_refused() -> None:
    template = Template.parse("{a[*]}{b[*]}{c[*]}", "here")
    with pytest.raises(ValueError, match="gives 1000000 topics"):
        template.render({name: list(range(100)) for name in "abc"})
    assert len(render("{a[*]}", a=list(range(MAX_TEXTS)))) == MAX_TEXTS


def test_a_template_tells_what_it_needs() -> None:
    template = Template.parse("a:{b.c[*]}:{d|lower}", "here")
    assert template.columns == {"b", "d"}
    assert template.prefix == "a:"
    assert not template.constant
    assert template.column is None
    constant = Template.parse("news", "here")
    assert constant.constant
    assert constant.prefix == constant.text == "news"
    assert constant.render({}) == ["news"]
    assert Template.parse("{d}x", "here").prefix == ""
    assert Template.parse("{{x}}{d}", "here").prefix == "{x}"


@pytest.mark.parametrize(("text", "column"), [("{user_id}", "user_id"), ("{ u }", "u"), ("{u.x}", None), ("u", None)])
def test_a_template_of_one_column_names_it(text: str, column: str | None) -> None:
    assert Template.parse(text, "here").column == column


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:{b", "{ without } in 'a:{b', column 3"),
        ("a:b}", "a single } in 'a:b}', column 4"),
        ("{}", "{} in '{}' is no placeholder"),
        ("{a b}", "{a b} in '{a b}' is no placeholder"),
        ("{a.}", "is no placeholder"),
        ("{a[x]}", "is no placeholder"),
        ("{a|}", "is no placeholder"),
        ("{a|md5}", "no filter 'md5' in '{a|md5}'; there are lower, upper, urlencode, fnv1a32"),
        ("a\nb", "holds CR, LF or NUL"),
        ("", "is empty"),
    ],
)
def test_errors_begin_with_the_origin_and_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template.parse(text, "rowcast.toml:12")
    assert str(caught.value).startswith("rowcast.toml:12: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", ".", "a.", "a..b", "a[*", "[*]", "a b"])
def test_what_is_no_path_is_none(text: str) -> None:
    assert Path.parse(text) is None


@given(st.text(alphabet='{}ab.[]*|"\\ 0', max_size=30))
def test_any_text_is_a_template_or_a_config_error(text: str) -> None:
    try:
        template = Template.parse(text, "here")
    except ConfigError:
        return
    template.render({"a": ["x"], "b": {"a": "y"}})


@given(st.text(min_size=1).filter(fits))
def test_a_text_without_placeholders_is_itself(text: str) -> None:
    assert Template.parse(text.replace("{", "{{").replace("}", "}}"), "here").render({}) == [text]


SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text("xy\n", max_size=2)


@given(
    st.lists(st.sampled_from(["k:", "-"]) | st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=4),
    st.fixed_dictionaries({}, optional=dict.fromkeys("abc", SCALARS | st.lists(SCALARS, max_size=3))),
)
def test_render_gives_what_the_definition_says(parts: list[Any], row: dict[str, Any]) -> None:
    text = "".join(p if isinstance(p, str) else f"{{{p[0]}{'[*]' if p[1] else ''}}}" for p in parts)
    expected = [""]
    for part in parts:
        if isinstance(part, str):
            choices = [part]
        else:
            value = row.get(part[0])
            found = value if part[1] and isinstance(value, list) else [] if part[1] else [value]
            choices = [str(v).lower() if isinstance(v, bool) else str(v) for v in found if v is not None]
            choices = [] if not part[1] and isinstance(value, list) else choices
        if part not in ("k:", "-") and part[1] and isinstance(row.get(part[0]), str):
            choices = []  # "x" and "y" are no JSON
        expected = [before + choice for before in expected for choice in choices]
    unique = list(dict.fromkeys(expected))
    assert Template.parse(text, "here").render(row) == [topic for topic in unique if topic and "\n" not in topic]
