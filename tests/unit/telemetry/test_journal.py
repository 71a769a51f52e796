"""The lines that a process writes: their form, their bounds, and what must never stand in them."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rowcast import errors
from rowcast.core import condition
from rowcast.telemetry import journal

ROOT = Path(__file__).parents[3]
SECRET = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


class Lines:
    """A journal that writes into memory; its clock stands still."""

    def __init__(self, form: journal.Format) -> None:
        self.stream = io.StringIO()
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.writer = journal.Writer(
            self.stream, form, clock=lambda: self.now, later=lambda seconds, call: self.timers.append((seconds, call))
        )
        self.plain = logging.getLogger("rowcast.test_journal")
        self.ours = journal.get_logger("rowcast.test_journal")

    @property
    def text(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text]


@pytest.fixture
def made() -> Iterator[Callable[[journal.Format], Lines]]:
    logger = logging.getLogger("rowcast.test_journal")
    others = [logging.getLogger(name) for name in ("uvicorn.access", "test_journal_of_others")]
    before = [(one, one.handlers[:], one.propagate, one.level) for one in (logger, *others)]

    def make(form: journal.Format) -> Lines:
        lines = Lines(form)
        for one in (logger, *others):
            one.handlers = [lines.writer]
            one.propagate = False
            one.setLevel(logging.DEBUG)
        return lines

    yield make
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


Made = Callable[[journal.Format], Lines]


def test_a_line_of_text_names_its_level_and_event(made: Made) -> None:
    lines = made("text")
    lines.ours.warning("wal_unreadable", "the WAL can't be read: %s", "no\nway")
    [first, second] = lines.text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z WARNING wal_unreadable: the WAL can't be read: no", first)
    assert second == "  way"


def test_what_was_sent_can_not_pass_for_a_line_of_ours(made: Made) -> None:
    lines = made("text")
    for end in ("\n", "\r", "\r\n", "\x85", "\u2028"):
        lines.ours.info("e", "%s", f"x{end}2026-01-01T00:00:00Z ERROR forged: y")
    assert not [line for line in lines.text if line.startswith("2026-01-01T00:00:00Z")]


def test_a_line_of_json_has_fields(made: Made) -> None:
    lines = made("json")
    lines.ours.info("draining", "draining: %d streams\n", 3, streams=3, message="not this", odd={1, 2})
    [line] = lines.json
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "draining",
        "message": "draining: 3 streams",
        "logger": "rowcast.test_journal",
        "streams": 3,
        "odd": [1, 2],
    }


def test_requests_have_fields_and_other_lines_a_kind(made: Made) -> None:
    lines = made("json")
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", "/events?a=b", "1.1", 200)
    logging.getLogger("test_journal_of_others").warning("as %s", "ever")
    request, other = lines.json
    assert request["event"] == "request"
    assert {name: request[name] for name in ("client", "method", "path", "http", "status")} == {
        "client": "1.2.3.4:5",
        "method": "GET",
        "path": "/events?a=b",
        "http": "1.1",
        "status": 200,
    }
    assert (other["event"], other["message"], other["logger"]) == ("library", "as ever", "test_journal_of_others")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_storm_does_not_flood(made: Made, form: journal.Format) -> None:
    lines = made(form)
    for _ in range(3 * journal.BURST):
        lines.ours.warning("flood", "again")
    lines.ours.warning("drop", "once")
    assert len(lines.text) == journal.BURST + 1
    [(seconds, tell)] = lines.timers
    assert seconds == journal.WINDOW
    lines.now += journal.WINDOW
    tell()
    assert len(lines.text) == journal.BURST + 2
    if form == "json":
        last = lines.json[-1]
        assert (last["event"], last["suppressed"], last["count"]) == ("lines_suppressed", "flood", 2 * journal.BURST)
    else:
        assert f"lines_suppressed: {2 * journal.BURST} more lines of flood in 10 s were left out" in lines.text[-1]
    lines.ours.warning("flood", "again")
    assert "again" in lines.text[-1]
    lines.now += journal.WINDOW
    tell()
    assert len(lines.text) == journal.BURST + 3


def test_the_count_is_told_by_the_next_line_and_at_the_end_too(made: Made) -> None:
    lines = made("text")
    for _ in range(journal.BURST + 1):
        lines.ours.warning("one", "x")
    lines.now += journal.WINDOW + 1
    for _ in range(journal.BURST + 2):
        lines.ours.warning("two", "y")
    lines.writer.close()
    told = [line.partition("lines_suppressed: ")[2].partition(" in")[0] for line in lines.text]
    assert [one for one in told if one] == ["1 more lines of one", "2 more lines of two"]


def test_requests_have_more_room(made: Made) -> None:
    lines = made("text")
    for _ in range(journal.ACCESS_BURST + 5):
        logging.getLogger("uvicorn.access").info("x")
    assert len(lines.text) == journal.ACCESS_BURST


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (f"Bearer {SECRET}", "Bearer "),
        ("authorization: bearer abc.def", "bearer "),
        (f"GET /a?token={SECRET}&topics=t", "&topics=t"),
        ("sslpassword=hidden1 host=x", "host=x"),
        ("postgresql://me:hidden1@db/x", "@db/x"),
        ("rediss://:hidden1@db:6379/0", "@db:6379/0"),
        (f"cookie: session={SECRET}; a=b", "a=b"),
        (f'{{"token": "{SECRET}"}}', "token"),
    ],
)
def test_tokens_and_passwords_are_replaced(made: Made, form: journal.Format, said: str, kept: str) -> None:
    lines = made(form)
    lines.ours.warning("e", "%s", said, field=said)
    line = lines.json[0]["message"] + lines.json[0]["field"] if form == "json" else lines.text[0]
    assert kept in line
    for secret in (SECRET, SECRET.split(".")[1], "hidden1", "abc.def"):
        assert secret not in line


def test_an_error_is_told_with_where_it_came_from(made: Made) -> None:
    lines = made("json")
    try:
        raise errors.Unavailable("Postgres is away")
    except errors.Unavailable:
        lines.ours.exception("request_failed", "GET / failed")
    [line] = lines.json
    assert line["error"] == "Unavailable"
    assert "test_an_error_is_told_with_where_it_came_from" in line["trace"]
    assert line["trace"].endswith("Unavailable: Postgres is away")


def test_an_error_of_code_that_handles_rows_has_no_words(made: Made) -> None:
    lines = made("text")

    content = "what is in the row"

    def broken(*arguments: Any) -> Any:
        raise ValueError(content)

    try:
        try:
            condition.Condition.parse("{a} = 1", "x").holds(
                type("Row", (dict,), {"get": broken, "__getitem__": broken})()
            )
        except ValueError as error:
            raise errors.Unavailable("the log is away") from error
    except errors.Unavailable as error:
        lines.ours.critical("part_failed", "a part failed", error)
    text = "\n".join(lines.text)
    assert content not in text
    assert "ValueError: (what it says may hold a row's values)" in text
    assert "which came of this" in text
    assert text.endswith("Unavailable: the log is away")


def test_an_error_of_the_applications_own_keeps_its_words(made: Made) -> None:
    lines = made("text")
    try:
        raise ValueError("of mine")
    except ValueError:
        lines.plain.exception("it failed")
    assert lines.text[-1] == "  ValueError: of mine"


def test_nobody_reads_us_any_more(made: Made) -> None:
    lines = made("text")
    lines.stream.close()
    lines.ours.info("e", "x")


def test_install_twice_is_one_writer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    levels = {name: logging.getLogger(name).level for name in (None, *journal._QUIET)}
    try:
        journal.install("text", "info")
        journal.install("json", "warning")
        journal.get_logger("rowcast.x").warning("e", "said")
        journal.get_logger("rowcast.x").info("e", "not said")
        logging.getLogger("httpx").info("a request")
        journal.install("text", "debug")
        logging.getLogger("psycopg").debug("every connection")
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "said"


def _events() -> dict[str, list[str]]:
    """Every event in our sources, and where."""
    found: dict[str, list[str]] = {}
    for file in (ROOT / "src" / "rowcast").rglob("*.py"):
        for event in re.findall(r'(?:logger\.\w+|_complain)\(\s*"(\w+)"', file.read_text()):
            found.setdefault(event, []).append(file.name)
    return found


def test_every_line_of_ours_has_an_event_that_the_reference_explains() -> None:
    page = (ROOT / "docs" / "reference" / "logs.md").read_text()
    explained = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    others = {journal.REQUEST, journal.SERVER, journal.LIBRARY, journal.SUPPRESSED}
    assert explained == set(_events()) | others


def test_no_line_goes_around_it() -> None:
    allowed = {"journal.py", "redact.py", "serve.py", "cli.py"}
    for file in (ROOT / "src" / "rowcast").rglob("*.py"):
        if file.name not in allowed:
            assert "logging.getLogger" not in file.read_text(), f"{file}: use rowcast.telemetry.journal.get_logger"
    assert "logger" in sys.modules["rowcast.telemetry.journal"].__dict__["__doc__"]
