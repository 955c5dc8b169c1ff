"""The error tree. Every error that raftkv raises on purpose is one of four families.

    RaftkvError
    ├── InvariantViolation      a bug in raftkv: the member must stop, nothing may be repaired
    ├── OperatingError          the environment failed: disk, configuration, address in use
    │   ├── ConfigError             a setting that cannot work
    │   ├── StorageError            a file that cannot be read, written or trusted
    │   │   ├── CorruptionError         bytes that fail their check; names the file and the offset
    │   │   ├── FormatError             written by a newer or foreign program
    │   │   ├── DiskFullError           no space left to write; never fatal
    │   │   └── LockedError             another process owns the data directory
    │   └── PeerError               a peer that must not be talked to
    ├── Refused                 definitely did not happen, and will not
    │   └── (one leaf a reason)
    └── OutcomeUnknown          may have happened or may still happen

`Refused` and `OutcomeUnknown` never share a type below `RaftkvError`. Each leaf of both has a
stable `code` (snake case), which every door maps to its own status in `raftkv.api.outcomes`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RaftkvError(Exception):
    """Base of every error that raftkv raises on purpose."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        """What the error is about, for example ``{"lease": 7}``; safe to show to the caller."""

    def __str__(self) -> str:
        return self.message


class InvariantViolation(RaftkvError):
    """A bug in raftkv. The member stops rather than act on a state that cannot be."""

    code = "invariant_violation"


class OperatingError(RaftkvError):
    """The environment failed; the message says what to do."""

    code = "operating_error"


class ConfigError(OperatingError):
    """A setting that cannot work."""

    code = "config"


class StorageError(OperatingError):
    """A file that cannot be read, written or trusted.

    `fatal`: a sync failed, so nobody knows what is on the disk, and a second attempt may succeed
    without the data. The process must end without another word to anyone.
    """

    code = "storage"

    def __init__(self, message: str, *, fatal: bool = False, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.fatal = fatal


class CorruptionError(StorageError):
    """Bytes on disk or on the wire that fail their check."""

    code = "corruption"


class FormatError(StorageError):
    """Data written by a newer, older or foreign program that this one must not touch."""

    code = "format"


class DiskFullError(StorageError):
    """The disk or the tables' map has no room; what was to be written is not acknowledged."""

    code = "disk_full"


class LockedError(StorageError):
    """Another process owns the data directory."""

    code = "locked"


class PeerError(OperatingError):
    """A peer of another cluster or version, or one that speaks garbage."""

    code = "peer"


class OutcomeUnknown(RaftkvError):
    """The request may have taken effect, or may still. Read before you repeat it."""

    code = "outcome_unknown"


class Refused(RaftkvError):
    """Definitely did not happen, and will not. Base of every refusal."""

    code = "refused"


class InvalidRequest(Refused):
    """The request is malformed; repeating it unchanged cannot succeed."""

    code = "invalid_request"


class TooLarge(Refused):
    """A key, value, batch or message over its limit; `facts` names the limit."""

    code = "too_large"


class KeyNotFound(Refused):
    """The operation needs a key that does not exist."""

    code = "key_not_found"


class Compacted(Refused):
    """The revision asked for is older than the kept history; facts: oldest_revision."""

    code = "compacted"


class FutureRevision(Refused):
    """The revision asked for does not exist yet; facts: revision."""

    code = "future_revision"


class DuplicateKey(Refused):
    """One transaction branch writes a key twice."""

    code = "duplicate_key"


class LeaseNotFound(Refused):
    """No such lease; facts: lease."""

    code = "lease_not_found"


class LeaseExists(Refused):
    """A lease of that id exists already; facts: lease."""

    code = "lease_exists"


class TtlOutOfRange(Refused):
    """A TTL below the minimum or above the maximum; facts: min_seconds, max_seconds."""

    code = "ttl_out_of_range"


class InstanceNotFound(Refused):
    """No such service instance."""

    code = "instance_not_found"


class InstanceClaimed(Refused):
    """Another live process holds this service instance id; facts: service, instance, lease."""

    code = "instance_claimed"


class NoSpace(Refused):
    """The quota or the disk is full; deletes and compaction still pass."""

    code = "no_space"


class QuotaExceeded(Refused):
    """A prefix or a user would pass its quota; facts: per, what, limit, used. Deletes pass."""

    code = "quota_exceeded"


class TooManyRequests(Refused):
    """The member sheds load; try again after a pause."""

    code = "too_many_requests"


class NoLeader(Refused):
    """No leader is known, and the request was not handed to anyone."""

    code = "no_leader"


class NotLeader(Refused):
    """Only the leader can do this; facts: leader."""

    code = "not_leader"


class LeadershipLost(Refused):
    """The entry that held this request was replaced by another leader's entry."""

    code = "leadership_lost"


class Stopping(Refused):
    """The member is shutting down and took nothing on."""

    code = "stopping"


class Corrupt(Refused):
    """This member's state differs from the others', so it no longer serves."""

    code = "corrupt"


class MemberNotFound(Refused):
    """No such member; facts: member_id."""

    code = "member_not_found"


class MemberExists(Refused):
    """A member with that id or peer address exists already."""

    code = "member_exists"


class ChangeRefused(Refused):
    """A membership change that would be unsafe now; the message says why."""

    code = "change_refused"


class ReadTimedOut(Refused):
    """A read was not answered in time. Reads change nothing, so this is definite."""

    code = "read_timed_out"


class IdempotencyMismatch(Refused):
    """The idempotency key was used before, for another request."""

    code = "idempotency_mismatch"


class PermissionDenied(Refused):
    """The caller is known, and may not do this."""

    code = "permission_denied"


class AuthenticationFailed(Refused):
    """The user is unknown or the password wrong; which of them is never told."""

    code = "authentication_failed"


class InvalidAuthToken(Refused):
    """A token is needed and there is none, or it is forged, expired or revoked. Log in again."""

    code = "invalid_auth_token"


class AuthRevisionOld(Refused):
    """Access rules changed between the decision and the deed, so nothing was done. Try again."""

    code = "auth_revision_old"


class AuthNotEnabled(Refused):
    """There is nothing to log in to: access control is off."""

    code = "auth_not_enabled"


class RootUserMissing(Refused):
    """Access control cannot be enabled before there is a user named root."""

    code = "root_user_missing"


class RootRoleMissing(Refused):
    """Access control cannot be enabled before the user root has the role root."""

    code = "root_role_missing"


class InvalidAuthManagement(Refused):
    """A change of users or roles that would lock everybody out, or a range that is none."""

    code = "invalid_auth_management"


class UserExists(Refused):
    """A user of that name exists already; facts: user."""

    code = "user_exists"


class UserNotFound(Refused):
    """No such user; facts: user."""

    code = "user_not_found"


class RoleExists(Refused):
    """A role of that name exists already; facts: role."""

    code = "role_exists"


class RoleNotFound(Refused):
    """No such role; facts: role."""

    code = "role_not_found"


class RoleNotGranted(Refused):
    """The user does not have the role; facts: user, role."""

    code = "role_not_granted"


class PermissionNotGranted(Refused):
    """The role has no permission on exactly that range; facts: role."""

    code = "permission_not_granted"
