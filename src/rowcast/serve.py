"""`rowcast serve`: uvicorn with a listening socket, a start and an end of our own.

On SIGTERM or SIGINT it drains (see `rowcast.drain`): readiness fails first and streams are told to go elsewhere, and
only then is the port closed. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast import huge_pages
from rowcast.cast import Rowcast
from rowcast.drain import Drain
from rowcast.errors import ConfigError, SetupError
from rowcast.http import redact, takeover
from rowcast.sections import Server as ServerSection
from rowcast.signals import Terminal
from rowcast.sockets import address_of, listen, shares
from rowcast.telemetry import journal
from rowcast.tls import Certificate
from rowcast.workers import Worker, require_shared

GC_THRESHOLDS = (10_000, 10, 10)
"""What `gc.set_threshold` gets: entries stay in the ring for minutes, and to look at the youngest 700 objects again and
again cost a third of all the time that a change took."""

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than proxies keep theirs, or they would meet a closed one."""

DRAIN_LIMIT = float(ServerSection().drain_limit)
"""Seconds that an application without a Rowcast has for its open requests."""

TICKS = 10
"""Of uvicorn's ticks, ten a second, so many pass between two looks at the certificate."""

SLACK = 5.0
"""Seconds after the limit of draining at which the process ends even if something of it hangs."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


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
        raise ConfigError(
            f"{reference} is a {type(found).__name__}, neither a Rowcast nor an ASGI application; name what "
            "`Rowcast(…)`, `cast.asgi()` or your framework made"
        )
    return found  # type: ignore[no-any-return]  # callable: whether it is ASGI shows at the first request


def serve(
    target: Rowcast | ASGIApp,
    *,
    host: str,
    port: int,
    trusted_proxies: Iterable[str] = (),
    access_log: bool = True,
    tls_cert: str = "",
    tls_key: str = "",
    http2: bool = False,
    worker: Worker | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal ends it.

    `target`: a Rowcast, or an ASGI application, which may have one mounted. `trusted_proxies`: addresses whose
    X-Forwarded-For and -Proto are believed. Prints `rowcast listening on http://HOST:PORT` when it is ready.
    `tls_cert`, `tls_key`: PEM files ("": no TLS); see `rowcast.tls`. `http2`: speak HTTP/2 too; see
    `rowcast.http.http2`. `worker`: this process is one of several, whose supervisor prints that. `on_ready` is called
    just before.

    Raises what the application's start raises, and `ConfigError` when the address can't be had.
    """
    app = target.asgi() if isinstance(target, Rowcast) else target
    proxies = list(trusted_proxies)
    redact.install()
    casts = tuple(casts_of(app))
    if worker is not None:
        for cast in casts:
            require_shared(cast.config.log_url)
    takeover.warn()
    guarded = _Lifespan(app, worker)
    protocol, alpn = _http2() if http2 else (takeover.Protocol, ("http/1.1",))
    certificate = _certificate(tls_cert, tls_key, alpn)
    config = uvicorn.Config(
        guarded,
        http=protocol,
        ws="none",
        lifespan="on" if isinstance(app, Starlette) else "auto",
        log_config=None,
        access_log=access_log,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
    )
    with contextlib.closing(listen(host, port) if worker is None else worker.listen(host, port)) as sock:
        server = Server(config, sock, guarded, casts, worker, certificate, on_ready)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner, contextlib.suppress(asyncio.CancelledError):
            # asyncio's own loop accepts all that wait, at once.
            runner.run(server.serve(sockets=shares(sock) if _loop_factory() else [sock]))
        if server.failure is not None:
            raise server.failure


def _certificate(cert: str, key: str, alpn: tuple[str, ...]) -> Certificate | None:
    """The certificate that is configured. Raises `ConfigError`."""
    if key and not cert:
        raise ConfigError("[server] tls_key is set, but tls_cert is not: TLS needs both, or one file with both in it")
    return Certificate(cert, key, alpn) if cert else None


