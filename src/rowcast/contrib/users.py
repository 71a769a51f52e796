"""Whose stream it is, as applications name their users."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from rowcast.core.grants import Grant
from rowcast.errors import AuthError, Forbidden


def grant_of(user: Any) -> Grant:
    """The grant of what an application's own authentication says: a user's id, an object with `id`, or a `Grant`.

    `Grant(user, topics, expires_at)` gives topics beside those of the rules, and ends the stream at a time. Raises
    `AuthError` for None, and TypeError for what names nobody.
    """
    if isinstance(user, Grant):
        return user
    if user is None:
        raise AuthError("sign in first: this stream is for the application's users")
    name = user if isinstance(user, (str, int, UUID)) else getattr(user, "id", None)
    if isinstance(name, bool) or not isinstance(name, (str, int, UUID)):
        raise TypeError(
            f"a {type(user).__name__} does not tell whose stream it is: give a user's id, an object with id, or a Grant"
        )
    if not str(name):
        raise Forbidden("a user without an id has no stream")
    return Grant(str(name))
