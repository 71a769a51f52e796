"""Random histories on real processes, against what Postgres committed.

Replicas as processes of their own, random writers, subscriptions that change, clients that lose their connection
or read slowly, and weather: replicas killed, the log frozen or cut off, walsenders ended. Each client does what the
documentation tells clients to do. Then

- what it has materialised equals the same SELECT run in Postgres;
- what it got since it was ready, or since a reset, is exactly what its user was subscribed to, in commit order,
  without a gap or a double, judged by the WAL as `test_decoding` tells it. After a reconnect the range that was
  missed is judged by the subscriptions at the reconnect (docs/explanation/guarantees.md);
- nothing came that the user was not subscribed to.

`ROWCAST_HISTORIES=500` runs more of them, `ROWCAST_SEED=n` those from a seed that was printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
import psycopg_pool
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.core.position import Place, parse_lsn, parse_position
from rowcast.testing.follower import Follower
from rowcast.testing.rows import Rows
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import Block
from rowcast.testing.truth import Moment, Row, Truth
from rowcast.testing.valkey import ValkeyServer

HISTORIES = int(os.environ.get("ROWCAST_HISTORIES", "24"))
SEED = int(os.environ.get("ROWCAST_SEED", "0")) or random.randrange(1, 10**9)
TOGETHER = 16
REPLICAS = 3
PATIENCE = 20.0
"""Seconds that a client may take to have everything, once it is quiet."""

SECRET = "0123456789abcdef0123456789abcdef"

SCHEMA = """
CREATE TABLE subs (id bigint PRIMARY KEY, usr text NOT NULL, topic text NOT NULL, enabled boolean NOT NULL);
CREATE INDEX ON subs (usr);
CREATE TABLE items (id bigint PRIMARY KEY, topic text NOT NULL, number int NOT NULL, pad text NOT NULL);
CREATE TABLE notes (id bigserial PRIMARY KEY, usr text NOT NULL);
ALTER TABLE items REPLICA IDENTITY FULL;
CREATE INDEX ON items (topic);
"""

CONFIG = """
[server]
retry = "50ms"

[postgres]
url = "{url}"

[log]
url = "{log}"

[auth]
secret = "{secret}"

[[route]]
table = "items"
topic = "{{topic}}"
snapshot = true

[[route]]
table = "notes"
user = "{{usr}}"

