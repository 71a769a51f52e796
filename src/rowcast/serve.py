"""`rowcast serve`: uvicorn with a listening socket, a start and an end of our own.

The socket's options are inherited by every connection: no delay for small frames; little of a stream's data in
kernel buffers, so that a client that does not read is noticed soon; and a peer that vanished without a word is
given up after half a minute (see tcp(7)).

On SIGTERM or SIGINT readiness fails first and the streams are told to go elsewhere, while the port still
answers: a proxy that finds it closed would say 502, after which a browser's EventSource never comes back. Only
when the streams are gone does uvicorn shut down. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast.cast import Rowcast
from rowcast.errors import ConfigError, SetupError
from rowcast.http import redact

logger = logging.getLogger(__name__)

GRACE = 30
"""Seconds that streams, and after them open requests, have to end after the first signal."""

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than proxies keep theirs, or they would meet a closed one."""

_LOOK = 0.05
"""Seconds between two looks at whether the streams are gone."""

_OPTIONS = (
    ("TCP_NODELAY", 1),
    ("TCP_NOTSENT_LOWAT", 16_384),  # bytes
    ("TCP_USER_TIMEOUT", 30_000),  # milliseconds
)

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket; uvicorn listens on it when the application is ready. `port` 0 picks a free one.

    Raises `ConfigError` when the address can't be had.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"[server] host {host!r} can't be used: {error.strerror or error}") from None
    # A port whose last owner has just ended may be taken again at once; one that is in use may not.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for name, value in _OPTIONS:
        if hasattr(socket, name):
            with contextlib.suppress(OSError):  # an old kernel: the option is a help, not a need
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"[server] port {port} on {host} can't be used: {error.strerror}; choose another by --port (0: a free one)"
        ) from None
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a socket is bound, as it stands in a URL: `127.0.0.1:8080`, `[::1]:8080`."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_reference(target: str) -> bool:
    """Whether `target` names an object in a module, `package.module:app`, rather than a file."""
    return _REFERENCE.fullmatch(target) is not None and not Path(target).exists()


def load(reference: str) -> Rowcast | ASGIApp:
    """The Rowcast or ASGI application that `package.module:app` names; the current directory is searched first.

    Raises `ConfigError` when there is none. What the module itself raises is passed on.
    """
    module_name, _, attribute = reference.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{reference}: there is no module {error.name!r}; run it where it can be imported") from None
    for name in attribute.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise ConfigError(f"{reference}: the module {module_name} has no {attribute!r}")
    if not isinstance(found, Rowcast) and not callable(found):
        raise ConfigError(f"{reference} is a {type(found).__name__}, neither a Rowcast nor an ASGI application")
    return found  # type: ignore[no-any-return]  # callable: whether it is ASGI shows at the first request


def serve(
    target: Rowcast | ASGIApp,
    *,
    host: str,
    port: int,
    trusted_proxies: Iterable[str] = (),
    access_log: bool = True,
) -> None:
    """Serve until a signal ends it.

    `target`: a Rowcast, or an ASGI application, which may have one mounted. `trusted_proxies`: addresses whose
    X-Forwarded-For and -Proto are believed. Prints `rowcast listening on http://HOST:PORT` when it is ready.

    Raises what the application's start raises, and `ConfigError` when the address can't be had.
    """
    app = target.asgi() if isinstance(target, Rowcast) else target
    proxies = list(trusted_proxies)
    redact.install()
    guarded = _Lifespan(app)
    config = uvicorn.Config(
        guarded,
        http="httptools",
        ws="none",
        lifespan="on" if isinstance(app, Starlette) else "auto",
        log_config=None,
        access_log=access_log,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    with contextlib.closing(listen(host, port)) as sock:
        server = Server(config, sock, guarded, tuple(casts_of(app)))
        with asyncio.Runner(loop_factory=_loop_factory()) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(server.serve(sockets=[sock]))
        if server.failure is not None:
            raise server.failure


def casts_of(app: Any) -> Iterator[Rowcast]:
    """The Rowcasts that an application consists of or has mounted, as far as Starlette's routes tell."""
    cast = getattr(getattr(app, "state", None), "cast", None)
    if isinstance(cast, Rowcast):
        yield cast
        return
    routes: Iterable[BaseRoute] = getattr(app, "routes", None) or ()
    for route in routes:
        if isinstance(route, Mount):
            yield from casts_of(route.app)


class Server(uvicorn.Server):
    """uvicorn that announces itself when it is ready, and drains before it shuts down."""

    def __init__(self, config: uvicorn.Config, sock: socket.socket, app: _Lifespan, casts: tuple[Rowcast, ...]) -> None:
        super().__init__(config)
        self._sock = sock
        self._app = app
        self._casts = casts
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        """What made us end without a signal."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, listen, and say so."""
        try:
            with _quiet():
                await super().startup(sockets)
        except SystemExit:
            # uvicorn's way of saying that the application did not start.
            raise self._app.failure or SetupError("the application did not start") from None
        if not self.should_exit:
            # What the start has made is there to stay: the garbage collector need not look at it again.
            gc.collect()
            gc.freeze()
            print(f"rowcast listening on http://{address_of(self._sock)}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the streams go first, then shut down."""
        for _ in range(round(GRACE / _LOOK)):
            if not self._streams():
                break
            await asyncio.sleep(_LOOK)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again afterwards: its end is a success."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, or gives up a start that is not complete; the second ends at once."""
        if self.should_exit:
            os._exit(1)
        self.should_exit = True
        # We are between any two bytecodes of the loop's thread: touch nothing of the application here.
        self._loop.call_soon_threadsafe(self._obey)

    async def on_tick(self, counter: int) -> bool:
        """Also end when a part of a replica failed that must not: started anew, it can work again."""
        for cast in self._casts:
            if cast.running and cast.replica.failed is not None:
                self.failure = cast.replica.failed
                return True
        return await super().on_tick(counter)

    def _obey(self) -> None:
        if not self.started and self._task is not None:
            self._task.cancel()
        for cast in self._casts:
            cast.drain()

    def _streams(self) -> int:
        return sum(cast.hub.streams_count for cast in self._casts if cast.running)


class _Lifespan:
    """Passes everything through, and keeps what a failed start of the application raised."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def without_traceback(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # Starlette puts a traceback in it; what was raised is told in one line by whoever called us.
                message = {**message, "message": ""}
            await send(message)

        try:
            await self._app(scope, receive, without_traceback)
        except Exception as error:
            self.failure = error
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """uvicorn says in its log that the start failed; we say why, in one line, and raise it."""
    log = logging.getLogger("uvicorn.error")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _loop_factory() -> Any:
    """uvloop's, where it is installed; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
