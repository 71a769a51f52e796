"""What the demo refuses before it starts anything, and what its replicas are given."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import click
import pytest

from rowcast.config import Config
from rowcast.demo import run, stage
from rowcast.demo.settings import Settings
from rowcast.errors import ConfigError


def test_a_taken_port_is_refused() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} can't be used .*choose another by --port"):
            run(port=port, replicas=1, log="postgres:", browser=False)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("log", ["valkey", "redis://localhost", "memory:", ""])
def test_another_log_is_refused(log: str) -> None:
    with pytest.raises(click.UsageError, match="leave the option out, or write --log postgres:"):
        run(port=0, replicas=1, log=log, browser=False)


@pytest.mark.parametrize("replicas", [0, -1, stage.MAX_REPLICAS + 1])
def test_too_few_or_too_many_replicas_are_refused(replicas: int) -> None:
    with pytest.raises(click.UsageError, match=f"--replicas {replicas} is out of range: choose 1 to 6"):
        run(port=0, replicas=replicas, log="postgres:", browser=False)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(click.UsageError, match=f"--port {port} is out of range"):
        run(port=port, replicas=1, log="postgres:", browser=False)


def test_small_answers_are_sent_at_once() -> None:
    with stage._listen(0) as listener:
        # What asyncio looks at before it sets TCP_NODELAY on a connection.
        assert listener.proto == socket.IPPROTO_TCP


def test_replicas_get_their_name_and_none_of_the_options_of_the_user_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROWCAST_LOG_URL", "redis://elsewhere")
    monkeypatch.setenv("EDITOR", "ed")
    environment = stage._environment("B")
    assert {name for name in environment if name.startswith("ROWCAST_")} == {
        "ROWCAST_SERVER_NAME",
        "ROWCAST_SERVER_DRAIN_DELAY",
    }
    assert environment["ROWCAST_SERVER_NAME"] == "B"
    assert environment["EDITOR"] == "ed"


def test_the_settings_are_a_valid_configuration_with_secrets_of_their_own(tmp_path: Path) -> None:
    secrets = set()
    for name in ("one.toml", "other.toml"):
        path = tmp_path / name
        Settings("postgresql://postgres@127.0.0.1:1/market").write(path)
        assert path.stat().st_mode & 0o077 == 0
        config = Config.load(path, {})
        assert config.postgres is not None
        assert (config.postgres.url, config.log.url) == ("postgresql://postgres@127.0.0.1:1/market", "postgres:")
        assert config.auth.secret is not None
        assert config.api.key is not None
        secrets |= {config.auth.secret.get_secret_value(), config.api.key.get_secret_value()}
    assert len(secrets) == 4


def test_a_browser_is_opened_only_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not stage._has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert stage._has_screen()
