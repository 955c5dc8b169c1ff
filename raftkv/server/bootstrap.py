"""Who this member is: founding a cluster from a list of names and addresses, or joining one.

Founding is the same computation on every member, so nobody has to be asked: ids are hashes of the
addresses and the cluster's token, and log index 1 of a cluster is a snapshot that holds exactly
its first members. A member that joins later gets its id from the cluster when it is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from raftkv.consensus.types import ConfState, SnapshotMeta
from raftkv.machine.cluster import MemberInfo
from raftkv.server.config import ServerConfig

FIRST_INDEX = 1
FIRST_TERM = 1


@dataclass(frozen=True, slots=True)
class FoundingMember:
    """One of the first members."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Founding:
    """What every first member computes alike."""

    cluster_id: int
    member_id: int
    members: tuple[FoundingMember, ...]

    @property
    def conf(self) -> ConfState:
        """All first members vote."""
        return ConfState(voters=tuple(sorted(member.member_id for member in self.members)))

    @property
    def meta(self) -> SnapshotMeta:
        """The snapshot that a new cluster's log begins with."""
        return SnapshotMeta(FIRST_INDEX, FIRST_TERM, self.conf)

    @property
    def member_infos(self) -> list[MemberInfo]:
        """The members as the machine records them; each tells its client addresses later."""
        return [
            MemberInfo(member.member_id, member.name, member.peer_urls, (), False)
            for member in self.members
        ]


def id_of(*parts: str) -> int:
    """A positive 63-bit id from texts; the same everywhere."""
    digest = blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def found(config: ServerConfig, restored: str = "") -> Founding:
    """The cluster that `config` describes, as all its first members compute it.

    `restored` names the snapshot that it begins with, if it does: a cluster restored under the
    settings of the old one is another cluster nevertheless, and members of the two never mix.
    """
    token = config.initial_cluster_token + (f"\0{restored}" if restored else "")
    members = tuple(
        sorted(
            (
                FoundingMember(id_of("member", token, *sorted(urls)), name, tuple(urls))
                for name, urls in config.founding_members.items()
            ),
            key=lambda member: member.member_id,
        )
    )
    ids = [f"{member.member_id:016x}" for member in members]
    own = next(member.member_id for member in members if member.name == config.name)
    return Founding(id_of("cluster", token, *ids), own, members)
