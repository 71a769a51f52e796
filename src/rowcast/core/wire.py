"""What the streams of a hub share, and the states that they can be in."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from rowcast.core import sse
from rowcast.core.fill import Wants
from rowcast.core.position import ORIGIN, Place, format_position
from rowcast.core.ring import Ring
from rowcast.core.throttle import Throttle

if TYPE_CHECKING:
    from rowcast.core.stream import Stream


class StreamState(Enum):
    """See `core.stream`."""

    STARTING = "starting"
    LIVE = "live"
    BEHIND = "behind"
    ENDED = "ended"


class Wire:
    """What all streams of a hub share: the log's epoch and head, the limit of an event, the ring."""

    __slots__ = (
        "_beat", "_beat_at", "caught_up", "epoch", "head", "mark", "max_event", "read_back", "replica", "resets",
        "ring", "snapshots", "throttle",
    )  # fmt: skip

    def __init__(self, ring: Ring, *, max_event: int, replica: str) -> None:
        self.epoch = ""
        self.head: Place = ORIGIN
        self._beat = b""
        self._beat_at: tuple[str, Place, str] = ("", ORIGIN, "")
        self.ring = ring
        self.max_event = max_event
        self.replica = replica
        self.snapshots: Wants | None = None
        """Who reads snapshots; None: there are none."""
        self.throttle = Throttle()
        self.mark = ""
        """What is put behind the ids of LIVE streams; "" when nothing is held."""
        self.resets = 0
        """How often a stream was told to refetch."""
        self.caught_up: Callable[[Stream], None] | None = None
        """Told of each stream that has caught up; None: nobody wants to know."""
        self.read_back: Callable[[Stream], bool] = lambda stream: False
        """Have a stream fed from the log, from its cursor on; False: the log can't be read back."""

    def position(self, place: Place) -> str:
        """A place's wire form in the current epoch."""
        return format_position(self.epoch, place)

    def heartbeat(self) -> bytes:
        """The heartbeat of a LIVE stream: the head's position, made once for all of them."""
        now = (self.epoch, self.head, self.mark)
        if self._beat_at != now:
            self._beat_at = now
            self._beat = sse.heartbeat(self.position(self.head) + self.mark)
        return self._beat
