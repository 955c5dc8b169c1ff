"""The files of deploy/: they parse, say only what the program understands, and are safe."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from typing import Any

import pytest
import yaml

from raftkv.server.config import ServerConfig, load_config
from raftkv.server.tls.settings import check_exposure
from tests.support.deployed import DASHBOARD, DEPLOY, RULES, expressions, metrics_of

ROOT = DEPLOY.parent


def configured(arguments: list[str]) -> ServerConfig:
    """What `raftkv serve` with these arguments would run with; the command line takes them too."""
    flags: dict[str, object] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        assert argument.startswith("--") and equals, argument
        flags[name.replace("-", "_")] = value
    known = set(ServerConfig.__dataclass_fields__)
    assert set(flags) <= known, set(flags) - known
    return load_config(flags)


# ---- systemd -------------------------------------------------------------------------------------


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((DEPLOY / "systemd" / "raftkv.service").read_text())
    return parser


def test_the_unit_notifies_is_watched_and_may_do_little() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify" and service["NotifyAccess"] == "main"
    assert service["WatchdogSec"] == "30s" and service["Restart"] == "on-failure"
    assert service["TimeoutStartSec"] == "infinity", "a long log takes long to read"
    assert service["User"] == "raftkv" and service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""
    assert "AF_UNIX" in service["RestrictAddressFamilies"], "else systemd hears nothing"
    command = shlex.split(service["ExecStart"])
    assert command[1] == "serve"
    config_file, *settings = command[2:]
    assert config_file == "--config-file=/etc/raftkv/raftkv.toml"
    config = configured(settings)
    assert str(config.data_directory).startswith(f"/var/lib/{service['StateDirectory']}/")


# ---- the image -----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in whole.splitlines()]  # type: ignore[misc]


def test_the_image_follows_the_rules_of_a_linter() -> None:
    found = instructions()
    names = [name for name, _ in found]
    stages = [text for name, text in found if name == "FROM"]
    for stage in stages:  # DL3006, DL3007
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+( AS \w+)?", stage), stage
    last = found[len(names) - 1 - names[::-1].index("FROM") :]
    user = [text for name, text in last if name == "USER"]
    assert user and user[-1].split(":")[0] not in ("root", "0"), "DL3002"
    assert names.count("CMD") == 1 and names.count("ENTRYPOINT") == 1, "DL4003, DL4004"
    assert names.count("HEALTHCHECK") == 1 and "ADD" not in names and "MAINTAINER" not in names
    for name, text in found:
        if name in ("CMD", "ENTRYPOINT"):
            assert isinstance(json.loads(text), list), "DL3025"
        if name == "WORKDIR":
            assert text.startswith("/"), "DL3000"
        if name == "RUN":
            assert "sudo" not in text and "apt-get" not in text and "cd " not in text
            assert "pip install" not in text or "--no-cache-dir" in text, "DL3042"
        if name in ("ENV", "ARG"):
            assert not re.search(r"(?i)secret|passw|token|_key", text), "no secrets in layers"
        if name == "COPY" and "--from" not in text:
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
                kept = (ROOT / ".dockerignore").read_text().splitlines()
                assert f"!{source}" in kept, source
    assert kept[0] == "*", "nothing else goes into a layer, least of all data"


def test_the_image_starts_and_is_asked_as_the_command_line_has_it() -> None:
    from click.testing import CliRunner

    from raftkv.cli.main import cli

    texts = dict(instructions())
    assert json.loads(texts["ENTRYPOINT"]) == ["raftkv"]
    check = json.loads(texts["HEALTHCHECK"].partition("CMD ")[2])
    assert check[0] == "raftkv"
    for command in (json.loads(texts["CMD"]), check[1:]):
        assert CliRunner().invoke(cli, [*command, "--help"]).exit_code == 0
    variables = {
        name: value
        for kind, text in instructions() if kind == "ENV"
        for name, value in (pair.split("=", 1) for pair in shlex.split(text))
        if name.startswith("RAFTKV_")
    }  # fmt: skip
    assert load_config({}, variables).data_dir == "/data/raftkv"


# ---- Kubernetes ----------------------------------------------------------------------------------


def manifests() -> dict[tuple[str, str], Any]:
    found = {}
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found[document["kind"], document["metadata"]["name"]] = document
    return found


def test_manifests_fit_together() -> None:
    found = manifests()
    members = found["StatefulSet", "raftkv"]["spec"]
    labels = members["template"]["metadata"]["labels"]
    assert members["selector"]["matchLabels"].items() <= labels.items()
    headless = found["Service", members["serviceName"]]["spec"]
    assert headless["clusterIP"] == "None" and headless["publishNotReadyAddresses"] is True
    for name in ("raftkv", "raftkv-peers"):
        service = found["Service", name]["spec"]
        assert service["selector"].items() <= labels.items()
        ports = {port["name"] for port in members["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports
    budget = found["PodDisruptionBudget", "raftkv"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1 and members["replicas"] == 3
    assert members["podManagementPolicy"] == "Parallel"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_pod_is_a_member_of_one_cluster(number: int, caplog: pytest.LogCaptureFixture) -> None:
    members = manifests()["StatefulSet", "raftkv"]["spec"]
    [container] = members["template"]["spec"]["containers"]
    names = {"POD_NAME": f"raftkv-{number}", "NAMESPACE": "prod"}
    assert set(names) == {variable["name"] for variable in container["env"]}
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda found: names[found[1]], argument)
        for argument in container["args"]
    ]
    assert arguments[0] == "serve"
    config = configured(arguments[1:])
    assert config.name == f"raftkv-{number}"
    assert set(config.founding_members) == {"raftkv-0", "raftkv-1", "raftkv-2"}
    own = f"https://raftkv-{number}.raftkv-peers.prod.svc.cluster.local:2380"
    assert config.advertised_peer_urls == (own,)
    check_exposure(config, access_control=True)
    assert not caplog.records, "neither door is open to strangers"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert str(config.data_directory).startswith("/data/") and "/data" in mounts
    assert mounts["/tls"]["readOnly"] is True
    claims = {claim["metadata"]["name"] for claim in members["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in members["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == claims | volumes


def test_pods_are_probed_and_may_do_little() -> None:
    pod = manifests()["StatefulSet", "raftkv"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    probes = {
        "startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz",
    }  # fmt: skip
    for probe, path in probes.items():
        asked = container[probe]["httpGet"]
        assert asked == {"path": path, "port": "clients", "scheme": "HTTPS"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert "limits" in container["resources"] and ":" in container["image"]
    assert not container["image"].endswith(":latest")


# ---- Prometheus and Grafana ----------------------------------------------------------------------


def headings() -> set[str]:
    """Anchors of the runbook's page."""
    text = (ROOT / "docs" / "operations.md").read_text()
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_rules_are_rules_and_lead_to_the_runbook() -> None:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) >= 12
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md" and anchor in headings(), anchor


def test_expressions_are_balanced_and_name_metrics() -> None:
    for expression in expressions():
        for left, right in ("()", "[]", "{}"):
            assert expression.count(left) == expression.count(right), expression
        assert metrics_of(expression), expression
    assert metrics_of('sum by (status) (rate(raftkv_x_total{job="a"}[5m])) / up > 0.8') == {
        "raftkv_x_total", "up",
    }  # fmt: skip


def test_the_dashboard_is_one() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels), "no panel lies on another"
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in panels:
        assert panel["title"] and panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= variables | {"__rate_interval"}, target["expr"]
