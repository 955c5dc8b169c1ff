"""The state of one member and the moves between its roles. Everything else works on this.

Outputs gather in lists until the façade hands them over. Two rules keep them honest:

- `send` is for what is true already; `reply` is for what a crash could make untrue, and rides on
  a storage write unless the write it depends on is known to be durable.
- A leader does not send appends at once: it sets `dirty`, and they are made when the shell asks
  for output. However many proposals and answers a turn brings, each peer gets one append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raftkv.checks import check
from raftkv.consensus import confchange, quorum
from raftkv.consensus.config import RaftConfig, RandomSource
from raftkv.consensus.log import RaftLog
from raftkv.consensus.progress import Progress
from raftkv.consensus.reads import ReadRounds
from raftkv.consensus.types import (
    NO_MEMBER,
    ConfState,
    LogStorage,
    Message,
    MessageKind,
    ReadState,
    Refusal,
    Role,
)

QUIET = b"quiet"
"""Context of an APPEND that only tells how far the log is committed: success needs no answer."""


class Core:
    """One member. Used by the modules of this package only; the world uses `RaftNode`."""

    __slots__ = (
        "conf",
        "config",
        "dirty",
        "durable_term",
        "election_elapsed",
        "election_timeout",
        "handed_commit",
        "handed_leader",
        "handed_role",
        "handed_term",
        "handed_vote",
        "heartbeat_elapsed",
        "leader",
        "log",
        "member_id",
        "messages",
        "pending_conf_index",
        "progress",
        "random",
        "read_states",
        "reads",
        "refused",
        "replies",
        "role",
        "term",
        "term_start",
        "trace",
        "transferee",
        "uncommitted",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(
        self,
        config: RaftConfig,
        storage: LogStorage,
        random: RandomSource,
        applied: int,
        trace: Callable[[str], None] | None,
    ) -> None:
        hard_state, conf = storage.initial_state()
        self.config = config
        self.member_id = config.member_id
        self.random = random
        self.trace = trace
        self.log = RaftLog(storage, hard_state.commit_index, applied)
        self.term = max(hard_state.term, self.log.last_term)
        self.vote = hard_state.vote if self.term == hard_state.term else NO_MEMBER
        self.role = Role.FOLLOWER
        self.leader = NO_MEMBER
        self.conf = conf
        self.progress: dict[int, Progress] = {}
        self.votes: dict[int, bool] = {}
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.election_timeout = 0

        self.messages: list[Message] = []
        self.replies: list[Message] = []
        self.read_states: list[ReadState] = []
        self.refused: list[Refusal] = []
        self.dirty = False
        self.durable_term = self.term
        """The greatest term known to be durable here."""

        self.term_start = 0
        """Leader: index of its no-op, the first entry of its term."""
        self.pending_conf_index = 0
        """Leader: no change may be proposed before everything up to here is applied."""
        self.uncommitted: deque[tuple[int, int]] = deque()
        self.uncommitted_bytes = 0
        self.transferee = NO_MEMBER
        self.reads = ReadRounds(random.randrange(0, 1 << 63))

        self.handed_term = self.term
        self.handed_vote = self.vote
        self.handed_commit = self.log.committed
        self.handed_role = self.role
        self.handed_leader = self.leader
        self.draw_election_timeout()
        self.use_conf(conf)

    # Outputs

    def note(self, text: str) -> None:
        """Tell the trace sink, if there is one. Guard calls on hot paths with `if core.trace`."""
        if self.trace is not None:
            self.trace(f"{self.member_id} {text}")

    def send(self, message: Message) -> None:
        """Say what is true whatever happens to this member's disk."""
        self.messages.append(message)

    def reply(self, message: Message) -> None:
        """Say what depends on this member's term being durable."""
        if self.durable_term == self.term:
            self.messages.append(message)
        else:
            self.replies.append(message)

    def acknowledge(self, index: int) -> None:
        """Tell the leader that the log up to `index` is here, once it is so durably."""
        message = Message(
            MessageKind.APPEND_REPLY, self.member_id, self.leader, term=self.term, index=index
        )
        if index <= self.log.stable_index and self.durable_term == self.term:
            self.messages.append(message)
        else:
            self.replies.append(message)

    # Roles

    def draw_election_timeout(self) -> None:
        """Draw this member's patience anew, so that elections seldom collide (paper 5.2)."""
        ticks = self.config.election_timeout_ticks
        self.election_timeout = self.random.randrange(ticks, 2 * ticks)

    def reset(self, term: int) -> None:
        """Forget everything that belongs to one role in one term. The log is left alone."""
        check(term >= self.term, "the term goes back", term=term, current=self.term)
        if term != self.term:
            self.term = term
            self.vote = NO_MEMBER
        self.reads.refuse_all(self)
        self.leader = NO_MEMBER
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.draw_election_timeout()
        self.votes = {}
        self.term_start = 0
        self.pending_conf_index = 0
        self.uncommitted.clear()
        self.uncommitted_bytes = 0
        self.transferee = NO_MEMBER
        self.dirty = False

    def become_follower(self, term: int, leader: int, reason: str) -> None:
        """Follow `leader` (NO_MEMBER: nobody yet) in `term`."""
        self.reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader
        if self.trace is not None:
            self.note(f"became follower term={term} leader={leader} reason={reason}")

    def follow(self, leader: int) -> None:
        """A message of this term's leader arrived."""
        if self.role is Role.FOLLOWER and self.leader == leader:
            self.election_elapsed = 0
            return
        check(self.role is not Role.LEADER, "two leaders in one term", term=self.term, other=leader)
        self.become_follower(self.term, leader, "leader found")

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won; term and vote stay (thesis 9.6)."""
        check(self.role is not Role.LEADER, "a leader campaigns", term=self.term)
        self.role = Role.PRE_CANDIDATE
        self.reads.refuse_all(self)
        self.leader = NO_MEMBER
        self.votes = {}
        if self.trace is not None:
            self.note(f"became pre-candidate term={self.term}")

    def become_candidate(self) -> None:
        """Start an election in the next term with this member's own vote (paper 5.2)."""
        check(self.role is not Role.LEADER, "a leader campaigns", term=self.term)
        self.reset(self.term + 1)
        self.role = Role.CANDIDATE
        self.vote = self.member_id
        if self.trace is not None:
            self.note(f"became candidate term={self.term}")

    # Membership

    def use_conf(self, conf: ConfState) -> None:
        """Put `conf` in force: who counts, and to whom the log is sent."""
        self.conf = conf
        old = self.progress
        next_index = max(self.log.last_index, 1)
        self.progress = {
            # A new member counts as active until the next quorum check gives it a chance.
            member: old.get(member) or Progress(next_index, recent_active=True)
            for member in sorted(confchange.members(conf))
        }

    @property
    def is_voter(self) -> bool:
        """Whether this member counts in elections."""
        return confchange.is_voter(self.conf, self.member_id)

    @property
    def promotable(self) -> bool:
        """Whether this member may campaign."""
        return self.is_voter and self.log.snapshot is None

    def has_won(self, votes: dict[int, bool]) -> quorum.VoteResult:
        """Where a vote stands in the configuration in force."""
        return quorum.joint_vote(self.conf.voters, self.conf.voters_outgoing, votes)

    @property
    def committed_in_term(self) -> bool:
        """Leader: whether an entry of its own term is committed (paper 5.4.2 and 8)."""
        return self.log.committed >= self.term_start > 0
