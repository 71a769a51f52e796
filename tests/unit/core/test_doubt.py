"""What was committed in a gap of the log, and may not be visible yet."""

from __future__ import annotations

from rowcast.core.doubt import Doubt
from rowcast.core.snapshot import Snapshot


def test_without_a_gap_there_is_none() -> None:
    doubt = Doubt()
    assert not doubt.present(0)
    assert doubt.allows(Snapshot(5, 9, frozenset({5})), 0)


def test_what_was_under_way_after_the_gap_must_have_ended() -> None:
    doubt = Doubt()
    doubt.begin(until=100)
    # 9 is under way, and not listed: nothing newer has ended.
    assert not doubt.allows(Snapshot(5, 9, frozenset({5})), 1)
    assert not doubt.allows(Snapshot(5, 11, frozenset({5, 9})), 2)
    assert not doubt.allows(Snapshot(9, 12, frozenset({9, 11})), 3)
    assert doubt.present(4)
    assert doubt.allows(Snapshot(11, 14, frozenset({11, 13})), 5), "11 began later"
    assert not doubt.present(6)


def test_a_long_transaction_is_not_waited_for_for_ever_and_the_next_gap_begins_anew() -> None:
    doubt = Doubt()
    doubt.begin(until=100)
    assert not doubt.allows(Snapshot(5, 9, frozenset({5})), 1)
    assert not doubt.allows(Snapshot(5, 9, frozenset({5})), 99)
    assert doubt.allows(Snapshot(5, 9, frozenset({5})), 100)
    doubt.begin(until=200)
    assert not doubt.allows(Snapshot(9, 9), 101)
    assert doubt.allows(Snapshot(9, 9), 102)
