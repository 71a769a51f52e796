"""What a terminal is shown, on a real one (a pty): progress, colours, completion; and that others are not shown it."""

from __future__ import annotations

import errno
import http.server
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROWCAST = [sys.executable, "-m", "rowcast.cli"]
ERASE = "\r\x1b[K"


class Terminal:
    """A program's stderr (and stdout, if `both`) on a terminal. `read_until` what is to appear there."""

    def __init__(self, *arguments: str, both: bool = False, environment: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        self.process = subprocess.Popen(
            [*ROWCAST, *arguments],
            stdout=theirs if both else subprocess.PIPE,
            stderr=theirs,
            env=clean | {"TERM": "xterm", "PYTHONUTF8": "1"} | (environment or {}),
            text=True,
        )
        os.close(theirs)
        self.text = ""

    def read_until(self, words: str | None) -> str:
        """Everything that was shown, up to `words` or, for None, to the end."""
        while words is None or words not in self.text:
            try:
                piece = os.read(self._ours, 4096).decode()
            except OSError as error:
                if error.errno != errno.EIO:  # how Linux says that nobody holds the other side any more
                    raise
                piece = ""
            if not piece:
                assert words is None, f"{words!r} is not in {self.text!r}"
                break
            self.text += piece
        return self.text

    def end(self) -> int:
        self.read_until(None)
        os.close(self._ours)
        return self.process.wait()


@pytest.fixture
def slow_service() -> Iterator[tuple[str, threading.Event]]:
    """A service that answers a publish when the event is set: its URL, and the event."""
    go = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            go.wait(60)
            answer = b'{"id": "e:1-0"}'
            self.send_response(202)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", go
        finally:
            go.set()
            server.shutdown()
            thread.join()


def test_what_takes_long_is_told_on_a_terminal_and_leaves_no_trace(slow_service: tuple[str, threading.Event]) -> None:
    url, go = slow_service
    terminal = Terminal("publish", "1", "--topic", "t", "--key", "k", "--url", url)
    terminal.read_until(f"waiting for {url} … ")
    go.set()
    assert terminal.end() == 0
    assert terminal.text.endswith(ERASE)
    assert terminal.process.stdout is not None
    assert terminal.process.stdout.read() == "e:1-0\n", "the answer stands alone"
    terminal.process.stdout.close()


def test_an_error_is_red_on_a_terminal() -> None:
    terminal = Terminal("nope", both=True)
    assert terminal.end() == 2
    assert "\x1b[31m\x1b[1mrowcast:\x1b[0m No such command" in terminal.text


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_turned_off(environment: dict[str, str], tmp_path: Path) -> None:
    for arguments, words in ((["nope"], "rowcast: No such command"), (["check"], "  ok  postgres: none")):
        terminal = Terminal(*arguments, both=True, environment={"ROWCAST_CONFIG": ""} | environment)
        terminal.end()
        assert words in terminal.text
        assert "\x1b" not in terminal.text


def test_bash_completes_commands_and_options() -> None:
    script = """
        rowcast() { "$PYTHON" -m rowcast.cli "$@"; }
        source <(rowcast completion bash)
        complete -p rowcast
        for words in "rowcast sl" "rowcast slot st" "rowcast publish --to"; do
            COMPREPLY=(); COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _rowcast_completion rowcast_program
            echo "${COMPREPLY[@]}"
        done
    """
    # What bash calls is a program, so it can't be the function.
    directory = Path(sys.executable).parent
    script = script.replace("rowcast_program", str(directory / "rowcast"))
    shell = subprocess.run(
        ["bash", "-c", script], text=True, capture_output=True, env=os.environ | {"PYTHON": sys.executable}
    )
    assert shell.stderr == ""
    complete, *replies = shell.stdout.splitlines()
    assert "-F _rowcast_completion rowcast" in complete
    assert replies == ["slot", "status", "--topic"]


@pytest.mark.parametrize(("shell", "asks"), [("zsh", "zsh_complete"), ("fish", "fish_complete")])
def test_the_other_shells_are_answered(shell: str, asks: str) -> None:
    source = subprocess.run([*ROWCAST, "completion", shell], text=True, capture_output=True, check=True).stdout
    assert f"_ROWCAST_COMPLETE={asks}" in source
    words = {"COMP_WORDS": "rowcast sl", "COMP_CWORD": "1" if shell == "zsh" else "sl"}
    answer = subprocess.run(
        [Path(sys.executable).parent / "rowcast"],
        env=os.environ | words | {"_ROWCAST_COMPLETE": asks},
        text=True,
        capture_output=True,
        check=True,
    )
    assert "slot" in answer.stdout


def test_a_check_can_be_read_by_a_program() -> None:
    done = subprocess.run(
        [*ROWCAST, "check", "--json"], text=True, capture_output=True, env=os.environ | {"ROWCAST_CONFIG": ""}
    )
    assert (done.returncode, done.stderr) == (0, "")
    [line] = done.stdout.splitlines()
    told = json.loads(line)
    assert told["ok"] is True
    assert {one["state"] for one in told["prerequisites"]} == {"ok"}
