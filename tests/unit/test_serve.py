"""Sockets and targets of `rowcast serve`; its life is tested as a process."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from rowcast import Rowcast
from rowcast.errors import ConfigError
from rowcast.serve import casts_of, is_reference, load
from rowcast.sockets import address_of, listen


def test_connections_inherit_the_options() -> None:
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        sock.listen()
        with socket.create_connection(sock.getsockname()):
            accepted, _ = sock.accept()
            with accepted:
                for name, value in (("TCP_NODELAY", 1), ("TCP_NOTSENT_LOWAT", 16_384), ("TCP_USER_TIMEOUT", 30_000)):
                    assert accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 can't be used"):
            listen("127.0.0.1", port)


def test_a_host_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="host 'no such host' can't be used"):
        listen("no such host", 0)


def test_addresses_as_in_a_url() -> None:
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        assert address_of(sock) == f"127.0.0.1:{sock.getsockname()[1]}"
    if not socket.has_ipv6:
        return
    with contextlib.closing(listen("::1", 0)) as sock:
        assert address_of(sock) == f"[::1]:{sock.getsockname()[1]}"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("app:app", True),
        ("package.module:sub.app", True),
        ("rowcast.toml", False),
        ("/etc/rowcast.toml", False),
        ("C:/rowcast.toml", False),
        ("app", False),
        (":app", False),
    ],
)
def test_what_names_an_object_in_a_module(target: str, expected: bool) -> None:
    assert is_reference(target) is expected


def test_a_file_that_is_named_like_a_reference_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app:app").touch()
    assert not is_reference("app:app")


def test_modules_of_the_current_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "served_here.py").write_text("class made:\n    from rowcast import Rowcast\n    cast = Rowcast()\n")
    assert isinstance(load("served_here:made.cast"), Rowcast)
    monkeypatch.delitem(sys.modules, "served_here")


def test_a_mistake_in_the_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "served_broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load("served_broken:app")
    (tmp_path / "served_missing.py").write_text("import surely_not_there\n")
    with pytest.raises(ConfigError, match="no module 'surely_not_there'"):
        load("served_missing:app")


def test_mounted_rowcasts_are_found() -> None:
    one, two = Rowcast(), Rowcast()
    app = Starlette(
        routes=[
            Route("/", lambda request: None),
            Mount("/a", one.asgi()),
            Mount("/b", routes=[Mount("/c", two.asgi())]),
            Mount("/d", lambda scope, receive, send: None),
        ]
    )
    assert list(casts_of(app)) == [one, two]
    assert list(casts_of(one.asgi())) == [one]
    assert list(casts_of(lambda scope, receive, send: None)) == []
