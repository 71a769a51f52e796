"""What a check says, and what it looks with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg

from rowcast.config import Config
from rowcast.core.routes import Route
from rowcast.core.rules import Rule
from rowcast.sections import Postgres


class Result(msgspec.Struct, frozen=True):
    """One prerequisite. `ok` False: Rowcast won't work. `ok` with a `fix`: it works, but look at it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    @property
    def mark(self) -> str:
        """ "ok", "note" (it works, but look at it) or "FAIL"."""
        return "FAIL" if not self.ok else ("note" if self.fix else "ok")

    def __str__(self) -> str:
        fix = f"\n         {self.fix}" if self.fix else ""
        return f"{self.mark:>4}  {self.name}: {self.detail}{fix}"

    def as_dict(self) -> dict[str, str | None]:
        """For programs."""
        return {"name": self.name, "state": self.mark.lower(), "detail": self.detail, "fix": self.fix or None}


class Look(msgspec.Struct, frozen=True):
    """A database to look at, and what is going to be asked of it.

    `settings` are the server's by name, `units` their units. `replicas` is how many processes are going to run.
    """

    connection: psycopg.AsyncConnection[Any]
    config: Config
    postgres: Postgres
    routes: Sequence[Route]
    rules: Sequence[Rule]
    replicas: int
    settings: dict[str, str] = {}
    units: dict[str, str] = {}

    @property
    def slot(self) -> dict[str, str]:
        """The slot's name, and the prefix of those beside it: parameters of queries."""
        return {"slot": self.postgres.slot, "prefix": f"{self.postgres.slot}_"}

    async def rows(self, query: str, arguments: Any = None) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises psycopg.Error."""
        return list(await (await self.connection.execute(query.encode(), arguments)).fetchall())
