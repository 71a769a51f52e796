"""Webhooks into the log that is the WAL: on every replica, in one order, and each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import psycopg

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.testing.local import LocalStream
from rowcast.testing.server import RowcastServer
from rowcast.testing.serving import serving
from rowcast.testing.stream import OpenStream

DATA = Path(__file__).parents[1] / "data"
SECRET = "0123456789abcdef0123456789abcdef"
BEARER = {"authorization": "Bearer from-outside"}
ROUTE = {"table": "trades", "topic": "finance:{symbol}"}

CONFIG = """
[postgres]
url = "{url}"
[auth]
secret = "{secret}"
[api]
key = "k"
[webhooks.sequin]
secret = "from-outside"
[webhooks.debezium]
secret = "from-outside"
[limits]
requests = "5/minute"
[[route]]
table = "trades"
topic = "finance:{{symbol}}"
"""


def make(database: str, **sections: Any) -> Rowcast:
    webhook = {"secret": "from-outside"}
    webhooks = {"sequin": webhook, "debezium": webhook}
    return Rowcast(postgres=database, auth=SECRET, api="k", webhooks=webhooks, route=[ROUTE], **sections)


async def post(client: httpx.AsyncClient, name: str) -> Any:
    sender = name.partition("/")[0]
    answer = await client.post(f"/webhooks/{sender}", headers=BEARER, content=(DATA / name).read_bytes())
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_replica_has_the_same_at_the_same_positions(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, symbol text, price numeric)")
        first, second = make(database), make(database)
        async with serving(first.asgi()) as client, second.lifespan():
            streams = [LocalStream(cast, "ann", ["finance:AAPL", "finance:MSFT"]) for cast in (first, second)]
            for stream in streams:
                await stream.ready()
            names = ["sequin/insert.json", "sequin/batch.json", "debezium/array.json", "debezium/truncate.json"]
            assert [(await post(client, name))["appended"] for name in names] == [1, 3, 3, 1]
            assert [(await post(client, name))["repeated"] for name in names] == [1, 3, 3, 1]
            connection.execute("INSERT INTO trades VALUES (1, 'AAPL', 1.50)")
            seen = []
            for stream in streams:
                await stream.settled()
                seen.append([(block.id, block.data) for block in stream.blocks if block.event == "message"])
            assert seen[0] == seen[1]
            actions = [data["action"] for _, data in seen[0]]
            assert actions == [
                "insert",
                "insert",
                "update",
                "delete",
                "insert",
                "insert",
                "insert",
                "truncate",
                "insert",
            ]
            # A row from a webhook looks like one from the WAL.
            assert seen[0][0][1].keys() == seen[0][-1][1].keys()


async def test_one_that_was_away_catches_up_with_what_came_by_webhook(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, symbol text)")
    cast = make(database)
    async with serving(cast.asgi()) as client:
        stream = LocalStream(cast, "ann", ["finance:MSFT"])
        await stream.ready()
        position = stream.position
        stream.close()
        await post(client, "sequin/batch.json")
        back = LocalStream(cast, "ann", ["finance:MSFT"], last_event_id=position)
        await back.ready()
        await back.settled()
        assert [event["action"] for event in back.events()] == ["insert", "update", "delete"]


async def test_a_whole_replica_with_limits_and_webhooks(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, symbol text)")
    config = CONFIG.format(url=database, secret=SECRET)
    token = mint(make(database).config, "ann", topics=["finance:AAPL"])
    with RowcastServer(config) as server:
        async with OpenStream(server.url, token) as stream, httpx.AsyncClient(base_url=server.url) as client:
            await stream.ready()
            # Neither the stream nor webhooks are counted, and what a client says of its address is not believed.
            assert (await post(client, "debezium/create_with_schema.json"))["appended"] == 1
            for _ in range(6):
                assert (await post(client, "debezium/create_with_schema.json"))["repeated"] == 1
            statuses = [
                (await client.get("/nope", headers={"x-forwarded-for": f"198.51.100.{number}"})).status_code
                for number in range(6)
            ]
            assert statuses == [404] * 5 + [429]
            await stream.until(lambda: bool(stream.events()))
            [event] = stream.events()
            sent = json.loads((DATA / "debezium/create_with_schema.json").read_text())["payload"]["after"]
            assert event["record"] == sent | {"id": str(sent["id"])}
