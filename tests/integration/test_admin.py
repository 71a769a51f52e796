"""The operator's page and its data, on a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.telemetry.overview import overview
from rowcast.testing.serving import serving
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "the key"
WITH_KEY = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def cast(database: str) -> Rowcast:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL)")
        connection.execute("CREATE TABLE subs (id bigserial PRIMARY KEY, usr text, kind text)")
        connection.execute("INSERT INTO subs (usr, kind) VALUES ('ann', 'x'), ('ann', 'y'), ('bob', 'z')")
    return Rowcast(
        postgres=database,
        auth=SECRET,
        api={"key": KEY},
        route=[{"table": "items", "topic": "items:{kind}", "deletes": False}],
        subscription=[{"table": "subs", "user": "{usr}", "topics": ["items:{kind}"]}],
    )


@pytest.fixture
async def client(cast: Rowcast) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cast.asgi()) as client:
        yield client


@pytest.mark.parametrize("path", ["/admin/", "/admin/admin.js", "/admin/events", "/admin/tail?topics=a"])
async def test_nothing_of_it_without_the_key(client: httpx.AsyncClient, path: str) -> None:
    for auth in (None, ("anyone", "wrong"), ("", "")):
        response = await client.get(path, auth=auth)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Basic ")
    assert (await client.get("/admin/", headers={"authorization": "Basic nonsense"})).status_code == 401
    assert (await client.get("/admin/users/ann")).status_code == 401
    assert (await client.post("/admin/disconnect", json={"user": "ann"})).status_code == 401


async def test_the_page_is_served_with_a_strict_policy(client: httpx.AsyncClient) -> None:
    for auth in (httpx.BasicAuth("anyone", KEY), None):
        response = await client.get("/admin/", auth=auth, headers={} if auth else WITH_KEY)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/html")
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    for name in ("admin.js", "charts.js", "admin.css"):
        assert (await client.get(f"/admin/{name}", headers=WITH_KEY)).status_code == 200
    assert (await client.get("/admin/../cast.py", headers=WITH_KEY)).status_code == 404
    redirected = await client.get("/admin", headers=WITH_KEY)
    assert redirected.status_code == 307
    assert redirected.headers["location"].endswith("admin/")
    total = 0
    for name in ("", "admin.js", "charts.js", "admin.css"):
        total += len((await client.get(f"/admin/{name}", headers=WITH_KEY)).content)
    assert total < 150_000


async def test_pictures_come_over_a_stream(client: httpx.AsyncClient, cast: Rowcast) -> None:
    async with (
        OpenStream(f"{client.base_url}/admin".rstrip("/"), KEY) as pictures,
        OpenStream(str(client.base_url).rstrip("/"), mint(cast.config, "ann")) as stream,
    ):
        await stream.ready()
        picture = (
            await pictures.expect(lambda block: block.event == "overview" and block.data["streams"]["users"] == 2)
        ).data
        assert picture["streams"]["live"] == 2
        assert picture["log"]["ok"]
        assert picture["problems"] == []
        assert picture["replicas"] == {picture["replica"]: 2}
        slots = (await pictures.expect(lambda block: block.event == "overview" and bool(block.data["slots"]))).data[
            "slots"
        ]
        assert all(slot["name"].startswith("rowcast") for slot in slots)


async def test_nobody_else_can_have_the_pictures(client: httpx.AsyncClient, cast: Rowcast) -> None:
    token = mint(cast.config, "eve", topics=["\0overview"])
    response = await client.get("/events", headers={"authorization": f"Bearer {token}"})
    assert response.status_code == 401
    asked = {"topic": "\0overview", "data": 1}
    assert (await client.post("/publish", json=asked, headers=WITH_KEY)).status_code == 400


async def test_a_user_is_explained_by_rule_and_row(client: httpx.AsyncClient, cast: Rowcast) -> None:
    async with OpenStream(str(client.base_url).rstrip("/"), mint(cast.config, "ann", topics=["more"])) as stream:
        await stream.ready()
        found = (await client.get("/admin/users/ann", headers=WITH_KEY)).json()
    assert [(one["row"]["kind"], one["topics"]) for one in found["why"]] == [("x", ["items:x"]), ("y", ["items:y"])]
    assert "subscription" in found["why"][0]["rule"]
    assert found["streams"][0]["topics"] == ["items:x", "items:y", "more"]
    nobody = (await client.get("/admin/users/no%2Fbody", headers=WITH_KEY)).json()
    assert nobody["user"] == "no/body"
    assert nobody["why"] == nobody["streams"] == []


async def test_a_topic_can_be_followed(client: httpx.AsyncClient, database: str) -> None:
    base = f"{client.base_url}/admin".rstrip("/")
    async with (
        OpenStream(base, KEY, path="tail", params={"topics": "items:x"}) as tail,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
    ):
        assert (await tail.ready())["topics"] == ["items:x"]
        await connection.execute("INSERT INTO items (kind) VALUES ('y'), ('x')")
        await tail.expect(lambda block: bool(block.data) and block.data.get("topic") == "items:x")
        assert len(tail.events()) == 1
    for topics in ("", "a,b"):
        response = await client.get("/admin/tail", params={"topics": topics}, headers=WITH_KEY)
        assert response.status_code == 400


async def test_what_changes_something_must_be_asked_by_the_page(client: httpx.AsyncClient, cast: Rowcast) -> None:
    for action in ("resubscribe", "disconnect"):
        response = await client.post(f"/admin/{action}", json={"user": "ann"}, auth=("anyone", KEY))
        assert response.status_code == 403
    async with OpenStream(str(client.base_url).rstrip("/"), mint(cast.config, "ann")) as stream:
        await stream.ready()
        by_page = WITH_KEY | {"x-rowcast-admin": "1"}
        assert (await client.post("/admin/resubscribe", json={"user": "ann"}, headers=by_page)).status_code == 202
        await stream.expect(lambda block: block.event == "rowcast.subscriptions")
        assert (await client.post("/admin/disconnect", json={"user": "ann"}, headers=by_page)).status_code == 202
        await stream.expect(lambda block: block.event == "rowcast.bye")


async def test_without_a_key_it_is_off(database: str) -> None:
    async with serving(Rowcast(auth=SECRET).asgi()) as client:
        assert (await client.get("/admin/")).status_code == 403


async def test_replicas_with_one_name_are_counted_together(
    client: httpx.AsyncClient, cast: Rowcast, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Roster:
        async def others(self) -> dict[str, int]:
            return {cast.replica.name: 3, "another": 2}

    monkeypatch.setattr(cast.replica, "roster", Roster())
    picture = await overview(cast)
    assert picture["replicas"] == {cast.replica.name: 3, "another": 2}
    async with OpenStream(str(client.base_url).rstrip("/"), mint(cast.config, "ann")) as stream:
        await stream.ready()
        counted = (await client.get("/events/count", headers=WITH_KEY)).json()
        assert (await overview(cast))["replicas"] == counted["replicas"] == {cast.replica.name: 4, "another": 2}
