"""The Helm chart, rendered by the real helm and checked against Kubernetes' own schemas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rowcast.cli import cli
from rowcast.config import Config

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "rowcast"
CUSTOM = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}
"""Kinds that are not Kubernetes' own."""

FULL = """
secrets: {ROWCAST_POSTGRES_URL: {name: rowcast, key: postgres-url}, ROWCAST_API_KEY: {name: rowcast, key: api-key}}
env: {ROWCAST_SERVER_HEARTBEAT: 10s}
image: {repository: example/rowcast, tag: "1", pullSecrets: [{name: registry}]}
podLabels: {team: live}
podAnnotations: {note: text}
nodeSelector: {disk: ssd}
tolerations: [{key: dedicated, operator: Exists}]
affinity: {podAntiAffinity: {}}
service: {annotations: {note: text}}
serviceAccount: {annotations: {note: text}}
autoscaling: {enabled: true, maxReplicas: 20}
networkPolicy:
  enabled: true
  from: [{podSelector: {matchLabels: {app: web}}}]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
serviceMonitor: {enabled: true, labels: {release: prometheus}, bearer: {name: rowcast, key: api-key}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
dashboard: {enabled: true, labels: {grafana_dashboard: "1"}, annotations: {grafana_folder: Live}}
ingress:
  enabled: true
  host: live.example.com
  annotations: {cert-manager.io/cluster-issuer: letsencrypt}
  tls: [{secretName: live-tls, hosts: [live.example.com]}]
httpRoute: {enabled: true, parentRefs: [{name: gateway}], hostnames: [live.example.com]}
"""
MINIMAL = """
replicas: 1
config: ""
topologySpread: false
podDisruptionBudget: {enabled: false}
serviceAccount: {create: false}
"""

VARIABLES = Config.variables() | {
    variable
    for command in cli.commands.values()
    for parameter in command.params
    for variable in ([parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ())
}
"""Every environment variable that means something."""

_ROOT = DEPLOY.parent
DRILLS = {
    name
    for place in ("tests", "src/rowcast/testing")
    for file in (_ROOT / place).rglob("*.py")
    for name in re.findall(r'(?:get\(|number\(|VARIABLE = )"(ROWCAST_\w+)"', file.read_text(encoding="utf-8"))
}
"""What makes a test larger, or what a test runs on."""

FLAGS = {
    name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for name, command in cli.commands.items()
}

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")


def helm(*arguments: str, values: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *arguments, "-f", "-"], input=values or "{}", capture_output=True, text=True, check=False
    )


def everything(values: str) -> list[dict[str, Any]]:
    result = helm("template", "live", str(CHART), "--namespace", "apps", values=values)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def rendered(values: str) -> dict[str, dict[str, Any]]:
    documents = everything(values)
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


@needs_helm
@pytest.mark.parametrize("values", ["", MINIMAL, FULL], ids=["default", "minimal", "full"])
def test_what_the_chart_renders_is_valid(values: str) -> None:
    documents = everything(values)
    kinds = {document["kind"] for document in documents}
    assert "Deployment" in kinds
    if values == FULL:
        assert kinds >= CUSTOM | {"HorizontalPodAutoscaler", "NetworkPolicy", "Ingress"}
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, "1.31", strict=True)


@needs_helm
def test_the_chart_brings_the_dashboard_as_it_is() -> None:
    [shipped] = [
        document for document in everything("dashboard: {enabled: true}") if "rowcast.json" in document.get("data", {})
    ]
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(shipped["data"]["rowcast.json"]) == json.loads(
        (DEPLOY / "grafana" / "rowcast.json").read_text(encoding="utf-8")
    )


@needs_helm
@pytest.mark.parametrize("values", ["", MINIMAL, FULL], ids=["default", "minimal", "full"])
def test_lint_has_nothing_to_say(values: str) -> None:
    result = helm("lint", str(CHART), "--strict", values=values)
    assert result.returncode == 0, result.stdout
    assert "WARNING" not in result.stdout
    assert "ERROR" not in result.stdout


@needs_helm
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ("replicas: 0", "replicas"),
        ("replica: 3", "replica"),
        ("ingress: {enabled: true}", "host"),
        ("httpRoute: {enabled: true}", "parentRefs"),
        ("secrets: {ROWCAST_API_KEY: plain-text}", "ROWCAST_API_KEY"),
    ],
)
def test_wrong_values_are_refused_by_name(values: str, named: str) -> None:
    result = helm("template", "live", str(CHART), values=values)
    assert result.returncode != 0
    assert named in result.stderr


