"""How long leases must live, by what their holders were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.linearizability.answers import operations_of
from tests.linearizability.history import (
    Grant,
    KeepAlive,
    LeaseAnswer,
    Operation,
    Outcome,
    Put,
    Request,
    Revoke,
    Txn,
)

SECOND_US: Final = 1_000_000
NEVER_US: Final = 1 << 62


@dataclass(slots=True)
class Tenure:
    """One life of a lease, from a grant to its end."""

    lease: int
    ttl_us: int
    grant: Operation
    renewals: list[Operation] = field(default_factory=list)
    """Keep-alives that succeeded, or may have, in this life."""
    revokes: list[Operation] = field(default_factory=list)
    """Revokes that succeeded, or may have."""

    @property
    def until_us(self) -> int:
        """Before this it cannot run out: each holder's success gave it a full TTL."""
        certain = [self.grant.invoked_us if self.grant.outcome is Outcome.OK else 0]
        certain += [each.invoked_us for each in self.renewals if each.outcome is Outcome.OK]
        return max(certain) + self.ttl_us

    @property
    def last_chance_us(self) -> int:
        """From this on, nothing that any holder did can have kept it alive."""
        latest = 0
        for each in (self.grant, *self.renewals):
            if each.returned_us is None:
                return NEVER_US
            if each.outcome is Outcome.UNKNOWN:
                return NEVER_US
            latest = max(latest, each.returned_us)
        return latest + self.ttl_us


class Tenures:
    """All lives of all leases in a history."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.by_lease: dict[int, list[Tenure]] = {}
        self.nameless_us = NEVER_US
        """When a grant was first asked for whose id nobody was told."""
        others: list[Operation] = []
        for operation in operations:
            if operation.outcome is Outcome.REFUSED:
                continue
            if isinstance(operation.request, Grant):
                self._begin(operation)
            elif isinstance(operation.request, KeepAlive | Revoke):
                others.append(operation)
        for tenures in self.by_lease.values():
            tenures.sort(key=lambda tenure: tenure.grant.invoked_us)
        for operation in others:
            self._assign(operation)

    def _begin(self, operation: Operation) -> None:
        request, answer = operation.request, operation.answer
        if isinstance(answer, LeaseAnswer):
            lease, ttl_seconds = answer.lease, answer.ttl_seconds
        else:
            lease, ttl_seconds = request.lease, request.ttl_seconds  # type: ignore[union-attr]
        if not lease:
            self.nameless_us = min(self.nameless_us, operation.invoked_us)
        else:
            tenure = Tenure(lease, ttl_seconds * SECOND_US, operation)
            self.by_lease.setdefault(lease, []).append(tenure)

    def _assign(self, operation: Operation) -> None:
        request = operation.request
        assert isinstance(request, KeepAlive | Revoke)
        tenures = self.by_lease.get(request.lease, [])
        for number, tenure in enumerate(tenures):
            # Between two grants of one id a success may belong to either life: to neither, then.
            later = tenures[number + 1 :]
            after = len(tenures) == 1 or operation.invoked_us >= _end_us(tenure.grant)
            before = all(_end_us(operation) <= each.grant.invoked_us for each in later)
            if after and before:
                kind = tenure.renewals if isinstance(request, KeepAlive) else tenure.revokes
                kind.append(operation)
                return

    def may_have_ended(self, lease: int, by_us: int) -> bool:
        """Whether some life of a lease may have run out at or before a time."""
        tenures = self.by_lease.get(lease)
        return not tenures or any(tenure.until_us <= by_us for tenure in tenures)


def _end_us(operation: Operation) -> int:
    return NEVER_US if operation.returned_us is None else operation.returned_us


def leased_keys(operations: Sequence[Operation]) -> dict[int, set[bytes]]:
    """Lease -> the keys that some operation would put on it."""
    keys: dict[int, set[bytes]] = {}

    def add(request: Request) -> None:
        if isinstance(request, Put | Txn):
            for each in operations_of(request):
                if isinstance(each, Put) and each.lease:
                    keys.setdefault(each.lease, set()).add(each.key)

    for operation in operations:
        if operation.outcome is not Outcome.REFUSED:
            add(operation.request)
    return keys
