"""Several real Valkey or Redis servers that belong together: a Cluster, and a primary that sentinels look after."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from rowcast.errors import SetupError
from rowcast.testing.postgres import free_port
from rowcast.testing.valkey import ValkeyServer, embedded_valkey

PAUSE = 0.02
"""Seconds between two looks at whether something has come about."""

SLOTS = 16_384


def until(true: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Wait for something, and return it; a server that can't be asked has nothing. `timeout` in seconds.

    Raises `SetupError` that says what did not come about.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with contextlib.suppress(redis.RedisError, OSError):
            if found := true():
                return found
        time.sleep(PAUSE)
    raise SetupError(f"within {timeout:g} s {what} did not come about")


class _Group:
    """Several servers, started on entry and destroyed on exit; also when not all of them would start."""

    def start(self) -> None:
        raise NotImplementedError

    def destroy(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()


class ValkeyCluster(_Group):
    """A Cluster of `primaries` nodes that share all slots, each with `replicas` replicas. See `ValkeyServer`."""

    def __init__(self, primaries: int = 2, replicas: int = 0, *, program: Path | None = None) -> None:
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-require-full-coverage": "no"}
        # The bus listens 10,000 above the port.
        self.nodes = [
            ValkeyServer(port=_low_port(), settings=settings, program=program)
            for _ in range(primaries * (1 + replicas))
        ]
        self.primaries = primaries

    @property
    def url(self) -> str:
        """The Cluster, by its first two nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def start(self) -> None:
        """Start and join the nodes, and wait until each of them finds the Cluster complete."""
        for node in self.nodes:
            node.start()
        first = self.nodes[0]
        for index, node in enumerate(self.nodes):
            if index < self.primaries:
                slots = range(SLOTS * index // self.primaries, SLOTS * (index + 1) // self.primaries)
                _ask(node, "CLUSTER ADDSLOTSRANGE" if _has_ranges(node) else "CLUSTER ADDSLOTS", *_slots(node, slots))
            if node is not first:
                _ask(node, "CLUSTER MEET", "127.0.0.1", first.port)
        until(self._joined, "a Cluster")
        for index, node in enumerate(self.nodes[self.primaries :]):
            _ask(node, "CLUSTER REPLICATE", self.id(self.nodes[index % self.primaries]))
        for node in self.nodes:
            until(lambda node=node: b"cluster_state:ok" in _ask(node, "CLUSTER INFO"), "a Cluster")  # type: ignore[misc]
        for node in self.nodes[self.primaries :]:
            until(lambda node=node: b"master_link_status:up" in _ask(node, "INFO", "replication"), "a replica")  # type: ignore[misc]

    def _joined(self) -> bool:
        return all(len(_ask(node, "CLUSTER NODES").splitlines()) == len(self.nodes) for node in self.nodes)

    def id(self, node: ValkeyServer) -> str:
        """A node's name within the Cluster."""
        name: bytes = _ask(node, "CLUSTER MYID")
        return name.decode()

    def owner(self, slot: int) -> ValkeyServer:
        """The node that has a slot, as the nodes that run see it."""
        return next(node for node in self.nodes if node.running and self._has(node, slot))

    def _has(self, node: ValkeyServer, slot: int) -> bool:
        for first, last, (_, port, *_), *_ in _ask(node, "CLUSTER SLOTS"):
            if first <= slot <= last:
                return bool(port == node.port)
        return False

    def begin_move(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        """From here on the source says ASK for keys that it has no more."""
        _ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.id(source))
        _ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.id(target))

    def move_key(self, key: str, source: ValkeyServer, target: ValkeyServer) -> None:
        """Move one key of a slot that is being moved."""
        _ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)

    def end_move(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        """The target has the slot."""
        for node in (target, source):
            _ask(node, "CLUSTER SETSLOT", slot, "NODE", self.id(target))

    def destroy(self) -> None:
        """End all, and remove what they left."""
        for node in self.nodes:
            node.destroy()


class SentinelGroup(_Group):
    """A primary, `replicas` replicas, and `sentinels` sentinels that let another be primary when it is gone.

    `down_after`: seconds without an answer after which they agree that it is. `settings` are the servers'.
    """

    SERVICE = "rowcast"

    def __init__(
        self,
        replicas: int = 1,
        sentinels: int = 3,
        *,
        down_after: float = 1.0,
        settings: dict[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        self.servers = [ValkeyServer(settings=settings, program=program) for _ in range(1 + replicas)]
        self.ports = [free_port() for _ in range(sentinels)]
        self._program = program or embedded_valkey()
        self._down_after = round(down_after * 1000)
        self._directory = Path(tempfile.mkdtemp(prefix="rowcast-sentinels-"))
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The primary, as the sentinels know it."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{hosts}/{self.SERVICE}/0"

    def start(self) -> None:
        """Start all, and wait until the replicas follow and the sentinels know them and each other."""
        primary, *replicas = self.servers
        for server in self.servers:
            server.start()
        for server in replicas:
            _ask(server, "REPLICAOF", "127.0.0.1", primary.port)
            until(lambda server=server: b"master_link_status:up" in _ask(server, "INFO", "replication"), "a replica")  # type: ignore[misc]
        for port in self.ports:
            self._start_sentinel(port, primary.port)
        for port in self.ports:
            until(lambda port=port: self._knows_all(port), "a sentinel that knows the others")  # type: ignore[misc]

    def _start_sentinel(self, port: int, primary: int) -> None:
        quorum = len(self.ports) // 2 + 1
        file = self._directory / f"{port}.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {primary} {quorum}\n"
            f"sentinel down-after-milliseconds {self.SERVICE} {self._down_after}\n"
            f"sentinel failover-timeout {self.SERVICE} 5000\n"
        )
        with (self._directory / f"{port}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(self._program), str(file), "--sentinel"],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def _knows_all(self, port: int) -> bool:
        with contextlib.closing(redis.Redis(port=port, socket_timeout=5)) as client:
            masters: Any = client.sentinel_masters()
        state = masters[self.SERVICE]
        return bool(
            state["num-other-sentinels"] == len(self.ports) - 1 and state["num-slaves"] == len(self.servers) - 1
        )

    def primary(self) -> ValkeyServer:
        """The server that the first sentinel takes for the primary."""
        with contextlib.closing(redis.Redis(port=self.ports[0], socket_timeout=5)) as client:
            address: Any = client.sentinel_get_master_addr_by_name(self.SERVICE)
        return next(server for server in self.servers if server.port == int(address[1]))

    def fail_over(self) -> None:
        """Have the sentinels make another server the primary, and wait until they have."""
        before = self.primary()
        until(lambda: self._ask_sentinel("SENTINEL FAILOVER"), "a fail-over")
        until(lambda: self.primary() is not before, "another primary")

    def _ask_sentinel(self, command: str) -> Any:
        with contextlib.closing(redis.Redis(port=self.ports[0], socket_timeout=5)) as client:
            return client.execute_command(command, self.SERVICE)  # type: ignore[no-untyped-call]

    def destroy(self) -> None:
        """End all, and remove what they left."""
        for process in self._processes:
            process.kill()
            process.wait(20)
        for server in self.servers:
            server.destroy()
        shutil.rmtree(self._directory, ignore_errors=True)


def _ask(server: ValkeyServer, command: str, *arguments: Any) -> Any:
    with contextlib.closing(server.client()) as client:
        for name in ("CLUSTER SLOTS", "CLUSTER NODES", "CLUSTER INFO", "INFO"):
            client.set_response_callback(name, lambda answer, **_: answer)
        return client.execute_command(command, *arguments)  # type: ignore[no-untyped-call]


def _has_ranges(server: ValkeyServer) -> bool:
    """Redis 6.2 gives slots one by one."""
    with contextlib.closing(server.client()) as client:
        return int(str(client.info("server")["redis_version"]).partition(".")[0]) >= 7


def _slots(server: ValkeyServer, slots: range) -> list[int]:
    return [slots[0], slots[-1]] if _has_ranges(server) else list(slots)


def _low_port() -> int:
    while (port := free_port()) > 55_000:
        pass
    return port