@needs_helm
def test_a_rollout_never_has_fewer_ready_replicas_and_time_to_drain() -> None:
    documents = rendered("{drainDelay: 7, drainLimit: 40}")
    spec = documents["Deployment"]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert documents["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 47
    variables = {item["name"]: item.get("value") for item in spec["template"]["spec"]["containers"][0]["env"]}
    assert variables["ROWCAST_SERVER_DRAIN_DELAY"] == "7s"
    assert variables["ROWCAST_SERVER_DRAIN_LIMIT"] == "40s"


@needs_helm
def test_what_the_chart_sets_are_options_that_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable with a typing error is ignored in silence."""
    for values in ("", FULL):
        [container] = next(
            document["spec"]["template"]["spec"]["containers"]
            for document in everything(values)
            if document["kind"] == "Deployment"
        )
        assert {item["name"] for item in container["env"]} <= VARIABLES
        command, *arguments = container["args"]
        cli.commands[command].make_context(command, arguments)
    documents = rendered("")
    for item in documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]:
        monkeypatch.setenv(item["name"], item.get("value", "pod-1"))
    file = tmp_path / "rowcast.toml"
    file.write_text(documents["ConfigMap"]["data"]["rowcast.toml"])
    config = Config.load(file)
    assert config.server.host == "0.0.0.0"
    assert config.log.retention == 1800


TEXTS = [
    file
    for place in (DEPLOY, DEPLOY.parent / "docs", DEPLOY.parent / "README.md")
    for file in (place.rglob("*") if place.is_dir() else [place])
    if file.is_file() and file.suffix not in {".png", ".json"}
]
"""Everything that somebody copies from."""


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(DEPLOY.parent)))
def test_every_variable_and_flag_that_is_written_down_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    own = set(re.findall(r'environ\["(\w+)"\]', text))  # of a program of the reader's
    assert set(re.findall(r"\bROWCAST_[A-Z][A-Z_]*[A-Z]\b", text)) <= VARIABLES | DRILLS | own
    commands = "|".join(cli.commands)
    for name, rest in re.findall(rf"\browcast ({commands})\b((?:(?!\browcast )[^`\n])*)", text):
        flags = FLAGS[name]
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest)) <= flags, f"rowcast {name} {rest}"


def test_the_image_starts_what_exists() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    [program] = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).split(maxsplit=1)[1])
    name, *arguments = json.loads(next(line for line in lines if line.startswith('CMD ["serve')).split(maxsplit=1)[1])
    assert program == "rowcast"
    cli.commands[name].make_context(name, arguments)


def test_the_example_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    for name, text in compose["services"]["rowcast-a"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:\?\}", "0123456789abcdef0123456789abcdef", text))
    config = Config.load(DEPLOY / "compose" / "rowcast.toml")
    config.require_auth()
    assert config.log_url.startswith("redis://")
    assert config.postgres is not None


def test_the_compose_file_names_what_exists() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    replica = compose["services"]["rowcast-a"]
    assert (DEPLOY / "compose" / replica["build"]["context"] / replica["build"]["dockerfile"]).is_file()
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            if volume.startswith("."):
                assert (DEPLOY / "compose" / volume.split(":")[0]).is_file()
    wanted = set(re.findall(r"\$\{(\w+):\?\}", (DEPLOY / "compose" / "compose.yaml").read_text()))
    assert wanted == set(re.findall(r"^(\w+)=", (DEPLOY / "compose" / "example.env").read_text(), re.MULTILINE))


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@needs_promtool
def test_every_alert_fires_when_it_must_and_only_then() -> None:
    result = subprocess.run(
        ["promtool", "test", "rules", str(DEPLOY / "prometheus" / "alerts.test.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_names_an_entry_of_the_runbook() -> None:
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]
    runbook = (DEPLOY.parent / "docs" / "runbook.md").read_text()
    anchors = {
        re.sub(r"[^\w -]", "", line[3:].lower()).replace(" ", "-")
        for line in runbook.splitlines()
        if line.startswith("## ")
    }
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("docs/runbook.md")
        assert anchor in anchors, rule["alert"]
