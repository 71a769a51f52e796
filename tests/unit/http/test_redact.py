"""Tokens in access logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from rowcast.http import redact


@pytest.mark.parametrize(
    ("path", "redacted"),
    [
        ("/events", "/events"),
        ("/events?topics=a", "/events?topics=a"),
        ("/events?token=abc", "/events?token=…"),
        ("/events?token=abc&topics=a", "/events?token=…&topics=a"),
        ("/events?topics=a&token=abc&token=def", "/events?topics=a&token=…&token=…"),
        ("/events?%74oken=abc", "/events?%74oken=…"),
        ("/events?%74%6F%6b%65%6e=abc", "/events?%74%6F%6b%65%6e=…"),
        ("/events?token=a=b?token=c", "/events?token=…"),
        ("/events?token", "/events?token"),
        ("/events?tokens=abc&mytoken=x", "/events?tokens=abc&mytoken=x"),
        ("/a?b?token=abc", "/a?b?token=abc"),
    ],
)
def test_only_the_value_of_token_goes(path: str, redacted: str) -> None:
    assert redact.redact(path) == redacted


def test_records_keep_their_other_arguments(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.access")
    logger.addFilter(redact.RedactTokens())
    with caplog.at_level(logging.INFO):
        logger.info('%s "%s" %d', "1.2.3.4:5", "/events?token=abc", 200)
        logger.info("%(path)s", {"path": "as it is"})
        logger.info("no arguments")
    assert [record.getMessage() for record in caplog.records] == [
        '1.2.3.4:5 "/events?token=…" 200',
        "as it is",
        "no arguments",
    ]


def test_it_is_installed_once() -> None:
    redact.install()
    redact.install()
    filters = logging.getLogger(redact.ACCESS_LOGGER).filters
    assert len([one for one in filters if isinstance(one, redact.RedactTokens)]) == 1


@pytest.fixture
def access_log() -> Iterator[logging.Logger]:
    """uvicorn's access logger; afterwards its loggers are put back as they were."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", redact.ACCESS_LOGGER)]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield loggers[-1]
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_it_survives_uvicorns_own_configuration_of_logging(access_log: logging.Logger) -> None:
    # An application that mounts us is imported before or after uvicorn has configured its loggers.
    redact.install()
    uvicorn.Config("nowhere:app")
    assert any(isinstance(one, redact.RedactTokens) for one in access_log.filters)


def test_the_query_that_httpx_writes_is_understood() -> None:
    assert redact.redact(str(httpx.URL("http://x/events", params={"token": "a b&c"}))).endswith("?token=…")
