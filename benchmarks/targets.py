"""What is aimed at, and what is not to be missed: one row for each claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["aim", "floor", "below", "told", "not measured"]
VERDICT_WORDS: Final[dict[Verdict, str]] = {
    "aim": "at its aim",
    "floor": "above the floor",
    "below": "BELOW THE FLOOR",
    "told": "no target",
    "not measured": "not measured",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One claim."""

    key: str
    title: str
    aim: float | None = None
    floor: float | None = None
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["x", "%", "s", "ms"] = "x"
    """`x`: ours divided by theirs. Others: a figure of ours that nobody else's divides."""

    def verdict(self, value: float | None) -> Verdict:
        """Where a value stands. It is rounded as it is shown, so that table and verdict agree."""
        if value is None:
            return "not measured"
        if self.aim is None or self.floor is None:
            return "told"
        shown = round(value, 2)
        sign = 1 if self.better == "higher" else -1
        if sign * shown >= sign * self.aim:
            return "aim"
        return "floor" if sign * shown >= sign * self.floor else "below"

    def worst(self, values: list[float]) -> float | None:
        """The value that decides a row of several."""
        if not values:
            return None
        return min(values) if self.better == "higher" else max(values)

    def shown(self, value: float | None) -> str:
        """A value with its unit."""
        if value is None:
            return "-"
        if self.unit == "x":
            return f"{value:.2f}x"
        if self.unit == "ms":
            return f"{value:.0f} ms"
        return f"{value:+.2f} s" if self.unit == "s" else f"{value:.1f}%"


ROWS: Final = (
    Row("put", "1 member, gRPC put, 64 / 256 / 1,024 in flight", 2.0, 1.3),
    Row("get", "1 member, gRPC linearizable get; serializable get", 2.5, 1.5),
    Row("txn", "1 member, gRPC txn (compare and put)", 2.0, 1.3),
    Row("gateway", "1 member, JSON gateway put / range", 2.0, 1.5),
    Row("native", "native PUT / GET /api/kv, against etcd's gateway", 3.0, 2.0),
    Row("three", "3 members, all of the above, through the leader and spread", 2.0, 1.5),
    Row("alone", "one client alone: put latency (median), 1 and 3 members", 1.0, 1.3, "lower"),
    Row("p99", "p99 at 64 in flight, put and get", 0.8, 1.0, "lower"),
    Row("watch", "watch: 1 writer, 1,000 watchers on one prefix, events a second", 2.0, 1.0),
    Row("watch_cost", "watch: 10,000 watchers on distinct keys, cost to a writer", 0.0, 10.0,
        "lower", "%"),
    Row("lease", "lease keep-alives a second, 10,000 leases", 1.5, 1.0),
    Row("page", "range of 1,000 keys, pages a second", 1.5, 1.0),
    Row("memory", "memory, 1M keys of 256 B, after load", 0.5, 1.0, "lower"),
    Row("restart", "restart with 1M keys, kill -9 to first answer", 0.5, 1.0, "lower"),
    Row("failover", "leader killed, first acknowledged write after: election timeout +",
        0.2, 0.5, "lower", "s"),
    Row("pysyncobj", "PySyncObj, replicated writes, 3 members", 20.0, 5.0),
    Row("durable", "a put of one member while each sync takes 50 ms longer", unit="ms"),
    Row("clients", "real clients on both sides: grpcio, etcdctl check perf"),
    Row("h2load", "1 member, gRPC put of one key, h2load"),
)  # fmt: skip

ROW: Final = {row.key: row for row in ROWS}
