"""The command line: `rowcast serve`, `demo`, `check`, `token`, `tail`, `publish`, …

Every option has an environment variable; a flag goes before it, and it goes before rowcast.toml. An error is
one line on stderr; the exit code is 0, 1 when it failed, or 2 when it was called wrongly. Colours and progress are for
terminals (`rowcast.terminal`), `--json` is for programs.

Each command imports what it needs itself, so that `rowcast tail` or `--help` need not wait for a server's parts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rowcast import __version__, terminal
from rowcast.errors import RowcastError
from rowcast.options import FILE, config_option, duration, json_option, option, service_options

if TYPE_CHECKING:
    from rowcast.config import Config
    from rowcast.telemetry.journal import Format, Level

LEVEL_VARIABLE = "ROWCAST_SERVER_LOG_LEVEL"

ADVISED_TOKEN = 7 * 1024
"""Bytes; proxies refuse request heads that are not much longer."""


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
@option("--tls-cert", envvar="ROWCAST_SERVER_TLS_CERT", metavar="FILE", help="PEM; watched for its renewal.")
@option("--tls-key", envvar="ROWCAST_SERVER_TLS_KEY", metavar="FILE", help="PEM.  [default: in the file of --tls-cert]")
@option("--http2/--no-http2", envvar="ROWCAST_SERVER_HTTP2", default=None, help="Speak HTTP/2 too.  [default: no]")
@option("--traces/--no-traces", envvar="ROWCAST_SERVER_TRACES", default=None, help="OpenTelemetry's.  [default: no]")
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
    tls_cert: str | None,
    tls_key: str | None,
    http2: bool | None,
    traces: bool | None,
    access_log: bool,
    log_level: Level | None,
    log_format: Format | None,
) -> int:
    """Serve streams and the API: the configuration's (ROWCAST_CONFIG), or an application of yours."""
    from rowcast.telemetry import journal

    journal.install(log_format or "text", log_level or "info")
    # A reload that is asked for before we serve would end us: what is read is new anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    worker = None
    if workers > 1:
        from rowcast import workers as several

        worker = several.current()
        if worker is None:
            if sys.stderr.isatty():
                terminal.say(f"starting {workers} workers")
            return several.supervise(workers, sys.argv[1:])
    # Heavy imports, and only this command needs them.
    from rowcast import serve as server
    from rowcast.cast import Rowcast
    from rowcast.config import Config

    overrides: dict[str, Any] = {"server.host": host, "server.port": port, "postgres.url": postgres, "log.url": log}
    overrides |= {
        "server.tls_cert": tls_cert,
        "server.tls_key": tls_key,
        "server.http2": http2,
        "server.traces": traces,
    }
    overrides |= {"server.log_level": log_level, "server.log_format": log_format}
    application: Any
    if target is not None and server.is_reference(target):
        if postgres or log or traces:
            raise click.UsageError(f"--postgres, --log and --traces don't reach into {target}: it configures itself")
        application = server.load(target)
        config = application.config if isinstance(application, Rowcast) else Config()
    else:
        # Named from now on: a reload must not take a file that is gone meanwhile for none that was ever needed.
        path = FILE if target is None and Path(FILE).exists() else target
        config = _load(path, overrides)
        journal.install(config.server.log_format, config.server.log_level)
        application = Rowcast(config)
        application.source = lambda: _load(path, overrides)
    form, level = log_format or config.server.log_format, log_level or config.server.log_level
    journal.install(form, level)
    if worker is not None:
        worker.tell(f"journal {form} {level}")
    # Of several workers each would write over the others.
    starting = terminal.Progress("starting", shown=worker is None)
    try:
        server.serve(
            application,
            host=host or config.server.host,
            port=config.server.port if port is None else port,
            trusted_proxies=config.server.trusted_proxies,
            access_log=access_log,
            tls_cert=config.server.tls_cert if tls_cert is None else tls_cert,
            tls_key=config.server.tls_key if tls_key is None else tls_key,
            http2=config.server.http2 if http2 is None else http2,
            worker=worker,
            on_ready=starting.end,
        )
    finally:
        starting.end()
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
@json_option("CHECK")
def check(path: str | None, replicas: int, as_json: bool) -> int:
    """Tell of each prerequisite whether it is there, or what to do about it; exit code 1 if one is missing."""
    from rowcast.calls import print_json
    from rowcast.check import report, run

    config = _load(path)
    with terminal.working("asking the database"):
        results = asyncio.run(run(config, replicas=replicas))
    ok = all(result.ok for result in results)
    if as_json:
        print_json({"ok": ok, "prerequisites": [result.as_dict() for result in results]})
    else:
        click.echo(report(results, colours=True))
    return 0 if ok else 1


