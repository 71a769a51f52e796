"""Rate limits as a plain ASGI middleware; streams pass through it untouched.

Refused with 429, Retry-After and the RateLimit fields of draft-ietf-httpapi-ratelimit-headers-06:
`RateLimit-Limit`, `-Remaining` and `-Reset` (seconds). Its later versions put the same numbers into structured
fields, which few clients can read yet. The fields stand in the answers that pass, too, so that a client can slow
down before it is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowcast.addresses import Proxies, counted_as
from rowcast.http.responses import error
from rowcast.limits import Limiter, Verdict, covers

EXPOSED = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]
"""Header fields that a browser's script may read, if CORS says so."""

_UNLIMITED = frozenset({"/healthz", "/readyz", "/health", "/metrics"})


class Limited:
    """Counts requests by client address, and refuses those over a limit. `limiter` gives what counts (None: nothing).

    Not counted are streams (they are bounded by `max_streams`), webhooks (their senders have a secret, and would
    be retried for ever) and what monitors ask for.
    """

    def __init__(self, app: ASGIApp, limiter: Callable[[], Limiter | None], proxies: Proxies) -> None:
        self._app = app
        self._limiter = limiter
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limiter = self._limiter()
        if limiter is None or scope["type"] != "http" or is_exempt(scope["method"], path := path_of(scope)):
            await self._app(scope, receive, send)
            return
        verdict = await limiter.check(self._client(scope), path)
        if verdict is None:
            await self._app(scope, receive, send)
            return
        fields = _fields(verdict)
        if not verdict.allowed:
            window = "second" if verdict.limit.window == 1 else f"{verdict.limit.window} seconds"
            refusal = error(
                429,
                f"too many requests: {verdict.limit.amount} in {window} are allowed; try again in {verdict.reset} s",
                {"retry-after": str(verdict.reset), **fields},
            )
            await refusal(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in fields.items()]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._app(scope, receive, told)

    def _client(self, scope: Scope) -> str:
        peer = scope.get("client")
        forwarded = Headers(scope=scope).getlist("x-forwarded-for")
        return counted_as(self._proxies.client(peer[0] if peer else None, forwarded))


def is_exempt(method: str, path: str) -> bool:
    """Whether a request is not counted."""
    return path in _UNLIMITED or (method == "GET" and path == "/events") or covers("/webhooks", path)


def path_of(scope: Scope) -> str:
    """The path below the one that the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and covers(root, path) else path


def _fields(verdict: Verdict) -> dict[str, str]:
    return {
        "ratelimit-limit": str(verdict.limit.amount),
        "ratelimit-remaining": str(verdict.remaining),
        "ratelimit-reset": str(verdict.reset),
    }
