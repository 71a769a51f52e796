"""The command line: `rowcast serve`, `demo`, `check`, `token`, `tail`, `publish`, …

Every option has an environment variable; a flag goes before it, and it goes before rowcast.toml. An error is
one line on stderr; the exit code is 0, 1 when it failed, or 2 when it was called wrongly.

Each command imports what it needs itself, so that `rowcast tail` or `--help` need not wait for a server's parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from rowcast import __version__
from rowcast.errors import BadRequest, ConfigError, RowcastError

if TYPE_CHECKING:
    from rowcast.config import Config
    from rowcast.telemetry.journal import Format, Level

F = TypeVar("F", bound=Callable[..., Any])

FILE = "rowcast.toml"
"""The configuration that is read when none is named, if it is there."""

LEVEL_VARIABLE = "ROWCAST_SERVER_LOG_LEVEL"

ADVISED_TOKEN = 7 * 1024
"""Bytes; proxies refuse request heads that are not much longer."""


def _duration(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """Seconds of `90s` or `1h30m`."""
    from rowcast.units import parse_duration

    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def option(*names: str, envvar: str, **settings: Any) -> Callable[[F], F]:
    """An option with its environment variable, shown in --help."""
    return click.option(*names, envvar=envvar, show_envvar=True, **settings)


def config_option(function: F) -> F:
    """--config, for commands whose arguments are something else."""
    return option(
        "--config", "path", envvar="ROWCAST_CONFIG", metavar="FILE", help=f"The configuration.  [default: {FILE}]"
    )(function)


def service_options(function: F) -> F:
    """--url and --key, for commands that call a running service."""
    key = option("--key", envvar="ROWCAST_API_KEY", help="Its API key.  [default: [api] key of the configuration]")
    url = option("--url", envvar="ROWCAST_URL", default="http://127.0.0.1:8080", help="The service.", show_default=True)
    return config_option(url(key(function)))


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="rowcast %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Database changes on the right screens, live: Postgres to Server-Sent Events."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@option("--port", envvar="ROWCAST_DEMO_PORT", default=8080, show_default=True, help="The board's; 0: a free one.")
@option("--replicas", envvar="ROWCAST_DEMO_REPLICAS", default=2, show_default=True, help="Processes to run.")
@option("--log", envvar="ROWCAST_DEMO_LOG", default="postgres:", show_default=True, help="The log that they share.")
@option("--browser/--no-browser", envvar="ROWCAST_DEMO_BROWSER", default=True, help="Open the board in a browser.")
def demo(port: int, replicas: int, log: str, browser: bool) -> None:
    """A live board on an embedded Postgres, in your browser; leaves nothing behind."""
    from rowcast.demo import run

    run(port, replicas, log, browser)


@cli.command()
@click.argument("target", required=False, envvar="ROWCAST_CONFIG", metavar="[rowcast.toml | package.module:app]")
@option("--host", envvar="ROWCAST_SERVER_HOST", help="Where to listen.  [default: 127.0.0.1]")
@option("--port", envvar="ROWCAST_SERVER_PORT", type=click.IntRange(0, 65535), help="0: a free one.  [default: 8080]")
@option("--postgres", envvar="ROWCAST_POSTGRES_URL", metavar="URL", help="The database.")
@option("--log", envvar="ROWCAST_LOG_URL", metavar="URL", help="postgres: or memory:")
@option("--workers", envvar="ROWCAST_WORKERS", default=1, type=click.IntRange(1), help="Processes.", show_default=True)
@option("--access-log/--no-access-log", envvar="ROWCAST_ACCESS_LOG", default=True, help="One line per request.")
@option(
    "--log-level",
    envvar=LEVEL_VARIABLE,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is written to stderr.  [default: info]",
)
@option(
    "--log-format",
    envvar="ROWCAST_SERVER_LOG_FORMAT",
    type=click.Choice(["text", "json"]),
    help="As lines to be read, or one JSON object each.  [default: text]",
)
def serve(
    target: str | None,
    host: str | None,
    port: int | None,
    postgres: str | None,
    log: str | None,
    workers: int,
    access_log: bool,
    log_level: Level | None,
    log_format: Format | None,
) -> int:
    """Serve streams and the API: the configuration's (ROWCAST_CONFIG), or an application of yours."""
    from rowcast.telemetry import journal

    journal.install(log_format or "text", log_level or "info")
    worker = None
    if workers > 1:
        from rowcast import workers as several

        worker = several.current()
        if worker is None:
            return several.supervise(workers, sys.argv[1:])
    # Heavy imports, and only this command needs them.
    from rowcast import serve as server
    from rowcast.cast import Rowcast
    from rowcast.config import Config

    overrides = {"server.host": host, "server.port": port, "postgres.url": postgres, "log.url": log}
    overrides |= {"server.log_level": log_level, "server.log_format": log_format}
    application: Any
    if target is not None and server.is_reference(target):
        if postgres or log:
            raise click.UsageError(f"--postgres and --log don't reach into {target}: it configures itself")
        application = server.load(target)
        config = application.config if isinstance(application, Rowcast) else Config()
    else:
        config = _load(target, overrides)
        journal.install(config.server.log_format, config.server.log_level)
        application = Rowcast(config)
    form, level = log_format or config.server.log_format, log_level or config.server.log_level
    journal.install(form, level)
    if worker is not None:
        worker.tell(f"journal {form} {level}")
    server.serve(
        application,
        host=host or config.server.host,
        port=config.server.port if port is None else port,
        trusted_proxies=config.server.trusted_proxies,
        access_log=access_log,
        worker=worker,
    )
    return 0


