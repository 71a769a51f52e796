"""Who is asking: JSON Web Tokens (RFC 7519, RFC 8725) from a header, a cookie or the query.

The algorithm is decided by the configuration, never by the token: a secret allows HS*, a JWKS the asymmetric
ones. A token that was verified is remembered by its hash, since verifying costs more than all the rest of
opening a stream; its expiry and revocation are checked each time.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

import jwt
from starlette.requests import HTTPConnection

from rowcast.auth.jwks import Jwks
from rowcast.config import Config
from rowcast.core.grants import Grant
from rowcast.errors import AuthError, ConfigError, Forbidden

SYMMETRIC = ("HS256", "HS384", "HS512")
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

MAX_TOKEN = 8 * 1024
"""Bytes; proxies refuse longer request heads anyway."""

MAX_USER = 256
MAX_TOPICS = 1000
CACHED_TOKENS = 10_000
REVOKED_USERS = 100_000

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_REASONS: list[tuple[type[jwt.PyJWTError], str]] = [
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is from another issuer"),
    (jwt.InvalidAlgorithmError, "the token is signed by an algorithm that is not accepted here"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidIssuedAtError, "the token was issued in the future"),
]


class Authenticator:
    """Verifies tokens as `[auth]` says. Raises `ConfigError` for algorithms that don't fit the keys."""

    def __init__(self, config: Config) -> None:
        auth = self._auth = config.auth
        self._origins = frozenset(config.server.cors_origins)
        self._secret = None if auth.secret is None else auth.secret.get_secret_value()
        self._jwks = None if auth.jwks_url is None else Jwks(auth.jwks_url)
        self._algorithms = self._pick_algorithms()
        self._verified: OrderedDict[bytes, Grant] = OrderedDict()
        self._revoked: OrderedDict[str, float] = OrderedDict()

    async def authenticate(self, request: HTTPConnection) -> Grant:
        """The grant of a request's token. Raises `AuthError`, or `Unavailable` when the issuer is needed."""
        token = self._token(request)
        digest = hashlib.sha256(token.encode()).digest()
        grant = self._verified.get(digest)
        if grant is None:
            grant = await self.verify(token)
            self._verified[digest] = grant
            if len(self._verified) > CACHED_TOKENS:
                self._verified.popitem(last=False)
        now = time.time()
        if grant.expires_at is not None and grant.expires_at + self._auth.leeway <= now:
            raise AuthError("the token has expired")
        self._check_revoked(grant)
        return grant

    async def verify(self, token: str) -> Grant:
        """The grant of a token. Raises as `authenticate`."""
        if len(token) > MAX_TOKEN:
            raise AuthError(f"the token is longer than {MAX_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in self._algorithms:
                raise jwt.InvalidAlgorithmError
            key = await self._key(str(algorithm), header.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[str(algorithm)],
                audience=self._auth.audience,
                issuer=self._auth.issuer,
                leeway=self._auth.leeway,
                options={"verify_aud": self._auth.audience is not None},
            )
        except jwt.PyJWTError as error:
            reason = next((text for kind, text in _REASONS if isinstance(error, kind)), "the token is malformed")
            raise AuthError(reason) from None
        return self._grant(claims)

    def revoke(self, user: str, at: float) -> None:
        """Refuse the user's tokens that were issued before `at` (Unix time in seconds)."""
        self._revoked[user] = max(at, self._revoked.pop(user, 0.0))
        if len(self._revoked) > REVOKED_USERS:
            self._revoked.popitem(last=False)

    # Inside

    def _pick_algorithms(self) -> frozenset[str]:
        """Those that are configured and fit the keys: a public key must never be taken for a secret."""
        possible = set(SYMMETRIC if self._secret is not None else ())
        if self._jwks is not None:
            possible.update(ASYMMETRIC)
        if self._auth.algorithms is None:
            return frozenset(possible)
        unknown = set(self._auth.algorithms) - {*SYMMETRIC, *ASYMMETRIC}
        if unknown:
            raise ConfigError(
                f"[auth] algorithms: {min(unknown)!r} is not accepted; choose from "
                f"{', '.join((*SYMMETRIC, *ASYMMETRIC))}"
            )
        chosen = frozenset(self._auth.algorithms) & possible
        if not chosen and possible:
            raise ConfigError("[auth] algorithms: none fits the key; secret is for HS*, jwks_url for the others")
        return chosen

    async def _key(self, algorithm: str, kid: object) -> Any:
        if algorithm in SYMMETRIC:
            return self._secret
        assert self._jwks is not None
        key = await self._jwks.key(kid if isinstance(kid, str) else None)
        if key.algorithm_name is not None and key.algorithm_name != algorithm:
            raise jwt.InvalidAlgorithmError
        return key

    def _token(self, request: HTTPConnection) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            if scheme.lower() != "bearer" or not token.strip():
                raise AuthError("the Authorization header must be: Bearer <token>")
            return token.strip()
        if self._auth.query_token and (token := request.query_params.get("token", "")):
            return token
        if self._auth.cookie and (token := request.cookies.get(self._auth.cookie, "")):
            self._check_origin(request)
            return token
        raise AuthError("a token is needed: send the header Authorization: Bearer <token>")

    def _check_origin(self, request: HTTPConnection) -> None:
        """Browsers send cookies with whatever page asks: writes must come from a page that may."""
        if request.scope.get("method") in _SAFE_METHODS:
            return
        origin = request.headers.get("origin")
        if origin in self._origins:
            return
        if origin is None or urlsplit(origin).netloc != request.headers.get("host"):
            raise Forbidden("with a cookie, a write must come from an allowed Origin ([server] cors_origins)")

    def _grant(self, claims: dict[str, Any]) -> Grant:
        user = claims.get(self._auth.user_claim)
        if isinstance(user, int) and not isinstance(user, bool):
            user = str(user)
        if not isinstance(user, str) or not user:
            raise AuthError(f"the token has no claim {self._auth.user_claim!r} that names a user")
        if len(user) > MAX_USER or any(char in user for char in "\r\n\0"):
            raise AuthError(f"the user in the token has over {MAX_USER} characters, or CR, LF or NUL in it")
        topics = claims.get(self._auth.topics_claim, [])
        if not isinstance(topics, list) or not all(isinstance(topic, str) and topic for topic in topics):
            raise AuthError(f"the token's claim {self._auth.topics_claim!r} must be a list of strings")
        if len(topics) > MAX_TOPICS:
            raise AuthError(f"the token names more than {MAX_TOPICS} topics")
        return Grant(user, frozenset(topics), _time(claims, "exp"), _time(claims, "iat"))

    def _check_revoked(self, grant: Grant) -> None:
        revoked = self._revoked.get(grant.user)
        # Issue times are whole seconds: one of the very second may be from before the call or after it, and
        # a token that does not say when it was issued may be from any time.
        if revoked is not None and (grant.issued_at is None or grant.issued_at < revoked):
            raise AuthError("the user was disconnected after this token was issued; a new token is needed")


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def mint(config: Config, user: str, *, topics: list[str] | None = None, ttl: float = 3600.0) -> str:
    """A token for a user, signed with the configured secret, valid for `ttl` seconds from now.

    `topics` are carried by the token (None: none). Raises `ConfigError` when there is no secret.
    """
    auth = config.auth
    if auth.secret is None:
        raise ConfigError("tokens can be signed only with [auth] secret; with jwks_url the issuer makes them")
    now = time.time()
    # Fractions of a second (RFC 7519 allows them): a token made right after a disconnect must be accepted.
    claims: dict[str, Any] = {auth.user_claim: user, "iat": now, "exp": now + ttl}
    if topics:
        claims[auth.topics_claim] = topics
    if auth.issuer:
        claims["iss"] = auth.issuer
    if auth.audience:
        claims["aud"] = auth.audience
    algorithm = next((name for name in auth.algorithms or () if name in SYMMETRIC), "HS256")
    return jwt.encode(claims, auth.secret.get_secret_value(), algorithm=algorithm)
