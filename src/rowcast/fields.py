"""One field of a request's head, without making a mapping of all of them.

A replica may have to open thousands of streams a second, and to ask a mapping for a field that is not there costs an
exception.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection


def field(connection: HTTPConnection, name: bytes) -> str:
    """The value of the first field with a name, which is in lower case; "" when there is none."""
    for key, value in connection.scope["headers"]:
        if key == name:
            found: bytes = value
            return found.decode("latin-1")
    return ""
