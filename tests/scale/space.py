"""Rounds of overwriting and compacting: the file is used again. Then most is deleted, and shrunk.

    python -m tests.scale.space [--rounds N] [--keys N] [--plot FILE.svg]

After the first half of the rounds the file must not grow by more than a tenth, whatever was
written since; after shrinking it must hold little more than what is used.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from tests.support.processes import Cluster, Member, running

MIB = 1 << 20
VALUE_BYTES = 16 * 1024
AT_ONCE = 64

Point = tuple[float, float, float]
"""MiB: written so far, in use, in the file."""


async def main() -> None:
    """Run it and print what was measured; AssertionError when a bound was passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--plot", type=Path, help="write the curve there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), 1) as cluster:
            points = await rounds(cluster, cluster.members[0], options.rounds, options.keys)
            before, after = await shrink(cluster, cluster.members[0])
    settled = [file for _, _, file in points[len(points) // 2 :]]
    print(
        f"written {points[-1][0]:.0f} MiB in {options.rounds} rounds; the file has "
        f"{points[0][2]:.1f} MiB after the first, {min(settled):.1f} to {max(settled):.1f} MiB "
        f"in the second half of them; shrunk from {before:.1f} to {after:.1f} MiB once empty"
    )
    if options.plot is not None:
        plot(points, (before, after), options.plot)
    assert max(settled) <= settled[0] * 1.1, settled
    assert after < 2, after


async def rounds(cluster: Cluster, member: Member, count: int, keys: int) -> list[Point]:
    points = []
    for number in range(1, count + 1):
        value = bytes([number % 256]) * VALUE_BYTES
        for start in range(0, keys, AT_ONCE):
            await asyncio.gather(
                *(
                    wanted(cluster, member, "PUT", f"/api/kv/k{key}", data=value)
                    for key in range(start, min(start + AT_ONCE, keys))
                )
            )
        await wanted(cluster, member, "POST", "/api/compact", json={"keep": 0})
        status = await settled_status(cluster, member)
        points.append(
            (
                number * keys * VALUE_BYTES / MIB,
                status["db_used_bytes"] / MIB,
                status["db_bytes"] / MIB,
            )
        )
        written, used, file = points[-1]
        print(f"round {number}: written {written:.0f} MiB, used {used:.1f}, file {file:.1f}")
    return points


async def shrink(cluster: Cluster, member: Member) -> tuple[float, float]:
    await wanted(cluster, member, "DELETE", "/api/kv?prefix=k")
    await wanted(cluster, member, "POST", "/api/compact", json={"keep": 0})
    await settled_status(cluster, member)
    done = await wanted(cluster, member, "POST", "/api/shrink", json={})
    return done["before_bytes"] / MIB, done["after_bytes"] / MIB


async def wanted(cluster: Cluster, member: Member, method: str, path: str, **more: Any) -> Any:
    code, body, _ = await cluster.call(member, method, path, **more)
    assert code == 200, (method, path, code, body)
    return body


async def settled_status(cluster: Cluster, member: Member) -> dict[str, Any]:
    """The status once what is used has not become less for a moment."""
    status = await cluster.status(member)
    while True:
        await asyncio.sleep(0.3)
        later = await cluster.status(member)
        if later["db_used_bytes"] >= status["db_used_bytes"]:
            return later
        status = later


def plot(points: list[Point], shrunk: tuple[float, float], path: Path) -> None:
    """The curve as SVG, the same for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "raftkv", "svg.fonttype": "none"})
    from matplotlib import pyplot

    written, used, file = zip(*points, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot(written, file, color="#1f6feb", label="file of the tables")
    axes.plot(written, used, color="#8250df", label="of it in use")
    axes.annotate(
        f"all deleted, then shrunk: {shrunk[0]:.0f} → {shrunk[1]:.1f} MiB",
        (written[-1], file[-1]),
        xytext=(-10, 8),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_xlabel("MiB of values written, each round overwritten and compacted")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    asyncio.run(main())
