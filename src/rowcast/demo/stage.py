"""Puts the demo up, keeps it up until Ctrl-C or SIGTERM, and takes everything down again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from types import FrameType

import click
import httpx
import psycopg
import uvicorn

from rowcast.demo import market, replay
from rowcast.demo.front import Database, Front
from rowcast.demo.people import PEOPLE, mint
from rowcast.demo.proxy import Proxy
from rowcast.demo.replay import Replay
from rowcast.demo.settings import CHANNEL, Settings
from rowcast.demo.supervisor import Supervisor
from rowcast.errors import ConfigError, SetupError
from rowcast.testing.postgres import PostgresServer

MAX_REPLICAS = 6
"""As many as the embedded Postgres has senders and slots for (two of each per replica, and some to spare)."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(port: int, replicas: int, log: str, browser: bool) -> None:
    """Run the demo until Ctrl-C or SIGTERM.

    `port`: where the page is, on 127.0.0.1; 0 picks a free one. `replicas`: 1 to 6 `rowcast serve` processes.
    `log`: "postgres:", the log that they share. `browser`: whether to open the page.

    Raises `click.UsageError` when an argument is refused, `ConfigError` when the port is taken, `SetupError`
    when a wheel is missing or Postgres or a replica does not start.
    """
    _check(port, replicas, log)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        # Until the loop has its own handlers, every way of ending us runs the cleanups of this stack.
        for number in _SIGNALS:
            previous = signal.signal(number, _interrupt)
            stack.callback(signal.signal, number, previous)
        listener = stack.enter_context(_listen(port))
        series = market.load()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rowcast-demo-")))
        _say("Starting Postgres …")
        server = stack.enter_context(_postgres())
        url = server.create_database("market")
        replay.prepare(url, series)
        database = Database(_version(url), url, server.program("psql"))
        asyncio.run(_until_signal(_show(listener, replicas, browser, directory, database, series)))


def _check(port: int, replicas: int, log: str) -> None:
    if log != "postgres:":
        raise click.UsageError(
            f"--log {log} comes with the shared log, which this release does not have yet; "
            "leave the option out, or write --log postgres:"
        )
    if not 1 <= replicas <= MAX_REPLICAS:
        raise click.UsageError(f"--replicas {replicas} is out of range: choose 1 to {MAX_REPLICAS}")
    if not 0 <= port <= 65535:
        raise click.UsageError(f"--port {port} is out of range: choose 1 to 65535, or 0 for a free one")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _listen(port: int) -> socket.socket:
    # With the protocol named: asyncio sets TCP_NODELAY only then, and without it each answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port of a demo that ended a moment ago may be taken again at once; one that is in use may not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} can't be used ({error.strerror}); choose another by --port (0: a free one)"
        ) from None
    return listener


@contextlib.contextmanager
def _postgres() -> Iterator[PostgresServer]:
    # The latency on the page includes the flush to disk that a real commit waits for.
    server = PostgresServer(settings={"fsync": "on"})
    try:
        server.start()
        yield server
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # one more Ctrl-C must not leave a server behind
        server.destroy()


def _version(url: str) -> str:
    with psycopg.connect(url) as connection:
        major, minor = divmod(connection.info.server_version, 10_000)
        return f"{major}.{minor}"


async def _until_signal(show: Coroutine[None, None, None]) -> None:
    task = asyncio.create_task(show)

    def stop() -> None:
        if not task.cancelling():  # a second Ctrl-C must not cut the cleanup short
            task.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _show(
    listener: socket.socket,
    replicas: int,
    browser: bool,
    directory: Path,
    database: Database,
    series: list[market.Series],
) -> None:
    settings = Settings(database.url)
    toml = directory / "rowcast.toml"
    settings.write(toml)
    async with contextlib.AsyncExitStack() as stack:
        _say(f"Starting {replicas} {'replica' if replicas == 1 else 'replicas'} …")
        supervisor = await stack.enter_async_context(
            Supervisor(
                [chr(ord("A") + n) for n in range(replicas)],
                lambda name: [sys.executable, "-m", "rowcast.cli", "serve", toml, "--port", "0"],
                _environment,
                logs=directory,
            )
        )
        await _give_everyone_a_channel(supervisor.live()[0].url, settings.secret)
        proxy = Proxy(supervisor)
        stack.push_async_callback(proxy.close)
        writer = Replay(database.url, series)
        front = Front(supervisor, proxy, writer, series, database, settings.secret)
        await stack.enter_async_context(_serving(front, listener))
        # Last in, first out: the streams end before the page's server, which waits for them.
        stack.callback(proxy.end_streams)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        _tell(url, supervisor, database, directory)
        stack.callback(_say, "Taking everything down …")
        if browser and _has_screen():
            await asyncio.to_thread(webbrowser.open, url)
        await writer.run()


def _environment(name: str) -> dict[str, str]:
    """Ours, without options for a `rowcast serve` of the user's own, and with the replica's name."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("ROWCAST_")}
    # The board's proxy knows at once which replicas are up: nobody needs time to notice.
    return ours | {"ROWCAST_SERVER_NAME": name, "ROWCAST_SERVER_DRAIN_DELAY": "0", "PYTHONUNBUFFERED": "1"}


async def _give_everyone_a_channel(url: str, secret: str) -> None:
    """What the application's own settings page would do, by the same API that the board uses."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        for person in PEOPLE:
            answer = await http.put(
                f"/users/me/channels/{CHANNEL}",
                headers={"authorization": f"Bearer {mint(person, secret)}"},
                json={"enabled": True, "config": {"symbols": person.symbols}},
            )
            if answer.is_error:
                raise SetupError(f"the replica refused {person.id}'s channel: {answer.text}")


@contextlib.asynccontextmanager
async def _serving(front: Front, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        front.asgi(),
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _has_screen() -> bool:
    """Whether a browser can be seen: where there is no display, a text browser would take the terminal."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _tell(url: str, supervisor: Supervisor, database: Database, directory: Path) -> None:
    lines = [("board", click.style(url, bold=True, underline=True))]
    lines += [("postgres", f"{database.version}, {database.url}")]
    lines += [
        (f"replica {replica.name}", f"{replica.url}, process {replica.pid}, log {replica.log}")
        for replica in supervisor.live()
    ]
    lines += [("config", str(directory / "rowcast.toml")), ("write a row", database.command())]
    for name, value in lines:
        click.echo(f"  {click.style(f'{name:<12}', dim=True)} {value}")
    _say("Ctrl-C takes everything down and leaves nothing behind.")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, as after SIGHUP
        click.echo(text)
