"""Rate limits over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from rowcast import Rowcast
from rowcast.http.limited import is_exempt
from rowcast.limits import Limiter

ORIGIN = "https://app.example"

Make = Callable[..., Rowcast]


async def statuses(client: httpx.AsyncClient, path: str, count: int, **options: Any) -> list[int]:
    return [(await client.get(path, **options)).status_code for _ in range(count)]


async def test_the_121st_request_is_refused(make: Make, serve: Any) -> None:
    async with serve(make(limits={"requests": "120/minute"}).asgi()) as client:
        assert await statuses(client, "/events/count", 120) == [401] * 120
        answer = await client.get("/events/count")
        assert answer.status_code == 429
        body = answer.json()
        assert body["status"] == 429
        assert "120 in 60 seconds" in body["error"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["ratelimit-limit"] == "120"
        assert answer.headers["ratelimit-remaining"] == "0"
        assert answer.headers["ratelimit-reset"] == answer.headers["retry-after"]
        assert answer.headers["x-rowcast-replica"] == "r1"
        # Of whatever method, and to whatever path.
        assert (await client.post("/publish")).status_code == 429
        assert (await client.get("/nope")).status_code == 429


async def test_answers_that_pass_tell_how_many_are_left(make: Make, serve: Any) -> None:
    async with serve(make(limits={"requests": "3/minute"}).asgi()) as client:
        left = [(await client.get("/nope")).headers["ratelimit-remaining"] for _ in range(3)]
        assert left == ["2", "1", "0"]


async def test_strict_paths(make: Make, serve: Any, bearer: Callable[..., dict[str, str]]) -> None:
    limits = {"requests": "10/minute", "strict": {"/users/me/channels": "2/minute"}}
    async with serve(make(limits=limits).asgi()) as client:
        assert await statuses(client, "/users/me/channels/x", 2, headers=bearer()) == [404, 404]
        answer = await client.get("/users/me/channels", headers=bearer())
        assert answer.status_code == 429
        assert answer.headers["ratelimit-limit"] == "2"
        assert await statuses(client, "/users/me/channelsx", 9) == [404] * 8 + [429]


async def test_what_is_exempt(make: Make, serve: Any, bearer: Callable[..., dict[str, str]]) -> None:
    cast = make(
        limits={"requests": "1/minute"}, webhooks={"sequin": {"secret": "s"}}, server={"cors_origins": [ORIGIN]}
    )
    async with serve(cast.asgi()) as client:
        assert await statuses(client, "/nope", 2) == [404, 429]
        for path in ("/healthz", "/readyz", "/health"):
            assert await statuses(client, path, 3) == [200] * 3
        assert await statuses(client, "/metrics", 3) == [401] * 3
        for path, status in (("/webhooks/sequin", 401), ("/webhooks/debezium", 403)):
            answer = await client.post(path, content=b"{}")
            assert answer.status_code == status
            assert "ratelimit-limit" not in answer.headers
        for _ in range(3):
            async with client.stream("GET", "/events", headers=bearer()) as stream:
                assert stream.status_code == 200
                assert "ratelimit-limit" not in stream.headers
        assert (await client.post("/events")).status_code == 429
        preflight = {"origin": ORIGIN, "access-control-request-method": "PUT"}
        assert (await client.options("/users/me/channels/x", headers=preflight)).status_code == 200
        # A script in a browser may read why it was refused.
        refused = await client.get("/nope", headers={"origin": ORIGIN})
        assert refused.status_code == 429
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        exposed = refused.headers["access-control-expose-headers"].lower()
        assert "retry-after" in exposed
        assert "ratelimit-remaining" in exposed


def test_exempt_paths_are_whole_names() -> None:
    for method, path in (("GET", "/events/count"), ("GET", "/webhooksx"), ("GET", "/healthz/x"), ("GET", "/events/")):
        assert not is_exempt(method, path)


async def test_an_address_that_a_client_makes_up_is_not_believed(make: Make, serve: Any) -> None:
    async with serve(make(limits={"requests": "2/minute"}).asgi()) as client:
        made_up = [
            (await client.get("/nope", headers={"x-forwarded-for": f"198.51.100.{number}"})).status_code
            for number in range(4)
        ]
        assert made_up == [404, 404, 429, 429]


async def test_behind_a_trusted_proxy_clients_are_told_apart(make: Make, serve: Any) -> None:
    cast = make(limits={"requests": "1/minute"}, server={"trusted_proxies": ["127.0.0.0/8", "10.0.0.1"]})
    async with serve(cast.asgi()) as client:

        async def asked(forwarded: str) -> int:
            return (await client.get("/nope", headers={"x-forwarded-for": forwarded})).status_code

        assert await asked("198.51.100.1") == 404
        assert await asked("198.51.100.1") == 429
        assert await asked("198.51.100.2") == 404
        # What a client sends itself stands left of what the proxies add.
        assert await asked("203.0.113.1, 198.51.100.2") == 429
        assert await asked("203.0.113.2, 198.51.100.2, 10.0.0.1") == 429
        # One household.
        assert await asked("2001:db8:1:2::1") == 404
        assert await asked("2001:db8:1:2:3:4:5:6") == 429
        assert await asked("2001:db8:1:3::1") == 404


async def test_when_counts_can_not_be_kept_requests_pass(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Limiter, *arguments: Any) -> Any:
        raise OSError("the storage is away")

    monkeypatch.setattr(Limiter, "_count", broken)
    async with serve(make(limits={"requests": "1/minute"}).asgi()) as client:
        assert await statuses(client, "/nope", 5) == [404] * 5


async def test_mounted_the_paths_are_those_below(make: Make, serve: Any) -> None:
    cast = make(limits={"strict": {"/users/me/channels": "1/minute"}})
    async with serve(Starlette(routes=[Mount("/live", cast.asgi())])) as client:
        assert await statuses(client, "/live/users/me/channels", 2) == [401, 429]
        assert await statuses(client, "/live/healthz", 3) == [200] * 3
        await cast.stop()


async def test_without_limits_nothing_is_limited(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nope")
    assert "ratelimit-limit" not in answer.headers
