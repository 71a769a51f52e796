"""How far back the log must reach: samples of when the WAL was how long. No clock: the caller tells the time."""

from __future__ import annotations

from collections import deque


class Retention:
    """Keeps what lies not more than `seconds` and not more than `max_bytes` back."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._samples: deque[tuple[float, int]] = deque()
        self._expired = 0

    def sample(self, now: float, lsn: int) -> None:
        """At the time `now` the WAL ended at `lsn`."""
        self._samples.append((now, lsn))
        while self._samples[0][0] <= now - self._seconds:
            self._expired = self._samples.popleft()[1]

    def target(self) -> int:
        """The LSN below which nothing need be kept. 0: it is not known how old anything is."""
        if not self._samples:
            return 0
        return max(self._expired, self._samples[-1][1] - self._max_bytes, 0)

    def lag(self, now: float, lsn: int) -> float:
        """Seconds since the WAL ended at `lsn`, as far as the samples tell; 0.0 when it still does."""
        late = 0.0
        for time, end in reversed(self._samples):
            if end <= lsn:
                break
            late = now - time
        return late

    def clear(self) -> None:
        """Forget everything: another log begins."""
        self._samples.clear()
        self._expired = 0
