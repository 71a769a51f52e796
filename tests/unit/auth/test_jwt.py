"""Tokens: what is accepted, from where, and that everything else is refused with a reason."""

from __future__ import annotations

import base64
import json
import logging
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import HTTPConnection

from rowcast.auth import jwt as module
from rowcast.auth.jwt import Authenticator, mint
from rowcast.config import Config
from rowcast.core.grants import Grant
from rowcast.errors import AuthError, BadRequest, ConfigError, Forbidden, RowcastError

SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"


def config(*, server: dict[str, Any] | None = None, **auth: Any) -> Config:
    return Config.from_sections({"auth": {"secret": SECRET} | auth, "server": server or {}})


def request(
    token: str | None = None,
    *,
    method: str = "GET",
    query: str = "",
    authorization: str | None = None,
    **headers: str,
) -> HTTPConnection:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    if authorization is not None:
        headers["authorization"] = authorization
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "method": method, "query_string": query.encode(), "headers": raw})


def sign(algorithm: str = "HS256", secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode({"sub": "alice"} | claims, secret, algorithm=algorithm)


def raw_token(header: bytes, payload: bytes = b'{"sub":"alice"}') -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload, b"x"))


async def refusal(authenticator: Authenticator, asked: HTTPConnection, kind: type[RowcastError] = AuthError) -> str:
    with pytest.raises(kind) as caught:
        await authenticator.authenticate(asked)
    assert type(caught.value) is kind
    return str(caught.value)


# What a token says


async def test_a_grant_has_the_claims() -> None:
    now = int(time.time())
    token = sign(topics=["a", "b", "a"], exp=now + 60, iat=now - 1)
    grant = await Authenticator(config()).authenticate(request(token))
    assert grant == Grant("alice", ("a", "b"), float(now + 60), float(now - 1))


async def test_a_token_may_say_nothing_but_the_user() -> None:
    assert await Authenticator(config()).authenticate(request(sign())) == Grant("alice")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_each_symmetric_algorithm(algorithm: str) -> None:
    grant = await Authenticator(config()).authenticate(request(sign(algorithm)))
    assert grant.user == "alice"


async def test_claims_can_have_other_names() -> None:
    authenticator = Authenticator(config(user_claim="uid", topics_claim="scopes"))
    token = jwt.encode({"uid": 42, "scopes": ["x"]}, SECRET)
    assert await authenticator.authenticate(request(token)) == Grant("42", ("x",))


async def test_a_users_name_may_be_any_text() -> None:
    name = "Žofie 🐘 o'Neill\u2028"
    assert (await Authenticator(config()).authenticate(request(sign(sub=name)))).user == name


async def test_an_audience_in_the_token_matters_only_if_one_is_configured() -> None:
    token = sign(aud="app")
    assert (await Authenticator(config()).authenticate(request(token))).user == "alice"
    assert (await Authenticator(config(audience="app")).authenticate(request(token))).user == "alice"


async def test_clocks_may_differ_by_the_leeway() -> None:
    now = time.time()
    authenticator = Authenticator(config(leeway="30s"))
    assert await authenticator.authenticate(request(sign(exp=int(now) - 10, nbf=int(now) + 10)))
    assert "expired" in await refusal(authenticator, request(sign(exp=int(now) - 40)))


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, "expired"),
        ({"nbf": 2**40 - 1}, "not valid yet"),
        ({"exp": "9999999999"}, "'exp'"),
        ({"exp": True}, "expired"),
        ({"exp": 1_700_000_000_000}, "'exp'"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"iat": "yesterday"}, "'iat'"),
        ({"iat": 10**400}, "'iat'"),
        ({"sub": None}, "'sub'"),
        ({"sub": ""}, "'sub'"),
        ({"sub": ["alice"]}, "'sub'"),
        ({"sub": True}, "'sub'"),
        ({"sub": "a\r\nb"}, "CR, LF or NUL"),
        ({"sub": "a\0"}, "CR, LF or NUL"),
        ({"sub": "a" * 257}, "256 characters"),
        ({"topics": "a,b"}, "'topics'"),
        ({"topics": ["a", 1]}, "'topics'"),
        ({"topics": [""]}, "'topics'"),
        ({"topics": {"a": 1}}, "'topics'"),
        ({"topics": ["a"] * 1001}, "1000 topics"),
    ],
)
async def test_claims_that_are_refused(claims: dict[str, Any], reason: str) -> None:
    token = sign(**claims)
    said = await refusal(Authenticator(config()), request(token))
    assert reason in said
    assert token not in said


