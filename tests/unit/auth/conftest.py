"""A real issuer: signs tokens with real keys and serves their public halves over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


class Issuer:
    """Keys by id; `document` overrides what is served, `status` its status, `gate` holds answers back."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.algorithms: dict[str, str] = {}
        self.document: bytes | None = None
        self.status = 200
        self.requests = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks.json"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def add(self, kid: str, algorithm: str = "ES256") -> None:
        """A new key with an id."""
        self.keys[kid] = make_key(algorithm)
        self.algorithms[kid] = algorithm

    def token(
        self, kid: str, *, algorithm: str | None = None, key: Any = None, headers: Any = None, **claims: Any
    ) -> str:
        claims = {"sub": "alice", "exp": time.time() + 600} | claims
        return jwt.encode(
            claims,
            key or self.keys[kid],
            algorithm=algorithm or self.algorithms[kid],
            headers={"kid": kid} if headers is None else headers,
        )

    def jwks(self, **more: Any) -> bytes:
        """The set, each key with what is in `more`."""
        keys = [public_jwk(key, self.algorithms[kid]) | {"kid": kid} | more for kid, key in self.keys.items()]
        return json.dumps({"keys": keys}).encode()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        self.waiting.set()
        await self.gate.wait()
        body = self.document if self.document is not None else self.jwks()
        writer.write(b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (self.status, len(body)))
        writer.write(body)
        await writer.drain()
        writer.close()


def make_key(algorithm: str) -> Any:
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
    return ec.generate_private_key(curves[algorithm]())


def public_jwk(key: Any, algorithm: str) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    # PyJWT writes key_ops ["verify"] for public keys; a real issuer names the use.
    return {name: value for name, value in made.items() if name != "key_ops"} | {"use": "sig"}


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """A running issuer without keys."""
    made = Issuer()
    await made.start()
    yield made
    made.gate.set()
    await made.stop()
