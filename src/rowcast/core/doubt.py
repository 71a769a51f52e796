"""Doubt: what was committed in a gap of the log, and may not be visible yet.

What is read from the database is joined to the log by transaction id: what a snapshot did not see comes by. What was
committed in a gap does not come by. So after a gap only a snapshot will do that saw all of it. A commit is in the WAL
before it is visible, and nobody can tell a transaction that is about to be visible from one that goes on for an hour.
But of all that was under way when the gap ended, nothing may be under way any more.

A snapshot lists what is under way only below the newest transaction that has ended. So the first one after the gap
tells nothing. It is followed by a mark in the WAL, which is a transaction that has ended: the second lists all that
matters.
"""

from __future__ import annotations

from rowcast.core.snapshot import Snapshot


class Doubt:
    """Whether there is any, and which snapshots end it. Times are in seconds, of any one clock."""

    __slots__ = ("_first", "_under_way", "_until")

    def __init__(self) -> None:
        self._first: Snapshot | None = None
        self._under_way: frozenset[int] | None = None
        self._until: float | None = None

    def begin(self, until: float) -> None:
        """The log had a gap. At `until` there is no more waiting: transactions can be long."""
        self._first, self._under_way, self._until = None, None, until

    def present(self, now: float) -> bool:
        """Whether there still is any."""
        if self._until is not None and now >= self._until:
            self._until = None
        return self._until is not None

    def allows(self, snapshot: Snapshot, now: float) -> bool:
        """Whether what was read in a snapshot can be relied on.

        It was taken after the gap, a mark was put into the WAL after it, and all that before this call. It may be asked
        for the same one again: what was read is handed over in parts.
        """
        if not self.present(now):
            return True
        if self._first is None or self._first is snapshot:
            self._first = snapshot
            return False
        if self._under_way is None:
            self._under_way = snapshot.in_progress
        self._under_way &= snapshot.in_progress
        if self._under_way:
            return False
        self._until = None
        return True
