"""Standard Webhooks: signatures of what a webhook sends.

Source: Standard Webhooks specification 1.0.0, sections "Signature scheme" and "Verifying signatures". Of its two
schemes the symmetric one, HMAC-SHA256 (`v1`), which Debezium Server signs by.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping

from rowcast.errors import AuthError

PREFIX = "whsec_"
"""Secrets that sign begin so; what follows is base64."""

SHORTEST, LONGEST = 24, 64
"""Bytes of a signing secret."""

TOLERANCE = 300
"""Seconds that a delivery's timestamp may be off: what is older may be a replay."""


def parse_secret(secret: str) -> bytes | None:
    """The key in a secret that signs; None for a secret that is none of these.

    Raises ValueError that says what is wrong with it, without the secret.
    """
    if not secret.startswith(PREFIX):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"a secret that begins with {PREFIX} goes on in base64, and this one does not") from None
    if not SHORTEST <= len(key) <= LONGEST:
        raise ValueError(
            f"a secret that begins with {PREFIX} has {SHORTEST} to {LONGEST} bytes in base64, this one {len(key)}; "
            f'make one: echo "{PREFIX}$(openssl rand -base64 32)"'
        )
    return key


def sign(key: bytes, identifier: str, timestamp: int, body: bytes) -> str:
    """The signature of a delivery, as it stands in `webhook-signature`. `timestamp` in Unix seconds."""
    digest = hmac.digest(key, b"%s.%d.%s" % (identifier.encode(), timestamp, body), "sha256")
    return "v1," + base64.b64encode(digest).decode()


def verify(key: bytes, headers: Mapping[str, str], body: bytes, *, now: float) -> None:
    """Check a delivery's signature; several may be given, of which one must fit. `now` in Unix seconds.

    Raises `AuthError`.
    """
    identifier = headers.get("webhook-id", "")
    sent = headers.get("webhook-timestamp", "")
    signatures = headers.get("webhook-signature", "").split()
    if not identifier or not signatures or not (sent.isascii() and sent.isdecimal() and len(sent) <= 12):
        raise AuthError("this call must be signed: send webhook-id, webhook-timestamp and webhook-signature")
    expected = sign(key, identifier, int(sent), body).encode()
    # All are compared, so that the time taken does not tell which was nearest.
    fitting = [hmac.compare_digest(signature.encode(), expected) for signature in signatures[:16]]
    if not any(fitting):
        raise AuthError("the signature does not fit: both sides must have the same secret")
    if abs(now - int(sent)) > TOLERANCE:
        raise AuthError(f"the delivery's timestamp is over {TOLERANCE} s off: set both clocks, or it is a replay")
