"""Reloading the configuration while streams go on: whole, or not at all.

Everything that can be wrong is found before anything is changed: the file, the keys, the routes and rules against the
database as it is now, the publication (tables are added to it first; if that is all that succeeds, it does no harm).
What then changes, changes between two entries of the log.

*Subscription rules.* Every connected user is read anew, and their streams pause at the log's head until that is done:
up to it entries are judged by the old rules, after it by the new ones. One thing can't be seen at that moment: a commit
that came by in the WAL under the old rules, and is not visible to the query yet. So everybody is read once more when
all transactions that were open at the reload have ended; and the first row change that a new rule sees has everybody
read, too, on every replica (see `core.routes.Router.replace`): with a redis log the leader may be reloaded later.

*What can't be reloaded is refused by name*: what a socket, a session, a table or a middleware was made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast.auth.jwt import Authenticator
from rowcast.config import Config
from rowcast.core.catalog import Catalog
from rowcast.core.routes import Route, Router
from rowcast.core.rules import Rule
from rowcast.core.validate import bind, bind_routes, validate
from rowcast.errors import ConfigError, SetupError, Unavailable
from rowcast.limits import Limiter
from rowcast.loader import PostgresLoader
from rowcast.sources.catalog import only, read_catalog
from rowcast.sources.publication import ensure_publication
from rowcast.telemetry.journal import get_logger, words

if TYPE_CHECKING:
    from rowcast.cast import Rowcast
    from rowcast.replica import Replica

logger = get_logger(__name__)

RELOADABLE = (
    "api.key",
    "auth.",
    "channels.max_per_user",
    "limits.",
    "route",
    "server.drain_delay",
    "server.drain_limit",
    "server.drain_rate",
    "server.log_format",
    "server.log_level",
    "server.max_streams",
    "server.max_streams_per_user",
    "server.retry",
    "subscription",
    "webhooks.debezium.secret",
    "webhooks.sequin.secret",
)
"""Options that can be reloaded, and, with a dot at the end, whole sections."""

PAUSE = 0.5
"""Seconds between two looks whether the transactions that were open at a reload have ended."""

_XID = "SELECT pg_current_xact_id()::text::int8"


class _Plan(NamedTuple):
    """What the database says of new routes and rules: bound to their tables."""

    routes: list[Route]
    rules: list[Rule]
    catalog: Catalog
    warnings: list[str]


async def reload(cast: Rowcast, config: Config | None) -> None:
    """Take over `config` (None: what `cast.source` reads). Raises `ConfigError` or `SetupError` when it is refused."""
    try:
        if config is None:
            if cast.source is None:
                raise ConfigError("the program has made its configuration itself: it must call cast.reload(config)")
            config = await asyncio.to_thread(cast.source)
        await _reload(cast, config)
    except (ConfigError, SetupError) as error:
        cast.reloads["refused"] += 1
        logger.error("reload_refused", "the configuration stays as it was: %s", error)
        raise
    except Exception:
        cast.reloads["refused"] += 1
        logger.exception("reload_failed", "the configuration could not be reloaded")
        raise
    cast.reloads["applied"] += 1


def differing(old: Config, new: Config) -> list[str]:
    """The options that differ, like `server.port`; of routes and subscriptions only `route` and `subscription`."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


async def _reload(cast: Rowcast, config: Config) -> None:
    old = cast.config
    changed = differing(old, config)
    _check(cast, old, config, changed)
    authenticator = Authenticator(config)
    configured, rules = [section.to_route() for section in config.routes], config.to_rules()
    plan: _Plan | None = None
    if {"route", "subscription"} & set(changed) and cast.running:
        plan = await _plan(cast.replica, *cast.rules_with(configured, rules))
    limiter = cast.limiter
    if any(name.startswith("limits.") for name in changed):
        limiter = Limiter.of(config)
    # From here on nothing fails, and nothing else runs.
    cast.authenticator.adopt(authenticator)
    cast.adopt(config, configured, rules)
    unused, cast.limiter = cast.limiter, limiter
    if cast.running:
        _apply(cast.replica, config, plan, rules_changed="subscription" in changed)
    if unused is not None and unused is not limiter:
        await unused.close()
    logger.info("reload_applied", "the configuration was reloaded: %s", ", ".join(changed) or "nothing differs")


