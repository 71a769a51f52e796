"""Every alert provoked for real: replicas, Postgres, Valkey and a Prometheus that scrapes them and evaluates
deploy/prometheus/alerts.yaml, with its times divided by `FASTER` and its thresholds as they are.

Each incident is made, until its alerts fire, and ended, until none fires any more.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml

from benchmarks.processes import Follow, Load
from benchmarks.servers import SECRET, token
from rowcast.testing.postgres import PostgresServer, free_port
from rowcast.testing.process import ServerProcess
from rowcast.testing.proxies import Nginx
from rowcast.testing.server import RowcastServer
from rowcast.testing.valkey import ValkeyServer

RULES = Path(__file__).parent.parent / "deploy" / "prometheus" / "alerts.yaml"
FASTER = 30
SHORTEST = {"for": 2, "window": 6}
"""Seconds: some scrapes must fit."""

PATIENCE = 180.0
"""Seconds within which an alert fires, and is over."""

KEY = "k"
CONFIG = f"""
[server]
retry = "500ms"
[postgres]
url = "{{database}}"
[log]
url = "{{log}}"
[auth]
secret = "{SECRET}"
[api]
key = "{KEY}"
[[route]]
table = "ticks"
topic = "{{{{topic}}}}"
[[route]]
table = "wide"
topic = "wide:{{{{ids[*]}}}}"
"""


class Prometheus(ServerProcess):
    """A Prometheus that scrapes `targets` every second and evaluates the rules in `rules`."""

    def __init__(self, targets: list[str], rules: dict[str, Any]) -> None:
        super().__init__("rowcast-prometheus-")
        self.url = f"http://127.0.0.1:{free_port()}"
        (self._directory / "rules.yaml").write_text(yaml.safe_dump(rules))
        static = [{"targets": targets, "labels": {"namespace": "drill"}}]
        scrape = {
            "job_name": "rowcast",
            "authorization": {"credentials": KEY},
            "static_configs": static,
        }
        (self._directory / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["rules.yaml"],
                    "scrape_configs": [scrape],
                }
            )
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        address = self.url.removeprefix("http://")
        self._launch(
            ["prometheus", f"--config.file={self._directory}/prometheus.yaml", f"--web.listen-address={address}"]
            + [f"--storage.tsdb.path={self._directory}/data", "--log.level=warn"]
        )
        until(lambda: httpx.get(f"{self.url}/-/ready").status_code == 200)

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = httpx.get(f"{self.url}/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def faster() -> dict[str, Any]:
    """The rules, with all times shorter."""
    rules = yaml.safe_load(RULES.read_text())
    for rule in rules["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = f"{max(SHORTEST['for'], _seconds(rule['for']) // FASTER)}s"
        rule["expr"] = re.sub(
            r"\[(\w+)\]", lambda found: f"[{max(SHORTEST['window'], _seconds(found[1]) // FASTER)}s]", rule["expr"]
        )
    return rules


def _seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def until(condition: Callable[[], object]) -> None:
    """Wait for it. Raises TimeoutError after `PATIENCE`."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.2)
    raise TimeoutError


@dataclass
class Stage:
    """What runs."""

    postgres: PostgresServer
    valkey: ValkeyServer
    servers: list[RowcastServer]

    def follow(self, urls: list[str], streams: int) -> Follow:
        """EventSources of the topic `t`."""
        return Follow(urls, [f"/events {token(f'u{n}', ['t'])}" for n in range(streams)], streams, core=None)

    @property
    def urls(self) -> list[str]:
        """Of the replicas."""
        return [server.url for server in self.servers]

    def execute(self, statement: str) -> None:
        """One statement."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextlib.contextmanager
    def repeated(self, action: Callable[[], object], pause: float) -> Iterator[None]:
        """Do something again and again meanwhile."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(pause):
                with contextlib.suppress(httpx.TransportError, psycopg.Error):
                    action()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def postgres_stopped(on: Stage) -> Iterator[None]:
    """Postgres is stopped."""
    on.postgres.stop()
    try:
        yield
    finally:
        on.postgres.start()


@contextlib.contextmanager
def old_transaction(on: Stage) -> Iterator[None]:
    """A transaction stays open, with an xid, while 600 MB of WAL are written."""
    with psycopg.connect(on.postgres.url()) as old:
        old.execute("SELECT txid_current()")
        for _ in range(60):
            on.execute("SELECT pg_logical_emit_message(false, 'bulk', repeat('x', 10000000))")
        yield
        old.rollback()


@contextlib.contextmanager
def valkey_frozen(on: Stage) -> Iterator[None]:
    """Valkey is frozen (SIGSTOP), and a resubscribe and messages are posted meanwhile."""
    on.valkey.pause()
    headers = {"authorization": f"Bearer {KEY}"}

    def call() -> None:
        httpx.post(f"{on.urls[0]}/control/resubscribe", headers=headers, json={"user": "ann"}, timeout=30)
        httpx.post(f"{on.urls[0]}/publish", headers=headers, json={"topic": "t", "data": 1}, timeout=30)

    try:
        with on.repeated(call, 1.0):
            yield
            on.valkey.resume()
    finally:
        on.valkey.resume()


