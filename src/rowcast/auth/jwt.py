"""Who is asking: JSON Web Tokens (RFC 7519, RFC 8725) from a header, a cookie or the query.

The algorithm is decided by the configuration, never by the token: a secret allows HS*, a JWKS the asymmetric
ones. A token that was verified is remembered by its hash, since verifying costs more than all the rest of
opening a stream; its expiry and revocation are checked each time.
"""

from __future__ import annotations

import hashlib
import sys
import time
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.utils import base64url_encode
from starlette.requests import HTTPConnection

from rowcast.auth.jwks import Jwks
from rowcast.config import Config
from rowcast.core.grants import Grant
from rowcast.core.template import fits
from rowcast.errors import AuthError, BadRequest, ConfigError, Forbidden
from rowcast.fields import field
from rowcast.generations import Generations
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from jwt.types import Options

logger = get_logger(__name__)

SYMMETRIC = ("HS256", "HS384", "HS512")
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

MAX_TOKEN = 8 * 1024
"""Bytes; proxies refuse longer request heads anyway."""

MAX_USER = 256
"""Characters."""

SHORTEST_SECRET = 32
"""Bytes; shorter ones work, with a warning."""

MAX_TOPICS = 1000
CACHED_TOKENS = 10_000
CACHED_HEADERS = 64

DIGEST = 16
"""Bytes of a token's SHA-256 by which it is remembered: whoever wanted to find another token with the same ones would
have to try 2^128."""

REVOKED_USERS = 100_000

