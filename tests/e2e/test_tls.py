"""TLS in the process itself: streams through it, and a certificate that is renewed under them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.certificates import Authority
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = f"""
[auth]
secret = "{SECRET}"
[api]
key = "k"
"""


async def test_streams_outlive_the_renewal_of_the_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    token = mint(Config.from_sections({"auth": SECRET}), "ann", topics=["t"])
    arguments = ("--no-access-log", "--tls-cert", str(cert), "--tls-key", str(key))
    with RowcastServer(CONFIG, arguments=arguments) as server:
        assert server.url.startswith("https://127.0.0.1:")
        async with (
            OpenStream(server.url, token, tls=authority.trust()) as stream,
            httpx.AsyncClient(base_url=server.url, verify=authority.trust()) as client,
        ):
            await stream.ready()
            # It was taken over from the server: the body is not chunked, and ends with the connection.
            assert "transfer-encoding" not in stream.head
            assert stream.head["connection"] == "close"

            before = await asyncio.to_thread(_shown, server.url, authority)
            for old, new in zip((cert, key), authority.issue("renewed"), strict=True):
                old.write_bytes(new.read_bytes())
            async with asyncio.timeout(60):
                while await asyncio.to_thread(_shown, server.url, authority) == before:
                    await asyncio.sleep(0.05)
            assert "certificate_loaded" in server.log

            big = "x" * 200_000  # more than one TLS record, and than a socket takes at once
            for number in range(3):
                body = {"topic": "t", "data": {"n": number, "text": big}}
                answer = await client.post("/publish", headers={"authorization": "Bearer k"}, json=body)
                assert answer.status_code == 202
            await stream.until(lambda: len(stream.events()) == 3)
            assert [event["data"]["n"] for event in stream.events()] == [0, 1, 2]
            assert not stream.ended
        assert server.stop() == 0


def _shown(url: str, authority: Authority) -> str:
    place = urlsplit(url)
    return ssl.get_server_certificate((place.hostname or "", place.port or 0), ca_certs=str(authority.path), timeout=20)
