"""An application with Rowcast on a real socket, in a thread of its own, and streams of it, for tests of any style.

Nothing here is async: a test waits, in its own thread, for what must come.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp

from rowcast.auth.jwt import mint
from rowcast.cast import Rowcast
from rowcast.client import Event, SyncEventStream
from rowcast.errors import SetupError
from rowcast.testing.serving import serving

PATIENCE = 30.0
"""Seconds that anything is waited for, unless a test says otherwise."""

_MARK = "rowcast-testing-mark"


class LiveServer:
    """Serves an application on a free port; a context manager.

    `cast` is the Rowcast, `app` the application that it is mounted in, at `path` (None: Rowcast alone).
    Raises `SetupError`, or what the start raised, on entry.
    """

    def __init__(self, cast: Rowcast, app: ASGIApp | None = None, *, path: str = "") -> None:
        self.cast = cast
        self.url = ""
        """Where Rowcast is: with `/events`, the address of the streams."""
        self._app = app if app is not None else cast.asgi()
        self._path = path
        self._ready: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="rowcast-testing")

    def token(self, user: str, *, topics: Iterable[str] = (), ttl: float = 3600.0) -> str:
        """A token for a user, with topics of its own, valid for `ttl` seconds."""
        return mint(self.cast.config, user, topics=list(topics), ttl=ttl)

    def stream(
        self,
        user: str | None = None,
        *,
        topics: Iterable[str] = (),
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        last_event_id: str | None = None,
        snapshot: bool = False,
    ) -> LiveStream:
        """A user's stream, to be used as a context manager.

        `topics` stand in the user's token. `token`: another one. `headers` go along, as a session's cookie does where
        the application says who it is. `last_event_id` resumes, `snapshot` asks for the current rows first.
        """
        if token is None and user is not None:
            token = self.token(user, topics=topics)
        return LiveStream(self, token=token, headers=headers, last_event_id=last_event_id, snapshot=snapshot)

    def publish(self, topic: str | None = None, data: Any = None, **options: Any) -> str:
        """`Rowcast.publish`; returns the position."""
        return str(self._call(lambda: self.cast.publish(topic, data, **options)))

    def resubscribe(self, user: str) -> str:
        """`Rowcast.resubscribe`; returns the position."""
        return str(self._call(lambda: self.cast.resubscribe(user)))

    def disconnect(self, user: str) -> str:
        """`Rowcast.disconnect`; returns the position."""
        return str(self._call(lambda: self.cast.disconnect(user)))

    def _call(self, function: Callable[[], Any]) -> Any:
        assert self._loop is not None, "the server has not been started"
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(PATIENCE)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        try:
            async with serving(self._app) as client:
                self._ready.set_result(str(client.base_url).rstrip("/"))
                await self._ending.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error if isinstance(error, Exception) else SetupError("it did not start"))

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._ready.result(PATIENCE * 2) + self._path
        if not self.cast.running:
            # Its lifespan was told to nobody; a request would start it as well.
            self._call(self.cast.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._ending is not None
        self._call(self.cast.stop)
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(PATIENCE)


class LiveStream:
    """One connection to a stream, everything that came over it, and waiting for what must come.

    Unlike a client it does not come back: a test wants to see the end.
    """

    def __init__(
        self,
        server: LiveServer,
        *,
        token: str | None,
        headers: Mapping[str, str] | None = None,
        last_event_id: str | None = None,
        snapshot: bool = False,
    ) -> None:
        self.events: list[Event] = []
        """Every event so far, in order, those of the service itself included."""
        self.ended = False
        """Whether the server ended the stream, or refused it."""
        self._server = server
        self._stream = SyncEventStream(
            server.url,
            token=token,
            headers=headers,
            last_event_id=last_event_id,
            snapshot=snapshot,
            silence=600.0,
            on_retry=lambda reason, pause: self._stream.close(),
        )
        self._error: Exception | None = None
        self._next = 0
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="rowcast-testing-stream")

    @property
    def position(self) -> str:
        """The position to resume from."""
        return self._stream.last_event_id

    def expect(
        self,
        event: str = "message",
        *,
        where: Callable[[Event], bool] | None = None,
        timeout: float = PATIENCE,
        **data: Any,
    ) -> Event:
        """Wait for the next event of a name that fits, and return it; the events before it are passed over.

        `data` are fields that the event's data must have: of an object, such as `record`, those that are named.
        `where` decides further. Raises AssertionError, with what came instead, after `timeout` seconds or when the
        stream has ended; and what refused the stream.
        """

        def fits(one: Event) -> bool:
            return one.event == event and (not data or _has(one.json(), data)) and (where is None or where(one))

        def found() -> int | None:
            return next((at for at in range(self._next, len(self.events)) if fits(self.events[at])), None)

        with self._moved:
            self._moved.wait_for(lambda: found() is not None or self.ended, timeout)
            at = found()
            if at is None:
                if self._error is not None:
                    raise self._error
                rest = "\n".join(f"  {one.event} {one.data}" for one in self.events[self._next :]) or "  nothing"
                why = "the stream ended" if self.ended else f"{timeout:g} s went by"
                raise AssertionError(f"no {event} with {data}: {why}, and what came was\n{rest}")
            self._next = at + 1
            return self.events[at]

    def ready(self) -> dict[str, Any]:
        """Wait until everything from now on will arrive; returns the data of `rowcast.ready`."""
        for one in self.events:
            if one.event == "rowcast.ready":
                told: dict[str, Any] = one.json()
                return told
        self.expect("rowcast.ready")
        return self.ready()

    def expect_nothing(self) -> None:
        """See to it that nothing came behind what was expected, of all that was committed before this call.

        No time is waited: a message is sent after it, to this user alone, and when that is here so is everything
        before it. Events of the service itself do not count.
        """
        user = self.ready()["user"]
        at = self._next
        self._server.publish(user=user, event=_MARK)
        self.expect(_MARK)
        came = [one for one in self.events[at : self._next - 1] if not one.event.startswith(("rowcast.", _MARK))]
        assert not came, "nothing should have come, but\n" + "\n".join(f"  {one.event} {one.data}" for one in came)

    def _read(self) -> None:
        try:
            for event in self._stream:
                with self._moved:
                    self.events.append(event)
                    self._moved.notify_all()
        except Exception as error:
            self._error = error
        finally:
            with self._moved:
                self.ended = True
                self._moved.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        self.ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._thread.join(PATIENCE)


def _has(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one; an object may have more than what is wanted of it."""
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(name in value and _has(value[name], wanted[name]) for name in wanted)
    return bool(value == wanted)
