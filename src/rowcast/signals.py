"""SIGTERM and SIGINT under a server that is not ours: drain first, and only then let the server have the signal.

Servers take signals in two ways. A handler set by signal.signal (uvicorn) is replaced by ours, and put back when the
signal is handed on. A handler given to the event loop (granian) can't be replaced, since nobody tells what it is: the
loop hears of a signal by a byte in a socket (signal.set_wakeup_fd), so we put a socket of ours in that place, and pass
on every byte but those of the two signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from types import FrameType
from typing import Any

from rowcast.drain import Drain
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

CHECK = 0.25
"""Seconds between two looks at whether the place is still ours: a loop that is run anew takes it back."""


class Signals:
    """What a process does on SIGTERM and SIGINT while replicas are watched.

    Handlers are those that were there when the first replica came; they are put back when the last one goes. A second
    signal is handed on at once. SIGINT drains without the delay: it comes from a terminal, where nobody rolls out.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._drains: list[Drain] = []
        self._before: dict[int, Any] = {}
        self._held = False
        self._wakeups: _Wakeups | None = None

    @property
    def ready(self) -> bool:
        """Whether signals are held back from now on."""
        return bool(self._before) and (self._wakeups is None or self._wakeups.taken)

    def watch(self, drain: Drain) -> None:
        """Drain this one when a signal comes. To be called in its loop, which must run in the main thread."""
        if not self._drains and not self._install(drain.loop):
            logger.info("signals_unhandled", "signals can't be handled here: call drain() before the server ends")
            return
        self._drains.append(drain)

    def leave(self, drain: Drain) -> None:
        """This one is gone. Leaving twice is fine."""
        if drain in self._drains:
            self._drains.remove(drain)
            if not self._drains:
                self._put_back()

    def _install(self, loop: asyncio.AbstractEventLoop) -> bool:
        before: dict[int, Any] = {number: signal.getsignal(number) for number in self.NUMBERS}
        if None in before.values():
            return False  # a handler that Python does not know of can't be put back
        try:
            for number in self.NUMBERS:
                signal.signal(number, self._on_signal)
        except ValueError:
            return False  # only the main thread may
        self._before, self._held = before, False
        if any(_is_of_a_loop(handler) for handler in before.values()):
            self._wakeups = _Wakeups(loop, self.NUMBERS)
        return True

    def _put_back(self) -> None:
        if self._wakeups is not None:
            self._wakeups.close()
            self._wakeups = None
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # We are between any two bytecodes of the loop's thread: touch nothing of the application here.
        for drain in self._drains:
            drain.loop.call_soon_threadsafe(self._obey, drain, number, self._held)
        self._held = True

    def _obey(self, drain: Drain, number: int, again: bool) -> None:
        if again:
            drain.cut()
            self._hand_on(number)
        else:
            drain.begin(delay=number == signal.SIGTERM).add_done_callback(lambda task: self._drained(number))

    def _drained(self, number: int) -> None:
        if not any(drain.begun and not drain.done for drain in self._drains):
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        """Let whoever had it before have the signal: by raising it anew."""
        if self._before:
            self._put_back()
            signal.raise_signal(number)


class _Wakeups:
    """Takes the place where the loop would hear of signals, and passes on all but those in `held`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, held: tuple[int, ...]) -> None:
        self._loop = loop
        self._held = held
        self._theirs = -1
        self.taken = False
        self._reading, self._written = socket.socketpair()
        self._reading.setblocking(False)
        self._written.setblocking(False)
        loop.add_reader(self._reading, self._read)
        # Not at once: granian runs the loop for the start of the application, and then a second time for the rest.
        self._timer = loop.call_later(0.05, self._take)

    def close(self) -> None:
        """Give the place back."""
        self._timer.cancel()
        if self._theirs >= 0 and (now := signal.set_wakeup_fd(self._theirs)) != self._written.fileno():
            signal.set_wakeup_fd(now)
        self._loop.remove_reader(self._reading)
        self._reading.close()
        self._written.close()

    def _take(self) -> None:
        before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        # Only what was still ours at the next look is ours: a loop that is run anew has taken it back meanwhile.
        self.taken = before == self._written.fileno()
        if not self.taken:
            self._theirs = before
        self._timer = self._loop.call_later(CHECK, self._take)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            others = bytes(number for number in self._reading.recv(4096) if number not in self._held)
            if others and self._theirs >= 0:
                with contextlib.suppress(OSError):  # full, and so the loop is awake
                    os.write(self._theirs, others)


class Terminal:
    """The terminal that this process was started in, if any: when it goes, SIGHUP comes as it does for a reload."""

    def __init__(self) -> None:
        self._was = _is_terminal()

    def hung_up(self) -> bool:
        """Whether there was one, and it is gone."""
        return self._was and not _is_terminal()


def _is_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


def _is_of_a_loop(handler: Any) -> bool:
    """Whether a handler is what a loop's add_signal_handler puts in place, uvloop's or asyncio's."""
    of_uvloop = isinstance(getattr(handler, "__self__", None), asyncio.AbstractEventLoop)
    return of_uvloop or getattr(handler, "__module__", "") == "asyncio.unix_events"


SIGNALS = Signals()
"""The process has one."""
