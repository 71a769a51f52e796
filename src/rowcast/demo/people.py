"""The users that one can sign in as, and what each of them watches at first."""

from __future__ import annotations

import time
from dataclasses import dataclass

import jwt

from rowcast.demo.market import HAND

TOKEN_HOURS = 12
"""How long a token of the demo is good for; the page signs in again when one has ended."""


@dataclass(frozen=True)
class Person:
    """A user of the demo. `symbols` is what the person's channel holds when the demo starts."""

    id: str
    name: str
    role: str
    symbols: tuple[str, ...]


PEOPLE = (
    Person("maya", "Maya", "Technology desk", ("MSFT", "GOOG", "AAPL", HAND)),
    Person("jonas", "Jonas", "Risk desk", ("IBM", "VIX", HAND)),
    Person("priya", "Priya", "Sees everything", ("MSFT", "AMZN", "IBM", "GOOG", "AAPL", "VIX", HAND)),
)


def mint(person: Person, secret: str) -> str:
    """A token for `person`, signed with the configured `secret` as an application's own sign-in would."""
    now = int(time.time())
    return jwt.encode({"sub": person.id, "iat": now, "exp": now + TOKEN_HOURS * 3600}, secret, algorithm="HS256")
