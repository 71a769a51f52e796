"""The prerequisites of Rowcast: each one is looked at, and what is missing comes with what to run.

`run` asks the database and changes nothing in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import click
import psycopg

from rowcast import limits
from rowcast.check.redis import check_redis
from rowcast.check.results import Look, Result
from rowcast.check.server import check_server
from rowcast.check.slots import check_slots
from rowcast.check.tables import check_tables
from rowcast.config import Config
from rowcast.core.routes import Route
from rowcast.core.rules import Rule
from rowcast.sources.explain import explain

__all__ = ["Result", "report", "run"]

_COLOURS = {"ok": "green", "note": "yellow", "FAIL": "red"}

_SETTINGS = """
SELECT name, setting, coalesce(unit, '') FROM pg_settings WHERE name IN (
    'server_version_num', 'server_version', 'wal_level', 'max_replication_slots', 'max_wal_senders',
    'max_slot_wal_keep_size', 'idle_replication_slot_timeout', 'synchronous_standby_names'
)
"""


def report(results: Sequence[Result], *, colours: bool = False) -> str:
    """The results as lines; how many failed is said at the end. `colours`: for a terminal."""
    failed = sum(not result.ok for result in results)
    end = "everything is there" if not failed else f"{failed} of {len(results)} prerequisites are missing"
    lines = [*map(str, results), end]
    if colours:
        painted = [
            line.replace(one.mark, click.style(one.mark, fg=_COLOURS[one.mark]), 1)
            for one, line in zip(results, lines, strict=False)
        ]
        lines = [*painted, click.style(end, bold=True)]
    return "\n".join(lines)


async def run(
    config: Config,
    routes: Sequence[Route] | None = None,
    rules: Sequence[Rule] | None = None,
    *,
    replicas: int = 2,
) -> list[Result]:
    """Look at every prerequisite.

    `routes` and `rules` are those in force (None: those of the configuration; give them where some are made in
    code). `replicas` is how many processes are going to run. Never raises for what it finds: a database that
    can't be reached is a result.
    """
    if routes is None:
        routes = [route.to_route() for route in config.routes]
    if rules is None:
        rules = [rule.to_rule(index) for index, rule in enumerate(config.subscriptions)]
    if config.postgres is None:
        if rules or (routes and not config.webhooks.configured):
            return [Result("postgres", False, "routes and subscriptions read tables", "set [postgres] url")]
        return [Result("postgres", True, "none is configured, and nothing needs one"), *await _rest(config)]
    try:
        connection = await psycopg.AsyncConnection.connect(config.postgres.url, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        return [Result("connection", False, explain(error), "set [postgres] url to a server that answers")]
    async with connection:
        look = Look(connection, config, config.postgres, routes, rules, replicas)
        return [*[result async for result in _look(look)], *await _rest(config)]


async def _look(look: Look) -> AsyncIterator[Result]:
    try:
        for name, setting, unit in await look.rows(_SETTINGS):
            look.settings[name], look.units[name] = setting, unit
        [(standby,)] = await look.rows("SELECT pg_is_in_recovery()")
        if standby:
            yield Result("primary", False, "this server is a standby", "set [postgres] url to the primary")
            return
        for part in (check_server, check_tables, check_slots):
            async for result in part(look):
                yield result
    except psycopg.Error as error:
        yield Result("connection", False, explain(error), "see what the server's log says of it")


async def _rest(config: Config) -> list[Result]:
    return [*[result async for result in check_redis(config)], *_limits(config)]


def _limits(config: Config) -> list[Result]:
    text = limits.remark(config)
    fix = 'set [log] url = "redis://…", or divide [limits] by the number of replicas'
    return [] if text is None else [Result("limits", True, text, fix)]
