"""Listening sockets, and what every connection inherits from them (tcp(7)).

No delay for small frames; little of a stream's data in kernel buffers, so that a client that does not read is noticed
soon; and a peer that vanished without a word is given up after half a minute.
"""

from __future__ import annotations

import contextlib
import socket

from rowcast.doors import OPENS
from rowcast.errors import ConfigError

PATIENCE = 30.0
"""Seconds that what was sent may stay unacknowledged before the connection is given up."""

LONG_PATIENCE = 120.0
"""The same while a client does not read: its window is closed then, and it may be slow, yet alive."""

ACCEPTS = OPENS
"""Connections that are accepted per turn of the loop: as many as requests for streams are let in."""

_OPTIONS = (
    ("TCP_NODELAY", 1),
    ("TCP_NOTSENT_LOWAT", 16_384),  # bytes
    ("TCP_USER_TIMEOUT", round(PATIENCE * 1000)),  # milliseconds
)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound TCP socket; whoever serves listens on it when the application is ready. `port` 0 picks a free one.

    `shared`: other sockets of ours may be bound to it as well, and the kernel spreads connections over those that
    listen (SO_REUSEPORT). Raises `ConfigError` when the address can't be had.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"[server] host {host!r} can't be used: {error.strerror or error}; 0.0.0.0 is all addresses"
        ) from None
    # A port whose last owner has just ended may be taken again at once; one that is in use may not.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    tune(sock)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"[server] port {port} on {host} can't be used: {error.strerror}; choose another by --port (0: a free one)"
        ) from None
    return sock


def shares(sock: socket.socket) -> list[socket.socket]:
    """A listening socket and duplicates of it, ACCEPTS in all, for a loop that takes one connection a turn from each.

    So does libuv since 1.45, and so uvloop: with one socket, a loop whose turns take four milliseconds lets in 250
    clients a second, however many wait.
    """
    return [sock, *(sock.dup() for _ in range(ACCEPTS - 1))]


def tune(sock: object) -> None:
    """Set our options on a socket, or on what a transport tells as "socket"; anything without them is left alone."""
    setsockopt = getattr(sock, "setsockopt", None)
    if setsockopt is not None:
        for name, value in _OPTIONS:
            if hasattr(socket, name):
                with contextlib.suppress(OSError):  # no TCP, or an old kernel: the option is a help, not a need
                    setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def tuned(sock: object) -> bool:
    """Whether a socket has our options already, as one has that was accepted from a listening one with them (on Linux).
    False where that can't be seen."""
    getsockopt = getattr(sock, "getsockopt", None)
    if getsockopt is None:
        return False
    try:
        return all(
            bool(found := getsockopt(socket.IPPROTO_TCP, getattr(socket, name))) and found >= value
            for name, value in _OPTIONS
            if hasattr(socket, name)
        )
    except OSError:
        return False


def address_of(sock: socket.socket) -> str:
    """Where a socket is bound, as it stands in a URL: `127.0.0.1:8080`, `[::1]:8080`."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def be_patient(sock: object, *, paused: bool) -> None:
    """Wait longer for a peer while it does not read, and as long as ever once it does.

    `sock` is what a transport tells as "socket"; anything without TCP options is left alone.
    """
    setsockopt = getattr(sock, "setsockopt", None)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if setsockopt is None or option is None:
        return
    with contextlib.suppress(OSError):  # no TCP, or closed meanwhile
        setsockopt(socket.IPPROTO_TCP, option, round((LONG_PATIENCE if paused else PATIENCE) * 1000))
