"""Pauses that are spread out, so that those who were sent away together do not come back together."""

from __future__ import annotations

import math
import random

_GOLDEN = (math.sqrt(5) - 1) / 2


def seconds(low: float, high: float) -> float:
    """A pause from `low` to `high`, in seconds."""
    return random.uniform(low, high)  # noqa: S311  # no secret


def retry(low: float, high: float) -> int:
    """A pause from `low` to `high` seconds, as `retry:` tells it to a client: in milliseconds."""
    return round(seconds(low, high) * 1000)


class Even:
    """Pauses from `low` to `high` seconds that fill the time evenly, however many are drawn, from a random start.

    Drawn one by one they would bunch. Each is the one before and the golden ratio's part of the whole, around the
    circle: any number of them in a row has no large gap and no bunch.
    Source: additive recurrence, a low-discrepancy sequence (Kuipers and Niederreiter, "Uniform Distribution of
    Sequences", 1974, chapter 2).
    """

    def __init__(self, low: float, high: float) -> None:
        self._low = low
        self._length = high - low
        self._at = seconds(0.0, 1.0)

    def retry(self) -> int:
        """The next pause, in milliseconds."""
        self._at = (self._at + _GOLDEN) % 1.0
        return round((self._low + self._at * self._length) * 1000)