@contextlib.contextmanager
def flushed(on: Stage) -> Iterator[None]:
    """FLUSHALL while 200 streams are open."""
    with on.follow(on.urls, 200):
        on.valkey.client().flushall()
        yield


@contextlib.contextmanager
def log_stutters(on: Stage) -> Iterator[None]:
    """Valkey stands still for three seconds, again and again, while changes are written."""

    def stutter() -> None:
        on.valkey.pause()
        time.sleep(3)
        on.valkey.resume()

    with (
        on.follow(on.urls, 40),
        on.repeated(lambda: on.execute("INSERT INTO ticks (topic, stamp) VALUES ('t', '')"), 0.05),
        on.repeated(stutter, 0.3),
    ):
        yield


@contextlib.contextmanager
def clients_do_not_read(on: Stage) -> Iterator[None]:
    """60 of 100 clients stop reading, while 20 kB are written to their topic twenty times a second."""
    lines = [f"/events {token(f'u{n}', ['t'])}" for n in range(100)]
    statement = (
        "INSERT INTO ticks (topic, stamp) SELECT 't', string_agg(md5(n::text), '') FROM generate_series(1, 640) n"
    )
    with Load(on.urls, lines, 100, mark="rowcast.ready", core=None) as load:
        load.stall(60)
        with on.repeated(lambda: on.execute(statement), 0.05):
            yield


class Impatient(Nginx):
    """nginx with a timeout below the heartbeat."""

    def command(self) -> list[str]:
        """See `Proxy.command`."""
        command = super().command()
        file = self._directory / "nginx.conf"
        file.write_text(file.read_text().replace("proxy_read_timeout 1h", "proxy_read_timeout 1s"))
        return command


@contextlib.contextmanager
def proxy_cuts(on: Stage) -> Iterator[None]:
    """300 clients behind a proxy whose timeout is below the heartbeat."""
    with Impatient([url.removeprefix("http://") for url in on.urls]) as proxy, on.follow([proxy.url], 300):
        yield


@contextlib.contextmanager
def all_on_one(on: Stage) -> Iterator[None]:
    """One replica of four has all of 400 streams."""
    with on.follow(on.urls[:1], 400):
        yield


@contextlib.contextmanager
def poisoned(on: Stage) -> Iterator[None]:
    """A row that gives 10,001 topics."""
    on.execute("INSERT INTO wide (ids) SELECT jsonb_agg(n) FROM generate_series(0, 10000) n")
    yield


INCIDENTS: list[tuple[set[str], Callable[[Stage], AbstractContextManager[None]]]] = [
    ({"RowcastNoReader", "RowcastWalLag"}, postgres_stopped),
    ({"RowcastWalHeld"}, old_transaction),
    ({"RowcastControlPending", "RowcastAppendFailures"}, valkey_frozen),
    ({"RowcastResets"}, flushed),
    ({"RowcastSlow"}, log_stutters),
    ({"RowcastManyBehind"}, clients_do_not_read),
    ({"RowcastReconnectStorm"}, proxy_cuts),
    ({"RowcastSkewed"}, all_on_one),
    ({"RowcastPoisonedRows"}, poisoned),
]


@contextlib.contextmanager
def stage() -> Iterator[tuple[Stage, Prometheus]]:
    """All of it, started, and quiet."""
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer())
        valkey = stack.enter_context(ValkeyServer())
        servers = [
            RowcastServer(CONFIG.format(database=postgres.url(), log=valkey.url), name=f"r{n}") for n in range(4)
        ]
        on = Stage(postgres, valkey, servers)
        on.execute("CREATE TABLE ticks (id bigserial PRIMARY KEY, topic text, stamp text)")
        on.execute("CREATE TABLE wide (id bigserial PRIMARY KEY, ids jsonb)")
        for server in servers:
            stack.callback(server.kill)
            server.launch()
        for server in servers:
            server.wait_ready()
        prometheus = stack.enter_context(Prometheus([url.removeprefix("http://") for url in on.urls], faster()))
        time.sleep(5)
        until(lambda: not prometheus.firing())
        yield on, prometheus


def run() -> list[str]:
    """Provoke each, and end it."""
    out = [
        f"## Every alert, provoked and ended (times of the rules divided by {FASTER})",
        "",
        "| alerts | what was done | firing after s | over after s | fired beside it |",
        "|---|---|---|---|---|",
    ]
    with stage() as (on, prometheus):
        for wanted, incident in INCIDENTS:
            beside: set[str] = set()

            def all_fire(wanted: set[str] = wanted, beside: set[str] = beside) -> bool:
                firing = prometheus.firing()
                beside |= firing - wanted
                return firing >= wanted

            began = time.monotonic()
            with incident(on):
                until(all_fire)
                fired = time.monotonic()
            until(lambda: not prometheus.firing())
            over = time.monotonic() - fired
            words = (incident.__doc__ or "").rstrip(".")
            names = ", ".join(sorted(wanted))
            out.append(f"| {names} | {words} | {fired - began:.0f} | {over:.0f} | {', '.join(sorted(beside)) or '-'} |")
            print(out[-1], flush=True)
    never = {rule["alert"] for rule in faster()["groups"][0]["rules"]} - set().union(*(names for names, _ in INCIDENTS))
    assert not never, f"not provoked: {never}"
    return out