def _check(cast: Rowcast, old: Config, config: Config, changed: list[str]) -> None:
    for name in changed:
        if not any(name == known or (known.endswith(".") and name.startswith(known)) for known in RELOADABLE):
            section, _, option = name.rpartition(".")
            raise ConfigError(f"[{section}] {option} can't be reloaded: set it back, or restart")
    if cast.tokens:
        config.require_auth()
    if [one.model_dump() for one in old.route if one.snapshot] != [
        one.model_dump() for one in config.route if one.snapshot
    ]:
        raise ConfigError("[[route]] with snapshot = true can't be reloaded: set it back, or restart")
    if "subscription" in changed and any(one.users == "all" for one in (*old.subscription, *config.subscription)):
        raise ConfigError('[[subscription]] can\'t be reloaded where one says users = "all": set it back, or restart')
    if config.postgres is None:
        if config.subscription:
            raise ConfigError("subscriptions read tables: set [postgres] url, and restart")
        if config.route and not config.webhooks.configured:
            raise ConfigError("routes send changes of tables: set [postgres] url, and restart")


async def _plan(replica: Replica, routes: list[Route], rules: list[Rule]) -> _Plan:
    """Check routes and rules against the database, and have their tables published."""
    postgres = replica.config.postgres
    if postgres is None or replica.pool is None:
        return _Plan(routes, rules, {}, [])
    try:
        async with replica.pool.connection() as connection:
            catalog = await read_catalog(connection)
            warnings = validate(routes, rules, catalog)
            bound_routes, bound_rules = bind_routes(routes, catalog), bind(rules, catalog)
            tables = Router(bound_routes, bound_rules).tables
            await ensure_publication(connection, postgres.publication, catalog, tables)
    except (psycopg.Error, PoolTimeout, PoolClosed) as error:
        raise SetupError(f"Postgres can't be asked whether the routes and rules fit: {words(error)}") from None
    return _Plan(list(bound_routes), list(bound_rules), catalog, warnings)


def _apply(replica: Replica, config: Config, plan: _Plan | None, *, rules_changed: bool) -> None:
    server, hub = config.server, replica.hub
    if server.max_streams != replica.config.server.max_streams:
        hub.max_streams = replica.most_streams(server.max_streams)
    hub.max_streams_per_user = server.max_streams_per_user
    replica.drain.tune(delay=server.drain_delay, limit=server.drain_limit, rate=server.drain_rate)
    if replica.capture is not None and config.signing_secret != replica.config.signing_secret:
        replica.capture.accept(config.signing_secret)
    replica.config = config
    if plan is None:
        return
    # Rules that say the same keep what they counted.
    rules = plan.rules if rules_changed else replica.rules
    replica.warnings = plan.warnings
    for warning in plan.warnings:
        logger.warning("rules_warning", "%s", warning)
    replica.router.replace(plan.routes, rules)
    if replica.capture is not None:
        replica.capture.ask_again()
    if replica.guard is not None:
        replica.guard.watch_tables(only(plan.catalog, replica.router.tables))
    if rules_changed:
        replica.rules = rules
        replica.loader = None
        if rules:
            assert replica.pool is not None
            replica.loader = PostgresLoader(replica.pool, rules, plan.catalog, replica.log.head)
            replica.also(_read_again(replica, replica.loader))
        hub.adopt(rules, replica.loader)


async def _read_again(replica: Replica, loader: PostgresLoader) -> None:
    """Read everybody once more when every transaction that may be open now has ended."""
    last: int | None = None
    while replica.loader is loader:
        try:
            if last is None:
                assert replica.pool is not None
                async with replica.pool.connection() as connection:
                    row = await (await connection.execute(_XID)).fetchone()
                assert row is not None
                last = int(row[0])
            elif (await loader.horizon()).xmin > last:
                replica.hub.reload_all()
                return
        except (Unavailable, psycopg.Error, PoolTimeout, PoolClosed):
            pass  # it is asked again: until then topics are as they were read
        await asyncio.sleep(PAUSE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and prefix != "limits.":
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
