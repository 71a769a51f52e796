"""Pauses that are spread out, so that those who were sent away together do not come back together."""

from __future__ import annotations

import random


def seconds(low: float, high: float) -> float:
    """A pause from `low` to `high`, in seconds."""
    return random.uniform(low, high)  # noqa: S311  # no secret


def retry(low: float, high: float) -> int:
    """A pause from `low` to `high` seconds, as `retry:` tells it to a client: in milliseconds."""
    return round(seconds(low, high) * 1000)
