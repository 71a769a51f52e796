"""Who was disconnected while it was found out who they are."""

from __future__ import annotations

import pytest

from rowcast import dismissed
from rowcast.dismissed import Dismissed


def test_only_who_was_disconnected_since_is() -> None:
    one = Dismissed()
    before = one.number
    one.note("ann")
    assert one.since(before, "ann")
    assert not one.since(before, "bob")
    assert not one.since(one.number, "ann")


def test_what_is_forgotten_may_have_concerned_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dismissed, "MAX_USERS", 2)
    one = Dismissed()
    before = one.number
    one.note("ann")
    one.note("bob")
    one.note("ann")
    after = one.number
    one.note("cid")  # bob is forgotten
    assert one.since(before, "bob")
    assert one.since(before, "dan")
    assert not one.since(after, "bob")
    assert not one.since(after, "ann")
