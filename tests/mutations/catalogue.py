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
    """What can catch a defect by running seeds; see `benches`."""

    GROUP = "group"
    """Random walks of a whole group: consensus alone, storage in memory."""
    WATCHES = "watches"
    """The watch oracle: hub and machine alone."""
    SIMULATION = "simulation"
    """Whole members on simulated disks, network and clocks."""
    READS = "reads"
    """The same, with nothing but one much used key and leaders that lose touch."""
    SHRINKING = "shrinking"
    """The same, with voters that are removed while their leader loses touch."""
    RIGHTS = "rights"
    """The same, with users whose rights keep changing while they use them."""
    OPERATION = "operation"
    """The same, with upgrades, quotas, archives and new members, and few faults."""


@dataclass(frozen=True)
class Mutation:
    """One named defect."""

    name: str
    trap: int
    """0: of none of them."""
    story: str
    edits: tuple[Edit, ...]
    benches: tuple[Bench, ...]
    """Which seeded benches hunt it, the one that needs the fewest seeds first."""
    seeds_max: int
    """Within so many seeds the first of them is to have caught it. 0: it needs too many; the
    scripted test alone vouches for it."""
    test: str
    """A scripted test that fails because of it."""


_G, _W, _S, _R = Bench.GROUP, Bench.WATCHES, Bench.SIMULATION, Bench.READS
_H, _A, _O = Bench.SHRINKING, Bench.RIGHTS, Bench.OPERATION
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
        (_S, _G), 5,
        "tests/paper/test_paper_election.py::test_a_vote_is_said_only_when_durable",
    ),
    Mutation(
        "vote-forgotten", 1,
        "The term outlives a restart, the vote in it does not: the member votes again "
        "(PySyncObj#201).",
        (Edit(f"{_CORE}.__init__",
              "hard_state.vote if self.term == hard_state.term else NO_MEMBER", "NO_MEMBER"),),
        (_S, _G), 5,
        "tests/paper/test_paper_election.py::test_a_vote_outlives_a_crash",
    ),
    # ---- reads -------------------------------------------------------------------------------
    Mutation(
        "read-before-noop", 3,
        "A new leader answers reads by a commit index that it only believes, before its no-op is "
        "committed (RedisRaft#19, etcd#3879).",
        (Edit("raftkv.consensus.reads:flush",
              "if not core.committed_in_term:", "if False:"),),
        (_G, _R, _S), 20,
        "tests/paper/test_paper_reads.py::test_read_only_for_new_leader",
    ),
    Mutation(
        "read-without-quorum", 3,
        "A leader answers reads without asking whether it still leads (etcd#741).",
        (Edit("raftkv.consensus.reads:_release",
              "core.has_won(round_.acks) is VoteResult.WON", "round_.acks"),),
        (_R, _G, _S), 10,
        "tests/paper/test_paper_reads.py::test_waiting_reads_share_one_round",
    ),
    Mutation(
        "read-id-reused", 14,
        "A question about reads is asked again under the same id, which then also stands for "
        "reads that came later: a late answer confirms them (etcd#20418).",
        (Edit("raftkv.consensus.reads:_begin",
              "reads.last_number += 1", "reads.last_number += not reads.rounds"),),
        (_R, _G, _S), 30,
        "tests/paper/test_paper_reads.py::test_a_lost_round_is_asked_again_under_a_new_id",
    ),
    Mutation(
        "read-round-id-reused", 14,
        "A member gives up on a round of reads and begins again under the same id.",
        (Edit("raftkv.server.read_queue:ReadQueue.expire",
              "del self._rounds[context]",
              'del self._rounds[context]; self._next = int.from_bytes(context[8:], "big")'),),
        (_R, _S), 0,
        "tests/unit/test_server_read_queue.py::test_an_unanswered_round_begins_again_under_a_new_id",
    ),
    # ---- membership --------------------------------------------------------------------------
    Mutation(
        "change-before-term-commit", 5,
        "A leader takes a membership change on before an entry of its own term is committed "
        "(raft-dev 2015).",
        # Here a change takes effect when it is applied, so two leaders are never more than one
        # step apart, and no seed can be expected to tell. The rule stays: it costs nothing.
        (Edit("raftkv.consensus.replication:propose_change",
              "if not core.committed_in_term:", "if False:"),),
        (_H, _G, _S), 0,
        "tests/paper/test_paper_membership.py::test_changes_wait_for_an_entry_of_the_term",
    ),
    Mutation(
        "change-while-pending", 5,
        "A membership change is taken on while another is under way: majorities of two leaders "
        "need not meet.",
        (Edit("raftkv.consensus.replication:propose_change",
              "if core.pending_conf_index > core.log.applied:", "if False:"),),
        (_H, _G, _S), 150,
        "tests/paper/test_paper_membership.py::test_changes_wait_for_the_previous_one",
    ),
    # ---- replication -------------------------------------------------------------------------
    Mutation(
        "truncate-at-prev", 6,
        "A follower cuts its log where a message begins instead of at the first conflict: an old "
        "message takes away what was acknowledged since.",
        (Edit(f"{_LOG}.merge",
              "if entry.index > last or not self.matches(entry.index, entry.term):",
              "if entry.index > self.committed:"),),
        (_G, _S), 20,
        "tests/paper/test_paper_replication.py::test_an_old_append_does_not_shorten_the_log",
    ),
    Mutation(
        "commit-past-match", 6,
        "A follower commits as far as its leader, although only a part of its log is known to "
        "agree (openraft's #3914 of databend).",
        (Edit("raftkv.consensus.follower:handle_append",
              "min(message.commit_index, last_new)", "min(message.commit_index, log.last_index)"),),
        (_G, _S), 0,
        "tests/paper/test_paper_replication.py::test_commit_is_bounded_by_what_this_append_matched",
    ),
    Mutation(
        "heartbeat-commit-past-match", 6,
        "A heartbeat tells the leader's commit index to a member whose log may end differently.",
        (Edit("raftkv.consensus.reads:send_heartbeat",
              "min(core.progress[peer].match, core.log.committed)", "core.log.committed"),),
        (_G, _S), 100,
        "tests/paper/test_paper_replication.py::test_a_tail_that_was_being_replaced_is_not_taken_for_committed_after_a_crash",
    ),
    Mutation(
        "quorum-unsorted", 7,
        "The majority's index is read off without sorting (openraft#1802).",
        (Edit("raftkv.consensus.quorum:majority_index", "indexes.sort()", "pass"),),
        (_G, _S), 5,
        "tests/unit/test_consensus_quorum.py::test_majority_index_is_what_counting_says",
    ),
    Mutation(
        "quorum-of-half", 7,
        "Half of an even number of voters passes for a majority.",
        (Edit("raftkv.consensus.quorum:majority_index",
              "indexes[(len(indexes) - 1) // 2]", "indexes[len(indexes) // 2]"),),
        (_G, _S), 10,
        "tests/unit/test_consensus_quorum.py::test_majority_index_is_what_counting_says",
    ),
    Mutation(
        "commit-former-term", 7,
        "A leader counts copies of an entry of a former term and calls it committed (paper, "
        "figure 8).",
        (Edit("raftkv.consensus.replication:maybe_commit",
              "if index < core.term_start or not core.log.commit_to(index):",
              "if not core.log.commit_to(index):"),),
        (_S, _G), 40,
        "tests/paper/test_paper_replication.py::test_cannot_commit_without_new_term_entry",
    ),
    # ---- durability --------------------------------------------------------------------------
    Mutation(
        "ack-before-fsync", 8,
        "A follower acknowledges entries that are not on its disk yet.",
        (Edit(f"{_CORE}.acknowledge",
              "index <= self.log.stable_index and self.durable_term == self.term", "True"),),
        (_G, _S), 5,
        "tests/paper/test_paper_replication.py::test_a_tail_that_was_being_replaced_is_not_taken_for_committed_after_a_crash",
    ),
    Mutation(
        "leader-counts-itself-early", 8,
        "A leader counts itself towards the majority before its own write is durable.",
        (Edit("raftkv.consensus.replication:_append",
              "core.dirty = True\n", "core.dirty = True\n    persisted_to(core, at - 1)\n"),),
        (_G, _S), 20,
        "tests/paper/test_paper_replication.py::test_a_leader_counts_itself_only_when_durable",
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
        (_S,), 5,
        "tests/unit/test_server_replica.py::test_nothing_is_answered_before_the_log_is_durable",
    ),
    Mutation(
        "sync-skipped", 8,
        "The log is written and never synced.",
        (Edit("raftkv.storage.wal:Wal._sync_file", "self._file.sync_data()", "pass"),),
        (_S,), 10,
        "tests/unit/test_server_append_steps.py::test_what_is_told_as_written_outlives_a_power_cut",
    ),
    Mutation(
        "told-before-synced", 8,
        "Writes are reported as durable, and only then synced.",
        (Edit("raftkv.server.append_thread:_made_durable",
              "yield Pause.SYNC", "yield written\n        yield Pause.SYNC"),
         Edit("raftkv.server.append_thread:_made_durable", "if written:", "if False:")),
        (_S,), 5,
        "tests/unit/test_server_append_steps.py::test_what_is_told_as_written_outlives_a_power_cut",
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
        (_S,), 0,
        "tests/unit/test_storage_wal.py::test_overwritten_entries_never_come_back",
    ),
    Mutation(
        "cache-keeps-replaced", 10,
        "The log's cache is not cut when the log is (cockroachdb#63302).",
        (Edit("raftkv.storage.wallog:WalLog.persisted", "self._cut_cache(first)", "pass"),),
        (_S,), 10,
        "tests/unit/test_server_replica.py::test_a_leader_cut_off_loses_its_writes_definitely_once_it_learns",
    ),
    Mutation(
        "applied-index-apart", 11,
        "What an entry changed and how far entries were applied go to the tables in two "
        "transactions; a crash between them applies entries twice (etcd#13766).",
        (Edit("raftkv.machine.machine:Machine.work_out",
              "        try:\n            draft.save()\n",
              "    with self._tables.write() as writer:\n"
              "        draft.put_row = writer.put\n"
              "        try:\n            draft.save()\n"),),
        (_S,), 30,
        "tests/unit/test_machine_apply.py::test_a_failure_in_the_middle_leaves_nothing",
    ),
    # ---- forwarding --------------------------------------------------------------------------
    Mutation(
        "copies-taken-on", 20,
        "A forwarded batch that the network delivers twice is appended twice.",
        (Edit(f"{_REPLICA}._take_forwarded",
              "if not self._repeats.first(*_applicable(entry)):", "if False:"),),
        (_S,), 30,
        "tests/unit/test_server_repeats.py::test_copies_of_a_forwarded_batch_are_applied_once",
    ),
    # ---- watches -----------------------------------------------------------------------------
    Mutation(
        "watch-repeats-when-full", 16,
        "A watch whose sink was full goes back by one revision: time travel (etcd#15271).",
        (Edit(f"{_HUB}._fall_behind",
              "watch._next = self.revision + 1", "watch._next = self.revision"),),
        (_W, _S), 5,
        "tests/unit/test_server_watch.py::test_a_full_sink_is_left_alone_until_it_resumes",
    ),
    Mutation(
        "watch-skips-when-full", 16,
        "A watch whose sink was full goes live again without what it missed (etcd#17529).",
        (Edit(f"{_HUB}._resume",
              "if watch._next > self.revision:", "if True:"),
         Edit(f"{_HUB}._resume", "self._settle(watch)", "self._go_live(watch)")),
        (_W, _S), 5,
        "tests/unit/test_server_watch.py::test_a_full_sink_is_left_alone_until_it_resumes",
    ),
    Mutation(
        "watch-skips-installed", 16,
        "A watch goes on after its member was overtaken by a snapshot as if it had seen it all.",
        (Edit(f"{_HUB}.reset_after_install",
              "if watch._place is Place.LIVE:", "if False:"),),
        (_W, _S), 10,
        "tests/unit/test_server_watch.py::test_an_installed_snapshot_puts_watches_behind_or_closes_them",
    ),
    Mutation(
        "compaction-takes-delete", 16,
        "A deletion at the compaction revision is removed although watches may still start there "
        "(etcd#18089, #19179).",
        (Edit("raftkv.machine.mvcc:compaction_slice",
              "position[:8] < target", "position[:8] <= target"),),
        (_W, _S), 250,
        "tests/unit/test_machine_apply.py::test_events_at_the_compaction_revision_are_kept",
    ),
    Mutation(
        "future-watch-starts-now", 16,
        "A watch that asked for a revision to come is given the events before it (etcd#20221).",
        (Edit(f"{_HUB}._settle",
              "elif watch._next == self.revision + 1:", "elif True:"),),
        (_W, _S), 10,
        "tests/unit/test_server_watch.py::test_a_start_in_the_future_gets_only_what_is_wanted",
    ),
    Mutation(
        "progress-ahead-of-events", 16,
        "A progress mark names a revision whose events are still on their way (etcd#15220).",
        (Edit(f"{_HUB}._mark_slice",
              "revision = watch._next - 1", "revision = self.revision"),),
        (_W, _S), 5,
        "tests/unit/test_server_watch.py::test_progress_marks_never_run_ahead",
    ),
    Mutation(
        "watch-tears-revision", 16,
        "History is cut in the middle of a revision, and the rest of it is never sent.",
        (Edit("raftkv.machine.mvcc:history",
              "if len(events) >= events_max and revision != last:",
              "if len(events) >= events_max:"),),
        (_W, _S), 200,
        "tests/unit/test_machine_apply.py::test_history_never_splits_a_revision",
    ),
    # ---- access control ----------------------------------------------------------------------
    Mutation(
        "conditions-unjudged", 17,
        "The conditions of a transaction tell of keys that their asker may not read.",
        (Edit("raftkv.machine.access:_txn_of",
              "in compares:", "in ():"),),
        (_A, _S), 5,
        "tests/unit/test_machine_access.py::test_the_whole_effect_tree_is_seen",
    ),
    Mutation(
        "rules-of-the-gate", 17,
        "A command takes effect though the rules that it was judged by are others by then "
        "(etcd#14571).",
        (Edit("raftkv.machine.auth:check_guard",
              "if auth_revision != auth.revision:", "if False:"),),
        (_A, _S), 20,
        "tests/unit/test_machine_auth.py::test_a_decision_counts_only_under_the_rules_it_was_made_by",
    ),
    Mutation(
        "unguarded-applied", 17,
        "What a member took before it heard that access control is on takes effect after it is.",
        (Edit("raftkv.machine.apply:apply_command",
              "elif draft.guarded and command[0] not in _WITHOUT_GUARD:", "elif False:"),),
        (_A, _S), 50,
        "tests/unit/test_machine_auth.py::"
        "test_the_log_takes_no_unguarded_command_while_access_control_is_on",
    ),
    Mutation(
        "read-judged-once", 17,
        "A read that waited for its turn is answered by the rights of when it was asked.",
        (Edit("raftkv.api.callers:Caller._confirmed",
              "self._machine.auth is not auth", "False"),),
        (_A, _S), 0,
        "tests/unit/test_api_auth_effects.py::"
        "test_a_linearizable_read_is_judged_by_the_rules_it_reads_under",
    ),
    Mutation(
        "watch-outlives-right", 17,
        "A watch goes on after the right to it is taken back.",
        (Edit("raftkv.api.callers:review",
              "watch.close(refused)", "pass"),),
        (_A, _S), 5,
        "tests/unit/test_api_auth_effects.py::"
        "test_a_watch_ends_before_the_first_event_it_may_no_longer_show",
    ),
    Mutation(
        "token-outlives-password", 17,
        "A token that was given out for the old password goes on after the new one is set.",
        (Edit("raftkv.machine.auth:AuthState.counts",
              "max(found.since, self.since) <= auth_revision", "self.since <= auth_revision"),),
        (_A, _S), 5,
        "tests/unit/test_api_auth_login.py::test_what_ends_a_token_ends_it_at_once",
    ),
    # ---- operation ---------------------------------------------------------------------------
    Mutation(
        "space-alarm-ignored", 0,
        "A put is applied although the cluster is out of space.",
        (Edit("raftkv.machine.txn:check_put", "if draft.no_space:", "if False:"),),
        (_O, _S), 10,
        "tests/unit/test_machine_apply.py::test_a_full_store_refuses_what_grows_it",
    ),
    Mutation(
        "space-alarm-stays", 0,
        "Nobody takes the alarm back once there is space again.",
        (Edit("raftkv.server.upkeep:Upkeep._watch_space",
              "elif alarmed and not disk_full and used <= quota * SPACE_FREE_AT:",
              "elif False:"),),
        (_O, _S), 10,
        "tests/unit/test_server_space.py::test_deletes_and_compaction_pass_and_the_alarm_goes_by_itself",
    ),
    Mutation(
        "quota-not-enforced", 0,
        "A write that passes the quota of a prefix is applied.",
        (Edit("raftkv.machine.quotas:QuotaBook.check",
              "if keys > 0 and 0 < quota.keys_max < quota.keys + keys:", "if False:"),),
        (_O, _S), 10,
        "tests/unit/test_machine_quotas.py::test_one_key_too_many_is_refused_and_changes_nothing",
    ),
    Mutation(
        "restore-without-quotas", 0,
        "A restore into the middle of a batch applies what a quota had refused. One of our own.",
        (Edit("raftkv.machine.machine:Machine.apply_until",
              "self._draft(writer)",
              "Draft(writer, self._state, self._alarms, self.auth, self._counts)"),),
        (_O,), 0,
        "tests/unit/test_machine_quotas.py::test_a_restore_into_the_middle_of_a_batch_refuses_what_was_refused",
    ),
    Mutation(
        "level-before-everybody", 0,
        "A leader agrees on a level although it has not heard from every member.",
        (Edit("raftkv.server.levels:proposal", "return None", "continue"),),
        (_O, _S), 20,
        "tests/unit/test_server_levels.py::test_a_level_is_agreed_once_every_member_has_told_one",
    ),
    Mutation(
        "level-not-asked", 0,
        "What came with a level is proposed before the level is agreed.",
        (Edit("raftkv.server.levels:check_agreed", "if agreed < level:", "if False:"),),
        (_O, _S), 20,
        "tests/simulation/test_operations.py::test_what_came_with_a_level_waits_for_the_last_upgrade",
    ),
    Mutation(
        "promoted-while-behind", 0,
        "A learner is promoted that does not hold what was committed a second ago.",
        (Edit("raftkv.server.promotions:Promotions.due", "and peer.match >= goal", ""),),
        (_O, _S), 0,
        "tests/unit/test_server_levels.py::test_a_learner_has_caught_up_when_it_holds_what_was_committed_a_look_ago",
    ),
    Mutation(
        "shrink-loses-a-table", 0,
        "A table is not in the copy that takes the tables' place. The state hash is a row of "
        "another one, so it does not tell.",
        (Edit("raftkv.storage.memory_backend:MemoryTwin.__init__",
              "[SortedDict(rows) for rows in tables]",
              "[SortedDict(rows if table != 8 else ()) for table, rows in enumerate(tables)]"),),
        (_O, _S), 5,
        "tests/simulation/test_operations.py::test_shrinking_changes_nothing_but_the_space",
    ),
    Mutation(
        "archive-skips-an-entry", 0,
        "A piece of the archive begins one entry after the end of the one before.",
        (Edit("raftkv.server.archiver:Archiver.wrote",
              "self.archived = piece.name.last_index",
              "self.archived = piece.name.last_index + 1"),),
        (_O, _S), 10,
        "tests/unit/test_server_backups.py::test_every_revision_can_be_had_again",
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
