"""The journal: what a process says of itself on stderr, in lines. (The *log* is the record of entries.)

Each line is of a kind, which has one name: its *event*. `get_logger` gives the loggers that ask for it; under `rowcast
serve`, `install` has every line written as readable text or as one JSON object, with these promises:

- A storm does not flood it: of each event only the first BURST lines in a window of WINDOW seconds are written (of
  requests ACCESS_BURST); how many were left out is said when the window is over.
- Never a token, nor a row's content: what looks like a token or a password in a URL is replaced, and an error whose own
  words may hold values (SQL data errors, and whatever code that handles rows raises) is told by its name only.

Mounted in another server's process we write nothing ourselves: lines go where that program's logging sends them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

import msgspec

from rowcast import terminal
from rowcast.errors import RowcastError

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

WINDOW = 10.0
"""Seconds in which lines of one event are counted."""

BURST = 20
"""Lines of one event that are written in a window."""

ACCESS_BURST = 1000
"""Requests that are written in a window: their lines are wanted, but not all those of a reconnect storm."""

REQUEST, SERVER, LIBRARY, SUPPRESSED = "request", "server", "library", "lines_suppressed"
"""The events of lines that are not ours: the access log, uvicorn's others, and everybody else's; and of the count."""

VALUES = ("22", "23", "P0")
"""SQLSTATE classes of errors whose message may quote a value: data exceptions, violated constraints, and what functions
raise (Postgres documentation, appendix A)."""

_FOREIGN = {"uvicorn.access": REQUEST, "uvicorn.error": SERVER, "uvicorn.asgi": SERVER}

_QUIET = ("httpx", "httpcore", "hpack", "uvicorn.error", "psycopg", "psycopg.pool", "redis", "asyncio")
"""Libraries whose own story (each request of ours to an issuer, each connection) is too much, or too private."""

_SECRETS = re.compile(
    r"eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"  # a JSON Web Token: its header is an object, so it begins so
    r"|(?P<before>\b(?:token|access_token|id_token|password|sslpassword)=)[^\s&'\"]+"
    r"|(?P<scheme>\bBearer\s+)[^\s'\",;]+"
    r"|(?P<user>\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)",
    re.IGNORECASE,
)

_SHELL = ("rowcast.cli", "rowcast.calls", "rowcast.serve", "rowcast.workers", "rowcast.telemetry.traces")
"""Modules of ours that every call passes through, and that see no row."""


class EventLogger:
    """A logger each of whose lines names its event, a word like `wal_unreadable`.

    `message` and `args` are those of `logging`. What is given by name becomes a field of its own in JSON.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, message: str, /, *args: object, **fields: object) -> None:
        """Something that an operator may want to know afterwards."""
        self._say(logging.INFO, event, message, args, fields)

    def warning(self, event: str, message: str, /, *args: object, **fields: object) -> None:
        """Something is not as it should be, and we get along."""
        self._say(logging.WARNING, event, message, args, fields)

    def error(self, event: str, message: str, /, *args: object, **fields: object) -> None:
        """Something failed for somebody."""
        self._say(logging.ERROR, event, message, args, fields)

    def exception(self, event: str, message: str, /, *args: object, **fields: object) -> None:
        """An error that nobody expected, with where it came from; to be called where it is handled."""
        self._say(logging.ERROR, event, message, args, fields, sys.exc_info()[1])

    def critical(self, event: str, message: str, error: BaseException) -> None:
        """This process is of no use any more, because of an error."""
        self._say(logging.CRITICAL, event, message, (), {}, error)

    def _say(
        self,
        level: int,
        event: str,
        message: str,
        args: tuple[object, ...],
        fields: dict[str, object],
        error: BaseException | None = None,
    ) -> None:
        extra = {"event": event, "fields": fields}
        self._logger.log(level, message, *args, exc_info=error, extra=extra, stacklevel=3)


def get_logger(name: str) -> EventLogger:
    """The logger of a module."""
    return EventLogger(name)


def words(error: BaseException) -> str:
    """What an error says, in one line, without a row's content.

    Of a database's error that is its primary message and its hint, and only the SQLSTATE where they may quote a value.
    """
    state = getattr(error, "sqlstate", None)
    if state is not None and state[:2] in VALUES:
        return f"{type(error).__name__} (SQLSTATE {state}, whose message may hold values)"
    diagnosis = getattr(error, "diag", None)
    told = getattr(diagnosis, "message_primary", None) or str(error)
    if hint := getattr(diagnosis, "message_hint", None):
        told += f"; {hint}"
    return " ".join(told.split()) or type(error).__name__


def without_secrets(text: str) -> str:
    """A text without what looks like a token, or like a password in a URL."""
    return _SECRETS.sub(lambda found: (found["before"] or found["scheme"] or found["user"] or "") + "…", text)