def _http2() -> tuple[type[asyncio.Protocol], tuple[str, ...]]:
    """The protocol that speaks HTTP/2 too, and its names in ALPN. Raises `ConfigError` where it is not installed."""
    try:
        from rowcast.http import http2
    except ImportError as error:
        raise ConfigError(
            f"[server] http2 needs more than is installed ({error}); run: pip install 'rowcast[http2]'"
        ) from None
    return http2.Protocol, http2.ALPN


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

    def __init__(
        self,
        config: uvicorn.Config,
        sock: socket.socket,
        app: _Lifespan,
        casts: tuple[Rowcast, ...],
        worker: Worker | None = None,
        certificate: Certificate | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._hangup = asyncio.Event()
        self._terminal = Terminal()
        self._worker = worker
        self._on_ready = on_ready
        self._sock = sock
        self._app = app
        self._casts = casts
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None
        self._packing: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        """What made us end without a signal."""
        for cast in casts:
            cast.signals = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        reloading = asyncio.create_task(self._reload())
        try:
            await super().serve(sockets)
        finally:
            reloading.cancel()
            if self._packing is not None:
                self._packing.cancel()

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
            gc.set_threshold(*GC_THRESHOLDS)
            if all(cast.config.server.huge_pages for cast in self._casts):
                self._packing = asyncio.create_task(huge_pages.run())
            for drain in self._drains():
                drain.port_closes = self._close_port
            self._on_ready()
            scheme = "http" if self._certificate is None else "https"
            if self._worker is not None:
                self._worker.listening(scheme)
            else:
                print(f"rowcast listening on {scheme}://{address_of(self._sock)}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then let open requests end, then the application; all that within the limit of draining."""
        deadline = max(self._begin(delay=self.failure is None), self._loop.time() + 1)
        # If anything hangs, even the loop: the limit is a promise to whoever waits for our end.
        dead = threading.Timer(deadline + SLACK - self._loop.time(), os._exit, [1])
        dead.daemon = True
        dead.start()
        await asyncio.gather(*(drain.begin() for drain in self._drains()))
        self.config.timeout_graceful_shutdown = max(1, math.ceil(deadline - self._loop.time()))
        await super().shutdown(sockets)
        dead.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again afterwards: its end is a success."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
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
        self._loop.call_soon_threadsafe(self._obey, sig)

    def _on_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Reload; but the end of the terminal that we were started in is ours, too."""
        if self._terminal.hung_up():
            if not self.should_exit:
                self.handle_exit(signal.SIGTERM, frame)
        else:
            self._loop.call_soon_threadsafe(self._hangup.set)

    async def _reload(self) -> None:
        """Reload the configuration and the certificate whenever it is asked for."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            if self._certificate is not None:
                self._certificate.reload()
            for cast in self._casts:
                before = cast.config.server
                # What was wrong is in the log already.
                with contextlib.suppress(Exception):
                    await cast.reload()
                now = cast.config.server
                # Where nothing was changed, a flag may have said otherwise.
                if (now.log_format, now.log_level) != (before.log_format, before.log_level):
                    journal.install(now.log_format, now.log_level)

    async def on_tick(self, counter: int) -> bool:
        """Also end when a part of a replica failed that must not: started anew, it can work again. And look at files
        that may have been renewed."""
        if self._certificate is not None and counter % TICKS == 0:
            self._certificate.watch()
        for cast in self._casts:
            if cast.running and cast.replica.failed is not None:
                self.failure = cast.replica.failed
                return True
        return await super().on_tick(counter)

    def _obey(self, sig: int) -> None:
        if not self.started and self._task is not None:
            self._task.cancel()
        # Nobody rolls out from a terminal: Ctrl-C need not wait for proxies.
        self._begin(delay=sig == signal.SIGTERM)

    def _begin(self, *, delay: bool) -> float:
        """Begin to drain, and return when it must be over, by the loop's clock."""
        for drain in self._drains():
            drain.begin(delay=delay)
        deadlines = [drain.deadline for drain in self._drains()]
        return max(deadlines, default=self._loop.time() + DRAIN_LIMIT)

    def _drains(self) -> list[Drain]:
        return [cast.replica.drain for cast in self._casts if cast.running]

    def _close_port(self) -> None:
        """Take no new connection, once no replica here waits any more for proxies to notice; and have clients of HTTP/2
        come by another one.

        Drained by an API call, we are to stay, and the port with us.
        """
        for connection in self.server_state.connections:
            if (go_away := getattr(connection, "go_away", None)) is not None:
                go_away()
        ending = self.should_exit or self.failure is not None
        if ending and all(drain.noticed for drain in self._drains()):
            for server in self.servers:
                server.close()


class _Lifespan:
    """Passes everything through, and keeps what a failed start of the application raised.

    A worker's start is complete when all workers are to listen.
    """

    def __init__(self, app: ASGIApp, worker: Worker | None = None) -> None:
        self._app = app
        self._worker = worker
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def without_traceback(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                # Starlette puts a traceback in it; what was raised is told in one line by whoever called us.
                message = {**message, "message": ""}
            elif message["type"] == "lifespan.startup.complete" and self._worker is not None:
                await self._worker.may_listen()
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
