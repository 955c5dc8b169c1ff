"""The defects, each with the trap that it puts back and the benches that are to notice it.

Trap numbers are those of the list that this project keeps of what went wrong elsewhere; the
stories say where. See `patching` for how a defect gets into production code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from tests.mutations.patching import Edit, patched


class Bench(Enum):
    """What can catch a defect. The first three take seeds; see `benches`."""

    GROUP = "group"
    """Random walks of a whole group: consensus alone, storage in memory."""
    WATCHES = "watches"
    """The watch oracle: hub and machine alone."""
    SIMULATION = "simulation"
    """Whole members on simulated disks, network and clocks."""
    WITNESS = "witness"
    """One scripted scenario of its own, in `witnesses`."""


@dataclass(frozen=True)
class Mutation:
    """One named defect."""

    name: str
    trap: int
    story: str
    edits: tuple[Edit, ...]
    benches: tuple[Bench, ...]
    """Where it is expected to be caught."""
    seeds_max: int = 50
    """Within so many seeds each of the seeded benches must have caught it."""


_G, _W, _S, _X = Bench.GROUP, Bench.WATCHES, Bench.SIMULATION, Bench.WITNESS
_CORE = "raftkv.consensus.core:Core"
_LOG = "raftkv.consensus.log:RaftLog"
_REPLICA = "raftkv.server.replica:Replica"
_HUB = "raftkv.server.watch:WatchHub"

_ALL = (
    # ---- elections ---------------------------------------------------------------------------
    Mutation(
        "vote-told-before-stored", 1,
        "A vote is told before it is durable; a crash forgets it and the member votes again.",
        (Edit("raftkv.consensus.election:handle_request",
              "core.replies.append(reply)", "core.messages.append(reply)"),),
        (_G, _S), 200,
    ),
    Mutation(
        "vote-forgotten", 1,
        "The term outlives a restart, the vote in it does not: the member votes again "
        "(PySyncObj#201).",
        (Edit(f"{_CORE}.__init__",
              "hard_state.vote if self.term == hard_state.term else NO_MEMBER", "NO_MEMBER"),),
        (_G, _S), 200,
    ),
    # ---- reads -------------------------------------------------------------------------------
    Mutation(
        "read-before-noop", 3,
        "A new leader answers reads by a commit index that it only believes, before its no-op is "
        "committed (RedisRaft#19, etcd#3879).",
        (Edit("raftkv.consensus.reads:flush",
              "if not core.committed_in_term:", "if False:"),),
        (_G, _S),
    ),
    Mutation(
        "read-without-quorum", 3,
        "A leader answers reads without asking whether it still leads (etcd#741).",
        (Edit("raftkv.consensus.reads:_release",
              "core.has_won(round_.acks) is VoteResult.WON", "round_.acks"),),
        (_G, _S),
    ),
    Mutation(
        "read-id-reused", 14,
        "A question about reads is asked again under the same id, which then also stands for "
        "reads that came later: a late answer confirms them (etcd#20418).",
        (Edit("raftkv.consensus.reads:_begin",
              "reads.last_number += 1", "reads.last_number += not reads.rounds"),),
        (_G, _S), 200,
    ),
    Mutation(
        "read-round-id-reused", 14,
        "A member gives up on a round of reads and begins again under the same id.",
        (Edit("raftkv.server.read_queue:ReadQueue.expire",
              "del self._rounds[context]",
              'del self._rounds[context]; self._next = int.from_bytes(context[8:], "big")'),),
        (_X, _S), 200,
    ),
    # ---- membership --------------------------------------------------------------------------
    Mutation(
        "change-before-term-commit", 5,
        "A leader takes a membership change on before an entry of its own term is committed "
        "(raft-dev 2015).",
        (Edit("raftkv.consensus.replication:propose_change",
              "if not core.committed_in_term:", "if False:"),),
        (_X, _S), 1000,
    ),
    Mutation(
        "change-while-pending", 5,
        "A membership change is taken on while another is under way: majorities of two leaders "
        "need not meet.",
        (Edit("raftkv.consensus.replication:propose_change",
              "if core.pending_conf_index > core.log.applied:", "if False:"),),
        (_G, _S), 1000,
    ),
    # ---- replication -------------------------------------------------------------------------
    Mutation(
        "truncate-at-prev", 6,
        "A follower cuts its log where a message begins instead of at the first conflict: an old "
        "message takes away what was acknowledged since.",
        (Edit(f"{_LOG}.merge",
              "if entry.index > last or not self.matches(entry.index, entry.term):",
              "if entry.index > self.committed:"),),
        (_G, _S),
    ),
    Mutation(
        "commit-past-match", 6,
        "A follower commits as far as its leader, although only a part of its log is known to "
        "agree (openraft's #3914 of databend).",
        (Edit("raftkv.consensus.follower:handle_append",
              "min(message.commit_index, last_new)", "min(message.commit_index, log.last_index)"),),
        (_G, _S),
    ),
    Mutation(
        "heartbeat-commit-past-match", 6,
        "A heartbeat tells the leader's commit index to a member whose log may end differently.",
        (Edit("raftkv.consensus.reads:send_heartbeat",
              "min(core.progress[peer].match, core.log.committed)", "core.log.committed"),),
        (_G, _S),
    ),
    Mutation(
        "quorum-unsorted", 7,
        "The majority's index is read off without sorting (openraft#1802).",
        (Edit("raftkv.consensus.quorum:majority_index", "indexes.sort()", "pass"),),
        (_G, _S),
    ),
    Mutation(
        "quorum-of-half", 7,
        "Half of an even number of voters passes for a majority.",
        (Edit("raftkv.consensus.quorum:majority_index",
              "indexes[(len(indexes) - 1) // 2]", "indexes[len(indexes) // 2]"),),
        (_G, _S),
    ),
    Mutation(
        "commit-former-term", 7,
        "A leader counts copies of an entry of a former term and calls it committed (paper, "
        "figure 8).",
        (Edit("raftkv.consensus.replication:maybe_commit",
              "if index < core.term_start or not core.log.commit_to(index):",
              "if not core.log.commit_to(index):"),),
        (_G, _S), 200,
    ),
    # ---- durability --------------------------------------------------------------------------
    Mutation(
        "ack-before-fsync", 8,
        "A follower acknowledges entries that are not on its disk yet.",
        (Edit(f"{_CORE}.acknowledge",
              "index <= self.log.stable_index and self.durable_term == self.term", "True"),),
        (_G, _S),
    ),
    Mutation(
        "leader-counts-itself-early", 8,
        "A leader counts itself towards the majority before its own write is durable.",
        (Edit("raftkv.consensus.replication:_append",
              "core.dirty = True\n", "core.dirty = True\n    persisted_to(core, at - 1)\n"),),
        (_G, _S),
    ),
    Mutation(
        "single-member-acks-early", 8,
        "A member applies and answers what is committed but not durable on its own disk; in a "
        "cluster of one that is every write (etcd#14370).",
        (
            Edit("raftkv.consensus.replication:_append",
                 "core.dirty = True\n", "core.dirty = True\n    persisted_to(core, at - 1)\n"),
            Edit(f"{_LOG}.applicable_index",
                 "return min(self.committed, self.offset - 1)", "return self.committed"),
            Edit(f"{_REPLICA}._can_apply",
                 "queue[0].index <= self.log.last_index()", "True"),
            Edit(f"{_REPLICA}._apply_committed",
                 "durable = self.log.last_index()", "durable = queue[-1].index"),
        ),
        (_X, _S),
    ),
    Mutation(
        "sync-skipped", 8,
        "The log is written and never synced.",
        (Edit("raftkv.storage.wal:Wal.sync", "self._file.sync_data()", "pass"),),
        (_X, _S),
    ),
    Mutation(
        "told-before-synced", 8,
        "Writes are reported as durable, and only then synced.",
        (Edit("raftkv.server.append_thread:_made_durable",
              "yield Pause.SYNC", "yield written\n        yield Pause.SYNC"),
         Edit("raftkv.server.append_thread:_made_durable", "if written:", "if False:")),
        (_X, _S),
    ),
    Mutation(
        "replay-keeps-replaced", 9,
        "Reading the log back, entries that a newer leader replaced come back behind those that "
        "took their place (etcd#22442).",
        (Edit("raftkv.storage.recovery:_scan_segment",
              "        if count:\n",
              "        if count:\n"
              "            behind = max(first_index + count - index.base_index - 1, 0)\n"
              "            ghosts = [column[behind:] for column in index.columns()]\n"),
         Edit("raftkv.storage.recovery:_scan_segment",
              "segment.live_last = index.last_index",
              "for column, ghost in zip(index.columns(), ghosts):\n"
              "                column.extend(ghost)\n"
              "            segment.live_last = index.last_index")),
        (_X, _S), 200,
    ),
    Mutation(
        "cache-keeps-replaced", 10,
        "The log's cache is not cut when the log is (cockroachdb#63302).",
        (Edit("raftkv.storage.wallog:WalLog.persisted", "self._cut_cache(first)", "pass"),),
        (_X, _S), 200,
    ),
    Mutation(
        "applied-index-apart", 11,
        "What an entry changed and how far entries were applied go to the tables in two "
        "transactions; a crash between them applies entries twice (etcd#13766).",
        (Edit("raftkv.machine.machine:Machine.apply",
              "        draft.save()\n",
              "    with self._tables.write() as writer:\n"
              "        draft.put_row = writer.put\n"
              "        draft.save()\n"),),
        (_X, _S), 200,
    ),
    # ---- forwarding --------------------------------------------------------------------------
    Mutation(
        "copies-taken-on", 20,
        "A forwarded batch that the network delivers twice is appended twice.",
        (Edit(f"{_REPLICA}._take_forwarded",
              "if not self._repeats.first(*_identity(entry)):", "if False:"),),
        (_X, _S), 200,
    ),
    # ---- watches -----------------------------------------------------------------------------
    Mutation(
        "watch-repeats-when-full", 16,
        "A watch whose sink was full goes back by one revision: time travel (etcd#15271).",
        (Edit(f"{_HUB}._fall_behind",
              "watch._next = self.revision + 1", "watch._next = self.revision"),),
        (_W, _S),
    ),
    Mutation(
        "watch-skips-when-full", 16,
        "A watch whose sink was full goes live again without what it missed (etcd#17529).",
        (Edit(f"{_HUB}._resume",
              "if watch._next > self.revision:", "if True:"),
         Edit(f"{_HUB}._resume", "self._settle(watch)", "self._go_live(watch)")),
        (_W, _S),
    ),
    Mutation(
        "watch-skips-installed", 16,
        "A watch goes on after its member was overtaken by a snapshot as if it had seen it all.",
        (Edit(f"{_HUB}.reset_after_install",
              "if watch._place is Place.LIVE:", "if False:"),),
        (_W, _S), 200,
    ),
    Mutation(
        "compaction-takes-delete", 16,
        "A deletion at the compaction revision is removed although watches may still start there "
        "(etcd#18089, #19179).",
        (Edit("raftkv.machine.mvcc:compaction_slice",
              "reader.scan(HISTORY, cursor, U64.pack(revision))",
              "reader.scan(HISTORY, cursor, U64.pack(revision + 1))"),),
        (_W, _S), 200,
    ),
    Mutation(
        "future-watch-starts-now", 16,
        "A watch that asked for a revision to come is given the events before it (etcd#20221).",
        (Edit(f"{_HUB}._settle",
              "elif watch._next == self.revision + 1:", "elif True:"),),
        (_W, _S),
    ),
    Mutation(
        "progress-ahead-of-events", 16,
        "A progress mark names a revision whose events are still on their way (etcd#15220).",
        (Edit(f"{_HUB}._mark_slice",
              "revision = watch._next - 1", "revision = self.revision"),),
        (_W, _S),
    ),
    Mutation(
        "watch-tears-revision", 16,
        "History is cut in the middle of a revision, and the rest of it is never sent.",
        (Edit("raftkv.machine.mvcc:history",
              "if len(events) >= events_max and revision != last:",
              "if len(events) >= events_max:"),),
        (_W, _S), 200,
    ),
)  # fmt: skip

MUTATIONS = {mutation.name: mutation for mutation in _ALL}
"""By name, in order of traps as far as they belong together."""


@contextmanager
def applied(name: str) -> Iterator[Mutation]:
    """Production code with one defect. Raises ShapeChanged when that does not fit any more."""
    mutation = MUTATIONS[name]
    with patched(mutation.edits):
        yield mutation
