"""The runbook's table of what was provoked leaves out no entry and no alert, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from benchmarks.alerts import INCIDENTS

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
TABLE = "How we know"
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in RUNBOOK.partition(f"## {TABLE}")[2].splitlines()
    if line.startswith("| [")
]
DRILLED = set().union(*(alerts for alerts, _ in INCIDENTS))
ALERTS = {
    rule["alert"]
    for rule in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
}


def test_every_entry_was_provoked() -> None:
    entries = [title for title in re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE) if title != TABLE]
    assert [re.findall(r"\[(.*?)\]", row[0])[0] for row in ROWS] == entries
    for _, _, how in ROWS:
        assert "drill" in how or "::" in how


def test_every_alert_is_provoked_by_the_drill() -> None:
    assert DRILLED == ALERTS
    assert set(re.findall(r"Rowcast\w+", " ".join(row[1] for row in ROWS))) == ALERTS
    for _, alerts, how in ROWS:
        if "drill" in how:
            assert set(re.findall(r"Rowcast\w+", alerts)) <= DRILLED


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", RUNBOOK)
    assert named
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
