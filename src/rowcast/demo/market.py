"""The recorded market data that the demo replays: real prices, as the `vega-datasets` wheel ships them.

Five shares, month by month from 2000 to 2010, and the CBOE volatility index day by day in the summer of 2009.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

from rowcast.errors import SetupError

HAND = "YOU"
"""The symbol of the row that nobody replays: it is there to be written by hand."""

_SHARES = {"MSFT": "Microsoft", "AMZN": "Amazon", "IBM": "IBM", "GOOG": "Google", "AAPL": "Apple"}


@dataclass(frozen=True)
class Point:
    """One recorded price and the day that it was recorded for."""

    day: date
    price: Decimal


@dataclass(frozen=True)
class Series:
    """What was recorded of one symbol, oldest first. `unit` is "$" or "" (index points)."""

    symbol: str
    name: str
    unit: str
    points: tuple[Point, ...]


def load() -> list[Series]:
    """Every series, in the order in which the board shows them.

    Raises `SetupError` when the `vega-datasets` wheel is not installed.
    """
    folder = _data()
    by_symbol: dict[str, list[Point]] = {symbol: [] for symbol in _SHARES}
    with (folder / "stocks.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            day = datetime.strptime(row["date"], "%b %d %Y").replace(tzinfo=UTC).date()
            by_symbol[row["symbol"]].append(Point(day, Decimal(row["price"])))
    closes = json.loads((folder / "ohlc.json").read_text(encoding="utf-8"), parse_float=Decimal)
    index = tuple(Point(date.fromisoformat(row["date"]), Decimal(row["close"])) for row in closes)
    shares = [Series(symbol, name, "$", tuple(by_symbol[symbol])) for symbol, name in _SHARES.items()]
    return [*shares, Series("VIX", "Volatility index", "", index)]


def _data() -> Path:
    # Found without importing the package: its import loads pandas, which takes longer than all the rest.
    spec = importlib.util.find_spec("vega_datasets")
    if spec is None or spec.origin is None:
        raise SetupError("vega-datasets is not installed; run: pip install 'rowcast[demo]'")
    return Path(spec.origin).parent / "_data"
