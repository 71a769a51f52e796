"""A stream against an oracle: any interleaving of entries, subscription changes, pauses and reads.

Pages and limits are made small, so that a few entries fill them.
"""

from __future__ import annotations

import random
import re

import msgspec
import pytest

from rowcast.core import behind, held, stream
from rowcast.core.entry import Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.ring import Ring
from rowcast.core.stream import Stream, StreamState, Wire

TOPICS = "abc"


class Body(msgspec.Struct):
    text: str
    size: int = 0

    def encode(self, limit: int) -> bytes:
        return self.text.encode()


class World:
    """One stream, its ring, and what it must get."""

    def __init__(self, seed: int, max_entries: int | None) -> None:
        self.rng = random.Random(seed)
        self.wire = Wire(Ring(1 << 30, max_entries), max_event=1 << 20, replica="r")
        self.wire.epoch = "e"
        self.wire.head = (1, 0)
        self.stream = Stream(Grant("u"), self.wire, lambda: None, narrow=frozenset(TOPICS))
        self.topics = self.some_topics()
        self.now = 1
        self.expected: list[int] = []
        self.held_back: list[tuple[int, str]] | None = None
        """Entries since the pause, if there is one: judged by the topics that it ends with."""
        self.out = b""

    def some_topics(self) -> frozenset[str]:
        return frozenset(self.rng.sample(TOPICS, self.rng.randrange(4)))

    def entry(self) -> tuple[int, str]:
        self.now += 1
        topic = self.rng.choice(TOPICS)
        body = Body(f"<{self.now}>" + "x" * self.rng.randrange(120))
        entry = Entry(Kind.DATA, (self.now, 0), body, topic=topic)
        self.wire.ring.append(entry)
        if self.stream.state is StreamState.LIVE and topic in self.stream.topics:
            self.stream.push(entry)
        self.wire.head = entry.place
        if self.rng.random() < 0.6:  # the flush comes by after one or several entries
            self.stream.bound()
        if self.rng.random() < 0.05:
            self.stream.lag()
        return self.now, topic

    def start(self) -> None:
        before = [self.entry() for _ in range(self.rng.randrange(8))]
        cursor = self.rng.choice([None, (self.rng.randrange(1, self.now + 1), 0)])
        self.stream.start(self.topics, cursor)
        if cursor is not None:
            self.expected = [n for n, topic in before if n > cursor[0] and topic in self.topics]

    def step(self) -> None:
        dice = self.rng.random()
        if dice < 0.5:
            number, topic = self.entry()
            if self.held_back is not None:
                self.held_back.append((number, topic))
            elif topic in self.topics:
                self.expected.append(number)
            return
        self.now += 1
        if dice < 0.6 and self.held_back is None:
            self.topics = self.some_topics()
            self.wire.head = (self.now, 0)
            self.stream.change((self.now, 0), self.topics, tell=self.rng.random() < 0.2)
        elif dice < 0.66:
            self.wire.head = (self.now, 0)
            self.stream.pause((self.now, 0))
            self.held_back = self.held_back or []
        elif dice < 0.74 and self.held_back is not None:
            self.topics = self.some_topics()
            self.wire.head = (self.now, 0)
            self.resume()
        elif dice > 0.8:
            self.out += self.stream.take()

    def resume(self) -> None:
        assert self.held_back is not None
        self.expected += [number for number, topic in self.held_back if topic in self.topics]
        self.held_back = None
        self.stream.resume(self.topics)

    def check(self) -> int:
        """Read to the end, and compare. Returns how many resets there were."""
        if self.held_back is not None:
            self.resume()
        for _ in range(300):
            self.out += self.stream.take()
        got = [int(number) for number in re.findall(rb"<(\d+)>", self.out)]
        ids = [int(place, 16) for place in re.findall(rb"id: e:([0-9A-F]+)-", self.out)]
        assert ids == sorted(ids)
        assert self.stream.state is StreamState.LIVE
        assert self.stream.topics == self.topics
        resets = self.out.count(b"event: rowcast.reset")
        if not resets:
            assert got == self.expected
            return 0
        # What was missed is not there, but nothing else is, nothing twice, and all of it from the last reset on.
        assert got == sorted(set(got))
        assert set(got) <= set(self.expected)
        before = self.out[: self.out.rindex(b"event: rowcast.reset")]
        place = int(re.findall(rb"id: e:([0-9A-F]+)-", before)[-1], 16)
        assert [n for n in got if n > place] == [n for n in self.expected if n > place]
        return resets


@pytest.mark.parametrize(
    ("max_turns", "max_entries", "must_reset"), [(10**9, None, False), (2, None, True), (10**9, 8, True)]
)
def test_equals_the_oracle(
    monkeypatch: pytest.MonkeyPatch, max_turns: int, max_entries: int | None, must_reset: bool
) -> None:
    monkeypatch.setattr(held, "PAGE", 150)
    monkeypatch.setattr(stream, "PENDING_LIMIT", 300)
    monkeypatch.setattr(behind, "MAX_TURNS", max_turns)
    resets = 0
    for seed in range(3000):
        world = World(seed, max_entries)
        world.start()
        for _ in range(world.rng.randrange(60)):
            world.step()
        try:
            resets += world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert bool(resets) is must_reset
