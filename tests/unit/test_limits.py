"""Counting requests: windows, what a storage's absence does, and what is refused in a configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from rowcast import check
from rowcast.config import Config
from rowcast.errors import ConfigError
from rowcast.limits import Limit, Limiter, WindowStorage, covers, make_storage, parse_limits, remark
from rowcast.testing.valkey import ValkeyServer


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


class Clock:
    """Stands for `time.time` where windows are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for module in ("rowcast.limits.time.time", "limits.aio.storage.memory.time.time"):
            monkeypatch.setattr(module, lambda: self.now)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("120/minute", [Limit(120, 60)]),
        ("1 per 2 seconds", [Limit(1, 2)]),
        ("10/second; 1000/hour", [Limit(10, 1), Limit(1000, 3600)]),
    ],
)
def test_texts(text: str, limits: list[Limit]) -> None:
    assert parse_limits(text) == limits


@pytest.mark.parametrize("text", ["", "many", "0/minute", "-1/minute", "5/fortnight", "5", "1.5/second", "5/minute;"])
def test_texts_that_are_no_limits_are_refused_at_their_place(text: str, tmp_path: object) -> None:
    with pytest.raises(ValueError, match="is no rate limit"):
        parse_limits(text)
    with pytest.raises(ConfigError, match=r"^Rowcast\(…\).*\[limits\] requests"):
        Config.from_sections({"limits": {"requests": text}})


def test_places_of_what_is_wrong(tmp_path: pytest.TempPathFactory) -> None:
    file = tmp_path / "rowcast.toml"  # type: ignore[operator]
    for text, line, words in (
        ('[limits]\nrequests = "often"\n', 2, "is no rate limit"),
        ('[limits]\nstrict = { "/a" = "often" }\n', 2, "is no rate limit"),
        ('[limits]\nstrict = { "a" = "1/second" }\n', 2, "[limits"),
        ('[server]\ntrusted_proxies = ["10.0.0.1", "proxy"]\n', 2, "is no address or network"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            Config.load(file)
        assert str(caught.value).startswith(f"rowcast.toml:{line}:")
        assert words in str(caught.value)


def test_prefixes_cover_whole_names() -> None:
    assert covers("/a", "/a")
    assert covers("/a", "/a/b")
    assert covers("/", "/a")
    assert not covers("/a", "/ab")
    assert not covers("/a/b", "/a")


async def test_a_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    limiter = Limiter(WindowStorage(), "2/minute")
    seen = []
    for moved in (0, 10, 10, 39, 1, 0, 0):
        clock.now += moved
        verdict = await limiter.check("a", "/x")
        assert verdict is not None
        seen.append((verdict.allowed, verdict.remaining, verdict.reset))
    assert seen == [
        (True, 1, 60),
        (True, 0, 50),
        (False, 0, 40),
        (False, 0, 1),
        (True, 1, 60),
        (True, 0, 60),
        (False, 0, 60),
    ]


async def test_clients_are_counted_apart_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.limits.SWEEP_INTERVAL", -1.0)
    clock = Clock(monkeypatch)
    storage = WindowStorage()
    limiter = Limiter(storage, "1/minute")
    for client in range(1000):
        verdict = await limiter.check(str(client), "/x")
        assert verdict is not None
        assert verdict.allowed
    assert len(storage.storage) == len(storage.expirations) == 1000
    clock.now += 61
    await limiter.check("a", "/x")
    assert len(storage.storage) == len(storage.expirations) == 1


async def test_strict_limits_hold_in_addition() -> None:
    limiter = Limiter(WindowStorage(), "3/minute", {"/me": "1/minute"})

    async def allowed(path: str) -> bool:
        verdict = await limiter.check("a", path)
        assert verdict is not None
        return verdict.allowed

    assert [await allowed(path) for path in ("/me", "/me/x", "/me", "/you", "/you", "/you")] == [
        True,
        False,
        False,
        True,
        True,
        False,
    ]


async def test_without_a_limit_for_a_path_nothing_is_counted() -> None:
    limiter = Limiter(WindowStorage(), None, {"/me": "1/minute"})
    assert await limiter.check("a", "/you") is None
    assert limiter.failures == 0


async def test_replicas_share_one_count_in_redis(valkey: ValkeyServer) -> None:
    limiters = [Limiter(make_storage(valkey.url), "120/minute") for _ in range(3)]
    try:
        verdicts = [await limiters[number % 3].check("203.0.113.9", "/x") for number in range(121)]
        assert [verdict.allowed for verdict in verdicts if verdict is not None] == [True] * 120 + [False]
        last = verdicts[-1]
        assert last is not None
        assert 1 <= last.reset <= 60
        another = await limiters[0].check("203.0.113.10", "/x")
        assert another is not None
        assert another.remaining == 119
        assert all(limiter.failures == 0 for limiter in limiters)
    finally:
        for limiter in limiters:
            await limiter.close()


async def test_while_redis_is_away_requests_pass_and_that_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rowcast.limits.PAUSE", 0.0)
    with ValkeyServer() as server:
        limiter = Limiter(make_storage(server.url), "2/minute")
        assert await limiter.check("a", "/x") is not None
    with caplog.at_level(logging.WARNING, "rowcast.limits"):
        assert [await limiter.check("a", "/x") for _ in range(5)] == [None] * 5
    assert limiter.failures == 5
    [record] = caplog.records
    assert "every request passes" in record.getMessage()
    await limiter.close()


async def test_a_storage_that_hangs_delays_one_request_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rowcast.limits.TIMEOUT", 0.01)

    class Hanging(WindowStorage):
        STORAGE_SCHEME = ["async+hanging"]  # noqa: RUF012  # as the library declares it
        asked = 0

        async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
            self.asked += 1
            await asyncio.Event().wait()
            raise AssertionError

    storage = Hanging()
    limiter = Limiter(storage, "2/minute")
    assert [await limiter.check("a", "/x") for _ in range(10)] == [None] * 10
    assert storage.asked == 1
    assert limiter.failures == 10
    [record] = caplog.records
    assert "no answer within" in record.getMessage()


def test_the_operator_is_told_what_counts_for_itself() -> None:
    limits = {"requests": "1/second"}
    assert remark(Config.from_sections({})) is None
    assert remark(Config.from_sections({"limits": limits, "log": "redis://localhost:6379/0"})) is None
    text = remark(Config.from_sections({"limits": limits}))
    assert text is not None
    assert '"memory:"' in text
    assert Limiter.of(Config.from_sections({})) is None


async def test_check_tells_the_operator_too() -> None:
    results = await check.run(Config.from_sections({"limits": {"requests": "1/second"}}))
    assert [(result.name, result.ok) for result in results] == [("postgres", True), ("limits", True)]
    assert "each process counts for itself" in str(results[1])
