"""Leases of one replica: renewals and questions about them, here or at the leader, and expiry.

Only the leader's clock counts (`raftkv.server.lessor`). A follower passes renewals on, those of a
turn in one frame, and the leader answers once its leadership is confirmed from after they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack

from raftkv.consensus.types import NO_MEMBER, Role
from raftkv.errors import (
    LeaseNotFound,
    NoLeader,
    OutcomeUnknown,
    PeerError,
    RaftkvError,
    Refused,
)
from raftkv.limits import LEASE_REVOKES_PER_BATCH
from raftkv.machine import commands
from raftkv.server.lessor import Lessor
from raftkv.server.read_queue import ReadQueue
from raftkv.server.repeats import Repeats
from raftkv.server.shell_frames import ShellFrame, is_time, is_ttls
from raftkv.server.store import Done, KeepAliveResult, LeaseTime, StoreStats

if TYPE_CHECKING:
    from raftkv.consensus.node import RaftNode
    from raftkv.server.replica import Surroundings

EXPIRE_COMMANDS_PER_TICK = 16

Propose = Callable[[commands.Command, Done], None]
Fits = Callable[[Any], bool]


class LeaseDesk:
    """Everything is called on the replica's thread; `flush` once a turn."""

    def __init__(
        self,
        boot: int,
        node: RaftNode,
        reads: ReadQueue,
        surroundings: Surroundings,
        stats: StoreStats,
        propose: Propose,
        request_timeout_ms: int,
    ) -> None:
        self.lessor = Lessor()
        self._boot = boot
        self._node = node
        self._reads = reads
        self._around = surroundings
        self._stats = stats
        self._propose = propose
        self._request_timeout_ms = request_timeout_ms
        self._keep_alives: list[tuple[list[int], Done]] = []
        self._times: list[tuple[int, Done]] = []
        self._asked: dict[int, tuple[int, Done, Fits]] = {}
        """Questions at the leader: (deadline, who waits, what can be the answer), oldest first."""
        self._held: list[tuple[int, list[int], Done]] = []
        """(deadline, leases, who waits): renewals of leases whose expiry is proposed. It may yet
        fail, so they wait for it."""
        self._next_question = 1
        self._repeats = Repeats()

    # For doors, by way of the replica

    def keep_alive(self, lease: int, done: Done) -> None:
        """Renew at the next `flush`."""
        self._keep_alives.append(([lease], partial(_answer_one, lease, done)))

    def keep_alives(self, leases: list[int], done: Done) -> None:
        """Renew all of them at the next `flush`; see `Store.keep_alives`."""
        self._keep_alives.append((leases, done))

    def time(self, lease: int, done: Done) -> None:
        """Ask at the next `flush`."""
        self._times.append((lease, done))

    # For the replica

    def flush(self) -> None:
        """Start on everything that was gathered since the last turn."""
        if self._keep_alives:
            gathered, self._keep_alives = self._keep_alives, []
            leases = [lease for some, _ in gathered for lease in some]
            self._stats.keep_alives += len(leases)

            def answered(answers: Any) -> None:
                _answer_keep_alives(gathered, answers)

            if self._node.role is Role.LEADER:
                self._renew(leases, answered)
            else:
                self._ask(
                    ShellFrame.KEEP_ALIVE, leases, answered, lambda got: is_ttls(got, len(leases))
                )
        if self._times:
            asked, self._times = self._times, []
            for lease, done in asked:
                if self._node.role is Role.LEADER:
                    self._tell_time(lease, done)
                else:
                    self._ask_time(lease, done)

    def tick(self, now_ms: int) -> None:
        """Give up on answers that are overdue, and propose to expire what ran out."""
        while self._asked:
            question, (deadline_ms, done, _) = next(iter(self._asked.items()))
            if deadline_ms > now_ms:
                break
            del self._asked[question]
            done(OutcomeUnknown("the leader did not answer in time"))
        if self._held and self._held[0][0] <= now_ms:
            overdue = [done for deadline_ms, _, done in self._held if deadline_ms <= now_ms]
            self._held = [held for held in self._held if held[0] > now_ms]
            for done in overdue:
                done(OutcomeUnknown("the lease is about to end, which was not confirmed in time"))
        if self.lessor.leading:
            self._expire(now_ms)

    def role_changed(self, leads: bool, leases: Callable[[], Iterable[tuple[int, int]]]) -> None:
        """This member leads a new term, or follows; `leases` gives (id, ttl_seconds) of all."""
        asked, self._asked = self._asked, {}
        for _, done, _ in asked.values():
            done(OutcomeUnknown("the leader was replaced before it answered"))
        if leads:
            self.lessor.promote(leases(), self._around.now_ms())
            self._renew_held()
        else:
            self.lessor.demote()
            held, self._held = self._held, []
            for _, _, done in held:
                done(_leader_moved())

    def applied(self, leases: Iterable[tuple[int, int]]) -> None:
        """Leases that an entry granted, changed or (TTL 0) ended."""
        if not self.lessor.leading:
            return
        now_ms = self._around.now_ms()
        for lease, ttl_seconds in leases:
            if ttl_seconds:
                self.lessor.granted(lease, ttl_seconds, now_ms)
            else:
                self.lessor.gone(lease)
        self._renew_held()

    def installed(self, leases: Iterable[tuple[int, int]]) -> None:
        """A snapshot took the state's place: a leader may be elected before its image is there."""
        self.lessor.replaced(leases, self._around.now_ms())
        self._renew_held()

    def take_frame(self, peer: int, kind: int, fields: list[Any], refusing: Refused | None) -> None:
        """A peer's question or answer, as `decode_shell` gave it.

        Raises PeerError for an answer to something else; the question stays open then.
        """
        if kind == ShellFrame.KEEP_ALIVE:
            question, leases = fields
            # Late, a second copy would renew what its holder has let go of since.
            if self._may_answer(peer, question, refusing) and self._first(peer, question):
                self._renew(leases, lambda answer: self._reply(peer, question, _wire(answer)))
        elif kind == ShellFrame.LEASE_TIME:
            question, lease = fields
            if self._may_answer(peer, question, refusing):
                self._tell_time(lease, lambda answer: self._reply(peer, question, _wire(answer)))
        elif kind == ShellFrame.ANSWER:
            (boot, number), answer = fields
            asked = self._asked.get(number) if boot == self._boot else None
            if asked is not None:
                _, done, fits = asked
                if not fits(answer):
                    raise PeerError("an answer to something else than was asked", peer=peer)
                del self._asked[number]
                done(answer)

    def refuse_all(self, reason: Refused) -> None:
        """Answer whoever waits here with `reason`."""
        waiting = [done for _, done in self._keep_alives + self._times]
        waiting += [done for _, done, _ in self._asked.values()]
        waiting += [done for _, _, done in self._held]
        self._keep_alives, self._times, self._asked, self._held = [], [], {}, []
        for done in waiting:
            done(reason)

    # As leader

    def _renew(self, leases: list[int], done: Done, deadline_ms: int = 0) -> None:
        """Renew now, answer once leadership is confirmed from now on, at `deadline_ms` at last.

        A leader elected later than now starts every TTL again, so the promise holds either way.
        """
        now_ms = self._around.now_ms()
        deadline_ms = deadline_ms or now_ms + self._request_timeout_ms
        term = self._node.term
        renewed = [self.lessor.renew(lease, now_ms) for lease in leases]

        def confirmed(error: RaftkvError | None) -> None:
            if error is not None:
                done(error)
            elif self._node.term != term or not self.lessor.leading:
                done(_leader_moved())
            else:
                # Between the two moments a lease may have been granted, or have ended: by a
                # revocation, or by an expiry that an earlier leader left in the log.
                later_ms, lessor = self._around.now_ms(), self.lessor
                ttls = [
                    ttl if ttl is not None and lease in lessor else lessor.renew(lease, later_ms)
                    for lease, ttl in zip(leases, renewed, strict=True)
                ]
                if None in ttls and any(map(self.lessor.expiring, leases)):
                    self._held.append((deadline_ms, leases, done))
                else:
                    done(ttls)

        self._reads.add(confirmed, deadline_ms)

    def _renew_held(self) -> None:
        if self._held:
            held, self._held = self._held, []
            for deadline_ms, leases, done in held:
                self._renew(leases, done, deadline_ms)
            self._around.wake()

    def _tell_time(self, lease: int, done: Done) -> None:
        def confirmed(error: RaftkvError | None) -> None:
            if error is not None:
                done(error)
            elif not self.lessor.leading:
                done(_leader_moved())
            else:
                time = self.lessor.time(lease, self._around.now_ms())
                done(_not_found(lease) if time is None else LeaseTime(lease, *time))

        self._reads.add(confirmed, self._around.now_ms() + self._request_timeout_ms)

    def _expire(self, now_ms: int) -> None:
        for _ in range(EXPIRE_COMMANDS_PER_TICK):
            expired = self.lessor.take_expired(now_ms, LEASE_REVOKES_PER_BATCH)
            if not expired:
                return

            def done(result: Any, expired: list[int] = expired) -> None:
                if isinstance(result, Refused):
                    self.lessor.put_back(expired, self._around.now_ms())
                    self._renew_held()
                elif not isinstance(result, RaftkvError):
                    self._stats.leases_expired += len(result.expired)
                # Of unknown outcome: in the log of our own term. Until it is applied, or the term
                # is over, the leases may end at any time, so none of them can be renewed.

            self._propose(commands.lease_expire(expired, self._node.term), done)

    def _first(self, peer: int, question: list[int]) -> bool:
        boot, number = question
        self._repeats.begin(self._node.term)
        return self._repeats.first(peer, boot, number)

    def _may_answer(self, peer: int, question: list[int], refusing: Refused | None) -> bool:
        if self._node.role is Role.LEADER and refusing is None:
            return True
        self._reply(peer, question, "this member does not lead")
        return False

    def _reply(self, peer: int, question: list[int], answer: Any) -> None:
        self._around.send_frame(peer, ShellFrame.ANSWER, msgpack.packb([question, answer]))

    # As follower

    def _ask(self, kind: int, body: Any, done: Done, fits: Fits) -> None:
        leader = self._node.leader
        number = self._next_question
        self._next_question += 1
        payload = msgpack.packb([[self._boot, number], body])
        if leader == NO_MEMBER or not self._around.send_frame(leader, kind, payload):
            done(NoLeader("no leader is known or reachable; try again shortly"))
            return
        self._asked[number] = (self._around.now_ms() + self._request_timeout_ms, done, fits)

    def _ask_time(self, lease: int, done: Done) -> None:
        def answered(answer: Any) -> None:
            if isinstance(answer, RaftkvError):
                done(answer)
            elif isinstance(answer, str):
                done(NoLeader(answer))
            else:
                done(_not_found(lease) if answer is None else LeaseTime(lease, *answer))

        self._ask(ShellFrame.LEASE_TIME, lease, answered, is_time)


