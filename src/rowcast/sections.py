"""The sections of the configuration, and what values they may have.

Field names are those of rowcast.toml. What each option means for its user stands in
docs/reference/configuration.md.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from rowcast.addresses import parse_network
from rowcast.auth.webhooks import parse_secret
from rowcast.core.catalog import qualified
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, Rule, SqlRule, user_column
from rowcast.errors import ConfigError
from rowcast.limits import parse_limits
from rowcast.logs.redis_url import RedisUrl, is_redis
from rowcast.telemetry.journal import Format, Level
from rowcast.units import Count, Duration, Size

DEFAULT_RETENTION_BYTES = 256 << 20

_PERCENT = re.compile(r"%(?!%|\(user\)[sbt])")

Secret = Annotated[SecretStr, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1)]
Network = Annotated[str, AfterValidator(lambda text: parse_network(text) and text)]
RateLimit = Annotated[str, AfterValidator(lambda text: parse_limits(text) and text)]
Path = Annotated[str, Field(pattern="^/")]


class Section(BaseModel):
    """The base of all sections: unknown keys are errors, and nothing changes after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Server(Section):
    """`[server]`: the HTTP server and the streams. Durations in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: Count = Field(default=8080, ge=0, le=65535)
    heartbeat: Duration = Field(default=15.0, gt=0)
    retry: Duration = 3.0
    max_streams_per_user: Count = Field(default=20, ge=1)
    max_streams: Count = Field(default=0, ge=0)
    max_event: Size = Field(default=256 << 10, ge=256)
    cors_origins: list[str] = []
    trusted_proxies: list[Network] = []
    envelope: Literal["rowcast", "sequin"] = "rowcast"
    name: str = ""
    drain_delay: Duration = 5.0
    drain_limit: Duration = Field(default=30.0, gt=0)
    drain_rate: Count = Field(default=1000, ge=1)
    tls_cert: str = ""
    tls_key: str = ""
    http2: bool = False
    huge_pages: bool = True
    traces: bool = False
    log_format: Format = "text"
    log_level: Level = "info"


class Postgres(Section):
    """`[postgres]`: where changes come from. Durations in seconds, sizes in bytes. The URL may hold a password, so it
    is never printed."""

    url: str = Field(repr=False, min_length=1)
    publication: str = Field(default="rowcast", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    slot: str = Field(default="rowcast", pattern=r"^[a-z0-9_]{1,40}$")
    max_held_wal: Size = Field(default=1 << 30, gt=0)
    wal_sender_timeout: Duration = Field(default=10.0, ge=2)
    snapshot_timeout: Duration = Field(default=10.0, gt=0)
    snapshot_bytes: Size = Field(default=256 << 20, ge=1 << 20)
    on_held_wal: Literal["warn", "drop"] = "warn"

    @field_validator("url")
    @classmethod
    def _readable(cls, url: str) -> str:
        """What libpq says of a string that it can't read, or reads amiss, repeats the password."""
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            ports = str(conninfo_to_dict(url).get("port") or "").split(",")
        except ProgrammingError:
            ports = ["?"]
        if any(port and not (port.isascii() and port.isdigit()) for port in ports):
            raise ValueError(
                "it is no connection string of Postgres, like postgresql://user:password@host:5432/name;"
                " in a password write '/', '@', '%' and a space as %2F, %40, %25 and %20"
            )
        return url


class LogSection(Section):
    """`[log]`: the ordered record of entries. `url` "" in the file: `postgres:` where there is a Postgres."""

    url: str = Field(default="", repr=False)
    retention: Duration = Field(default=600.0, gt=0)
    max_entries: Count | None = Field(default=None, ge=1)
    max_bytes: Size = Field(default=DEFAULT_RETENTION_BYTES, gt=0)
    ring_bytes: Size = Field(default=128 << 20, ge=1 << 16)
    redo: Duration = 30.0
    redis_replicas: Count | None = Field(default=None, ge=0)
    pubsub_bridge: bool = False

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        if is_redis(url):
            RedisUrl.parse(url)
        elif url and url.partition(":")[0] not in ("memory", "postgres"):
            raise ValueError('there is no such log; there are "memory:", "postgres:" and "redis://host:6379/0"')
        return url


class Auth(Section):
    """`[auth]`: how users' tokens are verified. `leeway` in seconds."""

    secret: Secret | None = None
    jwks_url: Name | None = None
    algorithms: list[str] | None = Field(default=None, min_length=1)
    issuer: str | None = None
    audience: str | None = None
    user_claim: Name = "sub"
    topics_claim: Name = "topics"
    query_token: bool = False
    cookie: str = ""
    leeway: Duration = 0.0


class Api(Section):
    """`[api]`: the key for publish, control, admin and metrics."""

    key: Secret | None = None


class Limits(Section):
    """`[limits]`: requests per client address, e.g. "120/minute"; `strict` by the beginning of the path."""

    requests: RateLimit | None = None
    strict: dict[Path, RateLimit] = {}


class Webhook(Section):
    """`[webhooks.sequin]`."""

    secret: Secret


