"""The dismissed: who was disconnected lately, since a `disconnect` must reach streams that are being opened, too.

Who a request's user is can take a while to find out, and may be out of date when it is known: the session was closed
meanwhile, and the `disconnect` found no stream to end. Such a request is told to ask again.
"""

from __future__ import annotations

MAX_USERS = 10_000
"""Users remembered; the oldest are forgotten, and who asked before a forgotten one asks again."""


class Dismissed:
    """The latest disconnect of each user."""

    def __init__(self) -> None:
        self.number = 0
        """How many disconnects came by: to be noted before one begins to find out who somebody is."""
        self._users: dict[str, int] = {}
        self._forgotten = 0

    def note(self, user: str) -> None:
        """The user was disconnected."""
        self.number += 1
        self._users.pop(user, None)
        self._users[user] = self.number
        if len(self._users) > MAX_USERS:
            self._forgotten = self._users.pop(next(iter(self._users)))

    def since(self, number: int, user: str) -> bool:
        """Whether the user may have been disconnected since that was the number."""
        return number < self._forgotten or number < self._users.get(user, 0)
