"""Random requests of etcd's API, drawn from a seed: mostly sensible, sometimes odd.

Keys, revisions and leases come from small pools, so that requests meet each other.
"""

from __future__ import annotations

import random
from typing import Any, Final

from raftkv.api.etcd.messages import ETCD

KEYS: Final = (
    b"a", b"b", b"c", b"ab", b"ac", b"abc", b"a/1", b"a/2", b"a/3", b"b/1", b"k\0", b"k\xff",
    b"\xff", b"\xff\xff", b"\1", b"~", b"lon" + b"g" * 600, b"a\xff", b"z",
)  # fmt: skip
ENDS: Final = (b"", b"", b"\0", b"b", b"a0", b"b0", b"c", b"\xff", b"z", b"a", b"ad")
LEASES: Final = (101, 102, 103, 104)
VALUES: Final = (b"", b"0", b"1", b"2", b"\0\xff", b"v" * 100, "grün".encode())

_WEIGHTS: Final = {
    "Put": 30, "Range": 25, "DeleteRange": 6, "Txn": 20, "Compact": 2, "LeaseGrant": 4,
    "LeaseRevoke": 2, "LeaseTimeToLive": 3, "LeaseLeases": 1, "Watch": 3, "LeaseKeepAlive": 2,
}  # fmt: skip


def message(name: str, **fields: Any) -> Any:
    """A message of package etcdserverpb."""
    return ETCD.message(f"etcdserverpb.{name}")(**fields)


class Generator:
    """`next` draws requests; tell it the revision now and then, so that it asks near it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.revision = 1

    def next(self) -> tuple[str, Any]:
        """(name of the RPC, request)."""
        (name,) = self.random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        return name, getattr(self, f"_{name}")()

    # ---- parts

    def _chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def _key(self) -> bytes:
        return b"" if self._chance(60) else self.random.choice(KEYS)

    def _near(self) -> int:
        """A revision that exists, most likely."""
        low = max(1, self.revision - 30)
        return self.random.randint(low, self.revision + (2 if self._chance(10) else 0))

    def _lease(self) -> int:
        if not self._chance(6):
            return 0
        return -5 if self._chance(30) else self.random.choice(LEASES)

    # ---- requests

    def _Put(self) -> Any:
        body = message("PutRequest", key=self._key(), lease=self._lease())
        body.prev_kv = self._chance(4)
        body.ignore_value = self._chance(15)
        if not body.ignore_value or self._chance(5):
            body.value = self.random.choice(VALUES)
        body.ignore_lease = self._chance(15) and (not body.lease or self._chance(5))
        return body

    def _Range(self) -> Any:
        body = message("RangeRequest", key=self._key(), range_end=self.random.choice(ENDS))
        if self._chance(8):
            body.key, body.range_end = b"\0", b"\0"
        if self._chance(3):
            body.limit = self.random.randint(-1, 5)
        if self._chance(4):
            body.revision = -3 if self._chance(20) else self._near()
        if self._chance(3):
            body.sort_order = self.random.randint(0, 2)
            body.sort_target = self.random.randint(0, 4)
        for field in ("min_mod_revision", "max_mod_revision", "min_create_revision",
                      "max_create_revision"):  # fmt: skip
            if self._chance(10):
                setattr(body, field, self._near())
        body.serializable = self._chance(3)
        body.keys_only = self._chance(6)
        body.count_only = self._chance(8)
        return body

    def _DeleteRange(self) -> Any:
        end = self.random.choice(ENDS) if self._chance(3) else b""
        return message(
            "DeleteRangeRequest", key=self._key(), range_end=end, prev_kv=self._chance(2)
        )

    def _compare(self) -> Any:
        body = message("Compare", key=self._key())
        body.target = self.random.randint(0, 4)
        body.result = self.random.randint(0, 3)
        field = ("version", "create_revision", "mod_revision", "value", "lease")[body.target]
        if field == "value":
            body.value = self.random.choice(VALUES)
        elif not self._chance(10):
            number = self._near() if "revision" in field else self.random.randint(0, 3)
            setattr(body, field, number)
        if self._chance(5):
            body.range_end = self.random.choice(ENDS)
        return body

    def _operation(self, depth: int) -> Any:
        body = message("RequestOp")
        kind = self.random.randrange(20 if depth else 22)
        if self._chance(150):
            return body
        if kind < 9:
            body.request_put.CopyFrom(self._Put())
        elif kind < 16 or (depth and kind < 20):
            # No deletions in nested ones: etcd overlooks what they overlap with, too.
            body.request_range.CopyFrom(self._Range())
        elif kind < 20:
            body.request_delete_range.CopyFrom(self._DeleteRange())
            if body.request_delete_range.range_end == b"\0":
                # etcd overlooks that such a deletion overlaps with a put; see machine/txnrules.
                body.request_delete_range.range_end = b"\xff\xff\xff"
        else:
            body.request_txn.CopyFrom(self._Txn(depth + 1))
        return body

    def _Txn(self, depth: int = 0) -> Any:
        def some(most: int) -> range:
            return range(self.random.randint(0, most))

        return message(
            "TxnRequest",
            compare=[self._compare() for _ in some(2)],
            success=[self._operation(depth) for _ in some(3)],
            failure=[self._operation(depth) for _ in some(2)],
        )

    def _Compact(self) -> Any:
        return message(
            "CompactionRequest", revision=max(1, self._near() - 10), physical=self._chance(2)
        )

    def _LeaseGrant(self) -> Any:
        ttl = 10**10 if self._chance(20) else self.random.randint(1000, 5000)
        return message("LeaseGrantRequest", ID=self.random.choice(LEASES), TTL=ttl)

    def _LeaseRevoke(self) -> Any:
        return message("LeaseRevokeRequest", ID=self.random.choice(LEASES))

    def _LeaseTimeToLive(self) -> Any:
        return message("LeaseTimeToLiveRequest", ID=self.random.choice(LEASES), keys=True)

    def _LeaseLeases(self) -> Any:
        return message("LeaseLeasesRequest")

    def _LeaseKeepAlive(self) -> Any:
        return message("LeaseKeepAliveRequest", ID=self.random.choice((*LEASES, 999)))

    def _Watch(self) -> Any:
        """A create request whose last event the caller can bring about: see `marker`."""
        body = message("WatchCreateRequest", key=self.random.choice(KEYS))
        body.range_end = self.random.choice((b"", b"\0", body.key + b"\xff\xff\xff"))
        if self._chance(20):
            body.range_end = body.key
        body.start_revision = min(self._near(), self.revision + 1)
        body.prev_kv = self._chance(2)
        body.fragment = self._chance(4)
        if self._chance(4):
            body.filters.append(self.random.randint(0, 1))
        if self._chance(4):
            body.watch_id = self.random.randint(1, 9)
        return body
