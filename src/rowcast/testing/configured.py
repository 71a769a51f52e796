"""A configuration for a test: what it says, and what it need not say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rowcast.cast import Rowcast

SECRET = "a secret that signs the tokens of tests"  # noqa: S105 - no secret of anybody's
KEY = "a key of tests"


def cast_for_tests(config: Mapping[str, Any] | str | os.PathLike[str], database: str) -> Rowcast:
    """A Rowcast for a test, of sections or of the path of a rowcast.toml, with this database.

    Tokens are signed with a secret of ours, whatever the file says of issuers; the key of the API is ours too.
    """
    if isinstance(config, Mapping):
        made: dict[str, Any] = {"auth": SECRET, "api": KEY, "postgres": database} | dict(config)
        if isinstance(made["postgres"], Mapping):
            made["postgres"] = {"url": database} | dict(made["postgres"])
        return Rowcast(**made)
    return Rowcast.from_toml(
        os.fspath(config), postgres__url=database, auth__secret=SECRET, auth__algorithms=["HS256"], api__key=KEY
    )
