"""How much of the WAL a `redis://` log's slot keeps, so that what Redis loses can be read again."""

from __future__ import annotations

from collections import deque


class Redo:
    """How far the slot may be confirmed: up to what was in the log `seconds` ago. No clock: callers tell the time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._incarnation = ""
        self._samples: deque[tuple[float, int]] = deque()
        self._due = 0

    def add(self, incarnation: str, when: float, lsn: int) -> None:
        """At a Unix time the log of this incarnation had everything before an LSN."""
        if incarnation != self._incarnation:
            # Another incarnation may be fed from another history of the database.
            self._incarnation, self._due = incarnation, 0
            self._samples.clear()
        samples = self._samples
        if samples and when - samples[-1][0] < min(1.0, self._seconds / 4):
            return
        samples.append((when, lsn))
        self.confirmable(incarnation, when)

    def confirmable(self, incarnation: str, now: float) -> int:
        """The LSN up to which the slot is not needed any more; 0: nothing is known."""
        if incarnation != self._incarnation:
            return 0
        while self._samples and self._samples[0][0] <= now - self._seconds:
            self._due = self._samples.popleft()[1]
        return self._due
