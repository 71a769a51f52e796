"""The decisions of a client, without IO: how long it waits, and what it makes of answers."""

from __future__ import annotations

import pytest

from rowcast.client import Session
from rowcast.client.session import LONGEST_PAUSE
from rowcast.errors import AuthError, BadRequest, Forbidden


def session(**options: object) -> Session:
    return Session("http://h", **options)  # type: ignore[arg-type]


def refused(one: Session, status: int, *, renewable: bool = False, **headers: str) -> float:
    return one.refused(status, headers, b'{"error":"words"}', renewable=renewable).pause


def test_pauses_grow_up_to_a_limit_and_a_word_of_the_server_ends_that() -> None:
    one = session()
    pauses = [one.broke("gone").pause for _ in range(20)]
    for number, pause in enumerate(pauses, 1):
        assert pause == pytest.approx(min(3 * 2**number, LONGEST_PAUSE), rel=0.25)
    assert len(set(pauses)) == len(pauses), "each client waits a time of its own"
    one.begin()
    assert list(one.feed(b"retry: 90000\n\n")) == []
    assert one.ended().pause == 90.0
    assert one.broke("gone").pause == pytest.approx(90.0, rel=0.25)


def test_a_position_is_of_the_last_block_that_came_whole() -> None:
    one = session(last_event_id="e:1-0")
    one.begin()
    list(one.feed(b"id: e:2-0\n\nid: e:3-0\ndata: cut"))
    one.begin()
    assert one.headers(None)["last-event-id"] == "e:2-0"
    list(one.feed(b"id: \n\n"))
    assert "last-event-id" not in one.headers("t")


def test_what_is_not_now_is_put_off_and_what_is_never_is_raised() -> None:
    one = session()
    for status in (408, 429, 500, 503):
        one.begin()
        assert refused(one, status, **{"retry-after": "1000"}) == 1000.0
    for status, kind in ((400, BadRequest), (403, Forbidden), (404, BadRequest), (204, BadRequest), (302, BadRequest)):
        with pytest.raises(kind, match="words"):
            refused(session(), status, renewable=True)


def test_a_token_is_asked_for_anew_once_where_that_can_be() -> None:
    with pytest.raises(AuthError):
        refused(session(), 401)
    one = session()
    assert not one.begin()
    assert refused(one, 401, renewable=True) == 0.0
    assert one.begin()
    with pytest.raises(AuthError):
        refused(one, 401, renewable=True)
    two = session()
    two.begin()
    list(two.feed(b'event: rowcast.bye\ndata: {"reason":"draining"}\n\n'))
    assert not two.begin()
    list(two.feed(b'event: rowcast.bye\ndata: {"reason":"token_expired"}\n\n'))
    assert two.begin()
    assert not two.begin()


@pytest.mark.parametrize("kind", ["text/html", "", "application/json", "text/event-streams"])
def test_what_is_no_event_stream_is_said(kind: str) -> None:
    with pytest.raises(BadRequest, match="no event stream"):
        session().accept({"content-type": kind})
    session().accept({"content-type": "Text/Event-Stream; charset=utf-8"})
