"""Keeping tokens out of access logs: browsers' EventSource can send them in the query only."""

from __future__ import annotations

import logging
from urllib.parse import unquote_plus

ACCESS_LOGGER = "uvicorn.access"


class RedactTokens(logging.Filter):
    """Replaces the value of `?token=` by `…` in every argument of a log record that holds a query."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is always kept."""
        if isinstance(record.args, tuple):
            record.args = tuple(redact(argument) if isinstance(argument, str) else argument for argument in record.args)
        return True


def redact(path: str) -> str:
    """A path with its query, without the value of any parameter that is read as `token`."""
    target, question, query = path.partition("?")
    if not question:
        return path
    return target + question + "&".join(_redact_pair(pair) for pair in query.split("&"))


def install() -> None:
    """Have uvicorn's access log redacted in this process. Doing it twice is fine."""
    logger = logging.getLogger(ACCESS_LOGGER)
    if not any(isinstance(present, RedactTokens) for present in logger.filters):
        logger.addFilter(RedactTokens())


def _redact_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    # A name may be written with escapes, `%74oken`, and is read as `token` all the same.
    return f"{name}=…" if equals and unquote_plus(name) == "token" else pair
