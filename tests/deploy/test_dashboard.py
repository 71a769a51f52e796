"""The Grafana dashboard and the alerts ask only for what a running replica tells; the reference names all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from rowcast.testing.server import RowcastServer
from rowcast.testing.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "rowcast.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"][
    0
]["rules"]

CONFIG = """
[postgres]
url = "{database}"
[log]
url = "{log}"
pubsub_bridge = true
[auth]
secret = "0123456789abcdef0123456789abcdef"
[cache]
invalidate = ["cache:{{user}}"]
[[subscription]]
table = "rowcast_channels"
user = "{{user_id}}"
topics = ["{{channel_type}}"]
users = "all"
"""
"""With everything that has metrics of its own."""


@pytest.fixture(scope="module")
def told(shared_database: str) -> dict[str, Metric]:
    """What a replica tells, by the names of its samples."""
    with ValkeyServer() as valkey:
        with RowcastServer(CONFIG.format(database=shared_database, log=valkey.url)) as server:
            text = httpx.get(f"{server.url}/metrics", timeout=60).text
    families = list(text_string_to_metric_families(text))
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + ending: family for family in families for ending in endings[family.type]}


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\browcast_\w+", expression))


def test_panels_and_alerts_ask_for_what_is_told(told: dict[str, Metric]) -> None:
    variables = [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    expressions = [query for panel in PANELS for query in queries(panel)] + [alert["expr"] for alert in ALERTS]
    for expression in expressions + variables:
        assert asked(expression)
        assert asked(expression) <= told.keys(), expression
    everything = {name for name in told if not name.endswith(("_sum", "_count", "_cache_absent_rows"))}
    assert everything <= {name for query in expressions for name in asked(query)}, "told, and nobody looks at it"


def test_labels_that_are_asked_for_have_such_values(told: dict[str, Metric]) -> None:
    found = {
        (name, label, value)
        for panel in (*PANELS, *({"targets": [alert]} for alert in ALERTS))
        for query in queries(panel)
        for name, selector in re.findall(r"(rowcast_\w+)\{([^}]*)\}", query)
        for label, value in re.findall(r'(\w+)="(\w+)"', selector)
    }
    states = {sample.labels["state"] for sample in told["rowcast_stream_state"].samples}
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "rowcast").glob("*.py"))
    for name, label, value in found:
        if label == "state":
            assert value in states
        else:  # counted from its first time on, so it may not be there yet
            assert (name, label) == ("rowcast_catchups_total", "cause")
            assert f'_note_catchup(stream, "{value}")' in source
    assert found


def test_the_reference_names_every_metric(told: dict[str, Metric]) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(rowcast_\w+)", page, re.MULTILINE))
    assert rows == {name for name in told if not re.search(r"_(bucket|sum|count)$", name)} | {
        "rowcast_delivery_latency_seconds"
    }


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    [datasource] = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    for panel in PANELS:
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": f"${{{datasource['name']}}}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used <= names | {"__rate_interval", "__all"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{panel['id']}:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for panel in PANELS
        for number, query in enumerate(queries(panel))
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    result = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(rules)} rules found" in result.stdout
