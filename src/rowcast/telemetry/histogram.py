"""A histogram that costs an addition and a search in ten numbers."""

from __future__ import annotations

from bisect import bisect_left


class Histogram:
    """Counts of values by upper bound. `bounds` rise; what is above the last is counted without a bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """The counts as Prometheus wants them: each bound, as text, with all that is not above it."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        total = 0.0
        cumulative = []
        for name, count in zip(names, self.counts, strict=True):
            total += count
            cumulative.append((name, total))
        return cumulative
