"""Every error that Rowcast raises on purpose.

    RowcastError
    ├── ConfigError        the configuration is wrong; says where, and what to write instead
    ├── SetupError         the database is not ready for us; says what to run
    ├── AuthError          a token is refused (HTTP 401)
    │   └── Forbidden      the token is good, but not for this (HTTP 403)
    ├── BadRequest         the request is wrong (HTTP 400)
    │   ├── PositionError  a malformed position (Last-Event-ID)
    │   ├── NotFound       (HTTP 404)
    │   └── TooLarge       (HTTP 413)
    ├── Repeated           what is to be in the log once is there already
    ├── Unavailable        not now, try again (HTTP 503)
    │   └── Busy           this replica takes no stream now
    ├── Expired            entries that are asked for are no longer in the log
    └── DecodeError        bytes from the server that are no pgoutput

A message is one sentence for the person who can act on it: what is wrong, and what to do.
"""

from __future__ import annotations


class RowcastError(Exception):
    """The root of the tree: catch it to catch everything that Rowcast raises on purpose."""


class ConfigError(RowcastError):
    """The configuration is wrong. The message starts with the place: `rowcast.toml:12:` or a function."""


class SetupError(RowcastError):
    """The database is not ready for Rowcast. The message holds the SQL or setting that makes it so."""


class AuthError(RowcastError):
    """A token is missing or refused: HTTP 401. The message is the reason and never holds the token."""


class Forbidden(AuthError):
    """The token is good but does not allow this: HTTP 403."""


class BadRequest(RowcastError):
    """The request is wrong: HTTP 400."""


class PositionError(BadRequest):
    """A position (`Last-Event-ID`) is malformed."""


class NotFound(BadRequest):
    """There is no such thing: HTTP 404."""


class TooLarge(BadRequest):
    """The body or the value is larger than allowed: HTTP 413."""


class Unavailable(RowcastError):
    """Not now: HTTP 503 with Retry-After.

    `what` names the dependency that is down (`postgres`, `log`, `issuer`, …).
    """

    def __init__(self, message: str, *, what: str = "log") -> None:
        super().__init__(message)
        self.what = what


class Busy(Unavailable):
    """This replica takes no new stream now; `reason` is what `rowcast.bye` will say."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, what="streams")
        self.reason = reason


class Expired(RowcastError):
    """Entries that are asked for are no longer in the log: its bounds have passed them, or it was emptied."""


class Repeated(RowcastError):
    """What is to be in the log once is there already: as good as done."""


class DecodeError(RowcastError):
    """Bytes that are no valid pgoutput message."""
