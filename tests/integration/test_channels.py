"""The channel API on a real Postgres: the calls, the table, and that a write changes an open stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest

from rowcast import Rowcast, SetupError, slots
from rowcast.auth.jwt import mint
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.serving import serving
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
KEY = {"authorization": "Bearer k"}
ME = "/users/me/channels"


def make(url: str | dict[str, str], **sections: Any) -> Rowcast:
    server = {"name": "r1", "cors_origins": ["https://app.example"]}
    auth = {"secret": SECRET, "cookie": "session"}
    return Rowcast(postgres=url, auth=auth, server=server, **{"api": "k"} | sections)


def token(user: str) -> str:
    return mint(Rowcast(auth=SECRET).config, user)


def bearer(user: str = "alice") -> dict[str, str]:
    return {"authorization": f"Bearer {token(user)}"}


@pytest.fixture(scope="module")
async def client(postgres: PostgresServer) -> AsyncIterator[httpx.AsyncClient]:
    """One service for the module; each test uses users of its own."""
    # Slots belong to the whole server: not the name that other tests use.
    section = {"url": postgres.create_database("channels"), "slot": "channels"}
    cast = make(section, channels={"enabled": True}, log="memory:")
    async with serving(cast.asgi()) as made:
        yield made
    await slots.drop(cast.config)


def channel(kind: str, enabled: bool = True, config: Any = None) -> dict[str, Any]:
    return {"channel_type": kind, "enabled": enabled, "config": {} if config is None else config}


async def test_a_channel_from_its_making_to_its_end(client: httpx.AsyncClient) -> None:
    me = bearer("life")
    assert (await client.get(ME, headers=me)).json() == []
    made = await client.post(ME, headers=me, json=channel("finance", config={"symbols": ["AAPL"]}))
    assert made.status_code == 201
    assert made.headers["location"] == f"{ME}/finance"
    assert made.json() == channel("finance", config={"symbols": ["AAPL"]})
    assert (await client.get(f"{ME}/finance", headers=me)).json() == made.json()
    changed = await client.put(f"{ME}/finance", headers=me, json={"enabled": False, "config": {"symbols": []}})
    assert changed.status_code == 200
    assert changed.json() == channel("finance", False, {"symbols": []})
    assert (await client.put(f"{ME}/sport", headers=me, json={})).status_code == 201
    assert (await client.get(ME, headers=me)).json() == [changed.json(), channel("sport")]
    gone = await client.delete(f"{ME}/finance", headers=me)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.get(ME, headers=me)).json() == [channel("sport")]


async def test_a_put_replaces_the_whole(client: httpx.AsyncClient) -> None:
    me = bearer("whole")
    await client.put(f"{ME}/c", headers=me, json={"enabled": False, "config": {"a": 1}})
    answer = await client.put(f"{ME}/c", headers=me, json={"channel_type": "c"})
    assert (answer.status_code, answer.json()) == (200, channel("c"))


async def test_what_is_there_is_not_made_again(client: httpx.AsyncClient) -> None:
    me = bearer("twice")
    assert (await client.post(ME, headers=me, json=channel("c", config={"a": 1}))).status_code == 201
    answer = await client.post(ME, headers=me, json=channel("c"))
    assert answer.status_code == 409
    assert "PUT" in answer.json()["error"]
    assert (await client.get(f"{ME}/c", headers=me)).json() == channel("c", config={"a": 1})


async def test_a_user_has_at_most_so_many(postgres: PostgresServer) -> None:
    section = {"url": postgres.create_database("channels_bounded"), "slot": "channels_bounded"}
    cast = make(section, channels={"enabled": True, "max_per_user": 2}, log="memory:")
    me, other = bearer("many"), bearer("other")
    async with serving(cast.asgi()) as client:
        assert (await client.post(ME, headers=me, json=channel("one"))).status_code == 201
        assert (await client.put(f"{ME}/two", headers=me, json={})).status_code == 201
        for refused in (
            await client.post(ME, headers=me, json=channel("three")),
            await client.put(f"{ME}/three", headers=me, json={}),
        ):
            assert refused.status_code == 409
            assert "you have 2 channels, as many as a user may have" in refused.json()["error"]
        # What is there can be changed all the same, and is told from what is too much.
        assert (await client.put(f"{ME}/two", headers=me, json={"enabled": False})).status_code == 200
        again = await client.post(ME, headers=me, json=channel("one"))
        assert again.status_code == 409
        assert "exists already" in again.json()["error"]
        assert (await client.post(ME, headers=other, json=channel("three"))).status_code == 201
        assert (await client.delete(f"{ME}/one", headers=me)).status_code == 204
        assert (await client.post(ME, headers=me, json=channel("three"))).status_code == 201
    await slots.drop(cast.config)


async def test_also_of_many_made_at_the_same_moment_on_two_replicas(postgres: PostgresServer) -> None:
    section = {"url": postgres.create_database("channels_at_once"), "slot": "channels_at_once"}
    me = bearer("hasty")
    async with contextlib.AsyncExitStack() as stack:
        casts = [make(section, channels={"enabled": True, "max_per_user": 3}) for _ in range(2)]
        clients = [await stack.enter_async_context(serving(cast.asgi())) for cast in casts]
        with psycopg.connect(section["url"], autocommit=True) as connection:
            # Each counts before it writes, and takes long for it.
            connection.execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END'"
            )
            connection.execute(
                "CREATE TRIGGER slow BEFORE INSERT ON rowcast_channels FOR EACH ROW EXECUTE FUNCTION slow()"
            )
        calls = [
            clients[number % 2].post(ME, headers=me, json=channel(f"c{number}"))
            if number % 3
            else clients[number % 2].put(f"{ME}/c{number}", headers=me, json={})
            for number in range(10)
        ]
        statuses = [answer.status_code for answer in await asyncio.gather(*calls)]
        assert sorted(statuses) == [201] * 3 + [409] * 7
        assert len((await clients[0].get(ME, headers=me)).json()) == 3
    await slots.drop(casts[0].config)


async def test_of_many_who_make_the_same_one_succeeds(client: httpx.AsyncClient) -> None:
    me = bearer("race")
    answers = await asyncio.gather(*(client.post(ME, headers=me, json=channel("c")) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_what_is_not_there_is_404(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, f"{ME}/nope", headers=bearer("nobody"))
    assert answer.status_code == 404
    assert "'nope'" in answer.json()["error"]


async def test_users_see_and_change_their_own_only(client: httpx.AsyncClient) -> None:
    await client.put(f"{ME}/c", headers=bearer("owner"), json={"config": {"mine": True}})
    other = bearer("other")
    assert (await client.get(ME, headers=other)).json() == []
    assert (await client.get(f"{ME}/c", headers=other)).status_code == 404
    assert (await client.delete(f"{ME}/c", headers=other)).status_code == 404
    assert (await client.put(f"{ME}/c", headers=other, json={"enabled": False})).status_code == 201
    assert (await client.get(f"{ME}/c", headers=bearer("owner"))).json() == channel("c", config={"mine": True})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ME), ("POST", ME), ("GET", f"{ME}/c"), ("PUT", f"{ME}/c"), ("DELETE", f"{ME}/c")]
)
async def test_a_token_is_needed_and_the_key_is_none(client: httpx.AsyncClient, method: str, path: str) -> None:
    for headers in ({}, KEY, {"authorization": "Bearer x"}):
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "kind", ["finance", "Ünïcödé 🐘", "a.b:c-d_e", "50%", "?", "#", "a b", "'; DROP TABLE x; --", "x" * 128]
)
async def test_types_may_be_any_text(client: httpx.AsyncClient, kind: str) -> None:
    me = bearer(f"text {kind}"[:200])
    made = await client.post(ME, headers=me, json=channel(kind))
    assert made.status_code == 201
    assert (await client.get(made.headers["location"], headers=me)).json() == channel(kind)
    assert (await client.delete(f"{ME}/{quote(kind, safe='')}", headers=me)).status_code == 204


@pytest.mark.parametrize(
    "config",
    [
        '{"price": 1.10, "big": 123456789012345678901234567890, "tiny": 1e-7}',
        '{"a":{"b":[1,[2,{"c":null}]]},"ключ":"🐘\\u2028"}',
        "{}",
    ],
)
async def test_configs_keep_their_digits(client: httpx.AsyncClient, config: str) -> None:
    me = bearer(f"digits {len(config)}")
    body = b'{"config":' + config.encode() + b"}"
    answer = await client.put(f"{ME}/c", headers=me, content=body)
    assert answer.status_code == 201

    def exact(text: str) -> Any:
        return json.loads(text, parse_float=Decimal)

    for text in (answer.text, (await client.get(f"{ME}/c", headers=me)).text):
        assert exact(text)["config"] == exact(config)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "got `array`"),
        (b'{"channel_type":"c","colour":1}', "unknown field `colour`"),
        (b'{"enabled":true}', "`channel_type`"),
        (b'{"channel_type":1}', "$.channel_type"),
        (b'{"channel_type":null}', "$.channel_type"),
        (b'{"channel_type":""}', "1 to 128"),
        (b'{"channel_type":"' + b"x" * 129 + b'"}', "1 to 128"),
        (b'{"channel_type":"a/b"}', "no slash"),
        (b'{"channel_type":"a\\nb"}', "no control"),
        (b'{"channel_type":"a\\u0000b"}', "no control"),
        (b'{"channel_type":"c","enabled":"yes"}', "$.enabled"),
        (b'{"channel_type":"c","enabled":null}', "$.enabled"),
        (b'{"channel_type":"c","enabled":1}', "$.enabled"),
        (b'{"channel_type":"c","config":[]}', "config must be a JSON object"),
        (b'{"channel_type":"c","config":null}', "config must be a JSON object"),
        (b'{"channel_type":"c","config":"{}"}', "config must be a JSON object"),
        (b'{"channel_type":"c","config":{"a":"\\u0000"}}', "Postgres can't store it"),
        (b'{"channel_type":"c","config":{"a":1e999999}}', "Postgres can't store it"),
        (b'{"channel_type":"c","config":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, "nested too deep"),
    ],
)
async def test_bodies_that_are_refused(client: httpx.AsyncClient, body: bytes, words: str) -> None:
    me = bearer("refused")
    answers = [await client.post(ME, headers=me, content=body)]
    if b'"channel_type":"c"' in body:
        answers.append(await client.put(f"{ME}/c", headers=me, content=body))
    for answer in answers:
        assert answer.status_code == 400
        assert words in answer.json()["error"]
    assert (await client.get(ME, headers=me)).json() == []


async def test_a_type_that_differs_from_the_path_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.put(f"{ME}/c", headers=bearer("differs"), json={"channel_type": "d"})
    assert answer.status_code == 400


async def test_a_config_that_is_too_large_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.put(f"{ME}/c", headers=bearer("large"), json={"config": {"a": "x" * 400_000}})
    assert answer.status_code == 413


async def test_writes_by_cookie_need_an_allowed_origin(client: httpx.AsyncClient) -> None:
    cookie = {"cookie": f"session={token('cookie')}"}
    assert (await client.get(ME, headers=cookie)).status_code == 200
    assert (await client.put(f"{ME}/c", headers=cookie, json={})).status_code == 403
    evil = cookie | {"origin": "https://evil.example"}
    assert (await client.put(f"{ME}/c", headers=evil, json={})).status_code == 403
    allowed = cookie | {"origin": "https://app.example"}
    assert (await client.put(f"{ME}/c", headers=allowed, json={})).status_code == 201
    same = cookie | {"origin": str(client.base_url).rstrip("/")}
    assert (await client.delete(f"{ME}/c", headers=same)).status_code == 204


# The table

TEMPLATE = {
    "table": "rowcast_channels",
    "user": "{user_id}",
    "when": "{enabled}",
    "topics": ["finance:{config.symbols[*]}"],
}


@pytest.mark.parametrize("log", ["postgres:", "memory:"])
async def test_a_write_changes_the_open_stream(database: str, log: str) -> None:
    cast = make(database, log=log, subscription=[TEMPLATE], channels={"enabled": True})
    async with serving(cast.asgi()) as client, OpenStream(str(client.base_url).rstrip("/"), token("alice")) as stream:
        assert (await stream.ready())["topics"] == []

        async def heard(change: dict[str, list[str]]) -> None:
            await stream.until(lambda: change in stream.events("rowcast.subscriptions"))

        me = bearer()
        await client.put(f"{ME}/finance", headers=me, json={"config": {"symbols": ["A", "B"]}})
        await heard({"added": ["finance:A", "finance:B"], "removed": [], "topics": ["finance:A", "finance:B"]})
        await client.put(f"{ME}/finance", headers=me, json={"config": {"symbols": ["B"]}})
        await heard({"added": [], "removed": ["finance:A"], "topics": ["finance:B"]})
        published = await client.post("/publish", headers=KEY, json={"topic": "finance:B", "data": 1})
        assert published.status_code == 202
        await stream.until(lambda: bool(stream.events()))
        await client.delete(f"{ME}/finance", headers=me)
        await heard({"added": [], "removed": ["finance:B"], "topics": []})


async def test_replicas_that_start_together_make_one_table(database: str) -> None:
    casts = [make(database, channels={"enabled": True}) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(cast.lifespan()) for cast in casts))
        async with await psycopg.AsyncConnection.connect(database) as connection:
            cursor = await connection.execute(
                "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns"
                " WHERE table_name = 'rowcast_channels' ORDER BY ordinal_position"
            )
            columns = {name: (kind, nullable, default) for name, kind, nullable, default in await cursor.fetchall()}
    assert {name: kind for name, (kind, _, _) in columns.items()} == {
        "user_id": "text",
        "channel_type": "text",
        "enabled": "boolean",
        "config": "jsonb",
        "created_at": "timestamp with time zone",
        "updated_at": "timestamp with time zone",
    }
    assert {nullable for _, nullable, _ in columns.values()} == {"NO"}
    assert columns["enabled"][2] == "true"
    assert columns["config"][2] == "'{}'::jsonb"


@pytest.fixture
def restricted(database: str) -> Iterator[str]:
    """The connection string of a role that may replicate and connect, and nothing else."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE ROLE restricted LOGIN REPLICATION")
        yield database.replace("postgres@", "restricted@")
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'restricted'")
        connection.execute("DROP OWNED BY restricted")
        connection.execute("DROP ROLE restricted")


