"""The parser against the words of the specification, and against itself, cut elsewhere."""

from __future__ import annotations

import httpx
import httpx_sse
from hypothesis import given
from hypothesis import strategies as st

from rowcast.client.parser import Block, Parser

TEXT = (
    "\ufeffretry: 3000\n: hello\n\nid: a:1-0\nevent: rowcast.ready\ndata: {}\n\nid: a:2-0\n\n"
    "data:one\r\ndata: two \u2028 \r\nid: a:3-0\r\n\r\ndata\rdata\r\rignored: x\nevent: empty\n\n"
    "retry: soon\nid: nu\0l\ndata: é\n\nid\ndata: forgotten\n\ndata: no end\n"
).encode()

LINES = [
    "data: a",
    "data",
    "data:  b",
    "id: 1",
    "id",
    "event: x",
    "retry: 5",
    "retry: x",
    ": c",
    "",
    "",
    "x: y",
    "é: ü",
]


def test_fields_comments_line_ends_and_heartbeats_are_as_the_specification_has_them() -> None:
    assert Parser("a:0-0").feed(TEXT) == [
        Block("", None, "a:0-0", 3000),
        Block("rowcast.ready", "{}", "a:1-0", None),
        Block("", None, "a:2-0", None),
        Block("", "one\ntwo \u2028 ", "a:3-0", None),
        Block("", "\n", "a:3-0", None),
        Block("empty", None, "a:3-0", None),
        Block("", "é", "a:3-0", None),
        Block("", "forgotten", "", None),
    ]


@given(st.lists(st.integers(0, len(TEXT))))
def test_wherever_the_bytes_are_cut_the_same_comes_of_it(cuts: list[int]) -> None:
    parser, blocks, start = Parser(), [], 0
    for end in [*sorted(cuts), len(TEXT)]:
        blocks += parser.feed(TEXT[start:end])
        start = end
    assert blocks == Parser().feed(TEXT)


def test_byte_by_byte_too() -> None:
    parser = Parser()
    assert [block for at in range(len(TEXT)) for block in parser.feed(TEXT[at : at + 1])] == Parser().feed(TEXT)


@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(["\n", "\r\n", "\r"]))))
def test_another_parser_finds_the_same_events(lines: list[tuple[str, str]]) -> None:
    data = "".join(line + end for line, end in lines).encode()
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=data)
    theirs = [(event.event, event.data) for event in httpx_sse.EventSource(response).iter_sse() if event.data]
    ours = [(block.event or "message", block.data) for block in Parser().feed(data) if block.data]
    assert ours == theirs
