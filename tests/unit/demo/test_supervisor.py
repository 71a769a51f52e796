"""The supervisor, with small stand-in processes for the replicas."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rowcast.demo import supervisor as module
from rowcast.demo.supervisor import Supervisor
from rowcast.errors import SetupError

SERVES = 'echo "rowcast listening on http://127.0.0.1:4711"; exec sleep 60'
STUBBORN = f"trap '' TERM; {SERVES.replace('exec ', '')}"


def make(script: str, logs: Path, *, names: str = "AB", pause: float = 0.05) -> Supervisor:
    return Supervisor(
        list(names),
        lambda name: ["/bin/sh", "-c", script],
        lambda name: {"NAME": name, "PATH": os.environ["PATH"]},
        logs=logs,
        pause=pause,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_all_replicas_are_up_inside_and_gone_outside(tmp_path: Path) -> None:
    async with make(SERVES, tmp_path) as supervisor:
        assert [replica.name for replica in supervisor.live()] == ["A", "B"]
        assert supervisor.replicas[0].url == "http://127.0.0.1:4711"
        pids = [replica.pid for replica in supervisor.replicas]
        assert all(pid is not None and alive(pid) for pid in pids)
    assert not any(pid is not None and alive(pid) for pid in pids)


async def test_a_killed_replica_comes_back(tmp_path: Path) -> None:
    async with make(SERVES, tmp_path) as supervisor:
        first, other = supervisor.replicas
        pid = supervisor.kill(first)
        assert supervisor.live() == [other]
        await until(lambda: first.state == "up" and first.starts == 2)
        assert first.pid not in (pid, None)
        assert not alive(pid)
        assert other.starts == 1


async def test_while_it_is_dead_it_says_when_it_is_back(tmp_path: Path) -> None:
    async with make(SERVES, tmp_path, pause=30) as supervisor:
        first = supervisor.replicas[0]
        supervisor.kill(first)
        await until(lambda: first.back_at is not None)
        assert (first.state, first.killed, first.pid, first.port) == ("down", True, None, None)
        with pytest.raises(ProcessLookupError):
            supervisor.kill(first)


async def test_one_that_ends_by_itself_is_not_called_killed(tmp_path: Path) -> None:
    async with make(SERVES.replace("sleep 60", "sleep 0.1"), tmp_path, names="A", pause=30) as supervisor:
        only = supervisor.replicas[0]
        await until(lambda: only.back_at is not None)
        assert (only.state, only.killed) == ("down", False)


async def test_one_that_never_serves_is_told_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"replica A ended before it served: .*no such table"):
        async with make("echo 'no such table' >&2; exit 1", tmp_path, names="A"):
            pass


async def test_one_that_does_not_end_when_asked_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.1)
    async with make(STUBBORN, tmp_path, names="A") as supervisor:
        pid = supervisor.replicas[0].pid
        assert pid is not None
    assert not alive(pid)


async def test_each_gets_its_own_environment_and_log(tmp_path: Path) -> None:
    async with make(f'echo "I am $NAME" >&2; {SERVES}', tmp_path) as supervisor:
        for replica in supervisor.replicas:
            assert f"I am {replica.name}" in replica.log.read_text()
