"""Both clients against a server that is played by the test, byte by byte, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from rowcast.client import Event, EventStream, SyncEventStream, call, events_url, service_url, streams
from rowcast.errors import AuthError, BadRequest, Forbidden, NotFound, RowcastError, TooLarge, Unavailable

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 %d X" % status, b"connection: close", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


class Script:
    """What the server says at each connection; the last one is said again and again. Keeps the requests' heads."""

    def __init__(self, *answers: bytes | list[bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[str] = []
        self.url = ""

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            for part in [said] if isinstance(said, bytes) else said:
                writer.write(part)
                await writer.drain()
                # Each part in a segment of its own.
                await asyncio.sleep(0)
        writer.close()


@contextlib.asynccontextmanager
async def playing(*answers: bytes | list[bytes]) -> AsyncIterator[Script]:
    script = Script(*answers)
    server = await asyncio.start_server(script.play, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the clients would make; none is waited for."""
    made: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            made.append(seconds)
        await real(0)

    class Ending(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout:
                made.append(timeout)
            return self.is_set()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(streams, "threading", SimpleNamespace(Event=Ending))
    return made


@pytest.fixture(params=["async", "sync"])
def open_stream(request: pytest.FixtureRequest) -> type[EventStream | SyncEventStream]:
    """Either of the two clients, which are to do the same."""
    return EventStream if request.param == "async" else SyncEventStream


Opener = type[EventStream] | type[SyncEventStream]


async def take(stream: EventStream | SyncEventStream, count: int) -> list[Event]:
    async with asyncio.timeout(30):
        if isinstance(stream, SyncEventStream):
            return await asyncio.to_thread(lambda: list(itertools.islice(stream, count)))
        events = []
        async with contextlib.aclosing(aiter(stream)) as received:
            async for event in received:
                events.append(event)
                if len(events) == count:
                    break
        return events


async def fails(stream: EventStream | SyncEventStream) -> RowcastError:
    with pytest.raises(RowcastError) as caught:
        await take(stream, 1)
    return caught.value


async def test_events_have_name_data_and_id(open_stream: Opener) -> None:
    body = (
        b"retry: 250\n\nid: e:1-0\nevent: rowcast.ready\ndata: {}\n\n: ping\n\n"
        b'id: e:2-0\ndata: {"a":\ndata: 1}\n\nevent: rowcast.bye\ndata: {"reason":"draining"}\n\n'
    )
    async with playing(OK + body) as script:
        stream = open_stream(script.url)
        events = await take(stream, 3)
    assert events == [
        Event("rowcast.ready", "{}", "e:1-0"),
        Event("message", '{"a":\n1}', "e:2-0"),
        Event("rowcast.bye", '{"reason":"draining"}', "e:2-0"),
    ]
    assert events[1].json() == {"a": 1}
    assert stream.retry == 0.25
    assert stream.last_event_id == "e:2-0"


async def test_every_line_separator_but_those_of_sse_is_data(open_stream: Opener) -> None:
    text = "\u2028\u2029\x85\x0b\x0c\x1c"
    for end in ("\n", "\r\n", "\r"):
        async with playing(OK + f"id: 1{end}data: a{text}b{end}{end}".encode()) as script:
            assert (await take(open_stream(script.url), 1))[0].data == f"a{text}b"


async def test_a_block_may_come_in_pieces(open_stream: Opener) -> None:
    body = 'id: 1\nevent: é\ndata: "🐘"\n\n'.encode()
    async with playing([OK, *(body[i : i + 1] for i in range(len(body)))]) as script:
        assert await take(open_stream(script.url), 1) == [Event("é", '"🐘"', "1")]


async def test_a_connection_that_breaks_before_its_first_position_leaves_the_one_before(open_stream: Opener) -> None:
    async with playing(OK + b"retry: 3000\n\nevent: x\ndata: 1\n\n") as script:
        stream = open_stream(script.url, last_event_id="e:1-0")
        assert await take(stream, 2) == [Event("x", "1", "e:1-0")] * 2
    assert "last-event-id: e:1-0" in script.requests[1]


async def test_a_snapshot_is_asked_for_and_begins_anew_when_it_was_cut(open_stream: Opener) -> None:
    first = b"id: e:1-0\nevent: rowcast.ready\ndata: {}\n\nid: \nevent: rowcast.subscriptions\ndata: {}\n\n"
    page = b"event: rowcast.snapshot\ndata: {}\n\n"
    async with playing(OK + first + page, OK + b"id: e:9-0\ndata: 1\n\n") as script:
        events = await take(open_stream(script.url, snapshot=True, last_event_id="e:0-0"), 4)
    assert [event.id for event in events] == ["e:1-0", "", "", "e:9-0"]
    assert all("GET /events?snapshot=1 " in request for request in script.requests)
    assert ["last-event-id" in request for request in script.requests] == [True, False]


async def test_token_topics_and_position_are_sent(open_stream: Opener) -> None:
    async with playing(OK + b"data: 1\n\n") as script:
        await take(open_stream(script.url, token="tok", last_event_id="e:1-0", topics=["a b", "c"]), 1)
    head = script.requests[0]
    assert head.startswith("GET /events?topics=a+b%2Cc HTTP/1.1")
    lines = head.lower().split("\r\n")
    assert "authorization: bearer tok" in lines
    assert "last-event-id: e:1-0" in lines
    assert "accept: text/event-stream" in lines


async def test_it_comes_back_with_the_last_position(open_stream: Opener, pauses: list[float]) -> None:
    first = OK + b"retry: 1500\n\nid: e:1-0\ndata: 1\n\nid: e:2-0\n\nid: e:3-0\ndata: cut"
    async with playing(first, OK + b"id: e:4-0\ndata: 2\n\n") as script:
        reasons: list[tuple[str, float]] = []
        events = await take(open_stream(script.url, on_retry=lambda *said: reasons.append(said)), 2)
    assert [event.data for event in events] == ["1", "2"]
    # The heartbeat moved the position on; the block that was cut did not.
    assert "last-event-id: e:2-0" in script.requests[1].lower()
    assert pauses == [1.5]
    assert reasons == [("the server ended the stream", 1.5)]


async def test_a_connection_that_breaks_is_one_that_ended(open_stream: Opener, pauses: list[float]) -> None:
    length = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"
    async with playing(length + b"data: 1\n\n", OK + b"data: 2\n\n") as script:
        assert len(await take(open_stream(script.url), 2)) == 2
    assert len(pauses) == 1


async def test_tries_that_fail_are_made_ever_more_slowly(open_stream: Opener, pauses: list[float]) -> None:
    refused = answer(503, b'{"status":503,"error":"draining"}')
    async with playing(*[refused] * 9, OK + b"data: 1\n\n", OK + b"data: 2\n\n") as script:
        reasons: list[str] = []
        await take(open_stream(script.url, on_retry=lambda reason, _: reasons.append(reason)), 2)
    assert all("503: draining" in reason for reason in reasons[:9])
    *failed, ended = pauses
    for number, pause in enumerate(failed, 1):
        assert pause == pytest.approx(min(3 * 2**number, 60), rel=0.25)
    assert ended == 3.0  # an event came: what failed before is forgotten


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_retry_after_is_waited_for(open_stream: Opener, pauses: list[float], status: int) -> None:
    async with playing(answer(status, b"{}", b"retry-after: 70"), OK + b"data: 1\n\n") as script:
        await take(open_stream(script.url), 1)
    assert pauses == [70.0]


async def test_nobody_listens_there_yet(open_stream: Opener, pauses: list[float]) -> None:
    async with playing(OK) as script:
        url = script.url

    class Enough(Exception):
        pass

    def count(reason: str, pause: float) -> None:
        if len(pauses) == 2:
            raise Enough

    with pytest.raises(Enough):
        await take(open_stream(url, on_retry=count), 1)


async def test_silence_is_a_broken_connection(open_stream: Opener, pauses: list[float]) -> None:
    hang = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + (b"data: 1\n\n" if hang.is_set() else b""))
        await writer.drain()
        hang.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    reasons: list[str] = []
    await take(open_stream(url, silence=0.1, on_retry=lambda reason, _: reasons.append(reason)), 1)
    server.close()
    assert reasons
    assert all(reason.startswith("ReadTimeout") for reason in reasons)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, AuthError), (403, Forbidden), (404, NotFound), (405, BadRequest), (301, BadRequest)],
)
async def test_a_refusal_for_good_is_raised_with_the_servers_words(
    open_stream: Opener, status: int, kind: type[RowcastError]
) -> None:
    async with playing(answer(status, b'{"status":1,"error":"because"}')) as script:
        error = await fails(open_stream(script.url, token="tok"))
    assert type(error) is kind
    assert "because" in str(error)
    assert "tok" not in str(error)
    assert len(script.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"detail":"x"}', b"\xff", b"x" * 200_000])
async def test_a_refusal_by_somebody_else(open_stream: Opener, body: bytes) -> None:
    async with playing(answer(404, body)) as script:
        assert "is it its address?" in str(await fails(open_stream(script.url)))


async def test_a_page_is_no_stream(open_stream: Opener) -> None:
    async with playing(answer(200, b"<html>", b"content-type: text/html")) as script:
        assert "no event stream" in str(await fails(open_stream(script.url)))


@pytest.mark.parametrize(
    ("given", "stream"),
    [
        ("http://h:1", "http://h:1/events"),
        ("http://h:1/", "http://h:1/events"),
        ("https://h/live/", "https://h/live/events"),
        ("http://h/live/events", "http://h/live/events"),
        ("http://h/events?token=x#y", "http://h/events"),
        ("http://[::1]:80", "http://[::1]/events"),
    ],
)
def test_the_stream_is_found(given: str, stream: str) -> None:
    assert events_url(given) == stream


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "/events", "http://[::1", "http://h:port"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(BadRequest, match="no URL"):
        service_url(url)


async def test_a_token_that_is_refused_is_asked_for_anew_once(open_stream: Opener, pauses: list[float]) -> None:
    asked: list[bool] = []

    def token(expired: bool) -> str:
        asked.append(expired)
        return "new" if expired else "old"

    async with playing(answer(401, b"{}"), OK + b"data: 1\n\n") as script:
        await take(open_stream(script.url, token=token), 1)
    assert asked == [False, True]
    assert ["bearer new" in request.lower() for request in script.requests] == [False, True]
    assert pauses == []
    async with playing(answer(401, b"{}")) as script:
        assert type(await fails(open_stream(script.url, token=token))) is AuthError
    assert len(script.requests) == 2


@pytest.mark.parametrize("reason", ["token_expired", "disconnected"])
async def test_a_stream_whose_token_is_over_comes_back_with_another(open_stream: Opener, reason: str) -> None:
    bye = f'id: e:1-0\nevent: rowcast.bye\ndata: {{"reason":"{reason}"}}\n\n'.encode()
    async with playing(OK + bye, OK + b"data: 1\n\n") as script:
        events = await take(open_stream(script.url, token=lambda expired: "new" if expired else "old"), 2)
    assert [event.event for event in events] == ["rowcast.bye", "message"]
    assert "bearer new" in script.requests[1].lower()


async def test_a_token_may_take_its_time() -> None:
    async def token(expired: bool) -> str:
        await asyncio.sleep(0)
        return "tok"

    async with playing(OK + b"data: 1\n\n") as script:
        await take(EventStream(script.url, token=token), 1)
    assert "bearer tok" in script.requests[0].lower()


async def test_rows_are_up_to_date_with_the_event_that_came(open_stream: Opener) -> None:
    page = b'event: rowcast.snapshot\ndata: {"topic":"t","rows":[{"k":1}],"key":["k"],"first":true,"last":true}\n\n'
    change = b'id: e:1-0\ndata: {"topic":"t","action":"insert","record":{"k":2}}\n\n'
    async with playing(OK + page + change) as script:
        stream = open_stream(script.url, snapshot=True)
        rows = stream.rows("t")
        await take(stream, 2)
        assert rows.get() == ({"k": 1}, {"k": 2})
        with pytest.raises(RuntimeError, match="before the stream is iterated"):
            stream.rows()


async def test_a_stream_that_waits_for_bytes_is_closed_from_another_thread() -> None:
    received = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"data: 1\n\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    stream = SyncEventStream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", silence=300)
    stream.rows().listen(lambda: None)

    def follow() -> list[Event]:
        events = []
        for event in stream:
            events.append(event)
            loop.call_soon_threadsafe(received.set)
        return events

    async with asyncio.timeout(60):
        following = asyncio.create_task(asyncio.to_thread(follow))
        await received.wait()
        stream.close()
        assert len(await following) == 1
        assert await asyncio.to_thread(list, stream) == []
    server.close()


async def test_run_receives_until_it_is_cancelled_or_closed(open_stream: Opener) -> None:
    change = b'data: {"topic":"t","action":"insert","record":{"id":2}}\n\n'
    async with playing(OK + change) as script, asyncio.timeout(60):
        stream = open_stream(script.url)
        rows, loop, came = stream.rows(), asyncio.get_running_loop(), asyncio.Event()
        rows.listen(lambda: loop.call_soon_threadsafe(came.set))
        if isinstance(stream, SyncEventStream):
            running = asyncio.create_task(asyncio.to_thread(stream.run))
            await came.wait()
            stream.close()
            await running
        else:
            running = asyncio.create_task(stream.run())
            await came.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert rows.get() == ({"id": 2},)


# The API


async def in_thread(*arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(call, *arguments, **named)


async def test_a_call_sends_the_key_and_returns_the_answer() -> None:
    async with playing(answer(202, b'{"id":"e:1-0"}')) as script:
        assert await in_thread(script.url + "/", "/publish", {"topic": "t"}, key="k") == {"id": "e:1-0"}
    head = script.requests[0].lower()
    assert head.startswith("post /publish")
    assert "authorization: bearer k" in head


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, AuthError), (403, Forbidden), (404, NotFound), (413, TooLarge), (503, Unavailable)],
)
async def test_a_call_that_is_refused(status: int, kind: type[RowcastError]) -> None:
    async with playing(answer(status, b'{"error":"because"}')) as script:
        with pytest.raises(kind, match=f"{status}: because") as caught:
            await in_thread(script.url, "/publish", {}, key="k")
    assert type(caught.value) is kind


async def test_a_call_that_nobody_answers() -> None:
    async with playing(OK) as script:
        url = script.url
    with pytest.raises(Unavailable, match="can't be reached"):
        await in_thread(url, "/publish", {}, key="k")


async def test_a_call_that_somebody_else_answers() -> None:
    async with playing(answer(200, b"<html>")) as script:
        with pytest.raises(BadRequest, match="does not answer like Rowcast"):
            await in_thread(script.url, "/publish", {}, key="k")
