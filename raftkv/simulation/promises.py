"""What the store promises of space, quotas, levels and members, judged over what members apply.

Each entry is judged once, at the first member that applies it, from the events that came of it and
from counts of its own: nothing here asks the code that decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raftkv.checks import violated
from raftkv.consensus.codec import decode_change
from raftkv.consensus.types import ChangeKind, EntryKind
from raftkv.errors import NoSpace, QuotaExceeded
from raftkv.machine.commands import AlarmKind
from raftkv.machine.events import Event
from raftkv.machine.quotas import Quota, QuotaKind, size_of
from raftkv.machine.records import USER_KEYS
from raftkv.machine.results import AlarmResult, Applied, MemberResult, QuotaResult

if TYPE_CHECKING:
    from raftkv.server.replica import Batch
    from raftkv.simulation.member import SimMember


class Promises:
    """Everything that a cluster has applied so far, as far as it matters here."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        """How often what operations bring has happened: a bench that never saw it proves nothing
        about it."""
        self.index_of: dict[int, int] = {}
        """Index of the entry that made a revision of user keys."""
        self.telling: list[int] = []
        """Revisions that were made in one entry with a write that was refused: a restore that ends
        there has to refuse it, too."""
        self._index = 0
        self._sizes: dict[bytes, int] = {}
        """Of the user keys as they are: bytes of key and value."""
        self._quotas: dict[bytes, tuple[int, int]] = {}
        """(keys, bytes) under each prefix that has a quota."""
        self._alarmed = False
        self._level = 0
        self._learners: frozenset[int] = frozenset()
        self._looks: dict[tuple[int, int], int] = {}
        """What was committed when a leader last looked after things, by (member, term)."""

    def applied(
        self, member: SimMember, batches: Sequence[Batch], entries: Sequence[Applied]
    ) -> None:
        """`member` has applied these."""
        if member.machine.level > member.levels.own:
            violated(
                "a member takes part in a cluster that has agreed on more than it knows",
                member=member.name,
                level=member.levels.own,
                agreed=member.machine.level,
            )
        new = [entry for entry in entries if entry.index > self._index]
        if not new:
            return
        self._index = new[-1].index
        for entry in new:
            made = {one.revision for one in entry.events if one.keyspace == USER_KEYS}
            self.index_of |= dict.fromkeys(made, entry.index)
            if any(isinstance(one, NoSpace | QuotaExceeded) for one in entry.results):
                self.telling += sorted(made)
        results = [result for entry in new for result in entry.results]
        events = [event for entry in new for event in entry.events if event.keyspace == USER_KEYS]
        self._judge_space(member, results, events)
        self._judge_quotas(member, results, events)
        self._judge_level(member, results)

    def configured(self, entry: Applied) -> None:
        """A change of members was applied."""
        if entry.index <= self._index:
            return
        self._index = entry.index
        [result] = entry.results
        if isinstance(result, MemberResult):
            learners = frozenset(one[0] for one in result.members if one[4])
            voters = {one[0] for one in result.members if not one[4]}
            self.seen["learner promoted"] += len(self._learners & voters)
            self._learners = learners

    def led(self, member: SimMember, last_index: int) -> None:
        """`member` has looked after its cluster; its log ended at `last_index` before.

        Whom it promotes holds, on its disk, all that was committed a second ago.
        """
        node = member.node
        if not member.leads:
            return
        look = (member.member_id, node.term)
        for entry in node.entries(last_index + 1, node.last_index + 1):
            if entry.kind is EntryKind.CONFIG:
                for kind, newcomer in decode_change(entry.data).changes:
                    if kind is ChangeKind.ADD_VOTER and newcomer in node.conf.learners:
                        self._judge_promotion(member, newcomer, self._looks.get(look))
        self._looks[look] = node.commit_index

    def _judge_promotion(self, leader: SimMember, newcomer: int, committed: int | None) -> None:
        held = leader.cluster.members[newcomer].durable.last_index
        if committed is None or held < committed:
            violated(
                "a learner is promoted that has not caught up",
                leader=leader.name,
                learner=newcomer,
                held=held,
                committed_before=committed,
            )
        self.seen["learner promoted by the leader"] += 1

    def _judge_space(
        self, member: SimMember, results: Sequence[object], events: Sequence[Event]
    ) -> None:
        """While an alarm is on nothing is put."""
        alarmed = any(kind == AlarmKind.NOSPACE for kind, _ in member.machine.alarms)
        changed = any(isinstance(one, AlarmResult) and one.changed for one in results)
        # A member that is removed takes its alarm along; no command tells of that.
        stayed = self._alarmed and alarmed and not changed
        if stayed and any(not event.deleted for event in events):
            violated("a key was put while the cluster was out of space", member=member.name)
        self.seen["NOSPACE alarm"] += alarmed and not self._alarmed
        self.seen["NOSPACE alarm cleared"] += self._alarmed and not alarmed
        self.seen["write refused for want of space"] += sum(
            isinstance(one, NoSpace) for one in results
        )
        if stayed:
            self.seen["delete while out of space"] += len(events)
        self._alarmed = alarmed

    def _judge_quotas(
        self, member: SimMember, results: Sequence[object], events: Sequence[Event]
    ) -> None:
        """A prefix never holds more than its quota, unless it held as much before."""
        changed = any(isinstance(one, QuotaResult) and one.changed for one in results)
        rules = [one for one in member.machine.quotas if one.kind == QuotaKind.PREFIX]
        place = 0
        while place < len(events):
            revision = events[place].revision
            before = dict(self._quotas)
            while place < len(events) and events[place].revision == revision:
                self._count(events[place])
                place += 1
            if not changed:
                for rule in rules:
                    self._judge_rule(member, rule, before[rule.name], revision)
        if changed:
            self._quotas = {rule.name: self._held(rule.name) for rule in rules}
            self.seen["quota set"] += 1
        for rule in rules:
            if (rule.keys, rule.bytes) != self._quotas[rule.name]:
                violated(
                    "what a quota counts is not what is there",
                    member=member.name,
                    prefix=rule.name,
                    counted=(rule.keys, rule.bytes),
                    held=self._quotas[rule.name],
                )
        self.seen["write refused by a quota"] += sum(
            isinstance(one, QuotaExceeded) for one in results
        )

    def _judge_rule(
        self, member: SimMember, rule: Quota, before: tuple[int, int], revision: int
    ) -> None:
        after = self._quotas[rule.name]
        limits = (rule.keys_max, rule.bytes_max)
        if any(
            limit and now > max(limit, then)
            for limit, now, then in zip(limits, after, before, strict=True)
        ):
            violated(
                "a write went past a quota",
                member=member.name,
                prefix=rule.name,
                revision=revision,
                limits=limits,
                before=before,
                after=after,
            )

    def _count(self, event: Event) -> None:
        old = self._sizes.pop(event.key, 0)
        new = 0
        if not event.deleted:
            new = self._sizes[event.key] = size_of(event.raw)
        for prefix, (keys, size) in self._quotas.items():
            if event.key.startswith(prefix):
                grown = bool(new) - bool(old)
                self._quotas[prefix] = keys + grown, size + new - old

    def _held(self, prefix: bytes) -> tuple[int, int]:
        sizes = [size for key, size in self._sizes.items() if key.startswith(prefix)]
        return len(sizes), sum(sizes)

    def _judge_level(self, member: SimMember, results: Sequence[object]) -> None:
        level = member.machine.level
        if level <= self._level or not any(isinstance(one, MemberResult) for one in results):
            return
        self.seen["level agreed"] += 1
        self._level = level
        for info in member.machine.members():
            newest = member.cluster.members[info.member_id].newest_level
            if newest < level:
                violated(
                    "a level was agreed on that a member has never known",
                    member=info.member_id,
                    newest=newest,
                    agreed=level,
                )
