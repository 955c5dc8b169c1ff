"""The files of deploy/ in the eyes of the tools that read them.

Debian has them in prometheus and systemd, PyPI the others.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.support.deployed import DEPLOY, RULES

RULE_TESTS = RULES.with_suffix(".test.yml")
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "systemd" / "raftkv.service"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
SCRIPTS = Path(sys.executable).parent


def said(*command: str | Path, code: int = 0) -> str:
    """What a tool says; `code` is how it has to end."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False
    )
    told = done.stdout + done.stderr
    assert done.returncode == code, told
    return told


@pytest.mark.tools("promtool")
def test_prometheus_takes_the_alerts_and_raises_them_when_it_should() -> None:
    count = len(yaml.safe_load(RULES.read_text())["groups"][0]["rules"])
    assert f"{count} rules found" in said("promtool", "check", "rules", RULES)
    assert "SUCCESS" in said("promtool", "test", "rules", RULE_TESTS)


@pytest.mark.tools("promtool")
def test_an_alert_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    (tmp_path / RULE_TESTS.name).write_text(RULE_TESTS.read_text())
    text = RULES.read_text()
    wrong = text.replace('raftkv_alarm_corrupt{job="raftkv"} == 1', "vector(1) == 2")
    assert wrong != text
    (tmp_path / RULES.name).write_text(wrong)
    said("promtool", "test", "rules", tmp_path / RULE_TESTS.name, code=1)


def test_each_alert_is_tested_to_fire_and_to_be_silent() -> None:
    alerts = {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    quiet, *others = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    silent = Counter(case["alertname"] for case in quiet["alert_rule_test"])
    assert set(silent) == alerts and set(silent.values()) == {1}
    firing = {
        case["alertname"]
        for test in others
        for case in test.get("alert_rule_test", ())
        if case.get("exp_alerts")
    }
    for test in others:
        for case in test.get("promql_expr_test", ()):
            for sample in case.get("exp_samples", ()):
                firing.update(re.findall(r'alertname="(\w+)"', sample["labels"]))
    assert firing == alerts


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_knows_every_field(manifest: Path) -> None:
    told = said(SCRIPTS / "kubernetes-validate", "--strict", manifest)
    resources = [document for document in yaml.safe_load_all(manifest.read_text()) if document]
    assert told.count("passed for resource") == len(resources)


def test_a_field_that_kubernetes_does_not_know_is_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = next(path for path in MANIFESTS if path.stem == "statefulset").read_text()
    assert "serviceName:" in text
    wrong.write_text(text.replace("serviceName:", "servicename:"))
    said(SCRIPTS / "kubernetes-validate", "--strict", wrong, code=1)


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    hadolint = SCRIPTS / "hadolint"
    assert said(hadolint, DOCKERFILE) == ""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text() + "\nUSER root\n")
    assert "DL3002" in said(hadolint, wrong, code=1)


@pytest.mark.tools("systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text()
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert program is not None
    # It has to be there; which one it is does not matter here.
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(program[1], sys.executable))
    assert said("systemd-analyze", "verify", unit) == ""
    unit.write_text(text.replace(program[1], sys.executable) + "\nProtectEverything=yes\n")
    assert "ProtectEverything" in said("systemd-analyze", "verify", unit)
