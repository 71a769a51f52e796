"""The configuration: rowcast.toml, environment variables and flags, as one checked object.

A flag goes before the environment, the environment before the file, the file before the defaults. The
environment variable of `[server] port` is `ROWCAST_SERVER_PORT`. Errors begin with the place:
`rowcast.toml:12:`, or the variable's name.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from rowcast.core.catalog import qualified
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, Rule, SqlRule
from rowcast.core.template import Template
from rowcast.errors import ConfigError
from rowcast.toml_lines import TomlLines
from rowcast.units import Duration, Size

DEFAULT_RETENTION_BYTES = 256 << 20


class Section(BaseModel):
    """The base of all sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """`[server]`: the HTTP server and the streams."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    heartbeat: Duration = Field(default=15.0, gt=0)
    retry: Duration = 3.0
    max_streams_per_user: int = Field(default=20, ge=1)
    max_streams: int = Field(default=0, ge=0)
    max_event: Size = Field(default=256 << 10, ge=256)
    cors_origins: list[str] = []
    trusted_proxies: list[str] = []
    envelope: Literal["rowcast", "sequin"] = "rowcast"
    name: str = ""


class Postgres(Section):
    """`[postgres]`: where changes come from."""

    url: str
    publication: str = Field(default="rowcast", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    slot: str = Field(default="rowcast", pattern=r"^[a-z0-9_]{1,40}$")
    max_held_wal: Size = 1 << 30
    on_held_wal: Literal["warn", "drop"] = "warn"


class LogSection(Section):
    """`[log]`: the ordered record of entries."""

    url: str = ""
    retention: Duration = 600.0
    max_entries: int | None = Field(default=None, ge=1)
    max_bytes: Size = DEFAULT_RETENTION_BYTES
    ring_bytes: Size = Field(default=128 << 20, ge=1 << 16)
    redo: Duration = 30.0
    pubsub_bridge: bool = False


class Auth(Section):
    """`[auth]`: how users' tokens are verified."""

    secret: SecretStr | None = None
    jwks_url: str | None = None
    algorithms: list[str] | None = None
    issuer: str | None = None
    audience: str | None = None
    user_claim: str = "sub"
    topics_claim: str = "topics"
    query_token: bool = False
    cookie: str = ""
    leeway: Duration = 0.0


class Api(Section):
    """`[api]`: the key for publish, control, admin and metrics."""

    key: SecretStr | None = None


class Limits(Section):
    """`[limits]`: requests per client address."""

    requests: str | None = None
    strict: dict[str, str] = {}


class SequinWebhook(Section):
    """`[webhooks.sequin]`."""

    secret: SecretStr


class DebeziumWebhook(Section):
    """`[webhooks.debezium]`."""

    secret: SecretStr


class Webhooks(Section):
    """`[webhooks]`."""

    sequin: SequinWebhook | None = None
    debezium: DebeziumWebhook | None = None


class Channels(Section):
    """`[channels]`: the built-in channel table and its API."""

    enabled: bool | None = None


class Cache(Section):
    """`[cache]`."""

    invalidate: list[str] = []


class RouteSection(Section):
    """One `[[route]]`."""

    table: str
    topic: str | None = None
    user: str | None = None
    columns: list[str] | None = None
    when: str | None = None
    key: list[str] | None = None
    conflate: bool = False
    snapshot: bool = False
    deletes: bool = True
    numeric: Literal["string", "number"] = "string"
    min_interval: Duration = 0.0
    origin: str = Field("", exclude=True)

    def to_route(self) -> Route:
        """The route that this section describes. Raises `ConfigError`."""
        return Route.from_templates(
            self.table,
            origin=self.origin,
            topic=self.topic,
            user=self.user,
            when=self.when,
            columns=self.columns,
            key=self.key,
            conflate=self.conflate,
            snapshot=self.snapshot,
            deletes=self.deletes,
            numeric=self.numeric,
        )


class SubscriptionSection(Section):
    """One `[[subscription]]`: a row rule or an SQL rule."""

    table: str | None = None
    user: str | None = None
    when: str | None = None
    topics: list[str] | None = None
    sql: str | None = None
    depends_on: dict[str, str] | None = None
    origin: str = Field("", exclude=True)

    def to_rule(self, index: int) -> Rule:
        """The rule that this section describes. Raises `ConfigError`."""
        if self.sql is not None:
            if (self.table, self.user, self.topics, self.when) != (None, None, None, None):
                raise ConfigError(f"{self.origin}: a subscription has either sql or table, user and topics")
            return self._sql_rule(index)
        if self.table is None or self.user is None or self.topics is None or self.depends_on is not None:
            raise ConfigError(
                f"{self.origin}: a subscription needs table, user and topics, or else sql with depends_on"
            )
        return RowRule.from_templates(self.table, self.user, self.topics, self.when, index=index, origin=self.origin)

    def _sql_rule(self, index: int) -> SqlRule:
        sql = self.sql or ""
        if "%(user)s" not in sql:
            raise ConfigError(f"{self.origin}: the sql of a subscription must use the parameter %(user)s")
        depends_on = {}
        for table, user in (self.depends_on or {}).items():
            column = Template.parse(user, self.origin).column
            if column is None:
                raise ConfigError(f'{self.origin}: depends_on of {table} must name one column, like "{{user_id}}"')
            depends_on[qualified(table)] = column
        return SqlRule(index, sql, depends_on, self.origin)


