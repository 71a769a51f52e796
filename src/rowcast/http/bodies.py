"""Reading request bodies: bounded while they are read, and checked against a struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from rowcast.errors import BadRequest, TooLarge

T = TypeVar("T", bound=msgspec.Struct)

OVERHEAD = 64 * 1024
"""Bytes that a body may have over `max_event`: names, and JSON written with spaces."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body, also of a chunked request. Raises `TooLarge` as soon as it is over `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
        raise TooLarge(f"the body has {declared[:18]} bytes; at most {limit} are accepted")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body has over {limit} bytes, which is all that is accepted")
    return bytes(body)


async def read_json(request: Request, kind: type[T], limit: int) -> T:
    """The body as `kind`. Raises `BadRequest` that names the field that is wrong, or `TooLarge`."""
    body = await read_body(request, limit)
    try:
        # JSON text that is passed on as it is would not be checked for this by the decoder.
        body.decode()
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deep") from None


def compact(text: msgspec.Raw) -> msgspec.Raw:
    """JSON text on one line, its numbers digit by digit as they were written."""
    return msgspec.Raw(msgspec.json.format(bytes(text), indent=-1))


def name(what: str, value: str, limit: int = 512) -> str:
    """Check a topic, user or event name. Raises `BadRequest`."""
    if not value or len(value) > limit or any(char in value for char in "\r\n\0"):
        raise BadRequest(f"{what} must have 1 to {limit} characters, and no CR, LF or NUL")
    return value