[[subscription]]
table = "subs"
user = "{{usr}}"
when = "{{enabled}}"
topics = ["{{topic}}"]
"""

SQL = {
    "insert": "INSERT INTO items VALUES (%(item)s, %(topic)s, %(number)s, '') ON CONFLICT (id) DO NOTHING",
    "update": "UPDATE items SET number = %(number)s WHERE id = %(item)s",
    "move": "UPDATE items SET topic = %(topic)s, number = %(number)s WHERE id = %(item)s",
    "delete": "DELETE FROM items WHERE id = %(item)s",
    "burst": "INSERT INTO items SELECT %(item)s + n, %(topic)s, n, repeat('x', 3000) FROM generate_series(1000, 1149) n"
    " ON CONFLICT (id) DO UPDATE SET number = items.number + 1",
    "subscribe": "INSERT INTO subs VALUES (%(sub)s, %(user)s, %(topic)s, true) ON CONFLICT (id) DO NOTHING",
    "change": "UPDATE subs SET usr = %(user)s, topic = %(topic)s, enabled = %(enabled)s WHERE id = %(sub)s",
    "switch": "UPDATE subs SET enabled = NOT enabled WHERE id = %(sub)s",
    "unsubscribe": "DELETE FROM subs WHERE id = %(sub)s",
}
WEIGHTS = {
    "insert": 10, "update": 8, "move": 4, "delete": 4, "burst": 1, "subscribe": 4, "change": 2, "switch": 2,
    "unsubscribe": 1,
}  # fmt: skip

Pool = psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Any]]
View = dict[tuple[str, int], int]
"""(topic, id) → number: what a client shows."""


class Heard(NamedTuple):
    """An entry that came: its position, and what it said."""

    place: Place
    topic: str
    action: str
    item: int


class Resumed(NamedTuple):
    """A reconnect: what was missed lies above `cursor` and not above `bound`, and is judged by `topics`."""

    cursor: Place
    bound: Place
    topics: frozenset[str]


class Span:
    """What a client got from a place on: exactly that, if nothing went wrong."""

    def __init__(self, start: Place) -> None:
        self.start = start
        self.heard: list[Heard] = []
        self.resumed: list[Resumed] = []


class Client:
    """A client as the documentation wants it, with a record of all that came.

    With `snapshot` it asks the service for its rows, and else (as a REST API would) the database.
    """

    def __init__(self, user: str, pick: Callable[[], str], pool: Pool, *, snapshot: bool) -> None:
        self.user = user
        self.rows = Rows() if snapshot else None
        self._view: View = {}
        self.topics: frozenset[str] = frozenset()
        self.spans: list[Span] = []
        self.resets: list[str] = []
        self.notes = 0
        self.ready = asyncio.Event()
        self.noted = asyncio.Event()
        self._pool = pool
        self._asked: str | None = None
        token = mint(Config.from_sections({"auth": SECRET}), user)
        self.follower = Follower(
            pick, token, self._heed, connecting=self._connecting, params={"snapshot": "1"} if snapshot else None
        )

    @property
    def view(self) -> View:
        """What it shows."""
        if self.rows is None:
            return self._view
        topics = {topic: rows for topic, rows in self.rows.rows.items() if not topic.startswith("user:")}
        return {(topic, key): row["number"] for topic, rows in topics.items() for key, row in rows.items()}

    def _connecting(self, position: str | None) -> None:
        self._asked = position

    async def _heed(self, block: Block) -> None:
        if self.rows is not None:
            self._keep(self.rows, block)
        elif block.event == "rowcast.ready":
            await self._ready(block)
        elif block.event == "rowcast.reset":
            self.resets.append(block.data["reason"])
            self.spans.append(Span(parse_position(block.id).place))
            self.topics = frozenset(block.data["topics"])
            await self._fetch(self.topics, anew=True)
        elif block.event == "rowcast.subscriptions":
            await self._switch(frozenset(block.data["topics"]))
        elif block.event == "message":
            self._message(block)

    def _keep(self, rows: Rows, block: Block) -> None:
        """The rows come by the stream itself."""
        if block.event == "message" and block.data["metadata"]["table_name"] == "notes":
            self.notes += 1
            self.noted.set()
            return
        if block.event == "rowcast.snapshot":
            assert block.data["topic"] in {*self.topics, f"user:{self.user}"}, f"{self.user}: not theirs: {block}"
            assert "failed" not in block.data
        elif block.event.startswith("rowcast.") and block.event != "rowcast.bye":
            self.topics = frozenset(block.data["topics"])
            if block.event == "rowcast.reset":
                self.resets.append(block.data["reason"])
            self.ready.set()
        rows.take([block])

    async def _ready(self, block: Block) -> None:
        topics = frozenset(block.data["topics"])
        if self._asked is None:
            self.spans.append(Span(parse_position(block.id).place))
            self.topics = topics
            await self._fetch(topics, anew=True)
            self.ready.set()
            return
        async with self._pool.connection() as connection:
            row = await (await connection.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
        assert row is not None
        cursor = parse_position(self._asked).place
        self.spans[-1].resumed.append(Resumed(cursor, (parse_lsn(row[0]), 0), topics))
        await self._switch(topics)

    async def _switch(self, topics: frozenset[str]) -> None:
        added, self.topics = topics - self.topics, topics
        self._view = {key: number for key, number in self._view.items() if key[0] in topics}
        await self._fetch(added)

    def _message(self, block: Block) -> None:
        if block.data["metadata"]["table_name"] == "notes":
            self.notes += 1
            self.noted.set()
            return
        topic, action, record = block.data["topic"], block.data["action"], block.data["record"]
        self.spans[-1].heard.append(Heard(parse_position(block.id).place, topic, action, record["id"]))
        if topic not in self.topics:
            pass  # missed before a topic was removed: shown no more
        elif action == "delete":
            self._view.pop((topic, record["id"]), None)
        else:
            self._view[topic, record["id"]] = record["number"]

    async def _fetch(self, topics: frozenset[str], *, anew: bool = False) -> None:
        """What the application's own API would answer.

        A commit can come by on a stream a moment before other sessions see it. Whoever fetches because of it must wait
        for that (docs/explanation/guarantees.md): the lock does, since writers hold theirs until they can be seen.
        """
        if anew:
            self._view = {}
        if topics:
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute("LOCK TABLE items IN SHARE MODE")
                self._view |= await rows_of(connection, topics)


async def select(pool: Pool, topics: frozenset[str]) -> View:
    async with pool.connection() as connection:
        return await rows_of(connection, topics)


async def rows_of(connection: psycopg.AsyncConnection[Any], topics: frozenset[str]) -> View:
    rows = await connection.execute("SELECT topic, id, number FROM items WHERE topic = ANY(%s)", [list(topics)])
    return {(topic, item): number async for topic, item, number in rows}


class History:
    """Two users, three topics, four subscriptions, five rows, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.users = [f"u{seed}.{number}" for number in range(2)]
        self.topics = [f"t{seed}.{number}" for number in range(3)]
        self.clients: list[Client] = []

    async def run(self, pool: Pool, pick: Callable[[], str]) -> None:
        async with asyncio.TaskGroup() as group:
            following = []
            for _ in range(self.rng.randrange(2, 5)):
                client = Client(self.rng.choice(self.users), pick, pool, snapshot=self.rng.random() < 0.4)
                self.clients.append(client)
                following.append(group.create_task(client.follower.run()))
            for _ in range(self.rng.randrange(8, 20)):
                await self._step(pool)
            for client in self.clients:
                client.follower.go_on()
            await self._quiesce(pool)
            for task in following:
                task.cancel()

    async def _step(self, pool: Pool) -> None:
        what = self.rng.random()
        client = self.rng.choice(self.clients).follower
        if what < 0.15:
            client.cut()
        elif what < 0.25:
            client.stall()
        elif what < 0.35:
            client.go_on()
        else:
            await self._write(pool)
        await asyncio.sleep(self.rng.choice([0, 0.02, 0.1, 0.3]))  # the rhythm of the history, not a wait

    async def _write(self, pool: Pool) -> None:
        async with pool.connection() as connection:
            with contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation, _Abort):
                async with connection.transaction():
                    if self.rng.random() < 0.3:
                        await connection.execute("SET LOCAL synchronous_commit = off")
                    for kind in self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=self.rng.randrange(1, 6)):
                        await connection.execute(SQL[kind].encode(), self._arguments())
                    if self.rng.random() < 0.1:
                        raise _Abort

    def _arguments(self) -> dict[str, Any]:
        return {
            "item": self.seed * 2000 + self.rng.randrange(5),
            "sub": self.seed * 2000 + self.rng.randrange(4),
            "topic": self.rng.choice(self.topics),
            "user": self.rng.choice(self.users),
            "number": self.rng.randrange(10**6),
            "enabled": self.rng.random() < 0.8,
        }

    async def _quiesce(self, pool: Pool) -> None:
        """A note to every user, after everything else: who has it, has everything before it."""
        async with asyncio.timeout(PATIENCE):
            for client in self.clients:
                await client.ready.wait()
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO notes (usr) SELECT unnest(%s::text[])", [self.users])
        for client in self.clients:
            async with asyncio.timeout(PATIENCE):
                while True:
                    await client.noted.wait()
                    if client.view == await select(pool, await self._subscribed(pool, client.user)):
                        break
                    client.noted.clear()  # a note that came again after a reset

    async def _subscribed(self, pool: Pool, user: str) -> frozenset[str]:
        async with pool.connection() as connection:
            rows = await connection.execute("SELECT topic FROM subs WHERE usr = %s AND enabled", [user])
            return frozenset([row[0] async for row in rows])