@cli.command()
@click.argument("path", required=False, envvar="ROWCAST_CONFIG", metavar="[rowcast.toml]")
@option(
    "--replicas",
    envvar="ROWCAST_CHECK_REPLICAS",
    default=2,
    type=click.IntRange(1),
    show_default=True,
    help="Replicas that are going to run.",
)
def check(path: str | None, replicas: int) -> int:
    """Tell of each prerequisite whether it is there, or what to do about it; exit code 1 if one is missing."""
    from rowcast.check import report, run

    results = asyncio.run(run(_load(path), replicas=replicas))
    click.echo(report(results))
    return 0 if all(result.ok for result in results) else 1


@cli.command()
@option("--user", envvar="ROWCAST_TOKEN_USER", required=True, help="Whose token it is.")
@option("--topics", envvar="ROWCAST_TOKEN_TOPICS", default="", metavar="A,B", help="Topics that the token carries.")
@option("--ttl", envvar="ROWCAST_TOKEN_TTL", default="1h", show_default=True, callback=_duration, help="Its lifetime.")
@config_option
def token(user: str, topics: str, ttl: float, path: str | None) -> None:
    """Print a token for a user, signed with the configured secret."""
    from rowcast.auth.jwt import mint

    made = mint(_load(path), user, topics=_split(topics), ttl=ttl)
    if len(made) > ADVISED_TOKEN:
        _say(f"the token has {len(made)} bytes: proxies may refuse it, over {ADVISED_TOKEN}; give it fewer topics")
    click.echo(made)


