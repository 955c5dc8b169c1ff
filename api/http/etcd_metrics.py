"""Metrics under the names that etcd's dashboards and alerts know, where they mean the same.

Durations are measured where they are spent and counted in buckets there
(`raftkv.histogram`); here they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from raftkv.api.etcd.version import CLUSTER_VERSION, SERVER_VERSION
from raftkv.api.grpc.status import Status
from raftkv.histogram import Histogram

if TYPE_CHECKING:
    from raftkv.api.grpc.server import GrpcServer
    from raftkv.server.store import Store
    from raftkv.server.transport import TransportStats

_FIGURES: Final = (
    ("etcd_mvcc_db_total_size_in_bytes", "Size of the tables.", "db_bytes"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "Of that, in use.", "db_used_bytes"),
    ("etcd_server_quota_backend_bytes", "Most that may be used.", "quota_bytes"),
    ("etcd_server_proposals_pending", "Writes under way.", "pending"),
    ("etcd_debugging_mvcc_watcher_total", "Watches.", "watchers"),
    ("etcd_debugging_mvcc_current_revision", "The store's revision.", "revision"),
    ("etcd_debugging_mvcc_compact_revision", "History begins after it.", "compact_revision"),
)
_COUNTERS: Final = (
    ("etcd_server_proposals_committed", "Writes committed.", "proposals_committed"),
    ("etcd_server_proposals_applied", "Writes applied.", "proposals_applied"),
    ("etcd_server_proposals_failed", "Writes given up.", "proposals_failed"),
    ("etcd_server_leader_changes_seen", "Leader changes seen.", "leader_changes"),
    ("etcd_debugging_server_lease_expired", "Leases expired.", "leases_expired"),
)


def of_store(store: Store) -> Iterator[Metric]:
    """A member: its state, its disk and the others."""
    status: dict[str, Any] = store.status()
    role = status.get("role")
    for name, words, value in (
        ("has_leader", "Whether a leader is known.", bool(status.get("leader"))),
        ("is_leader", "Whether this member leads.", role == "leader"),
        ("is_learner", "Whether this member is a learner.", role == "learner"),
    ):
        yield GaugeMetricFamily(f"etcd_server_{name}", words, int(value))
    yield _labelled("etcd_server_id", "This member.", "server_id", f"{store.member_id:x}")
    yield _labelled(
        "etcd_server_version", "The version of etcd that it is like.", "server_version",
        SERVER_VERSION,
    )  # fmt: skip
    yield _labelled(
        "etcd_cluster_version", "The same for the cluster.", "cluster_version", CLUSTER_VERSION
    )
    yield GaugeMetricFamily("etcd_debugging_mvcc_keys_total", "Live user keys.", store.machine.keys)
    for name, words, figure in _FIGURES:
        if isinstance(status.get(figure), int):
            yield GaugeMetricFamily(name, words, status[figure])
    for name, words, counter in _COUNTERS:
        yield CounterMetricFamily(name, words, getattr(store.stats, counter))
    yield _histogram(
        "etcd_disk_wal_fsync_duration_seconds", "Syncs of the log.", store.stats.wal_fsync_times
    )
    yield _histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "Commits to the tables, which are not synced.",
        store.stats.table_commit_times,
    )
    if store.stats.peers is not None:
        yield from _peers(store.stats.peers)


def _peers(stats: TransportStats) -> Iterator[Metric]:
    trips = HistogramMetricFamily(
        "etcd_network_peer_round_trip_time_seconds", "Pings to other members.", labels=("To",)
    )
    for member_id, times in sorted(stats.round_trips.items()):
        trips.add_metric((f"{member_id:x}",), [*times.buckets()], times.sum_seconds)
    yield trips
    yield _bytes("etcd_network_peer_sent_bytes", "Sent to a member.", "To", stats.sent)
    yield _bytes(
        "etcd_network_peer_received_bytes", "Received from a member.", "From", stats.received
    )


def _bytes(name: str, words: str, label: str, by_member: Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(name, words, labels=(label,))
    for member_id, count in sorted(by_member.items()):
        family.add_metric((f"{member_id:x}",), count)
    return family


def _labelled(name: str, words: str, label: str, value: str) -> Metric:
    family = GaugeMetricFamily(name, words, labels=(label,))
    family.add_metric((value,), 1)
    return family


def _histogram(name: str, words: str, times: Histogram) -> Metric:
    return HistogramMetricFamily(name, words, [*times.buckets()], times.sum_seconds)


def of_grpc(server: GrpcServer) -> Iterator[Metric]:
    """As grpc-ecosystem's interceptors name them."""
    labels = ("grpc_type", "grpc_service", "grpc_method")
    started = CounterMetricFamily("grpc_server_started", "RPCs begun.", labels=labels)
    handled = CounterMetricFamily(
        "grpc_server_handled", "RPCs ended, by status.", labels=(*labels, "grpc_code")
    )
    for path, counts in sorted(server.counts.items()):
        if not counts.started:
            continue
        service, _, method = path[1:].partition("/")
        values = (counts.kind, service, method)
        started.add_metric(values, counts.started)
        for code, number in sorted({0: counts.ok, **counts.failed}.items()):
            handled.add_metric((*values, Status(code).label), number)
    yield started
    yield handled
    yield CounterMetricFamily(
        "etcd_network_client_grpc_received_bytes", "From gRPC clients.", server.bytes_received
    )
    yield CounterMetricFamily(
        "etcd_network_client_grpc_sent_bytes", "To gRPC clients.", server.bytes_sent
    )
    yield GaugeMetricFamily(
        "raftkv_grpc_connections", "Open HTTP/2 connections.", len(server.connections)
    )