class SignedWebhook(Webhook):
    """`[webhooks.debezium]`: a secret that begins with whsec_ signs, any other one is sent as it is."""

    @field_validator("secret")
    @classmethod
    def _usable(cls, secret: SecretStr) -> SecretStr:
        parse_secret(secret.get_secret_value())
        return secret


class Webhooks(Section):
    """`[webhooks]`. `remember` in seconds: for how long a redis log knows a record again."""

    sequin: Webhook | None = None
    debezium: SignedWebhook | None = None
    remember: Duration = Field(default=3600.0, gt=0)

    @property
    def configured(self) -> bool:
        """Whether anything may be sent by webhook."""
        return self.sequin is not None or self.debezium is not None


class Channels(Section):
    """`[channels]`: the built-in channel table and its API. `enabled` None: where the table is or may be created."""

    enabled: bool | None = None
    max_per_user: Count = Field(default=100, ge=1)


class Cache(Section):
    """`[cache]`: Redis keys that are deleted before a user's delivery. `url` "": those of a redis log."""

    invalidate: list[str] = []
    url: str = Field(default="", repr=False, pattern=r"^$|^rediss?(\+sentinel|\+cluster)?://")


class _Located(Section):
    """A section that remembers where it stands."""

    _origin: str = PrivateAttr("")
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origin(self) -> str:
        """The place to point at in errors: `rowcast.toml:12`."""
        return self._origin

    def locate(self, origin: str, origins: Mapping[str, str]) -> None:
        """Say where it stands, and where its single options do, by name."""
        self._origin = origin
        self._origins = dict(origins)

    def at(self, option: str) -> str:
        """Where an option stands."""
        return self._origins.get(option, self._origin)


class RouteSection(_Located):
    """One `[[route]]`. `min_interval` in seconds."""

    table: Name
    topic: str | None = None
    user: str | None = None
    columns: list[str] | None = None
    when: str | None = None
    key: list[str] | None = Field(default=None, min_length=1)
    conflate: bool = False
    snapshot: bool = False
    deletes: bool = True
    numeric: Literal["string", "number"] = "string"
    min_interval: Duration = 0.0

    def to_route(self) -> Route:
        """The route that this section describes. Raises `ConfigError`."""
        return Route.from_templates(
            self.table,
            origin=self.origin,
            origins=self._origins,
            topic=self.topic,
            user=self.user,
            when=self.when,
            columns=self.columns,
            key=self.key,
            conflate=self.conflate,
            snapshot=self.snapshot,
            deletes=self.deletes,
            numeric=self.numeric,
            min_interval=self.min_interval,
        )


class SubscriptionSection(_Located):
    """One `[[subscription]]`: a row rule or an SQL rule."""

    table: Name | None = None
    user: str | None = None
    when: str | None = None
    topics: list[str] | None = Field(default=None, min_length=1)
    users: Literal["connected", "all"] = "connected"
    sql: Name | None = None
    depends_on: dict[str, str] | None = None

    @property
    def number(self) -> int:
        """A number that is made of what the section says; 30 bits."""
        return zlib.crc32(self.model_dump_json().encode()) & 0x3FFFFFFF

    def to_rule(self, index: int) -> Rule:
        """The rule that this section describes. Raises `ConfigError`."""
        of_rows = [name for name in ("table", "user", "topics", "when") if getattr(self, name) is not None]
        of_sql = [name for name in ("sql", "depends_on") if getattr(self, name) is not None]
        if of_rows and of_sql:
            raise ConfigError(
                f"{self.at(of_sql[0])}: a subscription is either of rows (table, user, topics and perhaps when) or of "
                f"sql (sql and depends_on); this one has both {of_rows[0]} and {of_sql[0]}"
            )
        if of_sql and self.users == "all":
            raise ConfigError(
                f'{self.at("users")}: users = "all" needs a subscription of rows (table, user, topics): who gets '
                "topics by sql is known only by asking for one user after the other"
            )
        if self.sql is not None:
            return self._sql_rule(index, self.sql)
        if self.table is None or self.user is None or self.topics is None:
            missing = [name for name in ("table", "user", "topics") if name not in of_rows]
            raise ConfigError(
                f"{self.origin}: a subscription needs {', '.join(missing)}"
                + ("" if of_rows else "; or else sql and depends_on")
            )
        return RowRule.from_templates(
            self.table,
            self.user,
            self.topics,
            self.when,
            index=index,
            origin=self.origin,
            origins=self._origins,
            everyone=self.users == "all",
        )

    def _sql_rule(self, index: int, sql: str) -> SqlRule:
        if "%(user)s" not in sql:
            raise ConfigError(f"{self.at('sql')}: the sql of a subscription must use the parameter %(user)s")
        if _PERCENT.search(sql):
            raise ConfigError(f"{self.at('sql')}: in the sql of a subscription, a % that is no %(user)s is written %%")
        if self.depends_on is None:
            raise ConfigError(
                f"{self.origin}: a subscription by sql needs depends_on, the tables whose changes concern a user, "
                'like { leagues = "{user_id}" }; or {} when the application calls resubscribe instead'
            )
        places = self.at("depends_on")
        depends_on = {qualified(table): user_column(user, places) for table, user in self.depends_on.items()}
        return SqlRule(index, sql, depends_on, self.origin)
