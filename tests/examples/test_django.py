"""The Django example: its own sessions, what the ORM writes, and publishing in its own transactions.

A process has one Django, so all is one module with one database, and what the example is without Rowcast runs beside.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from rowcast import AuthError, ConfigError
from rowcast.core.grants import Grant
from rowcast.testing.serving import serving
from rowcast.testing.stream import OpenStream

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {"DJANGO_SETTINGS_MODULE": "config.settings", "SECRET_KEY": "a secret of the example's"}

pytestmark = pytest.mark.xdist_group("django")


@pytest.fixture(scope="module")
def application(shared_database: str) -> Iterator[Any]:
    """The example's application, migrated; its path and environment are there as long as this module."""
    url = urlsplit(shared_database)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for name, part in (("HOST", url.hostname), ("PORT", url.port), ("USER", url.username), ("DATABASE", url.path)):
            patch.setenv(f"PG{name}", str(part).removeprefix("/"))
        patch.syspath_prepend(str(EXAMPLES / "django" / "after"))
        from config.asgi import application
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        from django.db import connections

        yield application
        connections.close_all()


@pytest.fixture
async def client(application: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(application) as client:
        yield client


async def sign_in(client: httpx.AsyncClient, name: str, *boards: str) -> dict[str, str]:
    """Sign in, join boards, and return the header that says who it is."""
    answer = await client.get(f"/sign-in/{name}")
    who = {"cookie": f"sessionid={answer.cookies['sessionid']}"}
    client.cookies.clear()
    for board in boards:
        assert (await client.post(f"/boards/{board}/join", headers=who)).status_code == 200
    return who


def stream(client: httpx.AsyncClient, who: dict[str, str], **params: str) -> OpenStream:
    return OpenStream(f"{client.base_url}/live", None, params=params, headers=who)


async def in_django(function: Callable[[], Any]) -> Any:
    """Call a function as Django's synchronous code is: in a thread, with connections of its own."""
    from django.db import connections

    def call() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


async def test_who_is_on_a_board_sees_what_the_orm_writes(client: httpx.AsyncClient) -> None:
    from tasks.models import Member, Task

    assert "<ul id=" in (await client.get("/")).text
    ann, bob = await sign_in(client, "ann", "home"), await sign_in(client, "bob")
    number = int((await client.post("/tasks", data={"board": "home", "text": "water"}, headers=ann)).text)
    async with stream(client, ann, snapshot="1") as hers, stream(client, bob, snapshot="1") as his:
        assert (await hers.ready())["topics"] == ["board:home"]
        assert (await his.ready())["topics"] == []
        page = await hers.expect(lambda block: block.event == "rowcast.snapshot")
        assert [row["text"] for row in page.data["rows"]] == ["water"]
        bob_id = int((await his.ready())["user"])
        await in_django(lambda: Member.objects.bulk_create([Member(board="home", user_id=bob_id)]))
        await his.expect(lambda block: block.event == "rowcast.snapshot")
        await client.post(f"/tasks/{number}/done", headers=ann)
        await in_django(lambda: Task.objects.filter(id=number).update(text="water the plants"))
        for seen in (hers, his):
            await seen.until(lambda seen=seen: len(seen.events()) == 2)  # type: ignore[misc]
            assert [event["record"]["text"] for event in seen.events()] == ["water", "water the plants"]
            assert all(event["record"]["done"] for event in seen.events())
    tasks = (await client.get("/tasks", headers=bob)).json()
    assert [task["text"] for task in tasks] == ["water the plants"]


async def test_what_is_published_within_atomic_goes_with_it(client: httpx.AsyncClient) -> None:
    from django.contrib.auth.models import User
    from django.db import transaction

    from rowcast.contrib.django import publish, resubscribe

    carl = await sign_in(client, "carl", "work")

    def work() -> None:
        user = User.objects.get(username="carl")
        with transaction.atomic():
            publish("board:work", {"n": 0})
            transaction.set_rollback(True)
        with transaction.atomic():
            publish("board:work", {"n": "100% %s"}, event="note", key="k")
            with transaction.atomic():
                publish("board:work", {"n": 2})
                transaction.set_rollback(True)
            publish(user=user, data={"n": 3})
            resubscribe(user.id)
        publish("board:work", {"n": 4})

    async with stream(client, carl) as seen:
        await seen.ready()
        await in_django(work)
        await seen.until(lambda: len(seen.events()) >= 2)
        assert [event["data"]["n"] for event in seen.events()] == [3, 4]
        assert seen.events("note") == [{"topic": "board:work", "data": {"n": "100% %s"}, "key": "k"}]


async def test_a_logout_ends_the_streams_and_who_is_signed_out_gets_none(client: httpx.AsyncClient) -> None:
    dora = await sign_in(client, "dora")
    assert (await client.get("/live/events")).status_code == 401
    assert (await client.get("/live/events", headers={"cookie": "sessionid=none"})).status_code == 401
    async with stream(client, dora) as seen:
        await seen.ready()
        await client.get("/sign-out", headers=dora)
        assert (await seen.expect(lambda block: block.event == "rowcast.bye")).data == {"reason": "disconnected"}
    assert (await client.get("/live/events", headers=dora)).status_code == 401
    assert (await client.post("/live/users/me/channels", headers=dora)).status_code == 403


async def test_a_stream_ends_with_its_session_and_another_function_may_say_whose_it_is(application: Any) -> None:
    import time

    from starlette.requests import Request

    from rowcast.contrib.django import _SessionUser

    def asked(user: Any, cookie: str) -> Any:
        headers = [(b"cookie", cookie.encode())]
        scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": headers}
        return _SessionUser(user)(Request(scope))

    async with serving(application) as client:
        erna = await sign_in(client, "erna")
    grant = await asked(None, erna["cookie"])
    assert grant.expires_at is not None
    assert grant.expires_at > time.time()
    told = await asked(lambda request: Grant(request.user.username, frozenset(["a"])), erna["cookie"])
    assert told == Grant("erna", frozenset(["a"]))
    with pytest.raises(AuthError, match="sign in"):
        await asked(lambda request: None, erna["cookie"])


async def test_the_address_of_a_database(application: Any) -> None:
    from django.db import connections
    from psycopg.conninfo import conninfo_to_dict

    from rowcast.contrib.django import database_url

    settings = connections["default"].settings_dict
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings, "OPTIONS", {"sslmode": "prefer", "pool": True})
        patch.setitem(settings, "PASSWORD", "p w'\\")
        told = conninfo_to_dict(database_url())
        assert (told["password"], told["sslmode"], told["dbname"]) == ("p w'\\", "prefer", settings["NAME"])
        assert "pool" not in told
        patch.setattr(type(connections["default"]), "vendor", "sqlite")
        with pytest.raises(ConfigError, match="sqlite"):
            database_url()


def test_it_is_an_application_without_rowcast(application: Any) -> None:
    checked = subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", _VISIT],
        cwd=EXAMPLES / "django" / "before",
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.split()[-2:] == ["201", "washing"]


_VISIT = """
from django.test import Client
client = Client(headers={"host": "localhost"})
client.get("/sign-in/fred")
client.post("/boards/bath/join")
print(client.post("/tasks", {"board": "bath", "text": "washing"}).status_code)
print(client.get("/tasks").json()[0]["text"])
"""
