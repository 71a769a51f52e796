"""Django: Rowcast beside your project in one ASGI application, for the users of Django's own sessions.

    # settings.py
    ROWCAST = {
        "route": [{"table": "shop_order", "user": "{customer_id}"}],
    }

    # asgi.py
    application = mount(get_asgi_application(), "/live")    # GET /live/events

`ROWCAST` has the sections of rowcast.toml. The database is that of `DATABASES["default"]`, unless `postgres` says
otherwise. What the ORM writes, or anything else, is read from the write-ahead log: there is no signal to connect, and
`bulk_create`, `update()` and raw SQL count as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import msgspec
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django import conf
from django.contrib import auth
from django.contrib.auth.signals import user_logged_out
from django.core.handlers.asgi import ASGIRequest
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.utils.crypto import salted_hmac
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import ASGIApp

from rowcast.cast import Rowcast
from rowcast.contrib.users import grant_of
from rowcast.core.grants import Grant
from rowcast.errors import ConfigError

_PARAMETERS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


@cache
def get_cast() -> Rowcast:
    """The project's Rowcast, made of `settings.ROWCAST` when it is asked for first.

    Rules in Python are added to it before it is started: `@get_cast().route("shop_order")`. Without `api` and `auth`
    what is published is signed by a secret that is made of `SECRET_KEY`. Raises `ConfigError`.
    """
    sections = dict(getattr(conf.settings, "ROWCAST", {}))
    postgres = sections.get("postgres", {})
    if isinstance(postgres, dict) and "url" not in postgres:
        sections["postgres"] = {**postgres, "url": database_url()}
    if "api" not in sections and "auth" not in sections:
        sections["auth"] = salted_hmac(__name__, "messages", algorithm="sha256").hexdigest()
    return Rowcast(**sections)


def database_url(using: str = DEFAULT_DB_ALIAS) -> str:
    """The connection string of one of `DATABASES`. Raises `ConfigError` when it is no Postgres."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        raise ConfigError(f"Rowcast reads changes from Postgres, and DATABASES[{using!r}] is {connection.vendor}")
    given = connection.settings_dict
    told = {name: given[key] for key, name in _PARAMETERS.items() if given.get(key)}
    # What is left of OPTIONS is for Django's own wrapper, as `pool` is.
    known = conninfo_to_dict("", **told).keys() | _libpq_names()
    return make_conninfo("", **told, **{name: value for name, value in given["OPTIONS"].items() if name in known})


def mount(
    application: ASGIApp,
    path: str = "/live",
    *,
    user: Callable[[Any], Any] | None = None,
    cast: Rowcast | None = None,
    end_on_logout: bool = True,
) -> Starlette:
    """Your project's ASGI application with Rowcast below `path`, started and stopped by the server's lifespan.

    `user` is called, in a thread, with an HttpRequest that has a session and a user, and says whose stream it is: a
    user, an id, None for nobody (401) or a `Grant`; None: the user who is signed in. `cast`: another one than that of
    the settings. `end_on_logout`: a logout ends the user's streams; those of their other sessions come back.
    """
    cast = cast if cast is not None else get_cast()
    if end_on_logout:
        user_logged_out.connect(_signed_out, dispatch_uid=__name__)
    live = cast.asgi(authenticate=_SessionUser(user))
    return Starlette(routes=[Mount(path, live), Mount("/", application)], lifespan=cast.lifespan)


def publish(
    topic: str | None = None,
    data: Any = None,
    *,
    user: Any = None,
    event: str | None = None,
    key: str | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Publish in the current transaction: within `transaction.atomic` it is delivered exactly if that commits (a
    savepoint that is rolled back takes it along), outside at once.

    `user`: a user or an id, instead of a topic. Otherwise as `Rowcast.publish`; `using` is the database's alias. Works
    in any process of the project, whether or not Rowcast runs there.
    """
    name = None if user is None else grant_of(user).user
    _execute(get_cast().publish_sql(topic, data, user=name, event=event, key=key), using)


def resubscribe(user: Any, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Have a user's subscriptions read anew, as part of the current transaction. Row rules need no such call."""
    _execute(get_cast().resubscribe_sql(grant_of(user).user), using)


def disconnect(user: Any, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """End a user's streams, as part of the current transaction. Who may still sign in comes back."""
    _execute(get_cast().disconnect_sql(grant_of(user).user), using)


class _SessionUser:
    """Asks Django who a request's user is, as Django itself would: in a thread of its own, for this request only."""

    def __init__(self, user: Callable[[Any], Any] | None) -> None:
        self._user = user

    async def __call__(self, request: Request) -> Grant:
        async with ThreadSensitiveContext():
            grant: Grant = await sync_to_async(self._ask)(request.scope)
        return grant

    def _ask(self, scope: Any) -> Grant:
        close_old_connections()
        try:
            asked = ASGIRequest({**scope, "method": "GET"}, io.BytesIO())
            sessions = import_module(conf.settings.SESSION_ENGINE)
            asked.session = sessions.SessionStore(asked.COOKIES.get(conf.settings.SESSION_COOKIE_NAME))
            asked.user = auth.get_user(asked)
            if self._user is not None:
                return grant_of(self._user(asked))
            grant = grant_of(asked.user if asked.user.is_authenticated else None)
            return msgspec.structs.replace(grant, expires_at=asked.session.get_expiry_date().timestamp())
        finally:
            # The thread ends with this request: a connection that it kept would be nobody's.
            connections.close_all()


def _signed_out(user: Any, **_: Any) -> None:
    if user is not None:
        disconnect(user)


def _execute(statement: str, using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(statement)


def _libpq_names() -> frozenset[str]:
    from psycopg.pq import Conninfo

    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())
