"""Comparing the state hash between members at equal applied index. Pure of sockets and clocks.

Every member tells the others, about once a second, its hash at its newest applied index. Who hears
a claim compares it with the hash it had at that index itself, at once or when it gets there. The
member that disagrees with most of the voters it heard from is the one that is wrong.
"""

from __future__ import annotations

from collections import OrderedDict

CLAIMS_MAX = 256
"""Claims about an index not applied here yet that are kept for later."""


class HashChecks:
    """What this member thinks of its own state, given what the others say of theirs."""

    def __init__(self, member_id: int) -> None:
        self._member_id = member_id
        self._later: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._differing: dict[int, int] = {}
        self._agreeing: dict[int, int] = {}
        self.compared = 0

    def claim(self, peer: int, index: int, claimed: bytes, own: bytes | None) -> None:
        """`peer` says its hash at `index`; `own` is ours at that index, None when not known."""
        if own is None:
            self._later[peer, index] = claimed
            if len(self._later) > CLAIMS_MAX:
                self._later.popitem(last=False)
            return
        self.compared += 1
        if claimed == own:
            self._differing.pop(peer, None)
            self._agreeing[peer] = index
        else:
            self._agreeing.pop(peer, None)
            self._differing[peer] = index

    def waiting(self, applied_index: int) -> list[tuple[int, int, bytes]]:
        """Take the kept claims (peer, index, hash) about indexes up to `applied_index`."""
        due = [key for key in self._later if key[1] <= applied_index]
        return [(peer, index, self._later.pop((peer, index))) for peer, index in due]

    def forget(self, peer: int) -> None:
        """`peer` is no longer a member."""
        self._differing.pop(peer, None)
        self._agreeing.pop(peer, None)

    def reset(self) -> None:
        """Our state was replaced; earlier comparisons say nothing about it."""
        self._later.clear()
        self._differing.clear()
        self._agreeing.clear()

    def differing(self) -> dict[int, int]:
        """Members whose state differs from ours, with the index where that was seen."""
        return dict(self._differing)

    def wrong(self, leader: int) -> bool:
        """Whether it is this member whose state must be wrong.

        With as many members against us as with us, the leader is believed.
        """
        against, with_us = len(self._differing), len(self._agreeing) + 1
        if against != with_us:
            return against > with_us
        return against > 0 and leader != self._member_id