async def test_the_issuer_and_the_audience_must_be_the_configured() -> None:
    authenticator = Authenticator(config(issuer="https://id.example", audience="app"))
    good = {"iss": "https://id.example", "aud": ["other", "app"]}
    assert await authenticator.authenticate(request(sign(**good)))
    assert "another issuer" in await refusal(authenticator, request(sign(**good | {"iss": "https://evil.example"})))
    assert "another audience" in await refusal(authenticator, request(sign(**good | {"aud": "other"})))
    assert "no claim 'aud'" in await refusal(authenticator, request(sign(iss="https://id.example")))
    assert "no claim 'iss'" in await refusal(authenticator, request(sign(aud="app")))


# What is no token of ours


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a.b",
        "a.b.c.d",
        "é.é.é",
        "..",
        sign()[:-5],
        sign(secret="another secret that is long enough to be one"),
        sign().replace(".", ".x", 1),
        raw_token(b"[]"),
        raw_token(b"null"),
        raw_token(b'{"alg":[]}'),
        raw_token(b'{"alg":{"a":1}}'),
        raw_token(b'{"alg":null}'),
        raw_token(b"{}"),
        raw_token(b'{"alg":"HS256","kid":7}'),
        raw_token(b'{"alg":"HS256","crit":["x"],"x":1}'),
        raw_token(b'{"alg":"HS256","b64":false,"crit":["b64"]}'),
        raw_token(b"[" * 4000),
        raw_token(b'{"alg":"HS256"}', b"[" * 3000),
        raw_token(b'{"alg":"none"}'),
        raw_token(b'{"alg":"None"}'),
        raw_token(b'{"alg":"nOnE"}'),
        jwt.encode({"sub": "alice"}, "", algorithm="none"),
        sign(pad="x" * 9000),
    ],
)
async def test_what_is_refused_whatever_it_says(token: str) -> None:
    authenticator = Authenticator(config())
    headers = [(b"authorization", b"Bearer " + token.encode())]
    asked = HTTPConnection({"type": "http", "method": "GET", "query_string": b"", "headers": headers})
    with pytest.raises(AuthError) as caught:
        await authenticator.authenticate(asked)
    assert token not in str(caught.value)
    assert token[:20] not in str(caught.value) or len(token) < 20


async def test_an_asymmetric_token_is_never_checked_with_the_secret(issuer: Any) -> None:
    # The classic confusion (RFC 8725, 2.1): the public key, which everybody has, used as an HMAC secret.
    issuer.add("k", "RS256")
    authenticator = Authenticator(config())
    assert "not signed by one of HS256, HS384, HS512" in await refusal(authenticator, request(issuer.token("k")))


