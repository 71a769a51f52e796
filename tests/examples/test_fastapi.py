"""The FastAPI example: before and after, with its own users, and publishing in its own transactions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from rowcast import ConfigError, Rowcast
from rowcast.contrib.fastapi import mount
from rowcast.contrib.sqlalchemy import apublish, database_url, publish
from rowcast.contrib.users import grant_of
from rowcast.core.grants import Grant
from rowcast.testing.serving import serving
from rowcast.testing.stream import OpenStream

Load = Callable[[str], ModuleType]


@pytest.fixture
async def example(load: Load, database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """The example, served; with the engine's connections gone afterwards."""
    monkeypatch.setenv("DATABASE_URL", database.replace("postgresql:", "postgresql+psycopg:"))
    monkeypatch.setenv("ROWCAST_KEY", "a key of the example's")
    async with contextlib.AsyncExitStack() as stack:

        async def run(which: str) -> tuple[ModuleType, httpx.AsyncClient]:
            module = load(f"fastapi/{which}/app.py")
            stack.callback(module.engine.dispose)
            return module, await stack.enter_async_context(serving(module.app))

        yield run


async def sign_in(client: httpx.AsyncClient, name: str, *boards: str) -> dict[str, str]:
    """Sign in, join boards, and return the header that says who it is."""
    answer = await client.post(f"/sign-in/{name}")
    who = {"cookie": f"secret={answer.cookies['secret']}"}
    client.cookies.clear()
    for board in boards:
        assert (await client.post(f"/boards/{board}/join", headers=who)).status_code == 200
    return who


def stream(client: httpx.AsyncClient, who: dict[str, str], **params: str) -> OpenStream:
    return OpenStream(f"{client.base_url}/live", None, params=params, headers=who)


@pytest.mark.parametrize("which", ["before", "after"])
async def test_it_is_an_application_before_and_after(example: Any, which: str) -> None:
    _, client = await example(which)
    assert (await client.get("/tasks")).status_code == 401
    ann = await sign_in(client, "ann", "home")
    number = (await client.post("/tasks", json={"board": "home", "text": "water"}, headers=ann)).json()
    await client.post(f"/tasks/{number}/done", headers=ann)
    assert (await client.get("/tasks", headers=ann)).json() == [
        {"id": number, "board": "home", "text": "water", "done": True}
    ]
    assert "<ul id=" in (await client.get("/")).text


async def test_who_is_on_a_board_sees_its_tasks_live(example: Any) -> None:
    _, client = await example("after")
    ann, bob = await sign_in(client, "ann", "home", "work"), await sign_in(client, "bob")
    await client.post("/tasks", json={"board": "home", "text": "before"}, headers=ann)
    async with stream(client, ann, snapshot="1") as hers, stream(client, bob, snapshot="1") as his:
        assert (await hers.ready())["topics"] == ["board:home", "board:work"]
        assert (await his.ready())["topics"] == []
        page = await hers.expect(lambda block: block.event == "rowcast.snapshot" and bool(block.data["rows"]))
        assert page.data["rows"][0]["text"] == "before"
        await client.post("/boards/home/join", headers=bob)
        await his.expect(lambda block: block.event == "rowcast.snapshot")
        await client.post("/tasks", json={"board": "home", "text": "after"}, headers=ann)
        for seen in (hers, his):
            block = await seen.expect(lambda block: block.event == "message" and block.data is not None)
            assert block.data["record"]["text"] == "after"


