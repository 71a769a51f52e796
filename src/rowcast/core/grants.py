"""Grants: what a verified token allows."""

from __future__ import annotations

from collections.abc import Collection

import msgspec


class Grant(msgspec.Struct, frozen=True):
    """Whose stream it is and what their token says.

    `topics` are those that stand in the token, each once. `expires_at` and `issued_at` are Unix times in seconds; None
    when the token does not tell: it never expires, or nobody knows how old it is.
    """

    user: str
    topics: Collection[str] = ()
    expires_at: float | None = None
    issued_at: float | None = None
