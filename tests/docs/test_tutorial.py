"""The tutorial, as a reader follows it: every command is run, in order, and what it prints is compared.

What is different from a reader's machine: the address of the database, and the ports. Comments right before a block
say how it is run:

`leave running: NAME`     in a terminal of its own, until `ended: NAME, …` presses Ctrl-C there
`…, the line that was printed`  the block's last line is the one that the block before printed
`NAME prints`             the text is to appear in that terminal
`the browser shows`       the text is to appear on the page whose address was printed last
`not run: WHY`            it is not run

A text that follows a command is what that prints. "…" stands for anything.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from rowcast.testing.postgres import embedded_binaries
from tools.markdown import ROOT, Block, blocks

TUTORIAL = ROOT / "docs" / "tutorial" / "index.md"
DATABASE = "postgresql://postgres@127.0.0.1:5432/postgres"
PORTS = ("8080", "8081", "8000")
PATIENCE = 120
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Terminal:
    """A shell; what it prints is collected."""

    def __init__(self, name: str, directory: Path, environment: dict[str, str], script: str) -> None:
        self.name = name
        self.text = ""
        self.seen = 0
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.text += line
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, expected: str) -> None:
        """Until a text has appeared, behind what was waited for before."""
        with self._news:
            found = self._news.wait_for(lambda: pattern(expected).search(self.text, self.seen), PATIENCE)
        assert found, f"{self.name} did not print\n{expected}\nbut\n{self.text[self.seen :]}"
        self.seen = found.end()

    def end(self) -> None:
        """Ctrl-C, and its end."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(PATIENCE)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()


class Reader:
    """Whoever follows the tutorial."""

    def __init__(self, directory: Path, changed: dict[str, str], page: Page) -> None:
        self._directory = directory
        self._changed = changed
        self._page = page
        self._printed = ""
        self._opened = ""
        self._exports: list[str] = []
        self.terminals: dict[str, Terminal] = {}
        programs = [Path(sys.executable).parent, embedded_binaries()]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ROWCAST_", "PG"))}
        self._environment = clean | {
            "PATH": os.pathsep.join([*map(str, programs), clean["PATH"]]),
            "ROWCAST_SERVER_DRAIN_DELAY": "0",
            # What the tutorial leaves out, since it is the default.
            "ROWCAST_SERVER_PORT": changed["8080"],
            "ROWCAST_URL": f"http://127.0.0.1:{changed['8080']}",
            "PYTHONUNBUFFERED": "1",
        }

    def do(self, block: Block) -> bool:
        """Follow one block; whether it was run or compared."""
        words = " ".join(block.comments)
        text = block.text
        for there, here in self._changed.items():
            text = text.replace(there, here)
        if words.startswith("not run: "):
            return False
        if file := re.match(r"(?:# |<!-- )(\S+\.(?:toml|html|py))(?: -->)?\n", text):
            (self._directory / file[1]).write_text(text)
        elif left := re.match(r"leave running: ([^,]+)(, the line that was printed)?$", words):
            if left[2]:
                text = "\n".join([*text.strip().splitlines()[:-1], self._printed.strip()])
            script = re.sub(r"(\S.*)\s*\Z", r"exec \1", "\n".join([*self._exports, text.strip()]))
            self.terminals[left[1]] = Terminal(left[1], self._directory, self._environment, script)
        elif prints := re.match(r"(.+) prints$", words):
            self.terminals[prints[1]].wait_for(text)
        elif words == "the browser shows":
            self._look(text)
        elif block.language == "text":
            assert pattern(text).search(self._printed), f"printed was\n{self._printed}\nand not\n{text}"
        else:
            assert block.language == "sh"
            if ended := re.match(r"ended: (.+)$", words):
                for name in ended[1].split(", "):
                    self.terminals[name].end()
            self._run(block, text)
        return True

    def _run(self, block: Block, text: str) -> None:
        script = "\n".join(["set -euo pipefail", *self._exports, text])
        done = subprocess.run(
            ["bash", "-c", script], cwd=self._directory, env=self._environment, text=True, capture_output=True
        )
        assert done.returncode == 0, f"{block}: {done.stderr}"
        self._exports += re.findall(r"^export \w+=[^$(]*$", text, re.MULTILINE)
        self._printed = done.stdout

    def _look(self, expected: str) -> None:
        url = re.search(r"^http://\S+$", self._printed, re.MULTILINE)
        if url is not None and url[0] != self._opened:
            self._opened = url[0]
            self._page.goto(url[0])
        self._page.wait_for_function(
            "pattern => new RegExp(pattern).test(document.body.innerText.replaceAll('\\n\\n', '\\n'))",
            arg=javascript(expected),
            timeout=PATIENCE * 1000,
        )


def pattern(expected: str) -> re.Pattern[str]:
    return re.compile(".*?".join(map(re.escape, expected.strip().split("…"))), re.DOTALL)


def javascript(expected: str) -> str:
    return "[^]*?".join(re.sub(r"([.*+?^${}()|\[\]\\/])", r"\\\1", part) for part in expected.strip().split("…"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.xdist_group("docs")
@pytest.mark.timeout(900)
def test_the_tutorial(page: Page, database: str, tmp_path: Path) -> None:
    changed = {DATABASE: database} | dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    reader = Reader(tmp_path, changed, page)
    try:
        followed = [reader.do(block) for block in blocks(TUTORIAL)]
    finally:
        for terminal in reader.terminals.values():
            terminal.end()
    assert followed.count(True) > 25
    assert followed.count(False) == 2
