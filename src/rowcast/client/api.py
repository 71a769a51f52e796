"""Calls of a service's API, and what its answers mean."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from rowcast.errors import AuthError, BadRequest, Forbidden, NotFound, RowcastError, TooLarge, Unavailable

_FINAL: dict[int, type[RowcastError]] = {401: AuthError, 403: Forbidden, 404: NotFound, 413: TooLarge}


def events_url(url: str) -> str:
    """The stream's address of a service's address. Raises `BadRequest` when it is no http(s) URL."""
    return service_url(url).removesuffix("/events") + "/events"


def service_url(url: str) -> str:
    """A service's address without a slash at its end. Raises `BadRequest` when it is no http(s) URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadRequest(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadRequest(f"{url!r} is no URL of a service; write it like http://127.0.0.1:8080")
    return str(parsed.copy_with(query=None, fragment=None)).rstrip("/")


def call(url: str, path: str, body: dict[str, Any], *, key: str, timeout: float = 15.0) -> Any:
    """POST to the API of the service at `url` with the API key; returns what it answers, decoded.

    `timeout` in seconds, for each step. Raises the error that the answer's status stands for, with the
    server's words, and `Unavailable` when there is no answer.
    """
    address = service_url(url) + path
    try:
        response = httpx.post(
            address,
            content=msgspec.json.encode(body),
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
            timeout=timeout,
        )
    except httpx.TransportError as error:
        raise Unavailable(f"{address} can't be reached: {error or type(error).__name__}", what="server") from None
    if response.status_code >= 400:
        raise error_of(response.status_code, response.content, address)
    try:
        return msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        raise BadRequest(f"{address} does not answer like Rowcast; is it its address?") from None


def error_of(status: int, content: bytes, address: str) -> RowcastError:
    """The error that a status stands for, with the server's words."""
    try:
        words = msgspec.json.decode(content)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        words = "an answer that is not Rowcast's; is it its address?"
    message = f"{address} says {status}: {words}"
    if status in (408, 429) or status >= 500:
        return Unavailable(message, what="server")
    return _FINAL.get(status, BadRequest)(message)
