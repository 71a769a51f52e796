"""Durations and sizes as people write them in a configuration."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", re.ASCII | re.IGNORECASE)


def parse_duration(value: object) -> float:
    """Seconds of `"15s"`, `"1h30m"`, `"500ms"`, or of a number of seconds.

    Raises ValueError that says what was expected.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, str):
        text = value.replace(" ", "")
        if text and not _PART.sub("", text):
            return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            return float(text)
    raise ValueError(f'{value!r} is no duration; write it like "15s", "10m" or "1h30m"')


def parse_size(value: object) -> int:
    """Bytes of `"256KB"`, `"1GB"` (KB is 1024 bytes), or of a number of bytes.

    Raises ValueError that says what was expected.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = match[2].upper()
        unit = unit if unit in _BYTES else f"{unit}B"
        return int(float(match[1]) * _BYTES[unit])
    raise ValueError(f'{value!r} is no size; write it like "256KB" or "1GB"')


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
