"""The recorded series that the demo replays."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from datetime import date
from decimal import Decimal

import pytest

from rowcast.demo import market
from rowcast.errors import SetupError


def test_the_series_are_the_recorded_ones() -> None:
    series = {one.symbol: one for one in market.load()}
    assert list(series) == ["MSFT", "AMZN", "IBM", "GOOG", "AAPL", "VIX"]
    assert series["MSFT"].points[0] == market.Point(date(2000, 1, 1), Decimal("39.81"))
    assert series["MSFT"].points[-1] == market.Point(date(2010, 3, 1), Decimal("28.8"))
    assert series["GOOG"].points[0].day == date(2004, 8, 1)
    assert series["VIX"].points[0] == market.Point(date(2009, 6, 1), Decimal("30.04"))
    assert {symbol: len(one.points) for symbol, one in series.items()} == {
        "MSFT": 123, "AMZN": 123, "IBM": 123, "GOOG": 68, "AAPL": 123, "VIX": 44,
    }  # fmt: skip


def test_each_series_goes_forward_in_time() -> None:
    for one in market.load():
        days = [point.day for point in one.points]
        assert days == sorted(set(days)), one.symbol


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> importlib.machinery.ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(SetupError, match=r"vega-datasets is not installed; run: pip install 'rowcast\[demo\]'"):
        market.load()