class _Abort(Exception):
    """A transaction that its application rolls back."""


class Judge:
    """Says what each span must hold, by the WAL."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._items: dict[str, list[tuple[Moment, str, str, int, frozenset[str]]]] = {}
        """seed → (when, topic, action, item, users who had the topic then)."""
        self._subs: dict[str, list[str]] = {}
        """seed → what happened to its subscriptions, in words."""
        subs: dict[str, Row] = {}
        for number, changes in enumerate(truth.transactions):
            for index, change in enumerate(changes):
                if change.table == "subs":
                    subs.pop(change.old.get("id", ""), None)
                    if change.new:
                        subs[change.new["id"]] = change.new
                    seed = str(int((change.new or change.old)["id"]) // 2000)
                    words = f"({number}, {index}) {change.action} {' '.join((change.new or change.old).values())}"
                    self._subs.setdefault(seed, []).append(words)
                elif change.table == "items":
                    self._note(Moment(number, index), change.action, change.old, change.new, subs)

    def _note(self, moment: Moment, action: str, old: Row, new: Row, subs: dict[str, Row]) -> None:
        row = new or old
        said = [(row["topic"], action.lower())]
        if action == "UPDATE" and old["topic"] != new["topic"]:
            said.append((old["topic"], "delete"))
        for topic, what in said:
            users = frozenset(s["usr"] for s in subs.values() if s["topic"] == topic and s["enabled"] == "true")
            seed = topic[1:].split(".")[0]
            self._items.setdefault(seed, []).append((moment, topic, what, int(row["id"]), users))

    def judge(self, client: Client, span: Span, *, whole: bool) -> int:
        """Compare; `whole`: the span goes on until everything was quiet. Returns how many entries it had."""
        moment = self._truth.moment
        places = [heard.place for heard in span.heard]
        assert places == sorted(set(places)), f"{client.user}: out of order, or twice"
        got = {(moment(heard.place), heard.topic, heard.action, heard.item) for heard in span.heard}
        assert len(got) == len(span.heard), f"{client.user}: twice"
        start = moment(span.start)
        end = None if whole else (moment(places[-1]) if places else start)
        resumed = [(moment(r.cursor), moment(r.bound), r.topics) for r in span.resumed]
        for when, topic, action, item, users in self._items.get(client.user[1:].split(".")[0], ()):
            if when <= start:
                continue
            verdicts = {client.user in users}
            for cursor, bound, topics in resumed:
                if cursor <= when <= bound:  # a move is two entries of one change: the cursor can be between them
                    verdicts.add(topic in topics)
            found = (when, topic, action, item) in got
            if end is None or when <= end:
                assert found in verdicts, self._words(client, span, when, topic, f"{action} {item} came: {found}")
            got.discard((when, topic, action, item))
        assert not got, f"{client.user}: came, and was never committed so: {got}"
        return len(span.heard)

    def _words(self, client: Client, span: Span, when: Moment, topic: str, what: str) -> str:
        """What a person needs to find the reason."""
        moment = self._truth.moment
        lines = [f"{client.user}: {topic} at {tuple(when)}: {what}", f"ready at {tuple(moment(span.start))}"]
        lines += [
            f"resumed {tuple(moment(r.cursor))} to {tuple(moment(r.bound))}: {set(r.topics)}" for r in span.resumed
        ]
        lines += [f"subscription {words}" for words in self._subs[client.user[1:].split(".")[0]]]
        near = [h for h in span.heard if h.topic == topic]
        lines += [f"came {tuple(moment(h.place))} {h.action} {h.item}" for h in near]
        return "\n".join([*lines, *client.follower.lately])


class Stage:
    """The processes, and what can happen to them."""

    def __init__(self, url: str, text: str, valkey: ValkeyServer | None, rng: random.Random) -> None:
        self.url = url
        self.valkey = valkey
        self.rng = rng
        self.servers = [RowcastServer(text, name=f"r{number}") for number in range(REPLICAS)]
        self.happened: list[str] = []

    def pick(self) -> str:
        return self.rng.choice(self.servers).url

    async def weather(self) -> None:
        """One misfortune after the other, for ever. A killed replica comes back elsewhere."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.3, 1.0))  # how often it happens, not a wait
            kinds = ["kill", "walsender", *(["freeze", "cut"] if self.valkey is not None else [])]
            kind = self.rng.choice(kinds)
            self.happened.append(kind)
            await getattr(self, f"_{kind}")()

    async def _kill(self) -> None:
        server = self.rng.choice(self.servers)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    async def _walsender(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

    async def _freeze(self) -> None:
        assert self.valkey is not None
        self.valkey.pause()
        try:
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
        finally:
            self.valkey.resume()

    async def _cut(self) -> None:
        assert self.valkey is not None
        with contextlib.closing(self.valkey.client()) as client:
            await asyncio.to_thread(client.client_kill_filter, _type="normal", skipme=True)


@pytest.fixture(params=["redis", "postgres"])
def stage(request: pytest.FixtureRequest, database: str) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer()) if request.param == "redis" else None
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(SCHEMA)
            connection.execute("SELECT pg_create_logical_replication_slot('truth', 'test_decoding')")
        log = valkey.url if valkey is not None else "postgres:"
        text = CONFIG.format(url=database, log=log, secret=SECRET)
        stage = Stage(database, text, valkey, random.Random(SEED))
        for server in stage.servers:
            stack.callback(server.kill)
            server.launch()
        for server in stage.servers:
            server.wait_ready()
        yield stage


