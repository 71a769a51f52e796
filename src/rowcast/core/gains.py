"""Gains: who may have got topics, and where in the log.

A client that comes back with a position and keeps rows of its topics lacks those of the topics that its user got
meanwhile. What a user's topics were at that position is not known any more; but it is enough to know whether they
may have become more since.
"""

from __future__ import annotations

from collections.abc import Iterable

from rowcast.core.position import ORIGIN, Place

MAX_USERS = 100_000
"""Users remembered; the oldest are forgotten, and what is forgotten counts as a gain."""


class Gains:
    """The last place at which each user may have got topics."""

    def __init__(self) -> None:
        self._floor: Place = ORIGIN
        self._users: dict[str, Place] = {}

    def restart(self, place: Place) -> None:
        """Nothing is known of what was before a place."""
        self._floor = place
        self._users.clear()

    def note(self, users: Iterable[str] | None, place: Place) -> None:
        """These may have got topics at a place; None: anybody may."""
        if users is None:
            self.restart(place)
            return
        for user in users:
            self._users.pop(user, None)
            self._users[user] = place
        while len(self._users) > MAX_USERS:
            self._floor = max(self._floor, self._users.pop(next(iter(self._users))))

    def since(self, user: str, place: Place) -> bool:
        """Whether the user may have got topics above a place."""
        return place < self._floor or self._users.get(user, ORIGIN) > place
