"""Joining what a query saw to the log's tail, by transaction id.

Positions can't tell whether a query saw a transaction: a commit reaches the WAL reader before it is visible
to a new snapshot, and a snapshot's visible set need not be a prefix of the commit order. The transaction id
can: a snapshot (`pg_current_snapshot()`, Postgres documentation, section 9.28 "Transaction ID and Snapshot
Information Functions") says exactly which ids it has seen.
"""

from __future__ import annotations

import msgspec

_HALF = 1 << 31
_WRAP = 1 << 32


class Snapshot(msgspec.Struct, frozen=True):
    """Which transactions a query saw. All ids are 64-bit.

    Transactions below `xmin` are all finished; those at or above `xmax` were not finished; in between, those
    of `in_progress` were not.
    """

    xmin: int
    xmax: int
    in_progress: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read pg_snapshot's text form, `xmin:xmax:xip,xip,…`."""
        xmin, xmax, listed = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in listed.split(",") if xid))

    def saw(self, xid: int) -> bool:
        """Whether a *committed* transaction was visible. `xid` is the 32-bit id of pgoutput's Begin.

        At or above `xmax` is unseen whether or not it is listed: with a synchronous standby away the WAL
        reader sees commits long before they are visible, and long after `xmax` was passed.
        """
        full = self._widen(xid)
        return full < self.xmin or (full < self.xmax and full not in self.in_progress)

    def settled(self, xid: int) -> bool:
        """Whether every snapshot taken from now on sees the transaction, had it committed before this one."""
        return self._widen(xid) < self.xmin

    def _widen(self, xid: int) -> int:
        """The 64-bit id nearest to `xmax` that has these low 32 bits: ids wrap, and Begin's has no epoch."""
        full = (self.xmax & ~(_WRAP - 1)) | xid
        if full > self.xmax + _HALF:
            return full - _WRAP
        if full < self.xmax - _HALF:
            return full + _WRAP
        return full
