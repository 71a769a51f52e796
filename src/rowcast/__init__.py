"""Rowcast: database changes on the right screens, live.

A change committed in Postgres reaches, over Server-Sent Events, exactly the streams of the users who are
subscribed to it, on any number of replicas.

    from rowcast import Rowcast

    cast = Rowcast.from_toml("rowcast.toml")
    app = cast.asgi()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rowcast.errors import (
    AuthError,
    BadRequest,
    ConfigError,
    DecodeError,
    Forbidden,
    NotFound,
    PositionError,
    RowcastError,
    SetupError,
    TooLarge,
    Unavailable,
)

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

__version__ = "0.1.0"

__all__ = [
    "AuthError",
    "BadRequest",
    "ConfigError",
    "DecodeError",
    "Forbidden",
    "NotFound",
    "PositionError",
    "Rowcast",
    "RowcastError",
    "SetupError",
    "TooLarge",
    "Unavailable",
    "__version__",
]


def __getattr__(name: str) -> type[Rowcast]:
    """Import the server's parts only when asked for them: clients and the core get by without."""
    if name == "Rowcast":
        from rowcast.cast import Rowcast

        return Rowcast
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
