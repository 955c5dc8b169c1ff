"""Requests whose answers depend on each other, in the order in which both servers get them.

Left out is what ends real etcd 3.5.1: an unknown alarm, or an unknown action about one.
"""

from __future__ import annotations

from typing import Any, Final

from raftkv.api.etcd import messages

ETCD: Final = "etcdserverpb"
LOCK: Final = "v3lockpb"
ELECTION: Final = "v3electionpb"


def message(package: str, kind: str, /, **fields: Any) -> Any:
    """A message of one of etcd's packages."""
    return messages.ETCD.message(f"{package}.{kind}")(**fields)


CASES: Final[list[tuple[str, Any]]] = [
    ("Lock", message(LOCK, "LockRequest", name=b"n", lease=77)),
    ("LeaseGrant", message(ETCD, "LeaseGrantRequest", ID=5, TTL=500)),
    ("Lock", message(LOCK, "LockRequest", name=b"n", lease=5)),
    ("Lock", message(LOCK, "LockRequest", name=b"n", lease=5)),
    ("Lock", message(LOCK, "LockRequest", lease=5)),
    ("Unlock", message(LOCK, "UnlockRequest", key=b"n/5")),
    ("Unlock", message(LOCK, "UnlockRequest", key=b"n/5")),
    ("Unlock", message(LOCK, "UnlockRequest")),
    ("Leader", message(ELECTION, "LeaderRequest", name=b"e")),
    ("Campaign", message(ELECTION, "CampaignRequest", name=b"e", lease=99)),
    ("Campaign", message(ELECTION, "CampaignRequest", name=b"e", lease=5, value=b"v")),
    ("Campaign", message(ELECTION, "CampaignRequest", name=b"e", lease=5, value=b"w")),
    ("Leader", message(ELECTION, "LeaderRequest", name=b"e")),
    ("Proclaim", message(ELECTION, "ProclaimRequest", value=b"x")),
    (
        "Proclaim",
        message(
            ELECTION,
            "ProclaimRequest",
            leader={"name": b"e", "key": b"e/5", "rev": 3, "lease": 5},
            value=b"x",
        ),
    ),
    (
        "Proclaim",
        message(
            ELECTION,
            "ProclaimRequest",
            leader={"name": b"e", "key": b"e/5", "rev": 5, "lease": 5},
            value=b"x",
        ),
    ),
    (
        "Proclaim",
        message(
            ELECTION,
            "ProclaimRequest",
            leader={"name": b"e", "key": b"e/5", "rev": 6, "lease": 5},
            value=b"x",
        ),
    ),
    (
        "Proclaim",
        message(
            ELECTION,
            "ProclaimRequest",
            leader={"name": b"e", "key": b"e/5", "rev": 4, "lease": 5},
            value=b"x",
        ),
    ),
    ("Resign", message(ELECTION, "ResignRequest")),
    (
        "Resign",
        message(
            ELECTION, "ResignRequest", leader={"name": b"e", "key": b"e/5", "rev": 99, "lease": 5}
        ),
    ),
    (
        "Resign",
        message(
            ELECTION, "ResignRequest", leader={"name": b"e", "key": b"e/5", "rev": 5, "lease": 5}
        ),
    ),
    ("Range", message(ETCD, "RangeRequest", key=b"\0", range_end=b"\0")),
    ("AuthStatus", message(ETCD, "AuthStatusRequest")),
    ("Authenticate", message(ETCD, "AuthenticateRequest", name="x", password="y")),
    ("Defragment", message(ETCD, "DefragmentRequest")),
    ("MoveLeader", message(ETCD, "MoveLeaderRequest", targetID=5)),
    ("MemberRemove", message(ETCD, "MemberRemoveRequest", ID=5)),
    ("MemberPromote", message(ETCD, "MemberPromoteRequest", ID=5)),
    ("MemberUpdate", message(ETCD, "MemberUpdateRequest", ID=5, peerURLs=["http://127.0.0.1:1"])),
    ("MemberUpdate", message(ETCD, "MemberUpdateRequest", ID=5)),
    ("MemberUpdate", message(ETCD, "MemberUpdateRequest", ID=5, peerURLs=["x"])),
    ("MemberAdd", message(ETCD, "MemberAddRequest")),
    ("MemberAdd", message(ETCD, "MemberAddRequest", peerURLs=["x"])),
    ("Downgrade", message(ETCD, "DowngradeRequest", version="x")),
    ("Downgrade", message(ETCD, "DowngradeRequest", action=2)),
    ("Downgrade", message(ETCD, "DowngradeRequest", version="3.1.0")),
    ("Downgrade", message(ETCD, "DowngradeRequest", action=7, version="3.1.0")),
    ("Alarm", message(ETCD, "AlarmRequest")),
    ("Alarm", message(ETCD, "AlarmRequest", action=1, memberID=0, alarm=1)),
    ("Alarm", message(ETCD, "AlarmRequest", action=1, memberID=0, alarm=1)),
    ("Alarm", message(ETCD, "AlarmRequest", action=0)),
    ("Put", message(ETCD, "PutRequest", key=b"a")),
    ("LeaseGrant", message(ETCD, "LeaseGrantRequest", ID=6, TTL=500)),
    ("Txn", message(ETCD, "TxnRequest", success=[{"request_put": {"key": b"a"}}])),
    ("Alarm", message(ETCD, "AlarmRequest", action=2, memberID=0, alarm=1)),
    ("Alarm", message(ETCD, "AlarmRequest", action=2, memberID=0, alarm=1)),
    ("Alarm", message(ETCD, "AlarmRequest", action=1, memberID=77)),
    ("HashKV", message(ETCD, "HashKVRequest", revision=100)),
    ("Compact", message(ETCD, "CompactionRequest", revision=4)),
    ("HashKV", message(ETCD, "HashKVRequest", revision=2)),
    ("Compact", message(ETCD, "CompactionRequest", revision=0)),
    ("LeaseRevoke", message(ETCD, "LeaseRevokeRequest")),
    ("LeaseTimeToLive", message(ETCD, "LeaseTimeToLiveRequest")),
    ("LeaseGrant", message(ETCD, "LeaseGrantRequest", ID=7)),
    ("LeaseGrant", message(ETCD, "LeaseGrantRequest", ID=8, TTL=-9)),
    ("Txn", message(ETCD, "TxnRequest")),
    # These two have the shortest TTL, and each server ends them at its own time.
    ("LeaseRevoke", message(ETCD, "LeaseRevokeRequest", ID=7)),
    ("LeaseRevoke", message(ETCD, "LeaseRevokeRequest", ID=8)),
]
