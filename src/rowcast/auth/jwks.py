"""The issuer's public keys: a JWKS, fetched without blocking and kept.

Source: RFC 7517 (JSON Web Key). Keys that are known go on working while the issuer is down. An unknown key id
means that keys were rotated: the set is fetched again, by one request for all who wait, and at most every
REFRESH_PAUSE seconds, so that made-up key ids can't be used to flood the issuer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx
import jwt

from rowcast.errors import AuthError, Unavailable

logger = logging.getLogger(__name__)

REFRESH_PAUSE = 5.0
"""Seconds between two fetches that unknown key ids ask for."""

MAX_AGE = 600.0
"""Seconds after which the set is fetched again in the background, so that withdrawn keys go."""

TIMEOUT = 5.0
MAX_KEYS = 100


class Jwks:
    """The key set at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None) -> jwt.PyJWK:
        """The key with an id; without an id, the only key there is.

        Raises `AuthError` when there is no such key, `Unavailable` when the issuer has never answered.
        """
        now = time.monotonic()
        found = self._find(kid)
        if found is not None:
            if now - self._fetched > MAX_AGE and now - self._tried > REFRESH_PAUSE:
                self._refresh()
            return found
        if now - self._tried > REFRESH_PAUSE or self._fetching is not None:
            await asyncio.shield(self._refresh())
            found = self._find(kid)
            if found is not None:
                return found
        if self._fetched == float("-inf"):
            raise Unavailable("the token issuer's keys can't be fetched", what="issuer")
        raise AuthError("the token is signed with a key that its issuer does not publish")

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _refresh(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._tried = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._done)
        return self._fetching

    def _done(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                response = await client.get(self._url, headers={"accept": "application/json"})
                response.raise_for_status()
                keys = _parse(response.json())
        except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
            logger.warning("the key set at %s can't be fetched: %s", self._url, error or type(error).__name__)
            return
        self._keys = keys
        self._fetched = time.monotonic()


def _parse(document: Any) -> dict[str, jwt.PyJWK]:
    """The signing keys of a JWKS by id; those that can't be used are left out (RFC 7517, section 5)."""
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("it is no JSON Web Key Set")
    keys: dict[str, jwt.PyJWK] = {}
    for number, item in enumerate(document["keys"][:MAX_KEYS]):
        if not isinstance(item, dict) or item.get("use", "sig") != "sig" or item.get("kty") == "oct":
            continue
        try:
            keys[str(item.get("kid", f"#{number}"))] = jwt.PyJWK(item)
        except jwt.PyJWTError:
            continue
    return keys
