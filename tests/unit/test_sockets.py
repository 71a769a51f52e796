"""Listening sockets: how many connections a turn of the loop accepts."""

from __future__ import annotations

import asyncio
import socket

import pytest

from rowcast.sockets import ACCEPTS, listen, shares


def test_many_clients_are_let_in_per_turn_of_the_loop_and_not_all() -> None:
    uvloop = pytest.importorskip("uvloop")
    with listen("127.0.0.1", 0) as sock:
        sock.listen(100)
        clients = [socket.create_connection(sock.getsockname()) for _ in range(5 * ACCEPTS)]
        accepted: list[int] = []
        transports: set[asyncio.BaseTransport] = set()
        turns = 0

        class Door(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.append(turns)
                transports.add(transport)
                self.transport = transport

            def connection_lost(self, exc: Exception | None) -> None:
                transports.discard(self.transport)

        async def main() -> None:
            nonlocal turns
            loop = asyncio.get_running_loop()
            servers = [await loop.create_server(Door, sock=one) for one in shares(sock)]
            while len(accepted) < len(clients):
                await asyncio.sleep(0)
                turns += 1
            for end in (*servers, *transports):
                end.close()
            while transports:
                await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
        for client in clients:
            client.close()
    per_turn = [accepted.count(turn) for turn in sorted(set(accepted))]
    assert max(per_turn) <= ACCEPTS
    assert len(per_turn) <= 8, "five turns are enough, and one with each connection would be too few"
