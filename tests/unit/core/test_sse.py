from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core import sse


def test_a_frame() -> None:
    assert sse.frame(b"{}", position="7f:1-0", event="x") == b"id: 7f:1-0\nevent: x\ndata: {}\n\n"
    assert sse.frame(b"a\r\nb\rc\nd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"


def test_other_line_ends_of_unicode_are_data() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf"
    assert sse.frame(text.encode()) == f"data: {text}\n\n".encode()


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b"])
def test_refuses_what_would_end_a_field(bad: str) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        sse.frame(b"", position=bad)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        sse.frame(b"", event=bad)


def test_retry_and_heartbeat() -> None:
    assert sse.retry(3000) == b"retry: 3000\n\n"
    assert sse.heartbeat("e:1-0") == b"id: e:1-0\n\n"


@given(st.binary(max_size=200))
def test_a_payload_comes_back_with_its_line_ends_made_equal(data: bytes) -> None:
    """Parsed as the specification says: a field per line, the data lines joined with LF."""
    block = sse.frame(data)
    lines = block.removesuffix(b"\n\n").split(b"\n")
    assert all(line.startswith(b"data: ") for line in lines)
    joined = b"\n".join(line.removeprefix(b"data: ") for line in lines)
    assert joined == data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
