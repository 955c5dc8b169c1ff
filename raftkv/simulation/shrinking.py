"""A simulated member gives space back to its disk, and is held to it that nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from raftkv.checks import violated
from raftkv.errors import StorageError, TooManyRequests
from raftkv.limits import SHRINK_CATCH_UP_SECONDS
from raftkv.machine.machine import COMPACTION_ROW
from raftkv.machine.records import KEY_ID_AT, KEY_ID_END, LENGTHS_AT
from raftkv.machine.tables import CURRENT, HISTORY, META, VERSIONS
from raftkv.server.shrink import PAUSE_SECONDS, Shrink
from raftkv.simulation.world import SECOND_US

if TYPE_CHECKING:
    from raftkv.simulation.member import SimMember

_COPY_US_MAX: Final = 300_000
_COMPACTED: Final = frozenset((CURRENT, HISTORY, VERSIONS))
"""Compaction takes rows from these, at each member's own pace; a copy may be behind in it."""

Tables = list[dict[bytes, bytes]]


class Shrinking:
    """One run of it, in one process of `member`; as in `raftkv.server.member`."""

    def __init__(self, member: SimMember) -> None:
        self._member = member

    def begin(self) -> None:
        """Wait until nobody else reads or replaces the tables, then copy them."""
        member = self._member
        if member.tables_busy:
            member.later(10_000, self.begin)
            return
        member.copies += 1
        self._shrink = Shrink(member.opened)
        member.later(member.world.random.randrange(_COPY_US_MAX), self._copied)

    def _copied(self) -> None:
        self._shrink.copy()
        self._deadline_us = self._member.world.now_us + SHRINK_CATCH_UP_SECONDS * SECOND_US
        self._catch_up()

    def _catch_up(self) -> None:
        member = self._member
        before = contents(member)
        try:
            shrunk = self._shrink.catch_up()
            if shrunk is None and member.world.now_us > self._deadline_us:
                raise TooManyRequests("writes come too fast")
        except TooManyRequests as refused:
            self._end("shrinking put off", str(refused))
        except StorageError as error:
            violated("a copy of the tables differs from them", member=member.name, error=str(error))
        else:
            if shrunk is None:
                member.later(int(PAUSE_SECONDS * SECOND_US), self._catch_up)
                return
            self._judge(before)
            self._end("shrunk", "gave space back")

    def _judge(self, before: Tables) -> None:
        member = self._member
        for table, (old, new) in enumerate(zip(before, contents(member), strict=True)):
            lost = {key for key, value in old.items() if new.get(key) != value}
            more = new.keys() - old.keys()
            if lost or (more and table not in _COMPACTED):
                violated(
                    "shrinking the tables has changed them",
                    member=member.name,
                    table=table,
                    lost=len(lost),
                    more=len(more),
                )

    def _end(self, kind: str, text: str) -> None:
        member = self._member
        self._shrink.close()
        member.copies -= 1
        member.shrinking = None
        member.cluster.promises.seen[kind] += 1
        member.world.note(member.name, f"{kind}: {text}")


def contents(member: SimMember) -> Tables:
    """All rows of a member's tables, without how far its compaction is.

    Nor what it calls a key and its record before: a key that comes again is a new one once
    compaction has removed its end, which in the copy it may not have done yet.
    """
    image = [dict(rows) for rows in member.opened.backend._tables]  # type: ignore[attr-defined]
    image[META].pop(COMPACTION_ROW, None)
    for table in (CURRENT, HISTORY):
        image[table] = {
            row: record[:KEY_ID_AT] + record[LENGTHS_AT:] for row, record in image[table].items()
        }
    key_id_bytes = KEY_ID_END - KEY_ID_AT
    image[VERSIONS] = {row[key_id_bytes:] + place: b"" for row, place in image[VERSIONS].items()}
    return image
