"""SIGHUP: `rowcast serve` reloads, one process or several, and streams go on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.stream import OpenStream

SECRET, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
CONFIG = """
[server]
drain_delay = 0
[auth]
secret = "{secret}"
[api]
key = "k"
"""


class Served:
    def __init__(self, directory: Path, config: str, *arguments: str) -> None:
        self.file = directory / "rowcast.toml"
        self.file.write_text(config)
        self.errors = directory / "stderr"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ROWCAST_")}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rowcast.cli", "serve", "--port", "0", *arguments],
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().removeprefix("rowcast listening on ")

    def hang_up(self, config: str) -> None:
        self.file.write_text(config)
        self.process.send_signal(signal.SIGHUP)

    async def reloads(self, result: str, count: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client, asyncio.timeout(60):
            text = ""
            while f'rowcast_config_reloads_total{{result="{result}"}} {count}.0' not in text:
                for key in ("k", "k2"):
                    answer = await client.get("/metrics", headers={"authorization": f"Bearer {key}"})
                    text = answer.text if answer.status_code == 200 else text
                await asyncio.sleep(0.02)


@contextmanager
def served(directory: Path, config: str, *arguments: str) -> Iterator[Served]:
    made = Served(directory, config, *arguments)
    try:
        yield made
        made.process.terminate()
        assert made.process.wait(60) == 0
    finally:
        made.process.kill()
        made.process.wait()
        assert made.process.stdout is not None
        made.process.stdout.close()


def token(secret: str) -> str:
    return mint(Config.from_sections({"auth": secret}), "ann", topics=["t"])


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


async def test_one_process(tmp_path: Path) -> None:
    with served(tmp_path, CONFIG.format(secret=SECRET)) as made:
        async with OpenStream(made.url, token(SECRET)) as stream:
            await stream.ready()
            made.hang_up(CONFIG.format(secret=OTHER).replace("[server]", '[server]\nlog_format = "json"'))
            await made.reloads("applied", 1)
            # The lines are of the new form, the keys are the new ones, and the stream is the same.
            await until(lambda: '"event":"request"' in made.errors.read_text())
            async with OpenStream(made.url, token(OTHER)) as another:
                await another.ready()
            made.hang_up(CONFIG.format(secret=SECRET) + "[log]\nurl = 'postgres:'\n")
            await made.reloads("refused", 1)
            made.hang_up(CONFIG.format(secret=SECRET) + "nonsense")
            await made.reloads("refused", 2)
            assert made.errors.read_text().count('"event":"reload_refused"') == 2
            async with httpx.AsyncClient(base_url=made.url) as client:
                head = {"authorization": "Bearer k"}
                assert (await client.post("/publish", headers=head, json={"topic": "t", "data": 1})).status_code == 202
                old = {"authorization": f"Bearer {token(SECRET)}"}
                assert (await client.get("/events", headers=old)).status_code == 401
            await stream.until(lambda: [event["data"] for event in stream.events()] == [1])
            assert not stream.ended


async def test_several_workers(tmp_path: Path, database: str) -> None:
    config = CONFIG.format(secret=SECRET) + f'[postgres]\nurl = "{database}"\n'
    with served(tmp_path, config, "--workers", "2", "--log-format", "json") as made:
        made.hang_up(config.replace('key = "k"', 'key = "k2"'))
        # One scrape tells of both.
        await made.reloads("applied", 2)
        assert len(re.findall('"event":"reload_applied"', made.errors.read_text())) == 2
        async with httpx.AsyncClient(base_url=made.url) as client:
            head = {"authorization": "Bearer k2"}
            assert (await client.post("/publish", headers=head, json={"topic": "t", "data": 1})).status_code == 202


async def test_a_file_that_is_gone_is_not_taken_for_none(tmp_path: Path) -> None:
    with served(tmp_path, CONFIG.format(secret=SECRET), "--log", "memory:") as made:
        made.file.unlink()
        made.process.send_signal(signal.SIGHUP)
        await until(lambda: "reload_refused" in made.errors.read_text() or "reload_applied" in made.errors.read_text())
        assert "rowcast.toml: there is no such file" in made.errors.read_text()