async def test_a_role_that_may_not_make_the_table_is_told_the_sql(restricted: str) -> None:
    with pytest.raises(SetupError, match=r"CREATE TABLE IF NOT EXISTS rowcast_channels \(.*PRIMARY KEY"):
        await make(restricted, channels={"enabled": True}).start()


async def test_channels_that_are_off_are_404_with_words(database: str) -> None:
    async with serving(make(database, log="memory:", channels={"enabled": False}).asgi()) as client:
        for method, path in (("GET", ME), ("PUT", f"{ME}/c"), ("DELETE", f"{ME}/c")):
            answer = await client.request(method, path, headers=bearer(), json={} if method == "PUT" else None)
            assert answer.status_code == 404
            assert "[channels] enabled" in answer.json()["error"]


async def test_a_table_that_went_away_is_the_operators_to_mend(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(make(database, log="memory:", channels={"enabled": True}).asgi()) as client:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("DROP TABLE rowcast_channels")
        answer = await client.get(ME, headers=bearer())
    assert answer.status_code == 503
    assert answer.json()["down"] == "postgres"
    assert "rowcast_channels" in caplog.text


async def test_while_postgres_is_down_it_is_503_and_not_ready() -> None:
    with PostgresServer() as server:
        cast = make(server.url(), channels={"enabled": True})
        async with serving(cast.asgi()) as client:
            assert (await client.get("/readyz")).json()["checks"]["postgres"]["ok"] is True
            server.stop()
            answer = await client.get(ME, headers=bearer())
            assert answer.status_code == 503
            assert answer.json()["down"] == "postgres"
            assert int(answer.headers["retry-after"]) > 0
            ready = await until(client, lambda body: not body["checks"]["postgres"]["ok"])
            assert "postgres: " in ready["error"]
            assert (await client.get("/healthz")).status_code == 200
            server.start()
            await until(client, lambda body: body.get("status") == "ok")
            assert (await client.put(f"{ME}/c", headers=bearer(), json={})).status_code == 201


async def until(client: httpx.AsyncClient, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask readyz until a condition of its body holds."""
    async with asyncio.timeout(30):
        while not holds(body := (await client.get("/readyz")).json()):
            await asyncio.sleep(0.05)
    return dict(body)