class Config(Section):
    """The whole configuration. Sections are attributes; `[[route]]` and `[[subscription]]` are lists."""

    server: Server = Server()
    postgres: Postgres | None = None
    log: LogSection = LogSection()
    auth: Auth = Auth()
    api: Api = Api()
    limits: Limits = Limits()
    webhooks: Webhooks = Webhooks()
    channels: Channels = Channels()
    cache: Cache = Cache()
    route: list[RouteSection] = []
    subscription: list[SubscriptionSection] = []

    @field_validator("log")
    @classmethod
    def _known_log(cls, log: LogSection) -> LogSection:
        scheme = log.url.split(":", 1)[0]
        if log.url and scheme not in ("memory", "postgres", "redis", "rediss"):
            raise ValueError(f'no log {log.url!r}; there are "memory:", "postgres:" and "redis://…"')
        return log

    @property
    def routes(self) -> list[RouteSection]:
        """The `[[route]]` sections."""
        return self.route

    @property
    def subscriptions(self) -> list[SubscriptionSection]:
        """The `[[subscription]]` sections."""
        return self.subscription

    @property
    def log_url(self) -> str:
        """The log's URL: postgres: where there is a Postgres, else memory:, unless one is named."""
        return self.log.url or ("postgres:" if self.postgres else "memory:")

    @property
    def signing_secret(self) -> bytes | None:
        """What logical messages are signed with: the API key, else the tokens' secret."""
        secret = self.api.key or self.auth.secret
        return secret.get_secret_value().encode() if secret else None

    def require_auth(self) -> None:
        """Raise `ConfigError` when no token could be verified."""
        if self.auth.secret is None and self.auth.jwks_url is None:
            raise ConfigError(
                "users' tokens can't be verified: set [auth] secret (HS256) or jwks_url (RS256, ES256, EdDSA)"
            )

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
        """Read the file (None: there is none), the environment, and overrides by dotted name (`server.port`).

        Raises `ConfigError`.
        """
        text = ""
        if path is not None:
            try:
                text = path.read_text()
            except OSError as error:
                raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
        lines = TomlLines(str(path), text)
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{lines.syntax_error(error)}") from None
        for name in ("route", "subscription"):
            for number, item in enumerate(data.get(name, [])):
                item["origin"] = lines.origin((name, number))
        origins: dict[tuple[str, str], str] = {}
        for variable, section, key in _variables():
            if variable in os.environ:
                data.setdefault(section, {})[key] = _from_text(os.environ[variable], section, key)
                origins[section, key] = variable
        for dotted, value in (overrides or {}).items():
            if value is not None:
                section, _, key = dotted.partition(".")
                data.setdefault(section, {})[key] = value
                origins[section, key] = f"--{key.replace('_', '-')}"
        return cls._checked(data, lines, origins)

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> Config:
        """From Python: each section a mapping, or its main value for short. Raises `ConfigError`."""
        short = {"postgres": "url", "log": "url", "auth": "secret", "api": "key"}
        data: dict[str, Any] = {}
        for name, value in sections.items():
            if value is None:
                continue
            data[name] = {short[name]: value} if isinstance(value, str) and name in short else value
        for name in ("route", "subscription"):
            data[name] = [{"origin": f"{name} {number + 1}", **item} for number, item in enumerate(data.get(name, []))]
        return cls._checked(data, TomlLines("Rowcast(…)", ""), {})

    @classmethod
    def _checked(cls, data: dict[str, Any], lines: TomlLines, origins: dict[tuple[str, str], str]) -> Config:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = tuple(part for part in first["loc"] if isinstance(part, (str, int)))
            origin = origins.get((str(place[0]), str(place[1]))) if len(place) > 1 else None
            raise ConfigError(f"{origin or lines.origin(place)}: {_explain(first, place)}") from None


def _explain(error: Any, place: tuple[str | int, ...]) -> str:
    """One sentence for a pydantic error."""
    names = [str(part) for part in place if isinstance(part, str)]
    where = f"[{'.'.join(names[:-1])}] {names[-1]}" if len(names) > 1 else f"[{names[0]}]"
    kind = error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], _keys_of(names[:-1]), 1)
        return f"{where} is not known" + (f"; did you mean {near[0]!r}?" if near else "")
    if kind == "missing":
        return f"{where} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower() + message[1:]}"


def _keys_of(section: list[str]) -> list[str]:
    model: type[BaseModel] = Config
    for name in section:
        field = model.model_fields.get(name)
        model = _model_of(field.annotation) if field is not None else Section
    return [name for name in model.model_fields if name != "origin"]


def _model_of(annotation: Any) -> type[BaseModel]:
    """The section class in an annotation such as `Postgres | None` or `list[RouteSection]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return Section


def _variables() -> list[tuple[str, str, str]]:
    """Every environment variable: (its name, section, key)."""
    found: list[tuple[str, str, str]] = []
    for section, field in Config.model_fields.items():
        if section not in ("route", "subscription", "webhooks"):
            found.extend(
                (f"ROWCAST_{section}_{key}".upper(), section, key) for key in _model_of(field.annotation).model_fields
            )
    return found


def _from_text(text: str, section: str, key: str) -> Any:
    """An environment variable's value: lists are separated by commas."""
    annotation = str(_model_of(Config.model_fields[section].annotation).model_fields[key].annotation)
    if "list[" in annotation:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text
