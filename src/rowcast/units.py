"""Durations and sizes as people write them in a configuration."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_DURATION = re.compile(r"\s*".join(rf"(?:({_NUMBER})\s*{unit}(?![a-z]))?" for unit in _SECONDS), re.ASCII)
_BARE = re.compile(_NUMBER, re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})\s*(B|[KMGT]B|)", re.ASCII | re.IGNORECASE)


def parse_duration(value: object) -> float:
    """Seconds of `"15s"`, `"1h30m"`, `"500ms"`, or of a number of seconds.

    Units are d, h, m, s and ms, each once, from the largest to the smallest. Raises ValueError that says what
    was expected.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        if _BARE.fullmatch(text):
            return float(text)
        if text and (match := _DURATION.fullmatch(text)):
            return sum(float(n) * seconds for n, seconds in zip(match.groups(), _SECONDS.values(), strict=True) if n)
    raise ValueError(f'{value!r} is no duration; write it like "15s", "10m" or "1h30m"')


def parse_size(value: object) -> int:
    """Bytes of `"256KB"`, `"1GB"` (KB is 1024 bytes), or of a number of bytes.

    Raises ValueError that says what was expected.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _BYTES[match[2].upper()])
    raise ValueError(f'{value!r} is no size; write it like "256KB" or "1GB"')


def _whole(value: object) -> object:
    """Refuse what Python would take for a number: true is no count."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Count = Annotated[int, BeforeValidator(_whole)]
