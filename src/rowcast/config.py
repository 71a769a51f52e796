"""The configuration: rowcast.toml, environment variables and flags, as one checked object.

A flag goes before the environment, the environment before the file, the file before the defaults. The
environment variable of `[server] port` is `ROWCAST_SERVER_PORT`; one that is empty is as good as not set.
Errors begin with the place: `rowcast.toml:12:`, or the variable's or the flag's name.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from rowcast.cache import parse_keys
from rowcast.core.rules import Rule
from rowcast.errors import ConfigError
from rowcast.logs.redis_url import is_redis
from rowcast.sections import (
    Api,
    Auth,
    Cache,
    Channels,
    Limits,
    LogSection,
    Postgres,
    RouteSection,
    Section,
    Server,
    SubscriptionSection,
    Webhooks,
)
from rowcast.toml_lines import TomlLines, syntax_error

__all__ = [
    "Api",
    "Auth",
    "Cache",
    "Channels",
    "Config",
    "Limits",
    "LogSection",
    "Postgres",
    "RouteSection",
    "Server",
    "SubscriptionSection",
    "Webhooks",
]

_LISTS = ("route", "subscription")
_SHORT = {"postgres": "url", "log": "url", "auth": "secret", "api": "key"}
"""What a section that is given as one string means by it."""

_Key = tuple[str, ...]

_FLAGS: dict[_Key, str] = {("postgres", "url"): "--postgres", ("log", "url"): "--log"}
"""Flags that have not the name of their option."""


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
    route: list[RouteSection] = Field(default_factory=list)
    subscription: list[SubscriptionSection] = Field(default_factory=list)

    @model_validator(mode="after")
    def _pick_log(self) -> Config:
        """The default log depends on another section: postgres: where there is a Postgres, else memory:."""
        if not self.log.url:
            url = "postgres:" if self.postgres else "memory:"
            object.__setattr__(self, "log", self.log.model_copy(update={"url": url}))
        return self

    @property
    def routes(self) -> list[RouteSection]:
        """The `[[route]]` sections."""
        return self.route

    def to_rules(self) -> list[Rule]:
        """The subscription rules. Raises `ConfigError`.

        A rule's number is made of what it says: row changes travel under it, and replicas whose files differ for a
        moment, in their order or in one rule, must mean the same by it.
        """
        found: dict[int, Rule] = {}
        for section in self.subscription:
            number = section.number
            while number in found:
                number += 1
            found[number] = section.to_rule(number)
        return list(found.values())

    @property
    def subscriptions(self) -> list[SubscriptionSection]:
        """The `[[subscription]]` sections."""
        return self.subscription

    @property
    def log_url(self) -> str:
        """The log's URL: postgres: where there is a Postgres, else memory:, unless one is named."""
        return self.log.url

    @property
    def cache_url(self) -> str:
        """Where cached keys are: `[cache] url`, or else the redis log; "": nowhere."""
        return self.cache.url or (self.log.url if is_redis(self.log.url) else "")

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

        An override that is None is not given. Raises `ConfigError`.
        """
        data, lines = _read(path) if path is not None else ({}, TomlLines("the configuration", ""))
        origins: dict[_Key, str] = {}
        for variable, key, many in _variables(cls, ()):
            if value := os.environ.get(variable):
                _put(data, key, _items(value) if many else value)
                origins[key] = variable
        for dotted, value in (overrides or {}).items():
            if value is not None:
                key = tuple(dotted.split("."))
                _put(data, key, value)
                origins[key] = _FLAGS.get(key) or f"--{key[-1].replace('_', '-')}"
        return cls._checked(data, lines, origins)

    @classmethod
    def variables(cls) -> frozenset[str]:
        """The names of all environment variables that are options of the file; others are not looked at."""
        return frozenset(name for name, _, _ in _variables(cls, ()))

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> Config:
        """From Python: each section a mapping, or its main value for short. Neither file nor environment.

        Raises `ConfigError`.
        """
        data: dict[str, Any] = {}
        for name, value in sections.items():
            if value is not None:
                short = _SHORT.get(name)
                data[name] = {short: value} if isinstance(value, str) and short is not None else value
        return cls._checked(data, TomlLines("Rowcast(…)", ""), {})

    @classmethod
    def _checked(cls, data: dict[str, Any], lines: TomlLines, origins: Mapping[_Key, str]) -> Config:
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = tuple(part for part in first["loc"] if isinstance(part, (str, int)))
            raise ConfigError(f"{_origin(place, lines, origins)}: {_explain(first, place)}") from None
        config._locate(lines)
        if config.postgres is None and config.log.url.startswith("postgres:"):
            where = _origin(("log", "url"), lines, origins)
            raise ConfigError(f'{where}: [log] url "postgres:" needs a [postgres] section with url')
        keys = _origin(("cache", "invalidate"), lines, origins)
        parse_keys(config.cache.invalidate, f"{keys}: [cache] invalidate")
        if config.cache.invalidate and not config.cache_url:
            raise ConfigError(f'{keys}: [cache] invalidate needs the Redis of the cache: [cache] url = "redis://…"')
        if config.log.pubsub_bridge and not is_redis(config.log.url):
            where = _origin(("log", "pubsub_bridge"), lines, origins)
            raise ConfigError(
                f'{where}: [log] pubsub_bridge takes what is PUBLISHed in the Redis of the log: set [log] url = "redis://…"'
            )
        for route in config.route:
            route.to_route()
        config.to_rules()
        for subscription in config.subscription:
            if subscription.users == "all" and not config.cache.invalidate:
                raise ConfigError(
                    f'{subscription.at("users")}: users = "all" deletes cached keys: say which, by [cache] invalidate'
                )
        return config

    def _locate(self, lines: TomlLines) -> None:
        """Tell each route and subscription where it stands."""
        for name in _LISTS:
            sections: list[RouteSection | SubscriptionSection] = getattr(self, name)
            for number, section in enumerate(sections):
                place = (name, number)
                if lines.line(place) is None:
                    section.locate(f"{lines.name}: {name} {number + 1}", {})
                else:
                    options = type(section).model_fields
                    section.locate(lines.origin(place), {option: lines.origin((*place, option)) for option in options})


def _read(path: Path) -> tuple[dict[str, Any], TomlLines]:
    """A file's contents, and where things stand in it. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file in {Path.cwd()}; name your rowcast.toml") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text, as TOML must be") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(syntax_error(path.name, text, error)) from None
    return data, TomlLines(path.name, text)


