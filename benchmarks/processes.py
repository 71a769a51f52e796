"""Processes that are measured: pinned to a core, their CPU time and memory read from proc(5)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

BUILD = Path(__file__).parent / ".build"
SERVER_CORE, LOAD_CORE = 0, 1


def build() -> None:
    """Compile the load generators and the floor, where they are older than their source."""
    BUILD.mkdir(exist_ok=True)
    here = Path(__file__).parent
    shared = max(file.stat().st_mtime for file in here.glob("load/*.h"))
    for source in (here / "load" / "load.c", here / "load" / "follow.c", here / "peers" / "floor.c"):
        target = BUILD / source.stem
        if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, shared):
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", target, source], check=True)


def pinned(core: int | None, command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process that may use one core only; None: any."""
    where = [] if core is None else ["taskset", "-c", str(core)]
    return subprocess.Popen([*where, *command], text=True, **options)


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def cpu(pid: int) -> float:
    """CPU seconds that a process and its children have used so far (the first field of schedstat)."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9
        for process in descendants(pid)
        for task in Path(f"/proc/{process}/task").iterdir()
    )


def rss(pid: int) -> int:
    """Resident bytes of a process and its children."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in descendants(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")


class Load:
    """The load generator with its streams open; see load/load.c.

    `urls` are `http://HOST:PORT`, `requests` lines of `PATH TOKEN`. Raises RuntimeError when a stream was refused.
    """

    program: ClassVar[str] = "load"

    def __init__(
        self,
        urls: list[str],
        requests: list[str],
        streams: int,
        *,
        mark: str = "",
        in_flight: int = 256,
        core: int | None = LOAD_CORE,
        options: Sequence[str] = (),
    ) -> None:
        self._file = BUILD / f"requests-{os.getpid()}-{id(self)}"
        self._file.write_text("\n".join(requests))
        targets = [word for url in urls for word in ("--target", url.removeprefix("http://"))]
        self._process = pinned(
            core,
            [str(BUILD / self.program), *targets, "--requests", str(self._file), "--streams", str(streams)]
            + (["--mark", mark] if mark else [])
            + ["--in-flight", str(in_flight), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.ready: dict[str, Any] = self._answer()
        """How the streams were opened."""
        if self.ready["refused"]:
            self.stop()
            raise RuntimeError(f"{self.ready['refused']} of {streams} streams were refused")

    def zero(self) -> None:
        """Forget what was counted."""
        self._say("zero")

    def cut(self, seconds: float) -> None:
        """Cut all numbered streams but those that stay; they come back within so many seconds."""
        self._say(f"cut {round(seconds * 1000)}")

    def stall(self, streams: int) -> None:
        """Let the first `streams` stop reading; 0: all read on."""
        self._say(f"stall {streams}")

    def report(self) -> dict[str, Any]:
        """What was counted since."""
        self._say("report")
        return self._answer()

    def stop(self) -> None:
        """Close all streams."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Follow(Load):
    """EventSources that come back and check what they get; see load/follow.c."""

    program = "follow"


def environment(**more: str) -> Mapping[str, str]:
    """This process's environment and something more."""
    return {**os.environ, **more}
