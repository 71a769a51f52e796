"""The Flask example: WSGI on one port, `rowcast serve` on another, a cookie for both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import psycopg
import pytest
from werkzeug.serving import make_server

from rowcast.contrib.psycopg import apublish, publish
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask"
ENVIRONMENT = {"ROWCAST_AUTH_SECRET": "0123456789abcdef0123456789abcdef", "ROWCAST_API_KEY": "a key"}


@pytest.fixture
def example(
    load: Callable[[str], ModuleType], database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ModuleType, str, str]]:
    """The module, and the addresses of the application and of the streams."""
    for name, value in (ENVIRONMENT | {"ROWCAST_POSTGRES_URL": database}).items():
        monkeypatch.setenv(name, value)
    module = load("flask/app.py")
    flask = make_server("127.0.0.1", 0, module.app, threaded=True)
    serving = threading.Thread(target=flask.serve_forever)
    serving.start()
    with RowcastServer((EXAMPLE / "rowcast.toml").read_text()) as server:
        yield module, f"http://127.0.0.1:{flask.port}", server.url
    flask.shutdown()
    serving.join(30)
    flask.server_close()


async def test_a_wsgi_application_and_the_server_beside_it(example: tuple[ModuleType, str, str], database: str) -> None:
    module, url, streams = example
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        assert 'id="tasks"' in (await client.get("/")).text
        cookie = {"cookie": f"rowcast={(await client.post('/sign-in/ann')).cookies['rowcast']}"}
        async with OpenStream(streams, None, headers=cookie, params={"snapshot": "1"}) as seen:
            assert (await seen.ready())["user"] == "ann"
            assert (await client.post("/tasks", data={"text": "water"})).status_code == 204
            async with await psycopg.AsyncConnection.connect(database) as connection:
                await apublish(connection, module.cast, user="ann", data=1)
                await connection.rollback()
                async with connection.cursor() as cursor:
                    await apublish(cursor, module.cast, user="ann", data=2)
            with psycopg.connect(database, autocommit=True) as once, once.cursor() as cursor:
                publish(cursor, module.cast, user="ann", data=3)
            await seen.until(lambda: len(seen.events()) == 3)
            assert [event.get("data") or event["record"]["text"] for event in seen.events()] == ["water", 2, 3]
            assert [event["data"] for event in seen.events("saved")] == [{"text": "water"}]
            origin = {"origin": "http://localhost:5000"}
            allowed = await client.head(f"{streams}/events", headers=origin)
            assert allowed.headers["access-control-allow-origin"] == origin["origin"]
