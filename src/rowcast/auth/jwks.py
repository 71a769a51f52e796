"""The issuer's public keys: a JWKS, fetched without blocking and kept.

Source: RFC 7517 (JSON Web Key). Keys that are known go on working while the issuer is down. An unknown key id
means that keys were rotated: the set is fetched again, by one request for all who wait. Made-up key ids can't
be used to flood the issuer: such fetches come out of a small allowance that grows slowly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import msgspec

from rowcast.errors import AuthError, ConfigError, Unavailable
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

ALLOWANCE = 5.0
"""Fetches for unknown key ids that can be made at once, and …"""

REGAIN = 5.0
"""… seconds until one more may be made."""

MAX_AGE = 300.0
"""Seconds after which the set is fetched again in the background, so that withdrawn keys go."""

TIMEOUT = 5.0
MAX_BYTES = 1 << 20
MAX_KEYS = 200


class Jwks:
    """The key set at `url`. `clock` gives monotonic seconds.

    Raises `ConfigError` when `url` is no http(s) URL.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"[auth] jwks_url {url!r} is no URL: {error}") from None
        if parsed.scheme not in ("https", "http") or not parsed.host:
            raise ConfigError(f"[auth] jwks_url {url!r} must begin with https:// and name a host")
        self._url = url
        self._version = 0
        # Made once: reading all certificates takes many milliseconds, in which no stream would get anything.
        self._ssl = httpx.create_ssl_context() if parsed.scheme == "https" else False
        self._clock = clock
        self._keys: dict[str, dict[str, Any]] = {}
        self._made: dict[tuple[str, str], jwt.PyJWK] = {}
        self._fetched: float | None = None
        self._failed = False
        self._tried = float("-inf")
        self._allowance = ALLOWANCE
        self._counted = clock()
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """The key with an id, for an algorithm; without an id, the only key there is.

        Raises `AuthError` when there is no such key, and `Unavailable` when that can't be known now: the
        issuer does not answer, or was asked too often.
        """
        found = self._find(kid)
        if found is not None:
            return self._make(found, algorithm)
        if self._fetching is None and not self._may_fetch():
            raise Unavailable("the token's key is not known, and its issuer was asked a moment ago", what="issuer")
        await asyncio.shield(self._refresh())
        found = self._find(kid)
        if found is not None:
            return self._make(found, algorithm)
        if self._failed:
            raise Unavailable("the token's key is not known, and its issuer does not answer", what="issuer")
        raise AuthError("the token is signed with a key that its issuer does not publish")

    def version(self) -> int:
        """Counts the sets that differed from the one before: what was verified by an older one must be again.

        Has an old set fetched anew in the background, so it is to be asked for each token.
        """
        self._refresh_old()
        return self._version

    # Inside

    def _find(self, kid: str | None) -> str | None:
        """The id under which the key is kept."""
        if kid is not None:
            return kid if kid in self._keys else None
        return next(iter(self._keys)) if len(self._keys) == 1 else None

    def _make(self, name: str, algorithm: str) -> jwt.PyJWK:
        """The key, for the algorithm that the token names, if it is one of the key's: that the key's type is for
        it is checked by PyJWT."""
        made = self._made.get((name, algorithm))
        if made is None:
            document = self._keys[name]
            if document.get("alg", algorithm) != algorithm:
                raise AuthError("the token is signed by another algorithm than its key is for")
            try:
                made = self._made[name, algorithm] = jwt.PyJWK(document, algorithm)
            except jwt.PyJWTError:
                raise AuthError("the token's key can't be used with its algorithm") from None
        return made

    def _may_fetch(self) -> bool:
        """Take one fetch out of the allowance, if there is one."""
        now = self._clock()
        self._allowance = min(ALLOWANCE, self._allowance + (now - self._counted) / REGAIN)
        self._counted = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _refresh_old(self) -> None:
        """Fetch in the background when the set is old; while the issuer is down, not more often than REGAIN."""
        now = self._clock()
        if self._fetched is not None and now - self._fetched > MAX_AGE and now - self._tried > REGAIN:
            self._refresh()

    def _refresh(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._done)
        return self._fetching

    def _done(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                keys = _parse(await self._download())
        except (httpx.HTTPError, ValueError, TimeoutError, RecursionError) as error:
            self._failed = True
            logger.warning(
                "keys_unreachable", "the key set at %s can't be fetched: %s", self._url, error or type(error).__name__
            )
            return
        self._failed = False
        self._fetched = self._clock()
        if keys != self._keys:
            self._keys = keys
            self._made.clear()
            self._version += 1

    async def _download(self) -> bytes:
        content = bytearray()
        async with (
            httpx.AsyncClient(timeout=TIMEOUT, verify=self._ssl) as client,
            client.stream("GET", self._url, headers={"accept": "application/json"}) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"it answers {response.status_code}")
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise ValueError(f"it has over {MAX_BYTES} bytes")
        return bytes(content)


def _parse(content: bytes) -> dict[str, dict[str, Any]]:
    """The signing keys of a JWKS by id; those that can't be used are left out (RFC 7517, section 5).

    A symmetric key is never one of them: the set is public. Raises ValueError when it is no JWKS.
    """
    document = msgspec.json.decode(content)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("it is no JSON Web Key Set")
    keys: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(document["keys"][:MAX_KEYS]):
        if isinstance(item, dict) and item.get("use", "sig") == "sig" and item.get("kty") in ("RSA", "EC", "OKP"):
            keys[str(item.get("kid", f"#{number}"))] = item
    return keys
