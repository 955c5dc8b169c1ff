"""Who waits for which batch: proposals on their way to a result, a refusal or the unknown.

A batch is registered before it is proposed, under a sequence number that travels inside it. What
becomes of it is told once:

- applied here: each waiter gets its command's own result;
- its log position was taken by another leader's entry, the leader refused it, or it was forwarded
  to a leader that was replaced before it took it on: a definite refusal;
- anything else (time-out, the machine jumped ahead by snapshot, the member stops): unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raftkv.checks import check
from raftkv.errors import LeadershipLost, OutcomeUnknown, RaftkvError

if TYPE_CHECKING:
    from raftkv.server.store import Done


class PendingBatch:
    """The waiters of one batch."""

    __slots__ = ("deadline_ms", "dones", "index", "sequence", "size", "term")

    def __init__(self, sequence: int, dones: list[Done], deadline_ms: int, size: int) -> None:
        self.sequence = sequence
        self.dones = dones
        self.deadline_ms = deadline_ms
        self.size = size
        self.index = 0
        self.term = 0


class Pending:
    """All batches of this run of the member that have no outcome yet. Knows no clock."""

    def __init__(self) -> None:
        self._next_sequence = 1
        # Insertion order is deadline order: every batch waits equally long.
        self._by_sequence: dict[int, PendingBatch] = {}
        self._by_index: dict[int, PendingBatch] = {}
        self._forwarded: deque[tuple[int, int]] = deque()
        """(term, sequence), in order."""
        self._term = 0
        self.commands = 0
        self.bytes = 0
        """Of the commands, as far as `register` was told."""

    def register(self, dones: list[Done], deadline_ms: int, size: int = 0) -> int:
        """Take on the waiters of a batch; the sequence number to put into it."""
        sequence = self._next_sequence
        self._next_sequence += 1
        self._by_sequence[sequence] = PendingBatch(sequence, dones, deadline_ms, size)
        self.commands += len(dones)
        self.bytes += size
        return sequence

    def placed(self, sequence: int, index: int, term: int) -> None:
        """This member, as leader, put the batch at a position of its log."""
        batch = self._by_sequence.get(sequence)
        if batch is None:
            return
        batch.index, batch.term = index, term
        displaced = self._by_index.get(index)
        self._by_index[index] = batch
        if displaced is not None and displaced.sequence in self._by_sequence:
            # We led, lost the log's end to another leader, and lead again.
            self._fail(displaced, _displaced())

    def forwarded(self, sequence: int, term: int) -> None:
        """The batch was sent to the leader of `term`, and no other leader will take it."""
        self._forwarded.append((term, sequence))

    def committed(self, index: int, term: int) -> None:
        """An entry was committed at `index`, before it is applied.

        Whoever waited there for another term has lost, and so has whoever was forwarded in an
        earlier term: had its batch made it into the log, it would have come before.
        """
        if term > self._term:
            self._term = term
            while self._forwarded and self._forwarded[0][0] < term:
                forwarded = self._by_sequence.get(self._forwarded.popleft()[1])
                if forwarded is not None:
                    self._fail(forwarded, _displaced())
        batch = self._by_index.pop(index, None)
        if batch is not None and batch.term != term and batch.sequence in self._by_sequence:
            batch.index = 0
            self._fail(batch, _displaced())

    def resolve(self, sequence: int, results: Sequence[Any]) -> None:
        """The batch was applied here: tell each waiter its result."""
        batch = self._by_sequence.pop(sequence, None)
        if batch is None:
            return
        while self._forwarded and self._forwarded[0][1] not in self._by_sequence:
            self._forwarded.popleft()
        dones = batch.dones
        check(len(dones) == len(results), "a batch has a result a command", sequence=sequence)
        self.commands -= len(dones)
        self.bytes -= batch.size
        if batch.index:
            self._by_index.pop(batch.index, None)
        for done, result in zip(dones, results, strict=True):
            done(result)

    def refuse(self, sequence: int, error: RaftkvError) -> None:
        """The batch definitely did not and will not happen."""
        batch = self._by_sequence.get(sequence)
        if batch is not None:
            self._fail(batch, error)

    def expire(self, now_ms: int) -> int:
        """Give up on what waited too long; how many commands that were."""
        expired: list[PendingBatch] = []
        for batch in self._by_sequence.values():
            if batch.deadline_ms > now_ms:
                break
            expired.append(batch)
        for batch in expired:
            self._fail(
                batch,
                OutcomeUnknown(
                    "the request was not confirmed in time; it may have happened or may still "
                    "happen: read before repeating it, or repeat it with its idempotency key"
                ),
            )
        return sum(len(batch.dones) for batch in expired)

    def jumped(self, index: int) -> None:
        """The machine was replaced by a snapshot up to `index`: those outcomes are not seen."""
        # What was forwarded may be among them; that a later term begins proves nothing any more.
        self._forwarded.clear()
        self._fail_where(
            lambda batch: 0 < batch.index <= index,
            OutcomeUnknown("this member was overtaken by a snapshot before it saw the outcome"),
        )

    def close(self) -> None:
        """The member stops: everything that still waits is unknown."""
        self._fail_where(
            lambda batch: True,
            OutcomeUnknown("the member stopped before the outcome was known"),
        )

    def __len__(self) -> int:
        return len(self._by_sequence)

    def _fail_where(self, chosen: Callable[[PendingBatch], bool], error: RaftkvError) -> None:
        for batch in [batch for batch in self._by_sequence.values() if chosen(batch)]:
            self._fail(batch, error)

    def _fail(self, batch: PendingBatch, error: RaftkvError) -> None:
        del self._by_sequence[batch.sequence]
        if batch.index and self._by_index.get(batch.index) is batch:
            del self._by_index[batch.index]
        self.commands -= len(batch.dones)
        self.bytes -= batch.size
        for done in batch.dones:
            done(error)


def _displaced() -> LeadershipLost:
    return LeadershipLost(
        "leadership changed before this request was committed; it did not happen, so it is safe "
        "to repeat it"
    )
