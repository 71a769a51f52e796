"""The fenced blocks of code in the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/**/README.md")]
    if not {"node_modules", "_build"} & set(path.parts) and not any(part.startswith(".") for part in path.parts[1:])
)
"""Every text that people read."""

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)


class Block(msgspec.Struct, frozen=True):
    """A block: where it stands, its language ("" where it has none), its text, and the comments right before it."""

    path: Path
    line: int
    language: str
    text: str
    comments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a text, in order."""
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] or "\n" for line in match["body"].splitlines(keepends=True))
        before = re.search(r"((?:<!--[^\n]*-->\s*)*)\Z", text[: match.start()])
        comments = re.findall(r"<!--\s*(.*?)\s*-->", before[1]) if before else []
        line = text.count("\n", 0, match.start()) + 1
        yield Block(path, line, match["language"].strip(), body, tuple(comments))


ALL = [block for path in TEXTS for block in blocks(path)]
