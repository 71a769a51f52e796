"""Lines of TOML: where every key and table of a file stands."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.toml_lines import Place, TomlLines, syntax_error

FILE = '''\
# a comment with [brackets] and key = "value"
top = 1
[server]
host = "a#]\\""   # not a comment "in" it
cors = [
  "a", # one
  "]",
]
x . "y.z" = 2
text = """
[route]
a = 1 \\"""
"""
raw = \'\'\'
[route]\'\'\'
[ webhooks."seq.x" ]   # dotted
at = 1979-05-27 07:32:00
table = { a = 1, b = { c = [1, 2] } }

[[route]]
topic = 'x'
[[route]]
  topic = "y"
[route.sub]
k = -1.5e3
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("top",), 2),
        (("server",), 3),
        (("server", "host"), 4),
        (("server", "cors"), 5),
        (("server", "cors", 1), 7),
        (("server", "x", "y.z"), 9),
        (("server", "text"), 10),
        (("server", "raw"), 14),
        (("webhooks", "seq.x"), 16),
        (("webhooks", "seq.x", "at"), 17),
        (("webhooks", "seq.x", "table", "b", "c", 1), 18),
        (("route",), 20),
        (("route", 0, "topic"), 21),
        (("route", 1), 22),
        (("route", 1, "topic"), 23),
        (("route", 1, "sub", "k"), 25),
        (("server", "a"), None),
        (("route", 2), None),
    ],
)
def test_keys_and_tables_are_found(place: Place, line: int | None) -> None:
    tomllib.loads(FILE)
    assert TomlLines("f.toml", FILE).line(place) == line


def test_the_origin_is_that_of_the_nearest_thing_around() -> None:
    lines = TomlLines("f.toml", FILE)
    assert lines.origin(("route", 1, "topic")) == "f.toml:23"
    assert lines.origin(("route", 1, "missing", 3)) == "f.toml:22"
    assert lines.origin(("nothing", "here")) == "f.toml"
    assert lines.origin(()) == "f.toml"


def test_windows_line_ends_and_other_separators_count_as_lines_do() -> None:
    text = '[a]\r\nb = "x"\r\n# \u2028 \x85\r\nc = 1\r\n'
    tomllib.loads(text)
    assert TomlLines("f", text).line(("a", "c")) == 4
    assert TomlLines("f", "").line(("a",)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb =\n", "f.toml:2: not valid TOML: "),
        ("a = 1\n[b\n", "f.toml:2: not valid TOML: "),
        ('a = 1\n\nb = """x\n\n', "f.toml:5: not valid TOML: "),
    ],
)
def test_syntax_errors_begin_with_the_line(text: str, message: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    found = syntax_error("f.toml", text, caught.value)
    assert found.startswith(message)
    assert "at line" not in found
    assert "end of document" not in found


# Random documents, written with their lines known.

NAMES = st.text(alphabet='ab."# ', min_size=1, max_size=3)
LEAVES = st.booleans() | st.integers(-5, 5) | st.text(alphabet='ab[]{}#",=\n', max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=5
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=3)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def places(value: Any, place: Place) -> list[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*place, key), *places(item, (*place, key))]]


@given(st.dictionaries(NAMES, TABLES | st.lists(TABLES, min_size=1, max_size=3), max_size=3), st.booleans())
def test_every_key_of_a_random_document_is_found(document: dict[str, Any], spread: bool) -> None:
    written: list[str] = []
    expected: dict[Place, int] = {}

    def write(line: str, found: list[Place]) -> None:
        for place in found:
            expected.setdefault(place, len(written) + 1)
        written.append(line)
        if spread:
            written.append("  # [x] y = 1")

    for name, content in document.items():
        for number, table in enumerate(content if isinstance(content, list) else [content]):
            place: Place = (name, number) if isinstance(content, list) else (name,)
            header = f"[[{json.dumps(name)}]]" if isinstance(content, list) else f"[{json.dumps(name)}]"
            write(header, [place])
            for key, value in table.items():
                write(f"{json.dumps(key)} = {inline(value)}", [(*place, key), *places(value, (*place, key))])
    text = "\n".join(written)
    assert tomllib.loads(text) == document
    lines = TomlLines("f", text)
    assert {place: lines.line(place) for place in expected} == expected
