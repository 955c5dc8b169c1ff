"""Prometheus metrics: `GET /metrics`. The hot path adds to plain integers; a scrape reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import raftkv
from raftkv.api.gate import known
from raftkv.api.http.codec import hex_id, text_or_base64
from raftkv.api.http.etcd_metrics import of_grpc, of_store
from raftkv.api.http.exchange import Exchange
from raftkv.api.http.router import Answer, Route
from raftkv.machine.access import ADMIN
from raftkv.machine.commands import AlarmKind
from raftkv.machine.quotas import QuotaKind

if TYPE_CHECKING:
    from raftkv.api.http.door import HttpDoor

MEDIA: Final = b"text/plain; version=0.0.4; charset=utf-8"
UNROUTED: Final = "none"


class Counters:
    """What the door counts. Plain integers, touched by one thread."""

    __slots__ = ("connections", "requests")

    def __init__(self) -> None:
        self.connections = 0
        self.requests: dict[str, dict[int, int]] = {}
        """Answers begun, by operation and status."""

    def count(self, route: Route | None, status: int) -> None:
        """One more answer."""
        name = UNROUTED if route is None else route.operation
        by_status = self.requests.get(name)
        if by_status is None:
            by_status = self.requests[name] = {}
        by_status[status] = by_status.get(status, 0) + 1


class DoorCollector(Collector):
    """Reads a door and its store at the moment of a scrape."""

    def __init__(self, door: HttpDoor, *, names: bool = True) -> None:
        self._door = door
        self._names = names
        """Show names of users and keys."""

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        yield from self._http()
        yield from self._audit()
        yield from self._peers()
        yield from self._store()
        yield from of_store(self._door.store)
        if self._names and self._door.store.machine.quotas:
            yield from self._quotas()
        if self._door.grpc is not None:
            yield from of_grpc(self._door.grpc)

    def _http(self) -> Iterator[Metric]:
        counters = self._door.counters
        requests = CounterMetricFamily(
            "raftkv_http_requests", "Answers sent over HTTP.", labels=("operation", "status")
        )
        for operation, by_status in sorted(counters.requests.items()):
            for status, number in sorted(by_status.items()):
                requests.add_metric((operation, str(status)), number)
        yield requests
        yield GaugeMetricFamily(
            "raftkv_http_connections", "Open HTTP connections.", counters.connections
        )
        listener = self._door.listener
        if listener is not None:
            yield CounterMetricFamily(
                "raftkv_connections_refused",
                "Connections closed at once because there were too many.",
                listener.connections_refused,
            )
            yield CounterMetricFamily(
                "raftkv_slow_requests",
                "Requests that took longer than --slow-request-ms.",
                0 if listener.slow is None else listener.slow.found,
            )
            if listener.handshakes is not None:
                handshakes = CounterMetricFamily(
                    "raftkv_tls_handshakes", "TLS handshakes of clients.", labels=("outcome",)
                )
                handshakes.add_metric(("done",), listener.handshakes.done)
                handshakes.add_metric(("failed",), listener.handshakes.failed)
                yield handshakes

        pace = self._door.gate.pace
        if pace is not None:
            refused = CounterMetricFamily(
                "raftkv_requests_over_rate", "Requests refused by a rate limit.", labels=("per",)
            )
            for per, number in sorted(pace.refused.items()):
                refused.add_metric((per,), number)
            yield refused

    def _audit(self) -> Iterator[Metric]:
        observer = self._door.gate.observer
        audit = None if observer is None else observer.audit
        yield CounterMetricFamily(
            "raftkv_audit_lines", "Lines written to the audit log.", audit.lines if audit else 0
        )
        yield CounterMetricFamily(
            "raftkv_audit_lines_dropped",
            "Lines that the audit log lost, for want of time or of space.",
            audit.dropped if audit else 0,
        )

    def _peers(self) -> Iterator[Metric]:
        """What goes wrong between members, and who knocks at their door."""
        peers = self._door.store.stats.peers
        if peers is None:
            return
        yield CounterMetricFamily(
            "raftkv_peer_connections_refused",
            "Connections to the peer port that were sent away after their handshake.",
            peers.refused,
        )
        yield CounterMetricFamily(
            "raftkv_peer_connections_damaged",
            "Connections of members that were cut because of what came in.",
            peers.damaged,
        )
        if not peers.desks:
            return
        handshakes = CounterMetricFamily(
            "raftkv_peer_tls_handshakes",
            "TLS handshakes between members, as they are accepted and dialled.",
            labels=("side", "outcome"),
        )
        for side, desk in peers.desks.items():
            handshakes.add_metric((side, "done"), desk.done)
            handshakes.add_metric((side, "failed"), desk.failed)
        yield handshakes

    def _quotas(self) -> Iterator[Metric]:
        """By name, so only for who may see all names."""
        labels = ("kind", "name", "what")
        used = GaugeMetricFamily("raftkv_quota_used", "Used of a quota.", labels=labels)
        most = GaugeMetricFamily("raftkv_quota_limit", "Most that a quota allows.", labels=labels)
        for quota in self._door.store.machine.quotas:
            kind = QuotaKind(quota.kind).name.lower()
            name = text_or_base64(quota.name)[0]
            for what, count, limit in (
                ("keys", quota.keys, quota.keys_max),
                ("bytes", quota.bytes, quota.bytes_max),
            ):
                used.add_metric((kind, name, what), count)
                if limit:
                    most.add_metric((kind, name, what), limit)
        yield used
        yield most

    def _store(self) -> Iterator[Metric]:
        store = self._door.store
        info = GaugeMetricFamily(
            "raftkv_info",
            "This program and member; always 1.",
            labels=("version", "form", "member_id"),
        )
        info.add_metric((raftkv.__version__, raftkv.form(), hex_id(store.member_id)), 1)
        yield info
        for name, number in store.stats.counters():
            words = name.replace("_", " ")
            yield CounterMetricFamily(f"raftkv_{name}", f"Since the start: {words}.", number)
        status = store.status()
        for name, value in sorted(status.items()):
            if name != "member_id" and name != "cluster_id" and name != "leader":
                level = _number(value)
                if level is not None:
                    words = name.replace("_", " ")
                    yield GaugeMetricFamily(f"raftkv_{name}", f"Now: {words}.", level)
        raised = {alarm["alarm"] for alarm in status.get("alarms", ())}
        for kind in AlarmKind:
            alarm = kind.name.lower()
            yield GaugeMetricFamily(
                f"raftkv_alarm_{alarm}", "Whether this alarm is raised.", int(alarm in raised)
            )


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float) else None


def get_metrics(x: Exchange) -> None:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(DoorCollector(x.door, names=x.caller.allows(ADMIN)))
    x.send(generate_latest(registry), MEDIA)


ROUTES: Final = [
    Route(
        "GET", "/metrics", get_metrics, "getMetrics", "Metrics for Prometheus", "Health",
        guard=known,
        answers=(Answer(200, "Prometheus text format.", None, "text/plain"),),
    ),
]  # fmt: skip
