"""The real state machine as one single copy: requests of a history in, answers out."""

from __future__ import annotations

from raftkv.errors import Refused
from raftkv.machine import commands
from raftkv.machine.machine import Machine
from raftkv.machine.results import Result
from raftkv.storage.memory_backend import MemoryBackend
from tests.linearizability.history import Answer, KeyRecord, Range, RangeAnswer, Request, WatchEvent
from tests.linearizability.translation import command, end_of, key_record, key_records, told


class SingleCopy:
    """One machine, to which each request is applied the moment it is given."""

    def __init__(self) -> None:
        self.machine = Machine(MemoryBackend())
        self.events: list[WatchEvent] = []
        """All that ever changed, in order."""
        self._records: dict[bytes, KeyRecord] = {}
        self._sequence = 0

    def apply(self, request: Request) -> Answer:
        """Carry out a request. Raises `raftkv.errors.Refused`; then nothing has happened."""
        if isinstance(request, Range):
            return self.range(request)
        return told(self._apply(command(request)))

    def range(self, request: Range, newest: int = 0) -> RangeAnswer:
        """A read; `newest`: as a member that has got no further than this revision."""
        end = end_of(request.end)
        at = request.revision or newest
        found = self.machine.range(
            request.start, end, revision=at, limit=request.limit, want_count=True
        )
        revision = newest or self.machine.revision
        return RangeAnswer(revision, key_records(found.records), found.count or 0, found.more)

    def expire(self, lease: int) -> None:
        """A lease has run out."""
        self._apply(commands.lease_expire([lease], 1))

    def final(self) -> tuple[KeyRecord, ...]:
        """All records."""
        return key_records(self.machine.range(b"", b"").records)

    def _apply(self, packed: commands.Command) -> Result:
        self._sequence += 1
        batch = commands.stamp_batch(commands.encode_batch(1, 1, self._sequence, [packed]), 0)
        [applied] = self.machine.apply([(self._sequence, 1, batch)])
        for event in applied.events:
            record = key_record(event.record)
            before = self._records.pop(record.key, None)
            if event.deleted:
                self.events.append(WatchEvent("delete", record, before))
            else:
                self._records[record.key] = record
                self.events.append(WatchEvent("put", record, before))
        [result] = applied.results
        if isinstance(result, Refused):
            raise result
        return result
