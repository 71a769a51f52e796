"""TLS in the process itself, `rowcast serve --tls-cert --tls-key`: a certificate that is renewed while we run.

New connections get the new certificate; open ones, and the streams on them, go on. A renewal that does not fit (a
program that writes the key a moment after the certificate, a truncated file) is refused, and the old one stays.

An idle stream costs some ten times the memory with TLS in the process: a proxy in front does it more cheaply.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from rowcast.errors import ConfigError
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

_Signature = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate with its key, and the context of the server that has them.

    `cert` is a PEM file with the chain, the server's own certificate first; `key` one with its key ("": it stands in
    `cert` too). `protocols` are offered by ALPN (RFC 7301). TLS 1.2 and 1.3 are spoken (RFC 9325).

    Raises `ConfigError` when they can't be used.
    """

    def __init__(self, cert: str, key: str, protocols: tuple[str, ...] = ("http/1.1",)) -> None:
        self._cert, self._key = Path(cert), Path(key or cert)
        self.context = _context()
        self.context.set_alpn_protocols(list(protocols))
        self.expires = datetime.max.replace(tzinfo=UTC)
        """When the certificate ends."""
        self._seen = self._loaded = self._signature()
        self._load()

    def watch(self) -> None:
        """Take over what was renewed, once it has not changed between two calls. To be called every second or so."""
        now = self._signature()
        settled, self._seen = now == self._seen, now
        if settled and now != self._loaded:
            self._loaded = now
            self.reload()

    def reload(self) -> str | None:
        """Read the files anew; returns why they can't be used, and keeps the old ones then."""
        try:
            self._load()
        except ConfigError as error:
            logger.error("certificate_refused", "the certificate that was in use stays: %s", error)
            return str(error)
        self._loaded = self._seen = self._signature()
        logger.info(
            "certificate_loaded", "new connections get the certificate that ends on %s", self.expires,
            expires=self.expires.isoformat(),
        )  # fmt: skip
        return None

    def _load(self) -> None:
        cert, key = _read(self._cert, "tls_cert"), _read(self._key, "tls_key")
        try:
            first = x509.load_pem_x509_certificates(cert)[0]
        except ValueError:
            raise ConfigError(f"[server] tls_cert: {self._cert} holds no certificate in PEM") from None
        # What is read is tried on another context before: one that was loaded halfway would refuse every handshake.
        for context in (_context(), self.context):
            self._use(context, cert, key)
        self.expires = first.not_valid_after_utc
        if self.expires < datetime.now(UTC):
            logger.warning(
                "certificate_expired", "the certificate in %s has ended on %s: clients will refuse it",
                self._cert, self.expires,
            )  # fmt: skip

    def _use(self, context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
        try:
            with _file(cert, self._cert) as cert_file, _file(key, self._key) as key_file:
                context.load_cert_chain(cert_file, key_file, self._refuse_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"[server] tls_key: the key in {self._key} is not that of the first certificate in {self._cert}"
                ) from None
            why = error.reason or "unreadable"
            if _is_key(key):
                raise ConfigError(
                    f"[server] tls_cert: a certificate in {self._cert}, or of its chain, can't be used ({why})"
                ) from None
            raise ConfigError(f"[server] tls_key: {self._key} holds no usable private key in PEM ({why})") from None

    def _refuse_passphrase(self) -> str:
        raise ConfigError(f"[server] tls_key: the key in {self._key} has a passphrase: write it without one")

    def _signature(self) -> _Signature:
        """What changes when a file does, also when a link in its path leads elsewhere."""
        found = []
        for path in (self._cert, self._key):
            with contextlib.suppress(OSError):  # being replaced
                status = path.stat()
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # For TLS 1.2; the suites of 1.3 are all good. HTTP/2 refuses those without forward secrecy (RFC 9113, appendix A).
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    return context


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"[server] {option}: {path} can't be read: {error.strerror or error}") from None


def _is_key(content: bytes) -> bool:
    try:
        serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


@contextlib.contextmanager
def _file(content: bytes, path: Path) -> Iterator[str]:
    """A path under which OpenSSL finds just what we have read, in memory where that is possible."""
    if not hasattr(os, "memfd_create"):
        yield str(path)
        return
    number = os.memfd_create("rowcast", os.MFD_CLOEXEC)
    try:
        os.write(number, content)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
