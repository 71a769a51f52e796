"""The application around the calls: errors, headers, CORS, health, metrics, and being mounted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import rowcast.doors
from rowcast import Rowcast
from rowcast.http import app as module
from rowcast.testing.stream import OpenStream

KEY = {"authorization": "Bearer the-api-key"}
APP = "https://app.example"

Make = Callable[..., Rowcast]
Bearer = Callable[..., dict[str, str]]


# Paths and methods


@pytest.mark.parametrize("path", ["/", "/nope", "/events/", "/events/nope", "/publish/x", "/users/me/channels/a/b"])
async def test_unknown_paths_are_told_in_json(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json() == {"status": 404, "error": f"there is no {path}"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/events", {"GET", "HEAD"}),
        ("DELETE", "/users/me/channels", {"GET", "HEAD", "POST"}),
        ("PATCH", "/users/me/channels/x", {"GET", "HEAD", "PUT", "DELETE"}),
        ("GET", "/publish", {"POST"}),
        ("PUT", "/healthz", {"GET", "HEAD"}),
    ],
)
async def test_wrong_methods_are_told_in_json(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert answer.json()["status"] == 405


async def test_every_answer_names_the_replica(client: httpx.AsyncClient, bearer: Bearer) -> None:
    for path in ("/healthz", "/readyz", "/nope", "/events", "/metrics"):
        assert (await client.get(path)).headers["x-rowcast-replica"] == "r1"
    async with client.stream("GET", "/events", headers=bearer()) as stream:
        assert stream.headers["x-rowcast-replica"] == "r1"


async def test_head_of_a_stream_is_its_head_only(client: httpx.AsyncClient, bearer: Bearer) -> None:
    answer = await client.head("/events", headers=bearer())
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (await client.head("/events")).status_code == 401
    assert (await client.get("/events/count", headers=KEY)).json()["count"] == 0


async def test_a_stream_that_is_refused_for_good_says_why(client: httpx.AsyncClient, bearer: Bearer) -> None:
    for headers, params, status in (
        ({}, {}, 401),
        ({"authorization": "Bearer nonsense"}, {}, 401),
        (bearer() | {"last-event-id": "not a position"}, {}, 400),
        (bearer(), {"topics": ","}, 400),
    ):
        answer = await client.get("/events", headers=headers, params=params)
        assert answer.status_code == status
        assert answer.json()["error"]


async def test_what_nobody_expected_is_a_500_without_details(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cast = make(server={"cors_origins": [APP]})

    async def broken(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("a detail")

    monkeypatch.setattr(cast, "resubscribe", broken)
    async with serve(cast.asgi()) as client:
        answer = await client.post("/control/resubscribe", headers=KEY | {"origin": APP}, json={"user": "a"})
    assert answer.status_code == 500
    assert "a detail" not in answer.text
    assert answer.json()["status"] == 500
    assert answer.headers["x-rowcast-replica"] == "r1"
    assert answer.headers["access-control-allow-origin"] == APP
    [record] = [record for record in caplog.records if record.name == "rowcast.http.app"]
    assert record.exc_info is not None
    assert "a detail" in str(record.exc_info[1])


# CORS


async def test_an_allowed_origin_may_read_and_preflight(make: Make, serve: Any, bearer: Bearer) -> None:
    async with serve(make(server={"cors_origins": [APP]}).asgi()) as client:
        preflight = await client.options(
            "/users/me/channels/x",
            headers={
                "origin": APP,
                "access-control-request-method": "PUT",
                "access-control-request-headers": "authorization, last-event-id, content-type",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == APP
        assert preflight.headers["access-control-allow-credentials"] == "true"
        for answer in (
            await client.get("/nope", headers={"origin": APP}),
            await client.get("/events", headers={"origin": APP}),
        ):
            assert answer.headers["access-control-allow-origin"] == APP
            assert "x-rowcast-replica" in answer.headers["access-control-expose-headers"]
        async with client.stream("GET", "/events", headers=bearer() | {"origin": APP}) as stream:
            assert stream.headers["access-control-allow-origin"] == APP
        other = await client.get("/healthz", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_star_allows_everybody_without_credentials(make: Make, serve: Any) -> None:
    async with serve(make(server={"cors_origins": ["*"]}).asgi()) as client:
        answer = await client.get("/healthz", headers={"origin": "https://any.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


async def test_without_origins_there_is_no_cors(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"origin": APP})
    assert not [name for name in answer.headers if name.startswith("access-control")]


# Health and metrics


async def test_health_of_a_replica_that_is_well(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    for path in ("/readyz", "/health"):
        answer = await client.get(path)
        assert answer.status_code == 200
        body = answer.json()
        assert body["replica"] == "r1"
        assert {name: check["ok"] for name, check in body["checks"].items()} == {"hub": True, "log": True}
        assert all(check["detail"] and check["age"] >= 0 for check in body["checks"].values())


async def test_a_draining_replica_is_alive_but_not_ready(make: Make, serve: Any, bearer: Bearer) -> None:
    cast = make()
    async with serve(cast.asgi()) as client:
        token = bearer()["authorization"].removeprefix("Bearer ")
        async with OpenStream(str(client.base_url).rstrip("/"), token) as stream:
            await stream.ready()
            cast.drain()
            await stream.until(lambda: stream.ended)
            assert stream.events("rowcast.bye") == [{"reason": "draining"}]
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "draining" in answer.json()["error"]
        assert answer.json()["checks"]["hub"]["ok"] is False
        assert (await client.get("/healthz")).status_code == 200
        # To a stream "not now" is said with 200 and an early end; only who asks for a status gets one.
        soft = await client.get("/events", headers=bearer())
        assert soft.status_code == 200
        assert "rowcast.bye" in soft.text
        hard = await client.get("/events", headers=bearer() | {"accept": "application/json"})
        assert hard.status_code == 503
        assert "retry-after" in hard.headers


async def test_who_is_turned_away_is_counted_and_does_not_keep_its_connection(
    make: Make, serve: Any, bearer: Bearer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = make()
    async with serve(cast.asgi()) as client:
        monkeypatch.setattr(rowcast.doors, "LINE", 0)
        soft = await client.get("/events", headers={"accept": "text/event-stream"})  # before any token is looked at
        assert (soft.status_code, soft.headers["connection"]) == (200, "close")
        retry, bye = soft.text.split("\n", 1)
        assert 2000 <= int(retry.removeprefix("retry: ")) <= 8000
        assert 'rowcast.bye\ndata: {"reason":"busy"}' in bye
        hard = await client.get("/events", headers=bearer() | {"prefer": "status"})
        assert hard.status_code == 503
        assert "too many streams come at once" in hard.json()["error"]
        assert cast.hub.refused == {"busy": 2}
        monkeypatch.undo()
        token = bearer()["authorization"].removeprefix("Bearer ")
        async with OpenStream(str(client.base_url).rstrip("/"), token) as stream:
            await stream.ready()


async def test_a_replica_with_a_failed_part_is_neither_alive_nor_ready(make: Make, serve: Any) -> None:
    cast = make()
    async with serve(cast.asgi()) as client:
        cast.replica.failed = ValueError("the hub fell over")
        for path in ("/healthz", "/readyz"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "the hub fell over" in answer.json()["error"]


async def test_metrics_need_the_key_where_there_is_one(client: httpx.AsyncClient, make: Make, serve: Any) -> None:
    assert (await client.get("/metrics")).status_code == 401
    async with serve(make(api={}).asgi()) as open_to_all:
        assert (await open_to_all.get("/metrics")).status_code == 200


async def test_metrics_tell_what_happened_without_names(make: Make, serve: Any, bearer: Bearer) -> None:
    async with serve(make().asgi()) as client:
        token = bearer("secret-user", "secret-topic")["authorization"].removeprefix("Bearer ")
        async with OpenStream(str(client.base_url).rstrip("/"), token) as stream:
            await stream.ready()
            await client.post("/publish", headers=KEY, json={"topic": "secret-topic", "data": 1})
            await stream.until(lambda: bool(stream.events()))
            answer = await client.get("/metrics", headers=KEY)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert "rowcast_streams 1.0" in lines
    assert "rowcast_deliveries_total 1.0" in lines
    assert 'rowcast_stream_state{state="live"} 1.0' in lines
    assert "rowcast_delivery_latency_seconds_count 1.0" in lines
    assert "secret-" not in answer.text
    for name in ("resets_total", "log_append_failures_total", "control_pending", "leader"):
        assert f"rowcast_{name} 0.0" in lines


# Mounted into another application


async def test_a_mounted_rowcast_starts_at_its_first_request(make: Make, serve: Any, bearer: Bearer) -> None:
    cast = make()
    app = Starlette(routes=[Mount("/live", cast.asgi())])
    async with serve(app, lifespan="off") as client:
        assert (await client.get("/live/healthz")).json() == {"status": "ok"}
        assert not cast.running
        answers = await asyncio.gather(*(client.get("/live/readyz") for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5
        async with client.stream("GET", "/live/events", headers=bearer()) as stream:
            assert b"retry:" in await anext(stream.aiter_bytes())
        await cast.stop()
        # Once it was stopped, it stays so.
        answer = await client.get("/live/readyz")
        assert answer.status_code == 503
        assert "stopped" in answer.json()["error"]


async def test_a_mounted_rowcast_lives_in_the_lifespan_of_the_application(make: Make, serve: Any) -> None:
    cast = make()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with cast.lifespan():
            yield

    async with serve(Starlette(routes=[Mount("/live", cast.asgi())], lifespan=lifespan)) as client:
        assert cast.running
        assert (await client.get("/live/readyz")).status_code == 200
    assert not cast.running


async def test_a_mounted_rowcast_that_can_not_start_says_so(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cast = Rowcast(api="k")  # no [auth]
    app = Starlette(routes=[Mount("/live", cast.asgi())])
    async with serve(app, lifespan="off") as client:
        for _ in range(3):
            answer = await client.get("/live/readyz")
            assert answer.status_code == 503
            assert "set [auth] secret" in answer.json()["error"]
        # Tried once, and not again at each request.
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
        monkeypatch.setattr(module, "START_PAUSE", 0.0)
        assert (await client.get("/live/healthz")).status_code == 200
