"""The command line in this process: options, exit codes, and errors in one line."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jwt
import msgspec
import pytest

from rowcast import __version__, cli
from rowcast import client as client_module
from rowcast.telemetry import journal

SECRET = "0123456789abcdef0123456789abcdef"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs the command in an empty directory; gives the exit code and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in (None, *journal._QUIET)]
    levels = [logger.level for logger in loggers]
    handlers, hangup = loggers[0].handlers[:], signal.getsignal(signal.SIGHUP)

    def _run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rowcast", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    yield _run
    # What `serve` sets for its whole process.
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    signal.signal(signal.SIGHUP, hangup)


def one_line(err: str) -> str:
    """Check that an error is one line of ours, and return it."""
    assert err.startswith("rowcast: "), err
    assert err.count("\n") == 1, err
    return err


def every_command(group: click.Group, name: str = "rowcast") -> Iterator[tuple[str, click.Command]]:
    for key, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, f"{name} {key}")
        else:
            yield f"{name} {key}", command


COMMANDS = dict(every_command(cli.cli))


def test_the_commands_are_the_promised() -> None:
    names = {name.removeprefix("rowcast ") for name in COMMANDS}
    assert names >= {"demo", "serve", "check", "token", "tail", "publish", "resubscribe", "disconnect"}
    assert names >= {"slot status", "slot drop", "completion"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_an_environment_variable_that_help_shows(name: str, run: Run) -> None:
    command = COMMANDS[name]
    code, out, _ = run(*name.split()[1:], "--help")
    assert code == 0
    squeezed = re.sub(r"\s+", "", out)
    variables = []
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert isinstance(parameter.envvar, str)
            assert parameter.envvar.startswith("ROWCAST_")
            assert f"envvar:{parameter.envvar}" in squeezed
            variables.append(parameter.envvar)
            assert parameter.help
    assert len(set(variables)) == len(variables)


def test_without_a_command_there_is_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "serve" in out
    assert run("--version")[1] == f"rowcast {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["slot"],
        ["serve", "--nope"],
        ["serve", "--port", "x"],
        ["serve", "--port", "70000"],
        ["serve", "--workers", "0"],
        ["serve", "--log-level", "loud"],
        ["serve", "some.module:app", "--log", "memory:"],
        ["token"],
        ["token", "--user", "a", "--ttl", "soon"],
        ["publish", "--topic", "t"],
        ["publish", "1"],
        ["publish", "1", "--topic", "t", "--user", "u"],
        ["resubscribe"],
        ["disconnect", "a", "b"],
        ["tail", "a", "b"],
    ],
)
def test_wrong_calls_are_told_in_one_line_with_code_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "--help" in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "nope.toml"], "name your rowcast.toml"),
        (["serve", "nope.module:app"], "no module 'nope'"),
        (["serve", "json:nope"], "has no 'nope'"),
        (["serve", "math:pi"], "neither a Rowcast nor an ASGI application"),
        (["serve", "--log", "kafka:"], "--log: [log] url"),
        (["serve", "--host", "no such host"], "[server] host"),
        (["serve", "--tls-cert", "nope.pem"], "[server] tls_cert: nope.pem can't be read: No such file"),
        (["serve", "--tls-key", "key.pem"], "[server] tls_key is set, but tls_cert is not"),
        (["token", "--user", "a"], "[auth] secret"),
        (["token", "--user", "a", "--config", "nope.toml"], "nope.toml"),
        (["publish", "1", "--topic", "t"], "give --key"),
        (["publish", "1", "--topic", "t", "--key", "k", "--url", "nowhere"], "no URL"),
        (["publish", "{oops", "--topic", "t", "--key", "k"], "looks like JSON"),
        (
            ["publish", "1", "--topic", "t", "--key", "k", "--url", "http://127.0.0.1:1"],
            "is `rowcast serve` running there?",
        ),
        (["tail", "nowhere"], "no URL"),
        (["slot", "status"], "set ROWCAST_POSTGRES_URL"),
        (["slot", "drop"], "no [postgres] section"),
    ],
)
def test_failures_are_told_in_one_line_with_code_1(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert words in one_line(err)


def test_what_nobody_expected_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(client_module, "call", broken)
    code, _, err = run("resubscribe", "a", "--key", "k")
    assert code == 1
    assert "RuntimeError: two lines" in one_line(err)


def test_ctrl_c_is_no_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client_module, "call", interrupted)
    code, out, err = run("resubscribe", "a", "--key", "k")
    assert (code, out, err.strip()) == (0, "", "")


def test_check_ends_with_1_if_something_is_missing(run: Run, tmp_path: Path) -> None:
    code, out, err = run("check")
    assert (code, err) == (0, "")
    assert "everything is there" in out
    (tmp_path / "rowcast.toml").write_text('[postgres]\nurl = "postgresql://x@127.0.0.1:1/x"\n')
    code, out, err = run("check")
    assert (code, err) == (1, "")
    assert "FAIL  connection" in out
    assert "are missing" in out


# Tokens


def claims(out: str) -> dict[str, Any]:
    return jwt.decode(out.strip(), SECRET, algorithms=["HS256"])


def test_a_token_is_signed_with_the_secret_of_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rowcast.toml").write_text(f'[auth]\nsecret = "{SECRET}"\n')
    code, out, err = run("token", "--user", "alice", "--topics", "a, b,", "--ttl", "90s")
    assert (code, err) == (0, "")
    made = claims(out)
    assert (made["sub"], made["topics"]) == ("alice", ["a", "b"])
    assert made["exp"] - made["iat"] == pytest.approx(90)


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.toml").write_text('[auth]\nsecret = "the secret of the file, which is not used"\n')
    for name, value in {"CONFIG": "other.toml", "AUTH_SECRET": SECRET, "TOKEN_USER": "eve", "TOKEN_TTL": "5m"}.items():
        monkeypatch.setenv(f"ROWCAST_{name}", value)
    made = claims(run("token", "--user", "alice")[1])
    assert made["sub"] == "alice"
    assert made["exp"] - made["iat"] == pytest.approx(300)


def test_a_token_that_is_too_long_is_warned_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWCAST_AUTH_SECRET", SECRET)
    code, out, err = run("token", "--user", "alice", "--topics", ",".join(f"topic-{n}" for n in range(700)))
    assert code == 0
    assert len(claims(out)["topics"]) == 700
    assert "fewer topics" in one_line(err)


# Calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be sent to the service."""
    made: list[Any] = []

    def record(url: str, path: str, body: dict[str, Any], *, key: str) -> dict[str, str]:
        made.append((url, path, json.loads(msgspec.json.encode(body)), key))
        return {"id": "e:1-0"}

    monkeypatch.setattr(client_module, "call", record)
    return made


