from __future__ import annotations

from rowcast.logs.redo import Redo


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