@pytest.mark.timeout(60 + 3 * HISTORIES)
async def test_every_client_has_what_postgres_has(stage: Stage) -> None:
    histories = [History(SEED + number) for number in range(HISTORIES)]
    print(f"ROWCAST_SEED={SEED} ROWCAST_HISTORIES={HISTORIES}")
    async with psycopg_pool.AsyncConnectionPool(
        stage.url, min_size=8, max_size=8, timeout=60, kwargs={"autocommit": True}
    ) as pool:
        waiting = iter(histories)

        async def work() -> None:
            for history in waiting:
                try:
                    await history.run(pool, stage.pick)
                except BaseExceptionGroup as error:
                    raise AssertionError(await autopsy(pool, history)) from error

        weather = asyncio.create_task(stage.weather())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(TOGETHER):
                    group.create_task(work())
        finally:
            weather.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await weather
    judge = Judge(Truth.read(stage.url, "truth"))
    entries = connections = 0
    for history in histories:
        for client in history.clients:
            # Nothing that happened here may cost an entry: neither log nor slot lost any.
            assert set(client.resets) <= {"too_slow", "position_expired"}, f"seed {history.seed}: {client.resets}"
            connections += client.follower.connections
            for span in client.spans:
                entries += judge.judge(client, span, whole=span is client.spans[-1])
    clients = [client for history in histories for client in history.clients]
    resets = sum(len(client.resets) for client in clients)
    print(f"{len(clients)} clients, {connections} connections, {entries} entries, {resets} resets; {stage.happened}")
    assert entries > HISTORIES
    assert resets == 0


async def autopsy(pool: Pool, history: History) -> str:
    """What is wrong with a history whose clients did not get to where Postgres is."""
    lines = [f"seed {history.seed} did not get to its end"]
    for client in history.clients:
        truth = await select(pool, await history._subscribed(pool, client.user))
        missing, extra = truth.items() - client.view.items(), client.view.items() - truth.items()
        lines.append(
            f"{client.user}: notes {client.notes}, connections {client.follower.connections}, topics {client.topics},"
            f" at {client.follower.position}, resets {client.resets}, missing {missing}, too much {extra}"
        )
        if not client.notes or missing or extra:
            lines.extend(f"    {happening}" for happening in client.follower.lately)
    return "\n".join(lines)
