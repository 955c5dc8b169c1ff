"""What the files of deploy/ ask of Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "raftkv.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "raftkv.json"
WORDS = frozenset(
    ("sum", "max", "min", "avg", "count", "rate", "increase", "scalar", "by", "without", "and",
     "or", "unless", "on", "ignoring", "absent", "changes")
)  # fmt: skip
"""Functions and operators of PromQL that are used."""


def expressions() -> list[str]:
    """Every expression of the alert rules and of the dashboard."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return rules + [target["expr"] for panel in panels for target in panel["targets"]]


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression of PromQL names."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - WORDS