async def test_the_applications_own_authentication_decides(example: Any) -> None:
    module, client = await example("after")
    for path in ("/live/events", "/live/users/me/channels"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (401, {"detail": "sign in first"})
    ann = await sign_in(client, "ann")
    made = {"channel_type": "a"}
    post = ["/live/users/me/channels"]
    assert (await client.post(*post, json=made, headers=ann)).status_code == 403, "a write without an Origin"
    origin = {"origin": str(client.base_url).rstrip("/")}
    assert (await client.post(*post, json=made, headers=ann | origin)).status_code == 201
    elsewhere = {"origin": "https://evil.example"}
    assert (await client.post(*post, json=made, headers=ann | elsewhere)).status_code == 403
    module.app.dependency_overrides[module.current_user] = lambda: module.User(id=77)
    async with OpenStream(f"{client.base_url}/live", None) as overridden:
        assert (await overridden.ready())["user"] == "77"
    assert (await client.get("/live/readyz")).status_code == 200


async def test_no_stream_holds_a_connection_of_the_applications(example: Any) -> None:
    module, client = await example("after")
    ann = await sign_in(client, "ann", "home")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(16):  # the pool has 5, and 10 more at most
            await (await stack.enter_async_context(stream(client, ann))).ready()
        assert module.engine.pool.checkedout() == 0


async def test_what_is_published_in_a_transaction_goes_with_it(example: Any) -> None:
    module, client = await example("after")
    ann = await sign_in(client, "ann", "home")
    engine = create_async_engine(module.engine.url)
    async with stream(client, ann) as seen:
        await seen.ready()
        with Session(module.engine) as session:
            publish(session, module.cast, "board:home", {"n": 0})
            session.rollback()
            session.add(module.Task(board="home", text="with it"))
            publish(session, module.cast, "board:home", {"n": "100% :name %s"}, event="note", key="k")
            session.flush()
            savepoint = session.begin_nested()
            publish(session, module.cast, "board:home", {"n": 2})
            savepoint.rollback()
            session.commit()
        with module.engine.begin() as connection:
            publish(connection, module.cast, "board:home", {"n": 3})
        async with AsyncSession(engine) as session:
            await apublish(session, module.cast, "board:home", {"n": 4})
            await session.commit()
        async with engine.begin() as connection:
            await apublish(connection, module.cast, "board:home", {"n": 5})
        await seen.until(lambda: len(seen.events()) >= 4)
        # SQLAlchemy writes its rows when it flushes: after what is published before that.
        told = [block.data for block in seen.blocks if block.data and not block.event.startswith("rowcast.")]
        assert [event.get("data") or event["record"]["text"] for event in told] == [
            {"n": "100% :name %s"},
            "with it",
            {"n": 3},
            {"n": 4},
            {"n": 5},
        ]
        assert seen.events("note") == [{"topic": "board:home", "data": {"n": "100% :name %s"}, "key": "k"}]
        with Session(module.engine) as session:
            session.connection().exec_driver_sql(module.cast.disconnect_sql("1")).close()
            session.commit()
        assert (await seen.expect(lambda block: block.event == "rowcast.bye")).data == {"reason": "disconnected"}
    await engine.dispose()


async def test_whom_the_dependency_names() -> None:
    app, said = FastAPI(), [None]

    @app.exception_handler(KeyError)
    def teapot(request: object, error: KeyError) -> Any:
        return httpx_to_starlette(418)

    def user() -> Any:
        if isinstance(said[0], Exception):
            raise said[0]
        return said[0]

    mount(app, Rowcast(log="memory:"), "/live", user=user)
    async with serving(app) as client:
        said[0] = Grant("ann", frozenset(["a"]))  # type: ignore[call-overload]
        async with OpenStream(f"{client.base_url}/live", None) as granted:
            assert (await granted.ready())["topics"] == ["a"]
        for what, status in (
            (None, 401),
            ("", 403),
            (HTTPException(402, "pay"), 402),
            (KeyError("x"), 418),
            (object(), 500),
        ):
            said[0] = what  # type: ignore[call-overload]
            assert (await client.get("/live/events")).status_code == status, what


def httpx_to_starlette(status: int) -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse("", status)


async def test_without_a_dependency_tokens_are_needed() -> None:
    app = FastAPI(dependencies=[Depends(lambda: None)])
    mount(app, Rowcast(auth="0123456789abcdef0123456789abcdef"))
    async with serving(app) as client:
        assert "token is needed" in (await client.get("/live/events")).json()["error"]


def test_the_address_of_an_engine() -> None:
    assert database_url("postgresql+psycopg://u:p%40@h:1/d?sslmode=require") == (
        "postgresql://u:p%40@h:1/d?sslmode=require"
    )
    assert database_url("postgresql+asyncpg://u@h/d?ssl=require") == "postgresql://u@h/d"
    with pytest.raises(ConfigError, match="sqlite"):
        database_url("sqlite:///x")


def test_users_of_every_kind() -> None:
    class Model:
        id = 5

    assert [grant_of(user).user for user in ("a", 3, Model(), Grant("g"))] == ["a", "3", "5", "g"]
    for odd in (object(), True, 1.5, {"id": 1}):
        with pytest.raises(TypeError, match="whose stream"):
            grant_of(odd)
