"""`Rowcast`: the object that a program configures, runs and talks to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from rowcast import workers
from rowcast.auth.jwt import Authenticator
from rowcast.config import Config
from rowcast.core.entry import user_topic
from rowcast.core.position import Position
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, Rule
from rowcast.core.template import fits
from rowcast.errors import BadRequest, ConfigError, Unavailable
from rowcast.logs.messages import Messages
from rowcast.ports import Draft
from rowcast.replica import Replica
from rowcast.siblings import Siblings
from rowcast.signals import SIGNALS
from rowcast.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette
    from starlette.requests import Request

    from rowcast.core.change import Change
    from rowcast.core.grants import Grant
    from rowcast.http.webhooks import Webhooks
    from rowcast.hub import Hub
    from rowcast.intake import Taken
    from rowcast.limits import Limiter
    from rowcast.ports import Log
    from rowcast.sources.records import Delivery
    from rowcast.telemetry.traces import Traces

RouteFunction = Callable[["Change"], "str | Iterable[str] | None"]
SubscriptionFunction = Callable[[dict[str, Any]], Iterable[str]]

CONTROL_PATIENCE = 1.0
"""Seconds that a control waits for the log before it is in force here alone: a `disconnect` must not wait for long."""

MAX_NAME = 512
"""Characters that a topic, an event name, a key or a user id may have."""


class Rowcast:
    """Everything that one process of Rowcast is: configuration, routes, rules, log, hub and HTTP application.

    `postgres`, `log` and `auth` are what the sections of rowcast.toml are: a mapping, or for short the
    connection string, the log's URL and the HS256 secret. Any other section can be given by its name
    (`server={"port": 9000}`, `api={"key": "…"}`). `config` is a finished configuration instead of all that.

    Raises `ConfigError` when something is wrong with them.
    """

    def __init__(self, config: Config | None = None, **sections: Mapping[str, Any] | str | None) -> None:
        self.config = config if config is not None else Config.from_sections(sections)
        self.metrics = Metrics(self)
        self.authenticator = Authenticator(self.config)
        self._routes = [route.to_route() for route in self.config.routes]
        self._rules = self.config.to_rules()
        self._configured = len(self._routes), len(self._rules)
        self._replica: Replica | None = None
        self._changing = asyncio.Lock()
        self.tokens = True
        """Whether users come with tokens."""
        self.append_failures = 0
        self.traces = _traces() if self.config.server.traces else None
        """Makes spans; None: nobody wants any."""
        self.limiter: Limiter | None = None
        """What counts requests; None: nothing does."""
        self.source: Callable[[], Config] | None = None
        """Reads the configuration anew; None: the program has made it."""
        self.reloads: Counter[str] = Counter()
        """How many reloads were "applied" and "refused"."""
        self.siblings: Siblings | None = None
        """The other workers of this host, under `rowcast serve --workers`."""
        self.signals = True
        """Whether signals are for us to watch: not where the server drains by itself."""

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Rowcast:
        """Read rowcast.toml; `ROWCAST_…` environment variables go before it, and `overrides` before both.

        An override is named with a double underscore for the dot: `server__port=9000`. Raises `ConfigError`
        that points at the line.
        """
        named = {name.replace("__", "."): value for name, value in overrides.items()}
        cast = cls(Config.load(Path(path), named))
        cast.source = lambda: Config.load(Path(path), named)
        return cast

    # Rules in code

    def route(
        self,
        table: str,
        *,
        columns: Iterable[str] | None = None,
        key: Iterable[str] | None = None,
        conflate: bool = False,
        deletes: bool = True,
        min_interval: float = 0.0,
    ) -> Callable[[RouteFunction], RouteFunction]:
        """Route a table's changes by a function of the change that returns the topic, the topics, or None.

        `table` is `schema.table` (public is implied). `columns` are those sent (None: all), `key` what
        conflation and `min_interval` go by (None: the primary key). At most one event of a topic and key is sent in
        `min_interval` seconds (0: all are), the last one always. The function must be quick and must not block: it runs
        for every change of the table. A change for which it raises is skipped, counted and logged.
        """

        def register(function: RouteFunction) -> RouteFunction:
            self._not_running("route")
            self._routes.append(
                Route.from_function(
                    table,
                    function,
                    columns=None if columns is None else tuple(columns),
                    key=None if key is None else tuple(key),
                    conflate=conflate,
                    deletes=deletes,
                    min_interval=min_interval,
                )
            )
            return function

        return register

    def subscriptions(
        self, table: str, *, user: str, users: Literal["connected", "all"] = "connected"
    ) -> Callable[[SubscriptionFunction], SubscriptionFunction]:
        """Subscribe users by the rows of a table: the function returns the topics that a row gives its user.

        `user` is the column with the user's id. A row for which the function raises gives no topics. `users` "all":
        `[cache] invalidate` deletes the keys also of those who have no stream open.

        Raises `ConfigError` for "all" where no keys are named.
        """
        if users == "all" and not self.config.cache.invalidate:
            raise ConfigError(f'{table}: users="all" deletes cached keys: say which, by cache={{"invalidate": […]}}')

        def register(function: SubscriptionFunction) -> SubscriptionFunction:
            self._not_running("subscriptions")
            everyone = users == "all"
            number = len(self._rules) - self._configured[1]
            self._rules.append(RowRule.from_function(table, user, function, index=number, everyone=everyone))
            return function

        return register

    # Life

    @property
    def replica(self) -> Replica:
        """The running parts. Raises `Unavailable` when this Rowcast has not been started."""
        if self._replica is None:
            raise Unavailable("Rowcast is not running: start it by its lifespan, or `await cast.start()`")
        return self._replica

    @property
    def running(self) -> bool:
        """Whether it has been started."""
        return self._replica is not None

    @property
    def hub(self) -> Hub:
        """The hub of this replica."""
        return self.replica.hub

    @property
    def log(self) -> Log:
        """The log."""
        return self.replica.log

    async def start(self) -> None:
        """Connect, create what is missing, fill the ring; returns when streams can be served.

        Raises `ConfigError` or `SetupError` with what to change.
        """
        async with self._changing:
            if self._replica is None:
                if self.tokens:
                    self.config.require_auth()
                replica = Replica(self.config, self._routes, self._rules, self.authenticator, self.traces)
                await replica.start()
                self._replica = replica
                if (worker := workers.current()) is not None:
                    self.siblings = Siblings(self, worker.directory)
                    await self.siblings.open()

    async def stop(self) -> None:
        """End all streams and let go of everything."""
        async with self._changing:
            if self.siblings is not None:
                await self.siblings.close()
                self.siblings = None
            replica, self._replica = self._replica, None
            if replica is not None:
                await replica.stop()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Run for the time of a block; fits an ASGI application's `lifespan`.

        Meanwhile SIGTERM and SIGINT drain first, and reach the server afterwards; see `rowcast.signals`.
        """
        await self.start()
        self.watch_signals()
        try:
            yield
        finally:
            await self.stop()

    async def reload(self, config: Config | None = None) -> None:
        """Take over a changed configuration while streams go on: whole, or not at all. See `rowcast.reloading`.

        `config` None: it is read anew from where `from_toml` read it. Raises `ConfigError` or `SetupError` that says
        why it is refused; everything is then as it was.
        """
        from rowcast import reloading

        async with self._changing:
            await reloading.reload(self, config)

    def rules_with(self, routes: list[Route], rules: list[Rule]) -> tuple[list[Route], list[Rule]]:
        """All routes and rules as they would be with these in the place of the configuration's. For `reloading`."""
        return routes + self._routes[self._configured[0] :], rules + self._rules[self._configured[1] :]

    def adopt(self, config: Config, routes: list[Route], rules: list[Rule]) -> None:
        """Take over a configuration with its routes and rules, which were checked. For `reloading`."""
        self._routes, self._rules = self.rules_with(routes, rules)
        self._configured = len(routes), len(rules)
        self.config = config

    def drain(self) -> None:
        """Begin to drain: not ready any more; after `[server] drain_delay` the streams are ended in groups.

        Returns at once; `await cast.drained()` waits until no stream is left. There is no way back but a restart.
        """
        if self._replica is not None:
            self._replica.drain.begin()

    async def drained(self) -> None:
        """Wait for the end of a drain that has begun: at most `[server] drain_limit`."""
        if self._replica is not None and self._replica.drain.begun:
            await asyncio.shield(self._replica.drain.begin())

    def watch_signals(self) -> None:
        """Drain when SIGTERM or SIGINT comes, before the server has it. Not under `rowcast serve`, which does so."""
        if self.signals and self._replica is not None:
            SIGNALS.watch(self._replica.drain)

    def asgi(self, authenticate: Callable[[Request], Awaitable[Grant]] | None = None) -> Starlette:
        """A complete ASGI application.

        Served by itself it starts and stops Rowcast by its lifespan. Mounted into another application, whose
        server never tells a mounted one of the lifespan, it starts at the first request; for a start and stop
        with the application, enter `cast.lifespan()` in the application's own.

        `authenticate` says whose stream, and whose channels, a request is for (None: its token does, as `[auth]`
        says). It raises `AuthError` for nobody. With cookies, writes are taken from this host and `[server]
        cors_origins` only.
        """
        from rowcast.http.app import create_app

        self.tokens = authenticate is None
        return create_app(self, authenticate)

    # Publishing and control

    async def publish(
        self,
        topic: str | None = None,
        data: Any = None,
        *,
        user: str | None = None,
        event: str | None = None,
        key: str | None = None,
    ) -> Position:
        """Put data on a topic, or on a user's own topic; returns its position once it is in the log.

        `data` is anything that JSON can hold, `event` the SSE event name (None: `message`), `key` what
        conflation goes by (None: never conflated). Raises `BadRequest`, or `Unavailable` whose message says
        whether it was surely not published.
        """
        return await self.append(_draft(topic, data, user=user, event=event, key=key))

    async def take(self, delivery: Delivery) -> Taken:
        """Put what a source of your own has read (`rowcast.sources.records`) through the routes into the log, in order.

        A record with a `key` that is in the log already is not appended again. What becomes of it is as for the
        webhooks, whose sources are `rowcast.sources.sequin` and `.debezium`. Raises `Unavailable`: then deliver it
        again.
        """
        self.webhooks.refuse(len(delivery.refused))
        return await self.webhooks.intake.take(delivery)

    @cached_property
    def webhooks(self) -> Webhooks:
        """What records come in by, from webhooks and from sources of your own."""
        from rowcast.http.webhooks import Webhooks

        return Webhooks(self)

    def publish_sql(
        self,
        topic: str | None = None,
        data: Any = None,
        *,
        user: str | None = None,
        event: str | None = None,
        key: str | None = None,
    ) -> str:
        """A SQL statement that publishes as part of *your* transaction: delivered exactly if it commits.

        It holds no placeholder and nothing that a driver would take for one, and may be executed once.
        Arguments as for `publish`. Rowcast need not run in this process. Raises `BadRequest`, or `ConfigError`
        when there is no key to sign with.
        """
        return self._statement(_draft(topic, data, user=user, event=event, key=key))

    def resubscribe_sql(self, user: str) -> str:
        """`resubscribe` as a SQL statement for *your* transaction, as `publish_sql` is one."""
        return self._statement(Draft(control="resubscribe", user=_name("user", user)))

    def disconnect_sql(self, user: str) -> str:
        """`disconnect` as a SQL statement for *your* transaction, as `publish_sql` is one."""
        return self._statement(Draft(control="disconnect", user=_name("user", user)))

    def _statement(self, draft: Draft) -> str:
        return Messages(self.config.signing_secret).statement(draft)

    async def resubscribe(self, user: str) -> Position:
        """Have every replica read the user's subscriptions anew, at this place in the log.

        Row rules need no such call: they see the rows change. While the log is away it is in force on this replica
        at once, and on the others as soon as the log is back.
        """
        return await self.append(Draft(control="resubscribe", user=_name("user", user)))

    async def disconnect(self, user: str) -> Position:
        """End the user's streams on every replica, and refuse the tokens issued to them before now.

        While the log is away it is in force on this replica at once, and on the others as soon as the log is back.
        """
        return await self.append(Draft(control="disconnect", user=_name("user", user)))

    async def append(self, draft: Draft) -> Position:
        """Append to the log; failures are counted. Raises `Unavailable`.

        A control that can't be appended is in force on this replica at once, and is kept until it can be.
        """
        if draft.control is None:
            return await self._publish(draft)
        pending = self.replica.pending
        if not len(pending) and self.log.state().ok:
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(CONTROL_PATIENCE):
                    return await self.log.append(draft)
            self.append_failures += 1
        # Behind what is kept already: the order in which they were asked for is that of the log.
        return pending.keep(draft)

    async def _publish(self, draft: Draft) -> Position:
        try:
            if self.traces is None:
                return await self.log.append(draft)
            with self.traces.publishing() as span:
                if draft.form == "data":
                    draft = msgspec.structs.replace(draft, trace=span.traceparent)
                position = await self.log.append(draft)
                span.published(position)
                return position
        except Unavailable:
            self.append_failures += 1
            raise

    def _not_running(self, what: str) -> None:
        if self._replica is not None:
            raise RuntimeError(f"@cast.{what} must come before Rowcast is started")


def _traces() -> Traces:
    try:
        from rowcast.telemetry.traces import Traces
    except ImportError as error:
        raise ConfigError(
            f"[server] traces needs more than is installed ({error}); run: pip install 'rowcast[otel]'"
        ) from None
    return Traces()


def _draft(topic: str | None, data: Any, *, user: str | None, event: str | None, key: str | None) -> Draft:
    if (topic is None) == (user is None):
        raise BadRequest("give either a topic or a user to publish to")
    try:
        encoded = msgspec.json.encode(data)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"data can't be written as JSON: {error}") from None
    return Draft(
        topic=_name("topic", topic) if topic is not None else user_topic(_name("user", user or "")),
        data=encoded,
        event=None if event is None else _event(event),
        key=None if key is None else _name("key", key),
    )


def _event(name: str) -> str:
    if name.startswith("rowcast."):
        raise BadRequest(f"events named rowcast.* are the service's own: choose another name than {name!r}")
    return _name("event", name)


def _name(what: str, value: str) -> str:
    """Check a name that will stand in an SSE field or be a topic."""
    if len(value) > MAX_NAME or not fits(value):
        raise BadRequest(f"{what} must have 1 to {MAX_NAME} characters, and no CR, LF or NUL: {value[:60]!r}")
    return value
