"""Durations and sizes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("500ms", 0.5),
        ("5m", 300.0),
        ("1d", 86400.0),
        ("1.5h", 5400.0),
        (" 2 s ", 2.0),
        ("90", 90.0),
        (90, 90.0),
        (0.25, 0.25),
        (0, 0.0),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "s", "soon", "-1s", "1x", "5s5s", "30m1h", "1 5s", "5ms5s", "1e3s", "٣s", "1.s", -1, True, None, [1],
     float("inf"), float("nan"), "9" * 16 + "s"],
)  # fmt: skip
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(ValueError, match='is no duration; write it like "15s", "10m" or "1h30m"'):
        parse_duration(value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256KB", 256 * 1024),
        ("1GB", 1 << 30),
        ("1.5 MB", 3 << 19),
        ("2tb", 2 << 40),
        ("100B", 100),
        ("100", 100),
        (100, 100),
        (0, 0),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("value", ["", "KB", "big", "-1KB", "1PB", "1 K B", 1.5, -1, True, None, "9" * 16])
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(ValueError, match='is no size; write it like "256KB" or "1GB"'):
        parse_size(value)


@given(st.text(alphabet="0123456789.dhms KMGTB-", max_size=12) | st.integers() | st.floats() | st.none())
def test_anything_is_a_value_or_a_value_error(value: Any) -> None:
    for parse in (parse_duration, parse_size):
        try:
            found = parse(value)
        except ValueError:
            continue
        assert 0 <= found < float("inf")
