"""Each metric that an alert, a panel or the page for operators names, a running member has."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.certificates import Pki
from tests.support.deployed import DEPLOY, expressions, metrics_of
from tests.support.processes import running

OF_PROMETHEUS = {"up"}
OPERATIONS = DEPLOY.parent / "docs" / "operations.md"


async def test_alerts_and_panels_name_metrics_that_exist(tmp_path: Path) -> None:
    # What is counted only while it is switched on is switched on.
    pki = Pki(tmp_path / "pki")
    limits = ["--rate-limit-address=1000000"]
    async with running(tmp_path, 1, limits, certificates=pki) as cluster:
        member = cluster.members[0]
        await cluster.insist(member, "PUT", "/api/kv/k", data=b"v")
        _, page, _ = await cluster.call(member, "GET", "/metrics")
    families = list(text_string_to_metric_families(page.decode()))
    samples = {sample.name for family in families for sample in family.samples}
    # Labelled by what was called: without a call, the family has no sample yet.
    named = {f"{family.name}_total" for family in families if family.type == "counter"}
    told = OPERATIONS.read_text()
    for title in ("## The runbook\n", "## Metrics worth watching\n"):
        section = told.partition(title)[2].partition("\n## ")[0]
        metrics = set(re.findall(r"`((?:raftkv|etcd)_[a-z_]+)", section))
        assert metrics and metrics <= samples | named, (title, metrics - samples - named)
    for expression in expressions():
        missing = metrics_of(expression) - samples - named - OF_PROMETHEUS
        assert not missing, (expression, missing)