@pytest.mark.parametrize(
    ("given", "sent"),
    [('{"a": [1]}', {"a": [1]}), ("1.5", 1.5), ("null", None), ('"x"', "x"), ("hello world", "hello world"), ("", "")],
)
def test_data_is_json_or_a_text(run: Run, calls: list[Any], given: str, sent: Any) -> None:
    assert run("publish", given, "--topic", "t", "--key", "k") == (0, "e:1-0\n", "")
    assert calls == [("http://127.0.0.1:8080", "/publish", {"topic": "t", "data": sent}, "k")]


def test_publishing_can_say_everything(run: Run, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1]\n"))
    monkeypatch.setenv("ROWCAST_URL", "http://h:1")
    run("publish", "-", "--user", "u", "--event", "e", "--conflate-by", "c", "--key", "k")
    assert calls == [("http://h:1", "/publish", {"user": "u", "event": "e", "key": "c", "data": [1]}, "k")]


@pytest.mark.parametrize("call", [["publish", "1", "--topic", "t"], ["resubscribe", "a"], ["disconnect", "a"]])
def test_a_position_can_be_had_as_json(run: Run, calls: list[Any], call: list[str]) -> None:
    code, out, err = run(*call, "--key", "k", "--json")
    assert (code, json.loads(out), err) == (0, {"id": "e:1-0"}, "")


@pytest.mark.parametrize("action", ["resubscribe", "disconnect"])
def test_control_takes_the_key_of_the_file(run: Run, calls: list[Any], tmp_path: Path, action: str) -> None:
    (tmp_path / "rowcast.toml").write_text('[api]\nkey = "of the file"\n')
    assert run(action, "alice") == (0, "e:1-0\n", "")
    assert calls == [("http://127.0.0.1:8080", f"/control/{action}", {"user": "alice"}, "of the file")]