LATEST = 1e12
"""Seconds; a time beyond is surely one in milliseconds, and would be taken for "never"."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_MALFORMED = "the token is malformed"

_REASONS: list[tuple[type[jwt.PyJWTError], str]] = [
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is from another issuer"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidKeyError, "the token's key is not one for its algorithm"),
]


class Authenticator:
    """Verifies tokens as `[auth]` says. Raises `ConfigError` for algorithms that don't fit the keys."""

    def __init__(self, config: Config) -> None:
        auth = self._auth = config.auth
        # "*" lets any page read, but must not let any page write in the name of whoever looks at it.
        self._origins = frozenset(origin.lower() for origin in config.server.cors_origins) - {"*"}
        self._secret = None if auth.secret is None else auth.secret.get_secret_value()
        self._jwks = None if auth.jwks_url is None else Jwks(auth.jwks_url)
        self._algorithms = self._pick_algorithms()
        if self._secret is not None:
            _check_secret(self._secret)
        self._keys = {} if self._secret is None else {name: _prepared(self._secret, name) for name in SYMMETRIC}
        self._verified: Generations[bytes, Grant] = Generations(CACHED_TOKENS)
        self._verified_by = self._keys_version()
        self._headers: OrderedDict[str, tuple[object, object]] = OrderedDict()
        """Of tokens that were verified: the encoded header, with the algorithm and the key that it names."""
        self._revoked: OrderedDict[str, float] = OrderedDict()

    async def authenticate(self, request: HTTPConnection) -> Grant:
        """The grant of a request's token. Raises `AuthError`, or `Unavailable` when the issuer is needed."""
        token = self._token(request)
        digest = hashlib.sha256(token.encode()).digest()[:DIGEST]
        if self._verified_by != self._keys_version():
            self._verified.clear()
            self._verified_by = self._keys_version()
        grant = self._verified.get(digest)
        if grant is None:
            version = self._keys_version()
            grant = await self.verify(token)
            if version == self._keys_version():
                self._verified.put(digest, grant)
        now = time.time()
        if grant.expires_at is not None and grant.expires_at <= now:
            raise AuthError("the token has expired")
        self._check_revoked(grant)
        return grant

    async def verify(self, token: str) -> Grant:
        """The grant of a token. Raises as `authenticate`."""
        if len(token) > MAX_TOKEN:
            raise AuthError(f"the token is longer than {MAX_TOKEN} characters")
        try:
            # An issuer's tokens have few headers, so that most need not be read twice.
            named = self._headers.get(head := token.partition(".")[0])
            if named is None:
                header = jwt.get_unverified_header(token)
                named = header.get("alg"), header.get("kid")
            algorithm, kid = named
            if not isinstance(algorithm, str) or algorithm not in self._algorithms:
                raise jwt.InvalidAlgorithmError
            claims = jwt.decode(
                token,
                await self._key(algorithm, kid),
                algorithms=[algorithm],
                audience=self._auth.audience,
                issuer=self._auth.issuer,
                leeway=self._auth.leeway,
                options=_options(self._auth.audience),
            )
        except jwt.PyJWTError as error:
            raise AuthError(self._reason(error)) from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            # What PyJWT lets through from JSON that nobody would write: deep nesting, Infinity as a time, …
            raise AuthError(_MALFORMED) from None
        self._headers[head] = named
        if len(self._headers) > CACHED_HEADERS:
            self._headers.popitem(last=False)
        return self._grant(claims)

    def adopt(self, other: Authenticator) -> None:
        """Verify as another one does from now on; who was disconnected stays so."""
        revoked = self._revoked
        vars(self).update(vars(other))
        self._revoked = revoked

    def revoke(self, user: str, at: float) -> None:
        """Refuse the user's tokens that were issued before `at` (Unix time in seconds), or don't say when.

        The latest REVOKED_USERS users are remembered.
        """
        self._revoked[user] = max(at, self._revoked.pop(user, 0.0))
        if len(self._revoked) > REVOKED_USERS:
            self._revoked.popitem(last=False)

    # Inside

    def _keys_version(self) -> int:
        return 0 if self._jwks is None else self._jwks.version()

    def _reason(self, error: jwt.PyJWTError) -> str:
        if isinstance(error, jwt.InvalidAlgorithmError):
            if not self._algorithms:
                return "no token can be verified here: [auth] secret or jwks_url is not set"
            return f"the token is not signed by one of {', '.join(sorted(self._algorithms))}"
        if isinstance(error, jwt.MissingRequiredClaimError):
            return f"the token has no claim {error.claim!r}"
        return next((text for kind, text in _REASONS if isinstance(error, kind)), _MALFORMED)

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
            return self._keys[algorithm]
        assert self._jwks is not None
        return await self._jwks.key(kid if isinstance(kid, str) else None, algorithm)

    def _token(self, request: HTTPConnection) -> str:
        scheme, _, token = field(request, b"authorization").partition(" ")
        if scheme:
            if scheme.lower() != "bearer" or not token.strip():
                raise AuthError("the Authorization header must be: Bearer <token>")
            return token.strip()
        if self._auth.query_token and (token := request.query_params.get("token", "")):
            return token
        if self._auth.cookie and (token := request.cookies.get(self._auth.cookie, "")):
            self.check_origin(request)
            return token
        if "token" in request.query_params and not self._auth.query_token:
            raise AuthError("?token= is off here: send Authorization: Bearer <token>, or set [auth] query_token")
        raise AuthError("a token is needed: send the header Authorization: Bearer <token>")

    def check_origin(self, request: HTTPConnection) -> None:
        """Browsers send cookies with whatever page asks: writes must come from a page that may.

        Raises `Forbidden` for a write from elsewhere, of a request that is authorised by a cookie.
        """
        if request.scope.get("method") in _SAFE_METHODS:
            return
        origin = request.headers.get("origin", "").lower()
        if origin not in self._origins and origin not in _own_origins(request):
            raise Forbidden("with a cookie, a write must come from an allowed Origin ([server] cors_origins)")

    def _grant(self, claims: dict[str, Any]) -> Grant:
        user = claims.get(self._auth.user_claim)
        if isinstance(user, int) and not isinstance(user, bool):
            user = str(user)
        if not isinstance(user, str) or not user:
            raise AuthError(f"the token has no claim {self._auth.user_claim!r} that names a user")
        if not _is_user(user):
            raise AuthError(f"the user in the token has over {MAX_USER} characters, or CR, LF or NUL in it")
        topics = claims.get(self._auth.topics_claim, [])
        if not isinstance(topics, list) or not all(isinstance(topic, str) and topic for topic in topics):
            raise AuthError(f"the token's claim {self._auth.topics_claim!r} must be a list of strings")
        if len(topics) > MAX_TOPICS:
            raise AuthError(f"the token names more than {MAX_TOPICS} topics")
        if not all(fits(topic) for topic in topics):
            raise AuthError("the token names a topic with CR, LF, NUL or half a character in it")
        expires = _time(claims, "exp")
        # With the leeway: a stream that was accepted within it must not be ended at once.
        expires = None if expires is None else expires + self._auth.leeway
        return Grant(user, tuple(sys.intern(topic) for topic in dict.fromkeys(topics)), expires, _time(claims, "iat"))

    def _check_revoked(self, grant: Grant) -> None:
        revoked = self._revoked.get(grant.user)
        # Issue times are whole seconds: one of the very second may be from before the call or after it, and
        # a token that does not say when it was issued may be from any time.
        if revoked is not None and (grant.issued_at is None or grant.issued_at < revoked):
            raise AuthError("the user was disconnected after this token was issued; a new token is needed")