@cli.command()
@option("--user", envvar="ROWCAST_TOKEN_USER", required=True, help="Whose token it is.")
@option("--topics", envvar="ROWCAST_TOKEN_TOPICS", default="", metavar="A,B", help="Topics that the token carries.")
@option("--ttl", envvar="ROWCAST_TOKEN_TTL", default="1h", show_default=True, callback=duration, help="Its lifetime.")
@config_option
def token(user: str, topics: str, ttl: float, path: str | None) -> None:
    """Print a token for a user, signed with the configured secret."""
    from rowcast.auth.jwt import mint

    made = mint(_load(path), user, topics=_split(topics), ttl=ttl)
    if len(made) > ADVISED_TOKEN:
        terminal.say(
            f"the token has {len(made)} bytes: proxies may refuse it, over {ADVISED_TOKEN}; give it fewer topics"
        )
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
    from rowcast import calls

    try:
        asyncio.run(calls.tail(url, token, last_event_id, _split(topics), snapshot=snapshot, as_json=as_json))
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`). Python must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cli.command()
@click.argument("data")
@option("--topic", envvar="ROWCAST_PUBLISH_TOPIC", help="The topic to put it on; or:")
@option("--user", envvar="ROWCAST_PUBLISH_USER", help="The user to send it to.")
@option("--event", envvar="ROWCAST_PUBLISH_EVENT", help="The name of the event.  [default: message]")
@option("--conflate-by", envvar="ROWCAST_PUBLISH_CONFLATE_BY", metavar="KEY", help="Its key.  [default: not conflated]")
@json_option("PUBLISH")
@service_options
def publish(
    data: str,
    topic: str | None,
    user: str | None,
    event: str | None,
    conflate_by: str | None,
    as_json: bool,
    url: str,
    key: str | None,
    path: str | None,
) -> None:
    """Publish DATA, which is JSON, or else a text; `-` reads it from stdin. Prints its position."""
    from rowcast.calls import json_or_text, post

    if (topic is None) == (user is None):
        raise click.UsageError("give either --topic or --user")
    body = {"topic": topic, "user": user, "event": event, "key": conflate_by}
    given: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    given["data"] = json_or_text(sys.stdin.read() if data == "-" else data)
    post(partial(_load, path), url, "/publish", given, key=key, as_json=as_json)


@cli.command()
@click.argument("user")
@json_option("RESUBSCRIBE")
@service_options
def resubscribe(user: str, as_json: bool, url: str, key: str | None, path: str | None) -> None:
    """Have every replica read USER's subscriptions anew. Prints the position from which they hold."""
    from rowcast.calls import post

    post(partial(_load, path), url, "/control/resubscribe", {"user": user}, key=key, as_json=as_json)


@cli.command()
@click.argument("user")
@json_option("DISCONNECT")
@service_options
def disconnect(user: str, as_json: bool, url: str, key: str | None, path: str | None) -> None:
    """End USER's streams everywhere, and refuse the tokens issued before. Prints the position."""
    from rowcast.calls import post

    post(partial(_load, path), url, "/control/disconnect", {"user": user}, key=key, as_json=as_json)


@cli.group(no_args_is_help=False)
def slot() -> None:
    """The replication slot, its lag and the WAL that it holds back."""


@slot.command()
@json_option("SLOT_STATUS")
@config_option
def status(path: str | None, as_json: bool) -> None:
    """Show the slot, and the copies of it that replicas read from."""
    from rowcast import slots
    from rowcast.calls import print_json

    config = _load(path)
    with terminal.working("asking the database"):
        found = asyncio.run(slots.status(config))
    if as_json:
        print_json({"slots": [slots.as_dict(one) for one in found]})
        return
    row = "{:<40} {:>8} {:>10} {:>12} {:>12} {:>15}"
    click.secho(row.format("slot", "process", "wal", "held", "lag", "confirmed"), bold=True)
    for one in found:
        held, lag = (f"{size / 1e6:,.1f} MB" for size in (one.held, slots.lag(one)))
        click.echo(row.format(one.name, one.pid or "-", one.wal_status or "-", held, lag, one.confirmed_lsn))


@slot.command()
@json_option("SLOT_DROP")
@config_option
def drop(path: str | None, as_json: bool) -> None:
    """Drop the slot, so that it holds back no WAL. Replicas that run make a new one, and reset their streams."""
    from rowcast import slots
    from rowcast.calls import print_json

    config = _load(path)
    with terminal.working("dropping the slot"):
        dropped, connected = asyncio.run(slots.drop(config))
    if as_json:
        print_json({"dropped": dropped, "connected": connected})
        return
    click.echo(f"dropped {', '.join(dropped)}")
    if connected:
        terminal.say(f"{connected} replicas are connected: they make a new slot now, and reset their streams")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), envvar="ROWCAST_COMPLETION_SHELL")
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands and options; to be sourced by it.

    \b
    bash: source <(rowcast completion bash)       in ~/.bashrc
    zsh:  source <(rowcast completion zsh)        in ~/.zshrc
    fish: rowcast completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "rowcast", "_ROWCAST_COMPLETE").source())


def main() -> None:
    """The entry point: runs the command, and turns what it raises into one line and an exit code."""
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli(standalone_mode=False, color=terminal.colour())
    except click.UsageError as error:
        hint = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        _fail(error.format_message().rstrip(".") + hint)
        return 2
    except click.ClickException as error:
        _fail(error.format_message())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 0
    except (RowcastError, OSError) as error:
        _fail(" ".join(str(error).split()))
        return 1
    except Exception as error:
        from rowcast.telemetry import journal

        debug = os.environ.get(LEVEL_VARIABLE) == "debug" or logging.getLogger().isEnabledFor(logging.DEBUG)
        hint = f"; {LEVEL_VARIABLE}=debug shows where"
        if debug:
            hint = "\n" + journal.without_secrets(journal.trace(error))
        _fail(journal.last_words(error) + hint)
        return 1
    return result if isinstance(result, int) else 0


def _fail(text: str) -> None:
    terminal.say(text, bad=True)


def _load(path: str | None, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration at `path`, else rowcast.toml if there is one, else of the environment alone."""
    from rowcast.config import Config

    file = Path(path) if path is not None else Path(FILE)
    return Config.load(file if path is not None or file.exists() else None, overrides)


def _split(text: str) -> list[str]:
    return [part for item in text.split(",") if (part := item.strip())]


if __name__ == "__main__":
    main()
