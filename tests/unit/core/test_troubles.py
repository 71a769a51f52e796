"""Troubles: counts, and a bounded number of texts."""

from __future__ import annotations

from rowcast.core.troubles import MAX_PROBLEMS, Troubles, public


def test_a_text_replaces_the_one_about_the_same_and_comes_last() -> None:
    troubles = Troubles()
    troubles.note("a", "a 1")
    troubles.note("b", "b 1")
    troubles.note("a", "a 2")
    assert troubles.texts == ["b 1", "a 2"]


def test_the_oldest_texts_go_first() -> None:
    troubles = Troubles()
    for number in range(MAX_PROBLEMS + 3):
        troubles.note(str(number), str(number))
    assert troubles.texts == [str(number) for number in range(3, MAX_PROBLEMS + 3)]


def test_a_poison_row_is_counted_and_its_error_kept_on_one_short_line() -> None:
    troubles = Troubles()
    for number in range(3):
        troubles.poison("row", "a row", ValueError(f"bad {number}\n" + "x" * 1000))
    assert troubles.poisoned == 3
    assert len(troubles.texts) == 1
    assert troubles.texts[0].startswith("a row was skipped: ValueError: bad 2 xxx")
    assert len(troubles.texts[0]) < 300


def test_an_errors_own_words_are_not_for_everybody() -> None:
    troubles = Troubles()
    troubles.poison("row", "rule 1: a row of people", ValueError("could not convert string to float: 'SECRET: 1'"))
    troubles.note("column", "rule 1: people had no column 'x' for a time")
    skipped, column = troubles.texts
    assert "SECRET" in skipped
    assert public(skipped) == "rule 1: a row of people was skipped: ValueError"
    assert public(column) == column