class _Prepared(HMACAlgorithm):
    """HMAC with a key that was looked at once: whether it is a public key takes longer to see than to check a token."""

    def __init__(self, hash_algorithm: Any, key: bytes) -> None:
        super().__init__(hash_algorithm)
        self._key = super().prepare_key(key)

    def prepare_key(self, key: str | bytes) -> bytes:
        """The key."""
        return self._key


def _prepared(secret: str, algorithm: str) -> jwt.PyJWK:
    """A secret as PyJWT's key for one symmetric algorithm."""
    key = secret.encode()
    usual = jwt.get_algorithm_by_name(algorithm)
    assert isinstance(usual, HMACAlgorithm)
    made = jwt.PyJWK.from_dict({"kty": "oct", "k": base64url_encode(key).decode()}, algorithm)
    made.Algorithm = _Prepared(usual.hash_alg, key)
    return made


def _is_user(user: str) -> bool:
    return len(user) <= MAX_USER and fits(user)


def _check_secret(secret: str) -> None:
    """Raise `ConfigError` for a public key in the place of a secret, and warn of a short secret."""
    try:
        jwt.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ConfigError(
            "[auth] secret is a public key or certificate, which everybody may know; set jwks_url instead"
        ) from None
    if len(secret.encode()) < SHORTEST_SECRET:
        logger.warning(
            "secret_short",
            "[auth] secret has fewer than %d bytes: whoever has a token can find it by trying (RFC 7518, 3.2)",
            SHORTEST_SECRET,
        )
        # It is said once, here; PyJWT would say it at each token.
        warnings.filterwarnings("ignore", category=jwt.InsecureKeyLengthWarning)


def _options(audience: str | None) -> Options:
    """`aud` is looked at if there is one to compare it with; `iat` and `sub` are judged by us, and more kindly:
    the clocks of the issuer and of ours may differ, and users may have numbers."""
    return {"verify_aud": audience is not None, "verify_iat": False, "verify_sub": False, "verify_jti": False}


def _own_origins(request: HTTPConnection) -> tuple[str, ...]:
    """The origin that a page of this very host has. The scheme is whatever a proxy in front of us speaks."""
    host = request.headers.get("host", "").lower()
    return (f"https://{host}", f"http://{host}") if host else ()


def _time(claims: dict[str, Any], name: str) -> float | None:
    """A time in a token (NumericDate, RFC 7519, section 2), or None if it is not there."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < LATEST:
        raise AuthError(f"the token's claim {name!r} must be a time in seconds since 1970")
    return float(value)


def mint(config: Config, user: str, *, topics: list[str] | None = None, ttl: float = 3600.0) -> str:
    """A token for a user, signed with the configured secret, valid for `ttl` seconds from now.

    `topics` are carried by the token (None: none). Raises `ConfigError` when there is no secret, and `BadRequest`
    when the user is none that would be accepted.
    """
    auth = config.auth
    if not _is_user(user):
        raise BadRequest(f"a user must have 1 to {MAX_USER} characters, and no CR, LF or NUL: {user[:60]!r}")
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