async def test_a_public_key_in_place_of_the_secret_is_a_mistake_told_at_start() -> None:
    pem = (
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    with pytest.raises(ConfigError, match="set jwks_url"):
        Authenticator(config(secret=pem))


async def test_only_configured_algorithms_are_accepted() -> None:
    authenticator = Authenticator(config(algorithms=["HS512"]))
    assert await authenticator.authenticate(request(sign("HS512")))
    assert "HS512" in await refusal(authenticator, request(sign("HS256")))


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ({"algorithms": ["none"]}, "'none' is not accepted"),
        ({"algorithms": ["HS256", "XS1"]}, "'XS1' is not accepted"),
        ({"algorithms": ["RS256"]}, "none fits the key"),
        ({"jwks_url": "ftp://x/y"}, "https://"),
        ({"jwks_url": "https://"}, "https://"),
        ({"jwks_url": "http://[::1"}, "no URL"),
    ],
)
def test_algorithms_and_addresses_that_make_no_sense(auth: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Authenticator(config(**auth))


async def test_without_a_key_no_token_is_accepted() -> None:
    authenticator = Authenticator(Config())
    assert "secret or jwks_url is not set" in await refusal(authenticator, request(sign()))


def test_a_short_secret_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Authenticator(config(secret="short"))
        Authenticator(config(secret="x" * 32))
    assert [record.name for record in caplog.records] == ["rowcast.auth.jwt"]
    assert "RFC 7518" in caplog.text
    assert "short" not in caplog.text


# Where a token comes from


async def test_the_header_is_the_first_choice() -> None:
    authenticator = Authenticator(config(query_token=True, cookie="session"))
    asked = request(sign(sub="h"), query=f"token={sign(sub='q')}", cookie=f"session={sign(sub='c')}")
    assert (await authenticator.authenticate(asked)).user == "h"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
async def test_the_scheme_is_written_as_one_likes(scheme: str) -> None:
    asked = request(authorization=f"{scheme}  {sign()} ")
    assert (await Authenticator(config()).authenticate(asked)).user == "alice"


@pytest.mark.parametrize("value", ["Basic YTpi", "Bearer", "Bearer ", "token"])
async def test_an_authorization_of_another_kind(value: str) -> None:
    assert "Bearer <token>" in await refusal(Authenticator(config()), request(authorization=value))


async def test_a_request_without_a_token() -> None:
    assert "a token is needed" in await refusal(Authenticator(config()), request())


async def test_the_query_is_read_only_if_configured() -> None:
    asked = request(query=f"token={sign()}")
    assert (await Authenticator(config(query_token=True)).authenticate(asked)).user == "alice"
    assert "?token= is off" in await refusal(Authenticator(config()), asked)


async def test_the_cookie_is_read_only_if_configured() -> None:
    asked = request(cookie=f"other=1; session={sign()}")
    assert (await Authenticator(config(cookie="session")).authenticate(asked)).user == "alice"
    assert "a token is needed" in await refusal(Authenticator(config()), asked)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example", True),
        ("https://APP.example", True),
        ("https://rowcast.example:8443", True),
        ("http://rowcast.example:8443", True),
        ("https://rowcast.example", False),
        ("https://evil.example", False),
        ("https://app.example.evil.example", False),
        ("null", False),
        ("*", False),
        ("http://[", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_writes_by_cookie_need_an_allowed_origin(origin: str | None, allowed: bool, method: str) -> None:
    authenticator = Authenticator(config(cookie="session", server={"cors_origins": ["https://app.example", "*"]}))
    headers = {"cookie": f"session={sign()}", "host": "rowcast.example:8443"}
    asked = request(method=method, **headers | ({} if origin is None else {"origin": origin}))
    if allowed:
        assert (await authenticator.authenticate(asked)).user == "alice"
    else:
        assert "allowed Origin" in await refusal(authenticator, asked, Forbidden)
    # Reading needs none, and a header is not sent by a browser on its own.
    assert await authenticator.authenticate(request(method="GET", **headers))
    assert await authenticator.authenticate(request(sign(), method=method, origin=origin or "null"))


# Remembered and revoked


async def test_a_verified_token_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = Authenticator(config())
    token = sign()
    first = await authenticator.authenticate(request(token))

    async def verify(token: str) -> Grant:
        raise AssertionError("asked again")

    monkeypatch.setattr(authenticator, "verify", verify)
    assert await authenticator.authenticate(request(token)) is first


async def test_a_remembered_token_expires_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = Authenticator(config())
    now = time.time()
    token = sign(exp=int(now) + 100)
    await authenticator.authenticate(request(token))
    monkeypatch.setattr(module.time, "time", lambda: now + 101)
    assert "expired" in await refusal(authenticator, request(token))


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_TOKENS", 3)
    monkeypatch.setattr(module, "REVOKED_USERS", 3)
    authenticator = Authenticator(config())
    for number in range(10):
        await authenticator.authenticate(request(sign(sub=f"u{number}")))
        authenticator.revoke(f"r{number}", 1.0)
    assert len(authenticator._verified) <= 3
    assert len(authenticator._revoked) == 3


async def test_tokens_from_before_a_disconnect_are_refused() -> None:
    authenticator = Authenticator(config())
    old, new, silent = sign(iat=1000), sign(iat=1001), sign()
    for token in (old, new, silent):
        await authenticator.authenticate(request(token))
    authenticator.revoke("alice", 1000.5)
    authenticator.revoke("alice", 900.0)  # an older one, come late, takes nothing back
    assert "disconnected" in await refusal(authenticator, request(old))
    assert "disconnected" in await refusal(authenticator, request(silent))
    assert (await authenticator.authenticate(request(new))).user == "alice"
    assert (await authenticator.authenticate(request(sign(sub="bob", iat=1)))).user == "bob"


# Making tokens


async def test_a_minted_token_is_accepted() -> None:
    made = config(issuer="me", audience="you", user_claim="uid", topics_claim="t", algorithms=["RS256", "HS384"])
    before = time.time()
    grant = await Authenticator(made).authenticate(request(mint(made, "alice", topics=["a"], ttl=60)))
    assert (grant.user, grant.topics) == ("alice", ("a",))
    assert grant.issued_at is not None
    assert before <= grant.issued_at <= time.time()
    assert grant.expires_at == pytest.approx(grant.issued_at + 60)


async def test_a_token_minted_right_after_a_disconnect_is_accepted() -> None:
    authenticator = Authenticator(config())
    authenticator.revoke("alice", time.time())
    assert await authenticator.authenticate(request(mint(config(), "alice")))


def test_no_token_can_be_minted_without_a_secret_or_a_user() -> None:
    with pytest.raises(ConfigError, match="only with"):
        mint(Config(), "alice")
    for user in ("", "a\n", "a" * 257):
        with pytest.raises(BadRequest):
            mint(config(), user)


def test_a_minted_token_says_only_what_it_must() -> None:
    payload = mint(config(), "alice").split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert set(claims) == {"sub", "iat", "exp"}
