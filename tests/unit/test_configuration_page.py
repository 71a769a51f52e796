"""The reference page names every option with its default, and its examples are understood."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rowcast.config import Config
from rowcast.core.condition import Condition
from rowcast.core.template import FILTERS, Template
from rowcast.sections import (
    Api,
    Auth,
    Cache,
    Channels,
    Limits,
    LogSection,
    Postgres,
    RouteSection,
    Server,
    SubscriptionSection,
    Webhooks,
)

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
SECTIONS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "`[server]`": (Server, {}),
    "`[postgres]`": (Postgres, {"url": "postgresql://db"}),
    "`[log]`": (LogSection, {}),
    "`[auth]`": (Auth, {}),
    "`[api]`": (Api, {}),
    "`[limits]`": (Limits, {}),
    "`[webhooks]`": (Webhooks, {}),
    "`[channels]`": (Channels, {}),
    "`[cache]`": (Cache, {}),
    "`[[route]]`": (RouteSection, {"table": "t"}),
    "`[[subscription]]`": (SubscriptionSection, {}),
}


def chapter(title: str) -> str:
    match = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[0]


def rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """The rows of the first table in a text, without its head."""
    lines = re.findall(r"^\|.*\|$", text.split("\n### ")[0], re.MULTILINE)[2:]
    cells = [re.split(r"(?<!\\) *\| *", line.strip("| "))[:columns] for line in lines]
    return [tuple(cell.replace("\\|", "|").strip() for cell in row) for row in cells]


def test_every_section_has_a_chapter() -> None:
    named = {title.strip("`[]") for title in SECTIONS}
    assert named == set(Config.model_fields)


@pytest.mark.parametrize("title", SECTIONS)
def test_every_option_is_named_with_its_default(title: str) -> None:
    model, required = SECTIONS[title]
    options = {row[0].strip("`"): row[1].strip("`") for row in rows(chapter(title), 2)}
    assert sorted(options) == sorted(model.model_fields)
    written = "\n".join(f"{name} = {default}" for name, default in options.items() if default)
    assert model(**required, **tomllib.loads(written)) == model(**required)
    for name, default in options.items():
        if not default and name not in required:
            assert getattr(model(**required), name) is None, name


def test_the_templates_are_templates() -> None:
    for row in rows(chapter("Templates"), 1):
        for text in re.findall(r"`([^`]+)`", row[0]):
            Template.parse(text, "the page")
    assert Template.parse("{{literal}}", "the page").render({}) == ["{literal}"]
    listed = re.search(r"^Filters: (.*?)\n\n", chapter("Templates"), re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert set(FILTERS) <= set(re.findall(r"`(\w+)`", listed[1]))


def test_the_conditions_are_conditions() -> None:
    (example,) = re.findall(r"^    (\S.*)$", chapter("Conditions"), re.MULTILINE)
    Condition.parse(example, "the page")
    for text in re.findall(r"`([^`]*\{[^`]*\} [^`]*)`", chapter("Conditions")):
        Condition.parse(text, "the page")
