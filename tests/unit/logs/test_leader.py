from __future__ import annotations

from rowcast.core.position import MINOR_SPACING
from rowcast.logs.leader import Redo, _last


def test_the_slot_stays_behind() -> None:
    redo = Redo(30.0)
    assert redo.confirmable("a", 1000.0) == 0
    for second in range(100):
        redo.add("a", float(second), 1000 + second)
    assert redo.confirmable("a", 99.0) == 1069
    assert redo.confirmable("a", 129.0) == 1099
    assert redo.confirmable("a", 500.0) == 1099


def test_another_incarnation_begins_anew() -> None:
    redo = Redo(1.0)
    redo.add("a", 0.0, 5000)
    assert redo.confirmable("a", 2.0) == 5000
    assert redo.confirmable("b", 2.0) == 0
    redo.add("b", 2.0, 100)
    assert redo.confirmable("b", 2.5) == 0
    assert redo.confirmable("b", 3.0) == 100
    assert redo.confirmable("a", 3.0) == 0


def test_many_samples_in_a_second_are_one() -> None:
    redo = Redo(30.0)
    for number in range(1000):
        redo.add("a", number / 1000, number)
    assert redo.confirmable("a", 30.0) == 0


def test_without_redo_all_that_came_by_is_confirmed() -> None:
    redo = Redo(0.0)
    redo.add("a", 1.0, 7)
    redo.add("a", 1.0, 8)
    assert redo.confirmable("a", 1.0) == 8


def test_the_end_of_a_batch_leaves_room_for_published_entries() -> None:
    assert _last((100, 0)) == (100, 0)
    # A transaction of which nothing has come yet: everything before it has.
    assert _last((100, MINOR_SPACING - 1)) == (100, 0)
    # After its first change, which has the place (100, 1 << 20).
    end = _last((100, 2 * MINOR_SPACING - 1))
    assert (100, MINOR_SPACING) < end < (100, 2 * MINOR_SPACING)
    assert end[1] % MINOR_SPACING == MINOR_SPACING // 2 - 1
