"""What the how-tos show as the way from an application to live updates is the real difference, and short."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tools.markdown import ALL

ROOT = Path(__file__).parents[2]
MOST = 15
"""Lines that are added, at most."""


def difference(example: str) -> str:
    """Between what is before and after, file by file, as the how-to shows it."""
    before, after = (ROOT / "examples" / example / which for which in ("before", "after"))
    names = sorted({str(file.relative_to(top)) for top in (before, after) for file in top.rglob("*.*")})
    parts = []
    for name in names:
        if "__pycache__" in name:
            continue
        old, new = ((top / name).read_text().splitlines() for top in (before, after))
        parts += difflib.unified_diff(old, new, name, name, n=2, lineterm="")
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("example", ["fastapi", "django"])
def test_the_difference_that_is_shown_is_the_real_one(example: str) -> None:
    shown = [block.text for block in ALL if block.language == "diff" and block.path.name == f"{example}.md"]
    real = difference(example)
    assert shown == [real], f"docs/how-to/{example}.md should show:\n{real}"
    added = [line for line in real.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(added) <= MOST