@cli.command()
@click.argument("url", envvar="ROWCAST_URL", default="http://127.0.0.1:8080")
@option("--token", envvar="ROWCAST_TOKEN", help="The user's token; `rowcast token` makes one.")
@option("--last-event-id", envvar="ROWCAST_TAIL_LAST_EVENT_ID", metavar="P", help="The position to resume from.")
@option("--topics", envvar="ROWCAST_TAIL_TOPICS", default="", metavar="A,B", help="Only these topics.")
@option("--snapshot", envvar="ROWCAST_TAIL_SNAPSHOT", is_flag=True, help="The current rows of the topics first.")
@option("--json", "as_json", envvar="ROWCAST_TAIL_JSON", is_flag=True, help="One JSON object per line.")
def tail(url: str, token: str | None, last_event_id: str | None, topics: str, snapshot: bool, as_json: bool) -> None:
    """Print the events of the stream at URL (ROWCAST_URL), until Ctrl-C."""
    try:
        asyncio.run(_tail(url, token, last_event_id, _split(topics), snapshot, as_json))
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`). Python must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cli.command()
@click.argument("data")
@option("--topic", envvar="ROWCAST_PUBLISH_TOPIC", help="The topic to put it on; or:")
@option("--user", envvar="ROWCAST_PUBLISH_USER", help="The user to send it to.")
@option("--event", envvar="ROWCAST_PUBLISH_EVENT", help="The name of the event.  [default: message]")
@option("--conflate-by", envvar="ROWCAST_PUBLISH_CONFLATE_BY", metavar="KEY", help="Its key.  [default: not conflated]")
@service_options
def publish(
    data: str,
    topic: str | None,
    user: str | None,
    event: str | None,
    conflate_by: str | None,
    url: str,
    key: str | None,
    path: str | None,
) -> None:
    """Publish DATA, which is JSON, or else a text; `-` reads it from stdin. Prints its position."""
    if (topic is None) == (user is None):
        raise click.UsageError("give either --topic or --user")
    body = {"topic": topic, "user": user, "event": event, "key": conflate_by}
    given: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    given["data"] = _json_or_text(sys.stdin.read() if data == "-" else data)
    _call(url, "/publish", given, key, path)


@cli.command()
@click.argument("user")
@service_options
def resubscribe(user: str, url: str, key: str | None, path: str | None) -> None:
    """Have every replica read USER's subscriptions anew. Prints the position from which they hold."""
    _call(url, "/control/resubscribe", {"user": user}, key, path)


@cli.command()
@click.argument("user")
@service_options
def disconnect(user: str, url: str, key: str | None, path: str | None) -> None:
    """End USER's streams everywhere, and refuse the tokens issued before. Prints the position."""
    _call(url, "/control/disconnect", {"user": user}, key, path)


@cli.group(no_args_is_help=False)
def slot() -> None:
    """The replication slot, its lag and the WAL that it holds back."""


@slot.command()
@config_option
def status(path: str | None) -> None:
    """Show the slot, and the copies of it that replicas read from."""
    from rowcast import slots

    found = asyncio.run(slots.status(_load(path)))
    row = "{:<40} {:>8} {:>10} {:>12} {:>12} {:>15}"
    click.echo(row.format("slot", "process", "wal", "held", "lag", "confirmed"))
    for one in found:
        held, lag = (f"{size / 1e6:,.1f} MB" for size in (one.held, slots.lag(one)))
        click.echo(row.format(one.name, one.pid or "-", one.wal_status or "-", held, lag, one.confirmed_lsn))


@slot.command()
@config_option
def drop(path: str | None) -> None:
    """Drop the slot, so that it holds back no WAL. Replicas that run make a new one, and reset their streams."""
    from rowcast import slots

    dropped, connected = asyncio.run(slots.drop(_load(path)))
    click.echo(f"dropped {', '.join(dropped)}")
    if connected:
        _say(f"{connected} replicas are connected: they make a new slot now, and reset their streams")


def main() -> None:
    """The entry point: runs the command, and turns what it raises into one line and an exit code."""
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli(standalone_mode=False)
    except click.UsageError as error:
        hint = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        _say(error.format_message().rstrip(".") + hint)
        return 2
    except click.ClickException as error:
        _say(error.format_message())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 0
    except (RowcastError, OSError) as error:
        _say(" ".join(str(error).split()))
        return 1
    except Exception as error:
        from rowcast.telemetry import journal

        debug = os.environ.get(LEVEL_VARIABLE) == "debug" or logging.getLogger().isEnabledFor(logging.DEBUG)
        hint = f"; {LEVEL_VARIABLE}=debug shows where"
        if debug:
            hint = "\n" + journal.without_secrets(journal.trace(error))
        _say(journal.last_words(error) + hint)
        return 1
    return result if isinstance(result, int) else 0


async def _tail(
    url: str, token: str | None, last_event_id: str | None, topics: list[str], snapshot: bool, as_json: bool
) -> None:
    from rowcast.client import EventStream

    stream = EventStream(
        url,
        token=token,
        last_event_id=last_event_id,
        topics=topics,
        snapshot=snapshot,
        on_retry=lambda reason, pause: _say(f"{reason}; again in {pause:.1f} s"),
    )
    async with contextlib.aclosing(aiter(stream)) as events:
        async for event in events:
            if as_json:
                line = {"id": event.id, "event": event.event, "data": msgspec.Raw(event.data.encode())}
                print(msgspec.json.encode(line).decode(), flush=True)
            else:
                name = "" if event.event == "message" else f"{event.event} "
                print(f"{event.id}  {name}{event.data}", flush=True)


def _call(url: str, call_path: str, body: dict[str, Any], key: str | None, path: str | None) -> None:
    from rowcast.client import call

    if key is None:
        configured = _load(path).api.key
        if configured is None:
            raise ConfigError("this call needs the API key: give --key, ROWCAST_API_KEY, or [api] key in the file")
        key = configured.get_secret_value()
    click.echo(call(url, call_path, body, key=key)["id"])


def _load(path: str | None, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration at `path`, else rowcast.toml if there is one, else of the environment alone."""
    from rowcast.config import Config

    file = Path(path) if path is not None else Path(FILE)
    return Config.load(file if path is not None or file.exists() else None, overrides)


def _json_or_text(text: str) -> msgspec.Raw | str:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise BadRequest(f"DATA looks like JSON, but is none: {error}") from None
        return text
    return msgspec.Raw(text.encode())


def _split(text: str) -> list[str]:
    return [part for item in text.split(",") if (part := item.strip())]


def _say(text: str) -> None:
    click.echo(f"rowcast: {text}", err=True)


if __name__ == "__main__":
    main()
