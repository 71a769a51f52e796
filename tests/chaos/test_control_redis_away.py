"""Control by the command line while Redis is away: in force on the asked replica at once, everywhere afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from array import array
from typing import Any

import psycopg

from rowcast.core.entry import Control, Entry, Kind
from rowcast.core.position import ORIGIN
from rowcast.logs.redis_store import RedisStore

RULE = """
[[subscription]]
sql = "SELECT 'items:' || kind FROM kinds WHERE user_id = %(user)s"
depends_on = {}
"""


def rowcast(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rowcast.cli", *arguments, "--url", url, "--key", "api-key"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


async def test_it_holds_on_the_asked_replica_at_once_and_is_appended_in_its_order(drill: Any, follow: Any) -> None:
    """A resubscribe holds for everything that is committed after it was asked for, though that comes by later."""
    with psycopg.connect(drill.database, autocommit=True) as connection:
        connection.execute("CREATE TABLE kinds (user_id text, kind text)")
        connection.execute("INSERT INTO kinds VALUES ('cat', 'y')")
        async with contextlib.AsyncExitStack() as stack:
            replicas = await stack.enter_async_context(drill.replicas(2, RULE))
            clients = {
                user: [
                    await stack.enter_async_context(follow(replicas, drill.token(user), first=at, sticky=True))
                    for at in range(2)
                ]
                for user in ("ann", "bob", "cat")
            }
            for client in [client for pair in clients.values() for client in pair]:
                await client.until(lambda: client.named("ready"))  # noqa: B023  # awaited at once
            with drill.redis.client() as redis:
                redis.save()
            await asyncio.to_thread(drill.redis.kill)
            connection.execute("UPDATE kinds SET user_id = 'ann', kind = 'x'")
            for arguments in (("resubscribe", "ann"), ("disconnect", "bob"), ("resubscribe", "cat")):
                done = await asyncio.to_thread(rowcast, replicas.urls[0], *arguments)
                assert done.returncode == 0, done.stderr
            connection.execute("INSERT INTO items (kind) VALUES ('x'), ('y')")
            (ann, ann_there), (bob, bob_there), (cat, cat_there) = clients.values()
            await bob.until(lambda: bob.named("bye"))
            assert not bob_there.named("bye")
            await asyncio.to_thread(drill.redis.start)
            for client, topics in ((ann, ["items:x"]), (ann_there, ["items:x"]), (cat, []), (cat_there, [])):
                await client.until(lambda: client.named("subscriptions"))  # noqa: B023  # awaited at once
                assert client.named("subscriptions")[0]["topics"] == topics
                assert client.connections == 1
            await bob_there.until(lambda: bob_there.named("bye"))
            assert [bob_there.named("bye"), bob.named("bye")] == [[{"reason": "disconnected"}]] * 2
            connection.execute("INSERT INTO items (kind) VALUES ('x'), ('y')")
            for client in (ann, ann_there):
                await client.until(lambda: client.ids[-1:] == array("q", [3]))  # noqa: B023  # awaited at once
            assert list(ann.ids) == [1, 3]
            assert list(cat.ids) == []
            assert await _controls(drill) == [("resubscribe", "ann"), ("disconnect", "bob"), ("resubscribe", "cat")]


async def _controls(drill: Any) -> list[tuple[str, str]]:
    """The control entries that are in the log, in its order; what was asked for is in it once."""
    store = RedisStore(drill.redis.url)
    entries: list[Entry] = []
    after = ORIGIN
    try:
        while items := await store.range(after):
            for item in items:
                entries += item.entries(after)
                after = item.place
    finally:
        await store.close()
    return [
        (entry.body.action, entry.body.user)
        for entry in entries
        if entry.kind is Kind.CONTROL and isinstance(entry.body, Control)
    ]
