"""What a replication session asks for, without a server."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowcast.sources.activity import OpenTransaction
from rowcast.sources.explain import explain
from rowcast.sources.wal import SessionEnded, options


def test_settings_become_options() -> None:
    assert options({"DateStyle": "ISO, YMD", "TimeZone": "UTC"}) == "-c DateStyle=ISO,\\ YMD -c TimeZone=UTC"


@pytest.mark.parametrize(
    "url", ["postgresql://h/d?options=-c%20search_path%3Dapp", "host=h options='-c search_path=app'"]
)
def test_options_of_the_url_stay_and_ours_come_last(url: str) -> None:
    assert options({"TimeZone": "UTC"}, url) == "-c search_path=app -c TimeZone=UTC"


def test_a_url_without_options() -> None:
    assert options({"TimeZone": "UTC"}, make_conninfo("postgresql://h/d")) == "-c TimeZone=UTC"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (psycopg.errors.ConfigurationLimitExceeded("voll"), "max_replication_slots"),
        (psycopg.errors.TooManyConnections("voll"), "max_wal_senders"),
        (psycopg.errors.InsufficientPrivilege("nein"), 'ALTER ROLE "bob" REPLICATION'),
        (psycopg.errors.ObjectNotInPrerequisiteState("braucht wal_level >= logical"), "SET wal_level = logical"),
        (SessionEnded("voll", "53300"), "max_wal_senders"),
    ],
)
def test_an_error_is_explained_by_its_code_whatever_its_language(error: Exception, advice: str) -> None:
    text = explain(error, role="bob")
    assert text.startswith(str(error))
    assert advice in text


def test_an_error_that_we_know_nothing_of_stays_one_line() -> None:
    assert explain(psycopg.OperationalError("connection failed:\n\tno  route")) == "connection failed: no route"
    assert explain(TimeoutError()) == "TimeoutError"
    assert explain(psycopg.errors.ObjectNotInPrerequisiteState("the slot is invalid")) == "the slot is invalid"


def test_an_open_transaction_says_who_it_is_and_how_to_end_it() -> None:
    session = OpenTransaction(42, "ann", "psql", "idle in transaction", 90, None)
    assert str(session) == (
        "a transaction of session 42 (ann, psql, idle in transaction), open for 90 s; "
        "end it, or run: SELECT pg_terminate_backend(42)"
    )
    prepared = OpenTransaction(0, "ann", "", "prepared", 90, "gid-1")
    assert str(prepared) == "the prepared transaction 'gid-1'; run: COMMIT PREPARED or ROLLBACK PREPARED 'gid-1'"
