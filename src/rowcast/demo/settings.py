"""Writes the rowcast.toml that the demo's replicas run with."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

CHANNEL = "finance"
"""The channel type whose config holds the symbols that a user watches."""

_TOML = """\
# Written by `rowcast demo`. A real one would look the same.
[server]
host = "127.0.0.1"
retry = "400ms"
heartbeat = "5s"

[postgres]
url = "{url}"

[log]
url = "postgres:"

[auth]
secret = "{secret}"
query_token = true           # a browser's EventSource can't send headers

[api]
key = "{key}"

[channels]
enabled = true

[[route]]
table = "quotes"
topic = "finance:{{symbol}}"
key = ["symbol"]

[[subscription]]
table = "rowcast_channels"
user = "{{user_id}}"
when = "{{enabled}}"
topics = ["finance:{{config.symbols[*]}}"]
"""


@dataclass(frozen=True)
class Settings:
    """What the replicas are configured with; the secrets are made anew for each run."""

    url: str
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner only."""
        path.touch(mode=0o600)
        path.write_text(_TOML.format(url=self.url, secret=self.secret, key=self.key), encoding="utf-8")