def _leader_moved() -> NoLeader:
    return NoLeader("leadership moved while this was asked; try again")


def _not_found(lease: int) -> LeaseNotFound:
    return LeaseNotFound(f"no lease {lease:016x}", lease=lease)


def _wire(answer: Any) -> Any:
    """An answer as it travels; see `ShellFrame`."""
    if isinstance(answer, LeaseTime):
        return [answer.ttl_seconds, answer.remaining_ms]
    if isinstance(answer, LeaseNotFound):
        return None
    return str(answer) if isinstance(answer, RaftkvError) else answer


def _answer_keep_alives(asked: list[tuple[list[int], Done]], answers: Any) -> None:
    """Tell each who asked what became of their leases; one error or one text is everybody's."""
    if isinstance(answers, str):
        answers = NoLeader(answers)
    if isinstance(answers, RaftkvError):
        for _, done in asked:
            done(answers)
        return
    at = 0
    for leases, done in asked:
        done(answers[at : at + len(leases)])
        at += len(leases)


def _answer_one(lease: int, done: Done, answer: Any) -> None:
    if isinstance(answer, RaftkvError):
        done(answer)
    else:
        (ttl_seconds,) = answer
        done(_not_found(lease) if ttl_seconds is None else KeepAliveResult(lease, ttl_seconds))
