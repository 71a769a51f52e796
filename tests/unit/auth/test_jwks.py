"""The issuer's keys over real HTTP: rotation, outage, and what can't be done to it through us."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import HTTPConnection

from rowcast.auth import jwks as module
from rowcast.auth.jwks import Jwks
from rowcast.auth.jwt import Authenticator
from rowcast.config import Config
from rowcast.errors import AuthError, Unavailable


class Clock:
    """Monotonic seconds that pass when we say so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def authenticator(issuer: Any, **auth: Any) -> Authenticator:
    return Authenticator(Config.from_sections({"auth": {"jwks_url": issuer.url} | auth}))


def request(token: str) -> HTTPConnection:
    headers = [(b"authorization", b"Bearer " + token.encode())]
    return HTTPConnection({"type": "http", "method": "GET", "query_string": b"", "headers": headers})


async def refusal(asked: Authenticator, token: str) -> str:
    with pytest.raises(AuthError) as caught:
        await asked.authenticate(request(token))
    assert token not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
)
async def test_each_asymmetric_algorithm(issuer: Any, algorithm: str) -> None:
    issuer.add("k1", algorithm)
    assert (await authenticator(issuer).authenticate(request(issuer.token("k1")))).user == "alice"
    # A key that names its algorithm, as some issuers write it, is for that one only.
    issuer.document = issuer.jwks(alg=algorithm)
    assert await authenticator(issuer).authenticate(request(issuer.token("k1")))


async def test_a_key_is_not_used_for_another_algorithm(issuer: Any) -> None:
    issuer.add("k1", "RS256")
    elliptic = ec.generate_private_key(ec.SECP256R1())
    token = issuer.token("k1", key=elliptic, algorithm="ES256")
    assert "can't be used with its algorithm" in await refusal(authenticator(issuer), token)
    issuer.document = issuer.jwks(alg="RS256")
    assert "another algorithm" in await refusal(authenticator(issuer), issuer.token("k1", algorithm="RS512"))
    issuer.document = None
    assert "not signed by one of ES256" in await refusal(
        authenticator(issuer, algorithms=["ES256"]), issuer.token("k1")
    )


async def test_a_forged_signature_is_refused(issuer: Any) -> None:
    issuer.add("k1")
    asked = authenticator(issuer)
    issuer.add("k2")
    token = issuer.token("k1", key=issuer.keys["k2"])
    assert "signature is wrong" in await refusal(asked, token)


async def test_a_symmetric_key_in_the_set_is_no_key(issuer: Any) -> None:
    # The set is public: whoever reads it could sign with such a key.
    secret = "c2VjcmV0LXRoYXQtZXZlcnlib2R5LWNhbi1yZWFkLWluLXRoZS1zZXQ"
    issuer.document = json.dumps({"keys": [{"kty": "oct", "kid": "k1", "k": secret, "alg": "HS256"}]}).encode()
    token = issuer.token("k1", key="secret-that-everybody-can-read-in-the-set", algorithm="HS256")
    assert "not signed by one of" in await refusal(authenticator(issuer), token)
    with pytest.raises(AuthError, match="does not publish"):
        await Jwks(issuer.url).key("k1", "RS256")


async def test_secret_and_key_set_side_by_side(issuer: Any) -> None:
    issuer.add("k1")
    secret = "0123456789abcdef0123456789abcdef"
    asked = authenticator(issuer, secret=secret)
    assert await asked.authenticate(request(issuer.token("k1")))
    assert await asked.authenticate(request(issuer.token("k1", key=secret, algorithm="HS256")))


async def test_a_token_without_a_key_id_needs_an_only_key(issuer: Any) -> None:
    issuer.add("k1")
    token = issuer.token("k1", headers={})
    assert await authenticator(issuer).authenticate(request(token))
    issuer.add("k2")
    assert "does not publish" in await refusal(authenticator(issuer), token)


async def test_keys_that_are_not_for_signatures_are_passed_over(issuer: Any) -> None:
    issuer.add("k1")
    keys = json.loads(issuer.jwks())["keys"]
    strange: list[Any] = [7, {}, {"kty": "X", "kid": "x"}, keys[0] | {"kid": "e", "use": "enc"}]
    issuer.document = json.dumps({"keys": [*strange, *keys]}).encode()
    keyset = Jwks(issuer.url)
    assert await keyset.key("k1", "ES256")
    with pytest.raises(AuthError):
        await keyset.key("e", "ES256")


async def test_keys_are_fetched_once(issuer: Any) -> None:
    issuer.add("k1")
    asked = authenticator(issuer)
    for number in range(5):
        await asked.authenticate(request(issuer.token("k1", sub=f"u{number}")))
    assert issuer.requests == 1


async def test_a_rotated_key_is_found_at_once(issuer: Any) -> None:
    issuer.add("k1")
    asked = authenticator(issuer)
    await asked.authenticate(request(issuer.token("k1")))
    issuer.add("k2")
    assert await asked.authenticate(request(issuer.token("k2")))
    assert issuer.requests == 2


