"""The URLs that lead to a Redis or Valkey: what each part means, and what is refused.

    redis://[[user]:password@]host[:6379][/0][?option=value&…]             one server
    redis+sentinel://[[user]:password@]host[:26379],host…/service[/0][?…]  whichever server is the primary now
    redis+cluster://[[user]:password@]host[:6379],host…[?…]                a Cluster; any of its nodes

`rediss` in the place of `redis` is TLS, with Sentinel to the sentinels as well. User and password are the server's;
the sentinels' own stand in the options `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

Address = tuple[str, int]
"""Host and port."""

SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")

PORT, SENTINEL_PORT = 6379, 26379

_AUTHORITY_END = re.compile("[/?#]")

_KINDS: dict[str, Literal["node", "sentinel", "cluster"]] = {"": "node", "sentinel": "sentinel", "cluster": "cluster"}


class RedisUrl(msgspec.Struct, frozen=True):
    """What a URL says. `addresses`: of the server, the sentinels, or some of the Cluster's nodes.

    `service` is what the sentinels call the primary. `options` are arguments of redis-py's connections to the
    servers, `sentinel_options` those of the connections to sentinels; neither has an address.
    """

    kind: Literal["node", "sentinel", "cluster"]
    addresses: tuple[Address, ...]
    tls: bool = False
    service: str = ""
    options: Mapping[str, Any] = {}
    sentinel_options: Mapping[str, Any] = {}

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Read a URL. Raises ValueError that says what is wrong, and never repeats a password."""
        try:
            return cls._parse(url)
        except ValueError:
            # What was read as a host, a database or an option may be a part of the password.
            if "@" in url and "@" not in _AUTHORITY_END.split(url.partition("://")[2], maxsplit=1)[0]:
                raise ValueError("in a password write '/', '?', '#' and '@' as %2F, %3F, %23 and %40") from None
            raise

    @classmethod
    def _parse(cls, url: str) -> RedisUrl:
        scheme, separator, _ = url.partition("://")
        if scheme not in SCHEMES or not separator:
            raise ValueError(f"there is no such scheme; there are {', '.join(f'{name}://' for name in SCHEMES)}")
        family, _, suffix = scheme.partition("+")
        kind, tls = _KINDS[suffix], family == "rediss"
        try:
            parts = urlsplit(url)
        except ValueError:  # which may repeat the password
            raise ValueError("it is no URL: is a bracket missing, or a letter that must be written as %…?") from None
        if parts.fragment:
            raise ValueError("it has a '#'; in a password write it %23")
        credentials, _, hosts = parts.netloc.rpartition("@")
        if "@" in credentials:
            raise ValueError("it has two '@'; in a password write it %40")
        addresses = _addresses(hosts, SENTINEL_PORT if kind == "sentinel" else PORT)
        if kind == "node" and len(addresses) > 1:
            raise ValueError(f"several hosts need {family}+sentinel:// or {family}+cluster://")
        service, database = _path(kind, parts.path)
        options, sentinel_options = _options(kind, parts.query, tls=tls)
        user, colon, password = credentials.partition(":")
        if credentials and not colon:
            raise ValueError("a password is written after a colon: `:password@` or `user:password@`")
        if user:
            options["username"] = unquote(user)
        if password:
            options["password"] = unquote(password)
        if database:
            options["db"] = database
        return cls(kind, addresses, tls, service, options, sentinel_options)


def is_redis(url: str) -> bool:
    """Whether a log's URL is one of these."""
    return url.partition(":")[0] in SCHEMES


def _addresses(hosts: str, port: int) -> tuple[Address, ...]:
    found = []
    for text in hosts.split(","):
        if not text:
            raise ValueError("a host is missing" if not hosts else "a host is missing between two commas")
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket:
                raise ValueError(f"the address {text!r} has no closing bracket")
        else:
            host, colon, number = text.partition(":")
            rest = colon + number
        if rest and not (rest[0] == ":" and rest[1:].isascii() and rest[1:].isdigit() and 0 < int(rest[1:]) < 65536):
            raise ValueError(f"{text!r} is no host:port (an IPv6 address stands in brackets)")
        if not host:
            raise ValueError("a host is missing before a port")
        found.append((unquote(host), int(rest[1:]) if rest else port))
    return tuple(found)


def _path(kind: str, path: str) -> tuple[str, int]:
    """The sentinels' service and the number of the database."""
    parts = path.strip("/").split("/") if path.strip("/") else []
    service = ""
    if kind == "sentinel":
        if not parts:
            raise ValueError(
                "the name of the primary is missing: redis+sentinel://host:26379/NAME, as the sentinels know it"
            )
        service = unquote(parts.pop(0))
    if len(parts) > 1 or (parts and not (parts[0].isascii() and parts[0].isdigit())):
        raise ValueError(f"{'/'.join(parts)!r} is no number of a database")
    database = int(parts[0]) if parts else 0
    if database and kind == "cluster":
        raise ValueError("a Cluster has the database 0 only")
    return service, database


def _options(kind: str, query: str, *, tls: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    options: dict[str, Any] = {}
    sentinels: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in ("sentinel_username", "sentinel_password"):
            if kind != "sentinel":
                raise ValueError(f"{name} is for redis+sentinel:// only")
            sentinels[name.removeprefix("sentinel_")] = text
            continue
        read = _OPTIONS.get(name)
        if read is None:
            raise ValueError(f"the option {name!r} is not known; there are {', '.join(_OPTIONS)}")
        if name.startswith("ssl_") and not tls:
            raise ValueError(f"{name} is for TLS: write rediss in the place of redis")
        try:
            options[name] = read(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    sentinels |= {name: value for name, value in options.items() if name.startswith(("ssl_", "socket_"))}
    return options, sentinels


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is no number of seconds")
    return seconds


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise ValueError("write true or false")
    return text.lower() in ("true", "yes", "1")


def _required(text: str) -> str:
    if text not in ("required", "optional", "none"):
        raise ValueError("write required, optional or none")
    return text


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _text,
    "ssl_check_hostname": _switch,
    "ssl_cert_reqs": _required,
    "socket_connect_timeout": _seconds,
    "client_name": _text,
}
