"""The options that several commands have, each with its environment variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FILE = "rowcast.toml"
"""The configuration that is read when none is named, if it is there."""


def duration(context: click.Context, parameter: click.Parameter, value: str) -> float:
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


def json_option(name: str) -> Callable[[F], F]:
    """--json, for commands whose answer a program may read. `name` is the command's, in capitals."""
    return option(
        "--json", "as_json", envvar=f"ROWCAST_{name}_JSON", is_flag=True, help="The answer as JSON, in one line."
    )
