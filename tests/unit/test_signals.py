"""Signals under a server that is not ours: it gets them when the streams are gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
import uvloop

from rowcast.core.entry import Batch
from rowcast.core.grants import Grant
from rowcast.drain import Drain
from rowcast.hub import Hub
from rowcast.signals import Signals


def make() -> Hub:
    hub = Hub(
        None,  # type: ignore[arg-type]
        [],
        None,
        replica="r",
        ring_bytes=1 << 20,
        max_event=1 << 16,
        max_streams=5000,
        max_streams_per_user=1,
        heartbeat=15,
    )
    hub.handle(Batch("e", [], (1, 0), reset="start"))
    hub.warm = True
    return hub


def connect(hub: Hub, user: str) -> None:
    hub.connect(Grant(user, frozenset()), lambda: None)


def drain_of(hub: Hub, delay: float = 0.0) -> Drain:
    return Drain(hub, delay=delay, limit=30.0, rate=100_000)


def hub_with(streams: int) -> Hub:
    hub = make()
    for number in range(streams):
        connect(hub, f"u{number}")
    assert hub.streams_count == streams
    return hub


class Server:
    """Has handlers of its own, as uvicorn."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.got.append(number)
        self._loop.call_soon_threadsafe(self.arrived.set)


@pytest.fixture
def before() -> Iterator[None]:
    """Puts back what a test has done to the handlers."""
    kept = {number: signal.getsignal(number) for number in Signals.NUMBERS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def install() -> Server:
    server = Server()
    for number in Signals.NUMBERS:
        signal.signal(number, server.handle)
    return server


@pytest.mark.usefixtures("before")
async def test_the_server_has_the_signal_when_the_streams_are_gone() -> None:
    server, signals, hub = install(), Signals(), hub_with(2)
    drain = drain_of(hub, delay=0.05)
    signals.watch(drain)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0)
    assert server.got == []
    async with asyncio.timeout(30):
        await server.arrived.wait()
    assert hub.streams_count == 0
    assert drain.done
    assert server.got == [signal.SIGTERM]
    # From then on signals are the server's.
    os.kill(os.getpid(), signal.SIGINT)
    assert server.got == [signal.SIGTERM, signal.SIGINT]
    signals.leave(drain)
    assert signal.getsignal(signal.SIGTERM) == server.handle


@pytest.mark.usefixtures("before")
async def test_a_second_signal_is_handed_on_at_once() -> None:
    server, signals, hub = install(), Signals(), hub_with(2)
    signals.watch(drain_of(hub, delay=60))
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await server.arrived.wait()
    assert hub.streams_count == 0
    assert server.got == [signal.SIGTERM]


@pytest.mark.usefixtures("before")
async def test_ctrl_c_does_not_wait_for_proxies() -> None:
    server, signals = install(), Signals()
    signals.watch(drain_of(hub_with(1), delay=60))
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(30):
        await server.arrived.wait()
    assert server.got == [signal.SIGINT]


@pytest.mark.usefixtures("before")
async def test_two_replicas_in_a_process_drain_together() -> None:
    server, signals = install(), Signals()
    quick, slow = hub_with(1), hub_with(1)
    drains = [drain_of(quick), drain_of(slow, delay=0.1)]
    for drain in drains:
        signals.watch(drain)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(30):
        await server.arrived.wait()
    assert quick.streams_count == slow.streams_count == 0
    assert server.got == [signal.SIGTERM]


@pytest.mark.usefixtures("before")
async def test_handlers_are_put_back_when_the_last_replica_goes() -> None:
    server, signals = install(), Signals()
    drains = [drain_of(make()), drain_of(make())]
    for drain in drains:
        signals.watch(drain)
    signals.leave(drains[0])
    assert signal.getsignal(signal.SIGTERM) != server.handle
    signals.leave(drains[1])
    signals.leave(drains[1])
    assert signal.getsignal(signal.SIGTERM) == server.handle


@pytest.mark.usefixtures("before")
async def test_handlers_that_somebody_else_has_set_meanwhile_are_left_alone() -> None:
    install()
    signals, drain = Signals(), drain_of(make())
    signals.watch(drain)
    other = Server()
    signal.signal(signal.SIGTERM, other.handle)
    signals.leave(drain)
    assert signal.getsignal(signal.SIGTERM) == other.handle


async def test_in_another_thread_signals_are_not_ours() -> None:
    signals = Signals()
    before = signal.getsignal(signal.SIGTERM)
    await asyncio.to_thread(signals.watch, drain_of(make()))
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.usefixtures("before")
def test_a_handler_of_the_loop_gets_it_when_the_streams_are_gone(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """As granian: handlers given to the loop, and the loop run once for the start and once for the rest."""
    loop = new_loop()
    got: list[int] = []
    signals = Signals()
    try:
        for number in (*Signals.NUMBERS, signal.SIGUSR1):
            loop.add_signal_handler(number, got.append, number)

        async def start() -> Drain:
            drain = drain_of(hub_with(2), delay=0.2)
            signals.watch(drain)
            return drain

        drain = loop.run_until_complete(start())
        assert not signals.ready

        async def serve() -> None:
            async with asyncio.timeout(30):
                while not signals.ready:
                    await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            async with asyncio.timeout(30):
                while got != [signal.SIGUSR1]:
                    await asyncio.sleep(0)
                await drain.begin()
                assert got == [signal.SIGUSR1]
                while got[1:] != [signal.SIGTERM]:
                    await asyncio.sleep(0)
            # From then on signals are the server's.
            os.kill(os.getpid(), signal.SIGINT)
            async with asyncio.timeout(30):
                while got[2:] != [signal.SIGINT]:
                    await asyncio.sleep(0)
            signals.leave(drain)

        loop.run_until_complete(serve())
    finally:
        for number in (*Signals.NUMBERS, signal.SIGUSR1):
            loop.remove_signal_handler(number)
        loop.close()
