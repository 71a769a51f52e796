"""What the commands do that talk to a running service: they follow a stream, publish, and control."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from rowcast import client, terminal
from rowcast.config import Config
from rowcast.errors import AuthError, BadRequest, ConfigError, Unavailable


async def tail(
    url: str, token: str | None, last_event_id: str | None, topics: list[str], *, snapshot: bool, as_json: bool
) -> None:
    """Print a stream's events, for ever. `as_json`: as one JSON object per line."""
    progress = terminal.Progress(f"connecting to {url}")

    def retry(reason: str, pause: float) -> None:
        terminal.say(f"{reason}; again in {pause:.1f} s")

    stream = client.EventStream(
        url, token=token, last_event_id=last_event_id, topics=topics, snapshot=snapshot, on_retry=retry
    )
    try:
        async with contextlib.aclosing(aiter(stream)) as events:
            async for event in events:
                progress.end()
                if as_json:
                    line = {"id": event.id, "event": event.event, "data": msgspec.Raw(event.data.encode())}
                    print_json(line)
                else:
                    ours = event.event.startswith("rowcast.")
                    name = "" if event.event == "message" else click.style(event.event, fg="yellow" if ours else "cyan")
                    click.echo(f"{click.style(event.id, dim=True)}  {name}{' ' if name else ''}{event.data}")
    except AuthError as error:
        hint = "" if token is not None else "; `rowcast token --user ID` makes one: give it by --token or ROWCAST_TOKEN"
        raise type(error)(f"{error}{hint}") from None
    finally:
        progress.end()


def post(
    load: Callable[[], Config], url: str, path: str, body: dict[str, Any], *, key: str | None, as_json: bool
) -> None:
    """Call the API, and print the position that it answers. `key` None: that of the configuration, which `load` loads.

    Raises what `client.call` raises, and `ConfigError` when there is no key.
    """
    if key is None:
        configured = load().api.key
        if configured is None:
            raise ConfigError("this call needs the API key: give --key, ROWCAST_API_KEY, or [api] key in the file")
        key = configured.get_secret_value()
    with terminal.working(f"waiting for {url}"):
        try:
            answer = client.call(url, path, body, key=key)
        except AuthError as error:
            raise type(error)(f"{error}; the key is that of [api] key there: --key, or ROWCAST_API_KEY") from None
        except Unavailable as error:
            hint = (
                "; is `rowcast serve` running there? (--url, or ROWCAST_URL)"
                if "can't be reached" in str(error)
                else ""
            )
            raise Unavailable(f"{error}{hint}", what=error.what) from None
    if as_json:
        print_json({"id": answer["id"]})
    else:
        click.echo(answer["id"])


def json_or_text(text: str) -> msgspec.Raw | str:
    """What is to be published: JSON as it is, or else a text. Raises `BadRequest` for what is neither."""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise BadRequest(
                f"DATA looks like JSON, but is none: {error}; in a shell put it in single quotes"
            ) from None
        return text
    return msgspec.Raw(text.encode())


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()
