"""The result of a soak: JSON, a table in Markdown, and a plot where matplotlib is there."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.soak.run import BOUND_BYTES_PER_HOUR, Soak
from tests.soak.sampling import Sample

MIB = 2**20


def result(soak: Soak) -> dict[str, Any]:
    """Everything but the samples."""
    load, ledger = soak.load, soak.load.ledger
    answers = soak.sampler.answers
    return {
        "minutes": soak.plan.minutes,
        "seed": soak.plan.seed,
        "seconds": round(soak.seconds, 1),
        "cores": os.cpu_count(),
        "peak_per_second": round(soak.peak, 1),
        "offered_per_second": round(soak.peak / 2, 1),
        "done_per_second": round(statistics.mean(each.per_second for each in answers), 1),
        "p50_ms": round(statistics.median(p for each in answers for p in each.p50_ms), 2),
        "p99_ms": round(statistics.median(p for each in answers for p in each.p99_ms), 2),
        "not_offered": load.not_offered,
        "outcomes": dict(load.outcomes.most_common()),
        "kinds": dict(load.kinds.most_common()),
        "acknowledged_writes": ledger.acknowledged_writes,
        "confirmed_writes": ledger.confirmed_writes,
        "reads_checked": ledger.reads_checked,
        "watch_events": {each.name: each.events for each in ledger.followers},
        "leases_ended": load.leases.ended,
        "leases_renewed": load.leases.renewed,
        "service_lists_checked": load.catalog.lists,
        "register_rounds": soak.registers.rounds,
        "register_operations": soak.registers.operations,
        "keys_compared_with_backups": soak.operator.keys_compared,
        "happened": [asdict(each) for each in soak.happened],
        "memory_bound_bytes_per_hour": BOUND_BYTES_PER_HOUR,
        "memory": [asdict(each) for each in soak.lives],
        "faults": soak.faults.count,
        "said": soak.faults.said,
    }


def table(soak: Soak) -> str:
    """For people."""
    found = result(soak)
    refused = {k: v for k, v in found["outcomes"].items() if k not in ("done", "unknown")}
    rows = [
        ("time", f"{found['seconds'] / 60:.1f} minutes, seed {found['seed']}"),
        ("peak, then offered", f"{found['peak_per_second']:.0f}, "
         f"{found['offered_per_second']:.0f} requests a second"),
        ("answered", f"{found['done_per_second']:.0f} a second, median p50 "
         f"{found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.0f} ms"),
        ("requests done", f"{found['outcomes'].get('done', 0)}; outcome unknown "
         f"{found['outcomes'].get('unknown', 0)}; left out {found['not_offered']}"),
        ("refused", ", ".join(f"{v} {k[9:]}" for k, v in refused.items()) or "none"),
        ("acknowledged writes", f"{found['acknowledged_writes']}, "
         f"{found['confirmed_writes']} confirmed by each of {len(found['watch_events'])} watches"),
        ("reads checked", f"{found['reads_checked']}"),
        ("registers", f"{found['register_operations']} operations in "
         f"{found['register_rounds']} rounds, each linearizable"),
        ("leases", f"{found['leases_ended']} ended, {found['leases_renewed']} renewals"),
        ("catalog", f"{found['service_lists_checked']} lists, each with all that were due"),
        ("keys compared with backups", f"{found['keys_compared_with_backups']}"),
    ]  # fmt: skip
    lines = ["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)]
    lines += ["", "| Minute | Seconds | What |", "|---|---|---|"]
    lines += [
        f"| {e['at'] / 60:.1f} | {e['seconds']:.0f} | {e['what']} |" for e in found["happened"]
    ]
    lines += ["", "| Member | Minutes | Private memory, first and last fifth | Slope |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {e['member']} | {e['seconds'] / 60:.0f} | {e['first_bytes'] / MIB:.1f}, "
        f"{e['last_bytes'] / MIB:.1f} MiB | {e['bytes_per_hour'] / MIB:+.1f} MiB/h |"
        for e in found["memory"]
    ] or ["| | | not judged: no process ran for long enough in the second half | |"]
    return "\n".join(lines)


def write(soak: Soak, folder: Path) -> None:
    """soak.json, samples.json, soak.md and, with matplotlib, soak.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps(result(soak), indent=2) + "\n")
    samples = {**soak.sampler.as_json(), "happened": [asdict(each) for each in soak.happened]}
    (folder / "samples.json").write_text(json.dumps(samples) + "\n")
    (folder / "soak.md").write_text(table(soak) + "\n")
    if importlib.util.find_spec("matplotlib"):
        plot(folder)


def plot(folder: Path) -> None:
    """soak.svg out of samples.json: memory, disk, throughput and latency over time, with what
    happened when."""
    from benchmarks.plots import timeline

    samples = json.loads((folder / "samples.json").read_text())
    members: dict[str, list[Sample]] = {}
    for row in samples["samples"]:
        members.setdefault(row["member"], []).append(Sample(**row))

    def curve(pick: str, unit: float) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [(each.at / 60, getattr(each, pick) / unit) for each in rows]
            for name, rows in members.items()
        }

    answers = samples["answers"]

    def latency(field: str) -> dict[str, list[tuple[float, float]]]:
        slots = range(len(answers[0][field]))
        return {
            f"member {slot + 1} first": [(each["at"] / 60, each[field][slot]) for each in answers]
            for slot in slots
        }

    timeline(
        "Half of peak load, with everything an operator does",
        {
            "private memory, MiB": curve("private_bytes", MIB),
            "resident memory, MiB": curve("resident_bytes", MIB),
            "tables on disk, MiB": curve("tables_bytes", MIB),
            "log on disk, MiB": curve("log_bytes", MIB),
            "open files": curve("files", 1),
            "answers a second": {
                "all": [(each["at"] / 60, each["per_second"]) for each in answers]
            },
            "p50, ms": latency("p50_ms"),
            "p99, ms": latency("p99_ms"),
        },
        [(each["at"] / 60, each["kind"].replace("_", " ")) for each in samples["happened"]],
        folder / "soak.svg",
        logarithmic=("p50, ms", "p99, ms"),
    )
