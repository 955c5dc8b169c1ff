"""Settings of one member's core. Time is counted in ticks; the shell decides how long a tick is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raftkv import limits
from raftkv.consensus.types import NO_MEMBER
from raftkv.errors import ConfigError


class RandomSource(Protocol):
    """Where election timeouts get their jitter; `random.Random` is one."""

    def randrange(self, start: int, stop: int, /) -> int:
        """An integer in [start, stop)."""


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """What a member needs to know about itself. Raises `ConfigError` when it cannot work."""

    member_id: int
    election_timeout_ticks: int = 10
    """Least ticks of silence before a follower campaigns; the real one is drawn from
    [this, 2 * this). Also the leader's lease against disruptive votes and the patience of a
    leadership transfer."""
    heartbeat_ticks: int = 1
    pre_vote: bool = True
    """Ask whether an election could be won before raising the term (thesis 9.6)."""
    check_quorum: bool = True
    """A leader that has not heard from a quorum for an election timeout steps down, and members
    that hear from a leader ignore vote requests (thesis 4.2.3, 6.2)."""
    append_bytes_max: int = limits.APPEND_BYTES_MAX
    """Most data bytes in one APPEND; one entry always goes."""
    inflight_messages_max: int = limits.INFLIGHT_MESSAGES_MAX
    """Most unanswered APPENDs with entries to one peer."""
    inflight_bytes_max: int = limits.INFLIGHT_BYTES_MAX
    """Most unanswered data bytes to one peer."""
    uncommitted_bytes_max: int = limits.UNCOMMITTED_BYTES_MAX
    """Most uncommitted data bytes on a leader; further proposals are refused."""
    committed_bytes_max: int = limits.APPEND_BYTES_MAX
    """Most data bytes of committed entries in one `Ready`; one entry always goes."""
    pending_reads_max: int = limits.PENDING_READS_MAX
    """Most waiting `read_index` requests; further ones are refused."""

    def __post_init__(self) -> None:
        if not NO_MEMBER < self.member_id < 1 << 64:
            raise ConfigError("member_id must be a positive 64-bit integer", value=self.member_id)
        if self.heartbeat_ticks < 1:
            raise ConfigError("heartbeat_ticks must be at least 1", value=self.heartbeat_ticks)
        if self.election_timeout_ticks <= self.heartbeat_ticks:
            raise ConfigError(
                "election_timeout_ticks must be greater than heartbeat_ticks",
                value=self.election_timeout_ticks,
            )
        for name in (
            "append_bytes_max",
            "inflight_messages_max",
            "inflight_bytes_max",
            "uncommitted_bytes_max",
            "committed_bytes_max",
            "pending_reads_max",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", value=getattr(self, name))
