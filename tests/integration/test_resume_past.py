"""Resuming by a position on a real Postgres: what was missed is judged by the subscriptions of then.

That is so where the changes of the rule's table tell the rows before them; else by those of now.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from rowcast import Rowcast
from rowcast.testing.local import LocalStream

SECRET = "0123456789abcdef0123456789abcdef"
RULE = {"table": "subs", "user": "{who}", "when": "{live}", "topics": ["{topic}"]}
PAD = "x" * 2000


@pytest.fixture
def sql(database: str) -> Any:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, topic text, text text)")
        connection.execute("CREATE TABLE subs (id int PRIMARY KEY, who text, topic text, live bool DEFAULT true)")
        yield connection.execute


def put(sql: Any, *texts: str) -> None:
    """An item for each text, on the topic that it begins with."""
    for text in texts:
        sql("INSERT INTO items (topic, text) VALUES (%s, %s)", [text[0], text])


def told(stream: LocalStream) -> list[str]:
    """What came, in order: the texts of items, and the topics wherever these were told."""
    came = []
    for block in stream.blocks:
        if block.event in ("rowcast.ready", "rowcast.subscriptions"):
            came.append("".join(block.data["topics"]))
        elif block.event == "message" and block.data and block.data["record"]["text"] != PAD:
            came.append(block.data["record"]["text"])
        elif block.event == "rowcast.reset":
            came.append("reset")
    return came


@pytest.mark.parametrize("memory", ["ring", "log"])
@pytest.mark.parametrize("identity", ["FULL", "DEFAULT"])
async def test_what_was_missed_is_judged_by_the_subscriptions_of_then(
    database: str, sql: Any, identity: str, memory: str
) -> None:
    sql(f"ALTER TABLE subs REPLICA IDENTITY {identity}")
    sql("INSERT INTO subs VALUES (1, 'ann', 'a'), (2, 'ann', 'b'), (3, 'bob', 'c')")
    log = {"url": "memory:" if memory == "log" else "postgres:", "ring_bytes": "64KB" if memory == "log" else "16MB"}
    cast = Rowcast(
        postgres=database,
        auth=SECRET,
        log=log,
        route=[{"table": "items", "topic": "{topic}", "deletes": False}],
        subscription=[RULE],
    )
    async with cast.lifespan():
        ann = LocalStream(cast, "ann")
        await ann.ready()
        put(sql, "a1")
        await ann.until(lambda: told(ann)[-1:] == ["a1"])
        position = ann.position
        ann.close()
        put(sql, "a2", "b2", "c2")
        sql("UPDATE subs SET who = 'ann' WHERE id = 3")  # comes
        put(sql, "a3", "b3", "c3")
        sql("DELETE FROM subs WHERE id = 1")  # goes
        put(sql, "a4", "b4", "c4")
        sql("UPDATE subs SET live = false WHERE id = 2")  # goes
        sql("UPDATE subs SET topic = 'd' WHERE id = 3")  # moves
        put(sql, "a5", "b5", "c5", "d5")
        sql("INSERT INTO subs VALUES (4, 'ann', 'e')")
        put(sql, "d6", "e6")
        if memory == "log":
            floor = cast.hub.ring.floor
            for _ in range(60):
                put(sql, *[PAD] * 5)
            await cast.hub.passed(await cast.log.head())
            assert cast.hub.ring.floor > floor, "the ring must have let go of what was missed"
        ann = LocalStream(cast, "ann", last_event_id=position)
        await ann.until(lambda: "e6" in told(ann))
        if identity == "FULL":
            assert told(ann) == [
                *("ab", "a2", "b2", "abc", "a3", "b3", "c3", "bc", "b4", "c4"),
                *("c", "d", "d5", "de", "d6", "e6"),
            ]
        else:
            assert told(ann) == ["de", "d5", "d6", "e6"], "by the subscriptions of now"
        put(sql, "a7", "d7")
        await ann.until(lambda: told(ann)[-1:] == ["d7"])
        assert told(ann)[-2:] == ["e6", "d7"]


async def test_the_past_is_known_from_the_last_change_on_that_does_not_tell(database: str, sql: Any) -> None:
    cast = Rowcast(
        postgres=database,
        auth=SECRET,
        route=[{"table": "items", "topic": "{topic}", "deletes": False}],
        subscription=[RULE],
    )
    async with cast.lifespan():
        ann = LocalStream(cast, "ann")
        await ann.ready()
        first = ann.position
        sql("INSERT INTO subs VALUES (1, 'ann', 'a')")
        put(sql, "a1")
        sql("UPDATE subs SET topic = 'b'")  # what it was before, the WAL does not tell
        put(sql, "a2", "b2")
        await ann.until(lambda: told(ann)[-1:] == ["b2"])
        second = ann.position
        assert told(ann) == ["", "a", "a1", "b", "b2"]
        sql("INSERT INTO subs VALUES (2, 'ann', 'c')")
        put(sql, "c3")
        await ann.until(lambda: told(ann)[-1:] == ["c3"])
        ann.close()
        late = LocalStream(cast, "ann", last_event_id=first)
        await late.until(lambda: told(late)[-1:] == ["c3"])
        assert told(late) == ["bc", "b2", "c3"]
        later = LocalStream(cast, "ann", last_event_id=second)
        await later.until(lambda: told(later)[-1:] == ["c3"])
        assert told(later) == ["b", "bc", "c3"]
