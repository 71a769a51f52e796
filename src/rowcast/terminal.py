"""What a terminal is shown besides the answer: colours, and that something is still going on.

Colours and motion are for terminals only: what is piped or logged is plain. `NO_COLOR` (https://no-color.org), set to
anything, turns colours off there too; a terminal that calls itself `dumb` gets neither.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

import click

PATIENCE = 1.0
"""Seconds for which nothing need be said: what takes longer says what it is waiting for."""

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES = "|/-\\"
_TURN = 0.1
_ERASE = "\r\x1b[K"

_lock = threading.RLock()
_shown: list[IO[str]] = []
"""The stream on which a line of progress stands at this moment."""


def colour() -> bool | None:
    """What click is told: False turns colours off, None leaves it to whether it writes to a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def say(text: str, *, bad: bool = False) -> None:
    """One line of ours on stderr. `bad`: it tells of a failure."""
    with cleared():
        click.echo(f"{click.style('rowcast:', fg='red' if bad else None, bold=True)} {text}", err=True, color=colour())


@contextlib.contextmanager
def cleared() -> Iterator[None]:
    """For the time of a block that writes to the terminal no progress is shown there."""
    with _lock:
        for stream in _shown:
            stream.write(_ERASE)
            stream.flush()
        _shown.clear()
        yield


@contextlib.contextmanager
def working(what: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """While the block takes longer than `patience` seconds, show on the terminal at stderr what is going on, and for
    how long. Nothing of it stays, and where stderr is no terminal nothing is shown."""
    progress = Progress(what, patience=patience)
    try:
        yield
    finally:
        progress.end()


class Progress:
    """As `working`, for what ends somewhere else: it begins when it is made. Not `shown` it does nothing."""

    def __init__(self, what: str, *, patience: float = PATIENCE, shown: bool = True) -> None:
        self._what = what
        self._patience = patience
        self._stream = sys.stderr
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if shown and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """It is over; the line is gone. May be called again."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        began = time.monotonic()
        frames = _FRAMES if (self._stream.encoding or "").lower().startswith("utf") else _PLAIN_FRAMES
        turn = 0
        pause = self._patience
        # The terminal may be gone, as after SIGHUP.
        with contextlib.suppress(OSError, ValueError):
            while not self._over.wait(pause):
                pause = _TURN
                line = f"{frames[turn % len(frames)]} {self._what} … {time.monotonic() - began:.0f} s"
                turn += 1
                with _lock:
                    self._stream.write(_ERASE + line[: _width() - 1])
                    self._stream.flush()
                    if self._stream not in _shown:
                        _shown.append(self._stream)
            with cleared():
                pass


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
