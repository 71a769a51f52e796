"""Webhooks over real sockets: who may send, what arrives on streams, and what comes twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rowcast import Rowcast, check
from rowcast.auth.webhooks import parse_secret, sign
from rowcast.errors import ConfigError, Unavailable
from rowcast.http import webhooks
from rowcast.intake import Taken
from rowcast.ports import Draft
from rowcast.sources import sequin
from rowcast.sources.records import Refused
from rowcast.testing.local import LocalStream

DATA = Path(__file__).parents[2] / "data"
SECRET = "a-secret-of-sequin"
SIGNING = "whsec_" + "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
BEARER = {"authorization": f"Bearer {SECRET}"}
ROUTE = {"table": "trades", "topic": "finance:{symbol}"}
BOTH = {"sequin": {"secret": SECRET}, "debezium": {"secret": SECRET}}

Make = Callable[..., Rowcast]


def body_of(name: str) -> bytes:
    return (DATA / name).read_bytes()


@contextlib.asynccontextmanager
async def receiving(
    make: Make, serve: Any, topics: tuple[str, ...] = ("finance:AAPL",), **sections: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, LocalStream, Rowcast]]:
    """A client, and a stream with topics."""
    cast = make(**{"webhooks": BOTH, "route": [ROUTE]} | sections)
    async with serve(cast.asgi()) as client:
        stream = LocalStream(cast, "alice", topics)
        await stream.ready()
        yield client, stream, cast


async def told(stream: LocalStream) -> list[Any]:
    await stream.settled()
    return stream.events()


# What arrives


@pytest.mark.parametrize(
    ("path", "name", "action"),
    [
        ("/webhooks/sequin", "sequin/insert.json", "insert"),
        ("/webhooks/sequin", "sequin/update.json", "update"),
        ("/webhooks/sequin", "sequin/delete.json", "delete"),
        ("/webhooks/sequin", "sequin/read.json", "read"),
        ("/webhooks/sequin", "sequin/old_version.json", "insert"),
        ("/webhooks/debezium", "debezium/create_with_schema.json", "insert"),
        ("/webhooks/debezium", "debezium/create.json", "insert"),
        ("/webhooks/debezium", "debezium/update.json", "update"),
        ("/webhooks/debezium", "debezium/delete.json", "delete"),
        ("/webhooks/debezium", "debezium/read.json", "read"),
        ("/webhooks/debezium", "debezium/truncate.json", "truncate"),
    ],
)
async def test_a_change_arrives(make: Make, serve: Any, path: str, name: str, action: str) -> None:
    async with receiving(make, serve) as (client, stream, _):
        answer = await client.post(path, headers=BEARER, content=body_of(name))
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"records": 1, "appended": 1, "repeated": 0, "ignored": 0}
        [event] = await told(stream)
        assert event["action"] == action
        assert event["metadata"]["table_name"] == "trades"
        if action == "truncate":
            assert event["record"] is None
        else:
            assert event["topic"] == "finance:AAPL"
            assert event["record"]["price"] == "224.31"


async def test_a_source_of_ones_own_is_taken_by_the_program(make: Make, serve: Any) -> None:
    async with receiving(make, serve) as (client, stream, cast):
        delivery = sequin.parse(body_of("sequin/insert.json"))
        delivery.refused.append(Refused(1, "it can't be read"))
        assert await cast.take(delivery) == Taken(records=1, appended=1)
        assert await cast.take(sequin.parse(body_of("sequin/insert.json"))) == Taken(records=1, repeated=1)
        answer = await client.post("/webhooks/sequin", headers=BEARER, content=body_of("sequin/insert.json"))
        assert answer.json()["repeated"] == 1
        assert len(await told(stream)) == 1
        assert cast.webhooks.poisoned == 1


async def test_a_batch_arrives_in_order(make: Make, serve: Any) -> None:
    async with receiving(make, serve, ("finance:MSFT",)) as (client, stream, _):
        for path, name in (("/webhooks/sequin", "sequin/batch.json"), ("/webhooks/debezium", "debezium/array.json")):
            assert (await client.post(path, headers=BEARER, content=body_of(name))).json()["appended"] == 3
        events = await told(stream)
        assert [event["action"] for event in events] == ["insert", "update", "delete", "insert", "insert", "insert"]
        assert [event["record"]["id"] for event in events[3:]] == [1, 2, 3]
        positions = [block.id for block in stream.blocks if block.data in events]
        assert len(set(positions)) == len(events)


async def test_changes_go_out_as_sequin_s_own_json(make: Make, serve: Any) -> None:
    async with receiving(make, serve, server={"envelope": "sequin"}) as (client, stream, _):
        await client.post("/webhooks/sequin", headers=BEARER, content=body_of("sequin/read.json"))
        [event] = await told(stream)
        assert [item["action"] for item in event["data"]] == ["read"]
        assert event.keys() == {"data"}


async def test_events_that_are_no_changes_are_taken_and_ignored(make: Make, serve: Any) -> None:
    async with receiving(make, serve) as (client, stream, _):
        for name in ("message", "transaction_begin", "heartbeat", "tombstone_with_schema"):
            answer = await client.post("/webhooks/debezium", headers=BEARER, content=body_of(f"debezium/{name}.json"))
            assert answer.json() == {"records": 0, "appended": 0, "repeated": 0, "ignored": 1}
        assert await told(stream) == []


async def test_a_change_of_a_table_without_a_route_goes_nowhere(make: Make, serve: Any) -> None:
    async with receiving(make, serve, route=[{"table": "other", "topic": "finance:{symbol}"}]) as (client, stream, _):
        answer = await client.post("/webhooks/sequin", headers=BEARER, content=body_of("sequin/insert.json"))
        assert (answer.status_code, answer.json()["appended"]) == (200, 0)
        assert await told(stream) == []


async def test_an_event_that_is_too_large_is_cut(make: Make, serve: Any) -> None:
    body = json.loads(body_of("sequin/insert.json"))
    body["record"]["note"] = "x" * 2000
    async with receiving(make, serve, server={"max_event": 1024}, route=[ROUTE | {"key": ["symbol"]}]) as made:
        client, stream, _ = made
        await client.post("/webhooks/sequin", headers=BEARER, json=body)
        [event] = await told(stream)
        assert event["record"] == {"symbol": "AAPL"}
        assert event["metadata"]["truncated"] is True


async def test_what_can_not_be_addressed_is_told_to_the_operator(make: Make, serve: Any) -> None:
    body = json.loads(body_of("sequin/insert.json"))
    del body["record"]["symbol"]
    async with receiving(make, serve) as (client, _, _):
        assert (await client.post("/webhooks/sequin", headers=BEARER, json=body)).json()["appended"] == 0
        [problem] = (await client.get("/readyz")).json()["problems"]
        assert "'symbol'" in problem


async def test_what_was_published_in_sql_arrives_through_debezium(make: Make, serve: Any) -> None:
    async with receiving(make, serve, ("news",)) as (client, stream, cast):

        def message(statement: str) -> Any:
            content = bytes.fromhex(statement.split("decode('")[1].split("'")[0])
            event = json.loads(body_of("debezium/message.json"))
            event["message"] = {"prefix": "rowcast", "content": base64.b64encode(content).decode()}
            return event

        news = message(cast.publish_sql("news", {"n": 1}, event="note", key="k"))
        forged = message(make(api="another-key").publish_sql("news", {"n": 2}, event="note"))
        answers = [
            (await client.post("/webhooks/debezium", headers=BEARER, json=body)).json() for body in (news, forged, news)
        ]
        assert [(answer["appended"], answer["repeated"]) for answer in answers] == [(1, 0), (0, 0), (0, 1)]
        await stream.settled()
        assert stream.events("note") == [{"topic": "news", "data": {"n": 1}, "key": "k"}]
        news["message"]["content"] = "not base64"
        answer = await client.post("/webhooks/debezium", headers=BEARER, json=news)
        assert answer.status_code == 400
        assert "binary.handling.mode" in answer.json()["records"][0]["reason"]


# Twice


@pytest.mark.parametrize(
    ("path", "name", "count"),
    [
        ("/webhooks/sequin", "sequin/batch.json", 3),
        ("/webhooks/sequin", "sequin/read.json", 1),
        ("/webhooks/debezium", "debezium/array.json", 3),
        ("/webhooks/debezium", "debezium/truncate.json", 1),
    ],
)
async def test_a_delivery_that_comes_again_appends_nothing(
    make: Make, serve: Any, path: str, name: str, count: int
) -> None:
    async with receiving(make, serve, ("finance:AAPL", "finance:MSFT")) as (client, stream, _):
        answers = await asyncio.gather(*(client.post(path, headers=BEARER, content=body_of(name)) for _ in range(5)))
        assert sum(answer.json()["appended"] for answer in answers) == count
        assert sum(answer.json()["repeated"] for answer in answers) == 4 * count
        assert len(await told(stream)) == count


async def test_after_a_failure_only_the_rest_is_appended(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving(make, serve, ("finance:MSFT",)) as (client, stream, cast):
        append, calls = cast.log.append, 0

        async def failing(draft: Draft) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise Unavailable("the log is away: it was not published")
            return await append(draft)

        monkeypatch.setattr(cast.log, "append", failing)
        answer = await client.post("/webhooks/sequin", headers=BEARER, content=body_of("sequin/batch.json"))
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        answer = await client.post("/webhooks/sequin", headers=BEARER, content=body_of("sequin/batch.json"))
        assert answer.json() == {"records": 3, "appended": 2, "repeated": 1, "ignored": 0}
        assert [event["action"] for event in await told(stream)] == ["insert", "update", "delete"]


# Bad records and bodies


async def test_a_bad_record_is_reported_and_the_others_are_delivered(make: Make, serve: Any) -> None:
    batch = json.loads(body_of("sequin/batch.json"))
    batch["data"][1]["action"] = "upsert"
    async with receiving(make, serve, ("finance:MSFT",)) as (client, stream, _):
        answer = await client.post("/webhooks/sequin", headers=BEARER, json=batch)
        assert answer.status_code == 400
        body = answer.json()
        assert body["status"] == 400
        assert body["error"] == "1 of 3 records can't be taken, see records; the others are in the log"
        [refused] = body["records"]
        assert refused["index"] == 1
        assert "upsert" in refused["reason"]
        assert [event["action"] for event in await told(stream)] == ["insert", "delete"]
        # Once it is mended, the others are not delivered again.
        batch["data"][1]["action"] = "update"
        answer = await client.post("/webhooks/sequin", headers=BEARER, json=batch)
        assert answer.json() == {"records": 3, "appended": 1, "repeated": 2, "ignored": 0}


@pytest.mark.parametrize("path", ["/webhooks/sequin", "/webhooks/debezium"])
async def test_bodies_that_are_refused(make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(webhooks, "MAX_BODY", 10_000)
    bomb = gzip.compress(b" " * 10_000_000)
    assert len(bomb) < 10_000
    whole = gzip.compress(body_of("sequin/insert.json"))
    gzipped = {"content-encoding": "gzip"}
    async with receiving(make, serve) as (client, stream, _):
        for content, headers, status, words in (
            (b"", {}, 400, "no JSON"),
            (b"3", {}, 400, "must be a record"),
            (b" " * 10_001, {}, 413, "10000"),
            (bomb, gzipped, 413, "decompressed"),
            (whole[:-9], gzipped, 400, "cut short"),
            (b"{}", gzipped, 400, "no gzip"),
            (whole + b"rest", gzipped, 400, "no gzip"),
            (b"{}", {"content-encoding": "br"}, 415, "send gzip"),
        ):
            answer = await client.post(path, headers=BEARER | headers, content=content)
            assert answer.status_code == status, answer.text
            assert words in answer.json()["error"]
        assert await told(stream) == []


async def test_a_bomb_is_never_made_whole(make: Make, serve: Any) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    async with receiving(make, serve) as (client, _, _):
        tracemalloc.start()
        try:
            headers = BEARER | {"content-encoding": "gzip"}
            answer = await client.post("/webhooks/sequin", headers=headers, content=bomb)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answer.status_code == 413
        assert peak < 5 * webhooks.MAX_BODY


async def test_gzip_is_read_in_one_member_or_several(make: Make, serve: Any) -> None:
    body = body_of("sequin/batch.json")
    headers = BEARER | {"content-encoding": "GZIP"}
    async with receiving(make, serve, ("finance:MSFT",)) as (client, stream, _):
        answer = await client.post("/webhooks/sequin", headers=headers, content=gzip.compress(body))
        assert answer.json()["appended"] == 3
        several = gzip.compress(body[:100]) + gzip.compress(body[100:])
        answer = await client.post("/webhooks/sequin", headers=headers, content=several)
        assert answer.json()["repeated"] == 3
        assert len(await told(stream)) == 3


# Who may send


@pytest.mark.parametrize("name", ["sequin", "debezium"])
async def test_without_a_secret_a_webhook_is_off(make: Make, serve: Any, name: str) -> None:
    async with serve(make().asgi()) as client:
        answer = await client.post(f"/webhooks/{name}", headers=BEARER, content=b"{}")
        assert answer.status_code == 403
        assert f"[webhooks.{name}] secret" in answer.json()["error"]
        assert (await client.get(f"/webhooks/{name}")).status_code == 405


@pytest.mark.parametrize("path", ["/webhooks/sequin", "/webhooks/debezium"])
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {SECRET}", "Bearer é", f"Bearer {SECRET}x"])
async def test_a_wrong_secret_is_refused(make: Make, serve: Any, path: str, given: str) -> None:
    async with receiving(make, serve) as (client, stream, _):
        headers = {"authorization": given.encode("latin-1")} if given else {}
        answer = await client.post(path, headers=headers, content=body_of("sequin/insert.json"))
        assert answer.status_code == 401
        assert "www-authenticate" in answer.headers
        assert SECRET not in answer.text
        assert await told(stream) == []


def signed(body: bytes, *, secret: str = SIGNING, at: float | None = None, identifier: str = "msg_1") -> dict[str, str]:
    timestamp = round(time.time() if at is None else at)
    key = parse_secret(secret)
    assert key is not None
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(key, identifier, timestamp, body),
    }


async def test_signed_deliveries(make: Make, serve: Any) -> None:
    body = body_of("debezium/create.json")
    good = signed(body)
    other = "whsec_" + "YWJjZGVmYWJjZGVmYWJjZGVmYWJjZGVmYWJjZGVmYWI="
    async with receiving(make, serve, webhooks={"debezium": {"secret": SIGNING}}) as (client, stream, _):
        for headers, words in (
            ({}, "must be signed"),
            ({"authorization": f"Bearer {SIGNING}"}, "must be signed"),
            (good | {"webhook-timestamp": "soon"}, "must be signed"),
            (good | {"webhook-id": "msg_2"}, "does not fit"),
            (good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}, "does not fit"),
            (good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v1a,")}, "does not fit"),
            (signed(body + b" "), "does not fit"),
            (signed(body, secret=other), "does not fit"),
            (signed(body, at=time.time() - 400), "300 s off"),
            (signed(body, at=time.time() + 400), "300 s off"),
        ):
            answer = await client.post("/webhooks/debezium", headers=headers, content=body)
            assert answer.status_code == 401
            assert words in answer.json()["error"]
        assert await told(stream) == []
        # While a secret is changed, a delivery is signed by the old and the new one.
        both = signed(body, secret=other)["webhook-signature"] + " " + good["webhook-signature"]
        answer = await client.post("/webhooks/debezium", headers=good | {"webhook-signature": both}, content=body)
        assert answer.json()["appended"] == 1
        assert len(await told(stream)) == 1


def test_a_signature_is_that_of_the_specification() -> None:
    key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert key is not None
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("secret", "words"), [("whsec_!!", "base64"), ("whsec_c2hvcnQ=", "24 to 64 bytes"), ("", "must not be empty")]
)
def test_a_secret_that_can_not_be_used_is_refused_at_start(make: Make, secret: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"\[webhooks.debezium\] secret") as caught:
        make(webhooks={"debezium": {"secret": secret}})
    assert words in str(caught.value)


async def test_in_the_wal_what_comes_is_signed() -> None:
    sections = {"postgres": "postgresql://nowhere", "auth": {"jwks_url": "https://issuer.example/keys"}}
    cast = Rowcast(webhooks=BOTH, **sections)
    with pytest.raises(ConfigError, match=r"set \[api\] key"):
        await cast.start()


async def test_routes_without_postgres_need_a_webhook(make: Make) -> None:
    with pytest.raises(ConfigError, match="secret of a webhook"):
        await make(route=[ROUTE]).start()


async def test_check_asks_for_no_database_where_a_webhook_brings_the_changes(make: Make) -> None:
    with_webhook, without = make(route=[ROUTE], webhooks=BOTH), make(route=[ROUTE])
    assert [result.ok for result in await check.run(with_webhook.config)] == [True]
    assert [result.ok for result in await check.run(without.config)] == [False]


async def test_readyz_tells_values_of_rows_to_the_operator_only(make: Make, serve: Any) -> None:
    cast = make()
    async with serve(cast.asgi()) as client:
        await client.get("/readyz")
        rule = ValueError("could not convert string to float: 'SECRET'")
        cast.replica.router._troubles.poison("row", "route 1: a row of people", rule)
        [told] = (await client.get("/readyz")).json()["problems"]
        assert told == "route 1: a row of people was skipped: ValueError"
        [told] = (await client.get("/readyz", headers={"authorization": "Bearer the-api-key"})).json()["problems"]
        assert "SECRET" in told