def trace(error: BaseException) -> str:
    """A traceback in several lines, in which errors that may quote a row's values have a name but no words."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines = "".join(traceback.format_tb(current.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{lines}{last_words(current)}")
        # As Python itself does: the cause, or else what was being handled, unless that was said to be of no interest.
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nwhich came of this:\n\n".join(parts[::-1])


def last_words(error: BaseException) -> str:
    """The name of an error, and in one line what it says, unless that may be of a row."""
    told = words(error) if _harmless(error) else "(what it says may hold a row's values)"
    return f"{type(error).__name__}: {told}"


def _harmless(error: BaseException) -> bool:
    """Whether an error's words can't be of a row: they are ours, the system's, or no code of ours was involved."""
    if isinstance(error, (RowcastError, OSError)) or getattr(error, "sqlstate", None) is not None:
        return True
    return not _passed_us(error.__traceback__)


def _passed_us(where: TracebackType | None) -> bool:
    while where is not None:
        name: str = where.tb_frame.f_globals.get("__name__", "")
        if name.startswith("rowcast.") and name not in _SHELL:
            return True
        where = where.tb_next
    return False


class Writer(logging.Handler):
    """Writes lines to `stream` (None: stderr) as `form` says; bounds those of each event.

    `clock` gives seconds. `later` calls a function after some seconds, in any thread, to tell of what was left out.
    """

    def __init__(
        self,
        stream: TextIO | None,
        form: Format,
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        super().__init__()
        self._stream = stream
        self.form = form
        self._clock = clock
        self._later = later or _later
        self._written: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._ends = clock() + WINDOW

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. `logging` holds our lock meanwhile."""
        event = _event(record)
        if self._clock() >= self._ends:
            self._begin_window()
        self._written[event] += 1
        if self._written[event] > (ACCESS_BURST if event == REQUEST else BURST):
            if not self._left_out:
                self._later(max(0.0, self._ends - self._clock()), self._tell)
            self._left_out[event] += 1
            return
        try:
            text = self._json(record, event) if self.form == "json" else self._text(record, event)
        except Exception:
            self.handleError(record)  # a message that does not fit its arguments
            return
        self._write(text)

    def close(self) -> None:
        """The end of the process: what was left out is told."""
        with self.lock or contextlib.nullcontext():
            self._begin_window()
        super().close()

    def _tell(self) -> None:
        with self.lock or contextlib.nullcontext():
            if self._clock() >= self._ends:
                self._begin_window()
            elif self._left_out:
                self._later(max(0.0, self._ends - self._clock()), self._tell)

    def _begin_window(self) -> None:
        self._ends = self._clock() + WINDOW
        self._written.clear()
        left_out, self._left_out = self._left_out, Counter()
        for event, count in left_out.items():
            message = f"{count} more lines of {event} in {WINDOW:g} s were left out"
            if self.form == "json":
                line = {"event": SUPPRESSED, "message": message, "suppressed": event, "count": count}
                self._write(_encode({"time": _when(time.time()), "level": "warning", **line}))
            else:
                self._write(f"{_when(time.time())} WARNING {SUPPRESSED}: {message}")

    def _text(self, record: logging.LogRecord, event: str) -> str:
        told = record.getMessage().strip()
        if record.exc_info and record.exc_info[1]:
            told += "\n" + trace(record.exc_info[1])
        # Indented, or what somebody sent could pass for a line of ours.
        told = "\n  ".join(without_secrets(told).splitlines())
        return f"{_when(record.created)} {record.levelname} {event}: {told}"

    def _json(self, record: logging.LogRecord, event: str) -> str:
        line: dict[str, Any] = {
            "time": _when(record.created),
            "level": record.levelname.lower(),
            "event": event,
            "message": record.getMessage().strip(),
            "logger": record.name,
        }
        if event == REQUEST and isinstance(record.args, tuple) and len(record.args) == 5:
            line |= zip(("client", "method", "path", "http", "status"), record.args, strict=True)
        line |= {name: value for name, value in getattr(record, "fields", {}).items() if name not in line}
        if record.exc_info and record.exc_info[1]:
            line |= {"error": type(record.exc_info[1]).__qualname__, "trace": trace(record.exc_info[1])}
        return _encode(
            {name: without_secrets(value) if isinstance(value, str) else value for name, value in line.items()}
        )

    def _write(self, line: str) -> None:
        # Whoever read us is gone, or the disk is full: nothing could be said of it.
        with contextlib.suppress(OSError, ValueError), terminal.cleared():
            stream = self._stream or sys.stderr
            stream.write(line + "\n")
            stream.flush()


def install(form: Format, level: Level) -> None:
    """Write this process's lines to stderr from now on; again is fine, and changes both.

    `level`: of what is ours and the application's; libraries say no less than a warning.
    """
    number = getattr(logging, level.upper())
    root = logging.getLogger()
    found = next((handler for handler in root.handlers if isinstance(handler, Writer)), None)
    if found is None:
        root.addHandler(Writer(None, form))
    else:
        found.form = form
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, number))


def _event(record: logging.LogRecord) -> str:
    return getattr(record, "event", None) or _FOREIGN.get(record.name, LIBRARY)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encode(line: dict[str, Any]) -> str:
    return msgspec.json.encode(line, enc_hook=str).decode()


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
