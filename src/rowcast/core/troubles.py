"""What went wrong with rows: counted, and the latest texts kept for the operator."""

from __future__ import annotations

MAX_PROBLEMS = 50
"""Texts kept; older ones go first."""

_SKIPPED = " was skipped: "


def public(text: str) -> str:
    """A problem's text without an error's own words: they may hold values of the row, and are the operator's to see."""
    what, skipped, why = text.partition(_SKIPPED)
    return what + skipped + why.partition(":")[0]


class Troubles:
    """The problems of a router and its rules.

    `poisoned` counts the rows that were skipped since a route or rule raised; `unfit` the topics that were left
    out since no topic can be like that (empty, or with CR, LF or NUL in it).
    """

    __slots__ = ("_texts", "poisoned", "unfit")

    def __init__(self) -> None:
        self.poisoned = 0
        self.unfit = 0
        self._texts: dict[str, str] = {}

    @property
    def texts(self) -> list[str]:
        """The problems, the latest last."""
        return list(self._texts.values())

    def note(self, what: str, text: str) -> None:
        """Keep a problem's text. It replaces the one that was kept for the same `what`, if any."""
        self._texts.pop(what, None)
        self._texts[what] = text
        if len(self._texts) > MAX_PROBLEMS:
            del self._texts[next(iter(self._texts))]

    def poison(self, what: str, text: str, error: BaseException) -> None:
        """Count a row that was skipped, and keep the latest one's text."""
        self.poisoned += 1
        message = " ".join(str(error).split())[:200]
        self.note(what, f"{text}{_SKIPPED}{type(error).__name__}: {message}")