def _put(data: dict[str, Any], key: _Key, value: Any) -> None:
    """Set a value in nested tables. Where something else than a table stands, that is left for the check to find."""
    for part in key[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            return
        data = inner
    data[key[-1]] = value


def _items(text: str) -> list[str]:
    """A list in an environment variable: separated by commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def _variables(model: type[BaseModel], key: _Key) -> Iterator[tuple[str, _Key, bool]]:
    """Every environment variable: (its name, the option, whether that is a list)."""
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        here = (*key, name)
        if inner is not None and name not in _LISTS:
            yield from _variables(inner, here)
        elif key and "dict[" not in str(field.annotation):
            yield "_".join(("ROWCAST", *here)).upper(), here, "list[" in str(field.annotation)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation such as `Postgres | None` or `list[RouteSection]`."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _origin(place: tuple[str | int, ...], lines: TomlLines, origins: Mapping[_Key, str]) -> str:
    """Where the value that is wrong came from: a variable, a flag, or a line."""
    names = tuple(part for part in place if isinstance(part, str))
    for length in range(len(names), 0, -1):
        if names[:length] in origins:
            return origins[names[:length]]
    return lines.origin(place)


def _explain(error: Any, place: tuple[str | int, ...]) -> str:
    """One sentence for a pydantic error."""
    names = [part for part in place if isinstance(part, str)]
    section, option = names[:-1], names[-1]
    header = f"[[{section[0]}]]" if section and section[0] in _LISTS else f"[{'.'.join(section)}]"
    where = f"{header} {option}" if section else f"[{option}]"
    kind = error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(option, _options_of(section), 1)
        return f"{where} is not known" + (f"; did you mean {near[0]!r}?" if near else "")
    if kind == "missing":
        return f"{where} is missing"
    if kind == "model_type":
        return f"{where} must be a table of options" if option not in _LISTS else f"{where} must be tables of options"
    if kind == "list_type" and option in _LISTS and not section:
        return f"{where} must be written [[{option}]]: there may be several"
    if kind in ("too_short", "string_too_short"):
        return f"{where} must not be empty"
    message: str = error["msg"].removeprefix("Value error, ")
    if message.startswith("Input should be"):
        return f"{where} must be{message.removeprefix('Input should be')}"
    return f"{where}: {message[0].lower()}{message[1:]}"


def _options_of(section: list[str]) -> list[str]:
    """The names that a section may have; of the whole configuration for []."""
    model: type[BaseModel] | None = Config
    for name in section:
        field = model.model_fields.get(name) if model is not None else None
        model = _model_of(field.annotation) if field is not None else None
    return [] if model is None else list(model.model_fields)