async def test_who_waits_for_the_same_fetch_shares_it(issuer: Any) -> None:
    issuer.add("k1")
    issuer.gate.clear()
    asked = authenticator(issuer)
    everyone = [asyncio.create_task(asked.authenticate(request(issuer.token("k1", n=n)))) for n in range(50)]
    await issuer.waiting.wait()
    issuer.gate.set()
    assert {grant.user for grant in await asyncio.gather(*everyone)} == {"alice"}
    assert issuer.requests == 1


async def test_one_who_gives_up_does_not_end_the_fetch_for_the_others(issuer: Any) -> None:
    issuer.add("k1")
    issuer.gate.clear()
    keyset = Jwks(issuer.url)
    first = asyncio.create_task(keyset.key("k1", "ES256"))
    await issuer.waiting.wait()
    second = asyncio.create_task(keyset.key("k1", "ES256"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    issuer.gate.set()
    assert await second
    assert issuer.requests == 1


async def test_made_up_key_ids_do_not_flood_the_issuer(issuer: Any) -> None:
    issuer.add("k1")
    clock = Clock()
    keyset = Jwks(issuer.url, clock=clock)
    answers = []
    for number in range(100):
        try:
            await keyset.key(f"made-up-{number}", "ES256")
        except (AuthError, Unavailable) as error:
            answers.append(type(error))
    # Who can't be told for sure is told to come back: 401 would be for ever.
    assert answers == [AuthError] * int(module.ALLOWANCE) + [Unavailable] * (100 - int(module.ALLOWANCE))
    assert issuer.requests == module.ALLOWANCE
    assert await keyset.key("k1", "ES256")
    clock.now += module.REGAIN
    with pytest.raises(AuthError):
        await keyset.key("made-up", "ES256")
    assert issuer.requests == module.ALLOWANCE + 1


async def test_an_outage_keeps_known_keys_working(issuer: Any) -> None:
    issuer.add("k1")
    clock = Clock()
    keyset = Jwks(issuer.url, clock=clock)
    await keyset.key("k1", "ES256")
    await issuer.stop()
    clock.now += 10 * module.MAX_AGE
    keyset.version()
    await settled(keyset)
    assert await keyset.key("k1", "ES256")
    with pytest.raises(Unavailable) as caught:
        await keyset.key("k2", "ES256")
    assert caught.value.what == "issuer"
    await issuer.start()
    issuer.add("k2")
    assert await keyset.key("k2", "ES256")


async def test_a_withdrawn_key_is_refused_once_the_set_is_old(issuer: Any) -> None:
    issuer.add("k1")
    issuer.add("k2")
    asked = authenticator(issuer)
    clock = Clock()
    asked._jwks = keyset = Jwks(issuer.url, clock=clock)
    token = issuer.token("k1")
    await asked.authenticate(request(token))
    del issuer.keys["k1"]
    await asked.authenticate(request(token))
    clock.now += module.MAX_AGE + 1
    await asked.authenticate(request(token))  # the last time: the set is fetched in the background
    await settled(keyset)
    assert "does not publish" in await refusal(asked, token)
    assert await asked.authenticate(request(issuer.token("k2")))


async def test_while_the_issuer_is_down_it_is_not_asked_all_the_time(issuer: Any) -> None:
    issuer.add("k1")
    clock = Clock()
    keyset = Jwks(issuer.url, clock=clock)
    await keyset.key("k1", "ES256")
    issuer.status = 500
    clock.now += module.MAX_AGE + 1
    for _ in range(20):
        keyset.version()
        await settled(keyset)
    assert issuer.requests == 2


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (500, b"{}"),
        (302, b"{}"),
        (200, b"no json"),
        (200, b"[]"),
        (200, b'{"keys": 1}'),
        (200, b"\xff"),
        (200, b'{"keys": ' + b"[" * 100_000),
        (200, b" " * (module.MAX_BYTES + 1)),
    ],
)
async def test_a_first_fetch_that_fails_is_an_outage(
    issuer: Any, status: int, document: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.add("k1")
    issuer.status, issuer.document = status, document
    asked = authenticator(issuer)
    with pytest.raises(Unavailable) as caught:
        await asked.authenticate(request(issuer.token("k1")))
    assert caught.value.what == "issuer"
    assert "can't be fetched" in caplog.text
    issuer.status, issuer.document = 200, None
    assert await asked.authenticate(request(issuer.token("k1")))


async def test_an_issuer_that_does_not_answer_is_given_up(issuer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    issuer.gate.clear()
    with pytest.raises(Unavailable):
        await Jwks(issuer.url).key("k1", "ES256")


async def test_nobody_listens_there(issuer: Any) -> None:
    await issuer.stop()
    with pytest.raises(Unavailable):
        await Jwks(issuer.url).key("k1", "ES256")


async def settled(keyset: Jwks) -> None:
    """Wait for the fetch in the background, if one is under way."""
    if keyset._fetching is not None:
        await keyset._fetching
