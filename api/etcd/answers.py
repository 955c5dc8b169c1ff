"""What each error is to an etcd client: its gRPC code and its exact text, in one table.

Texts and codes are those of etcd 3.7 (its package rpctypes). Clients compare them literally.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from raftkv import errors
from raftkv.api.grpc.messages import CallFault
from raftkv.api.grpc.status import Status
from raftkv.limits import ETCD_RANGE_BYTES_MAX


class Row(NamedTuple):
    """One error as clients see it."""

    code: Status
    text: str

    def fault(self) -> CallFault:
        """The same, to be raised by a handler."""
        return CallFault(self.code, self.text)


def _row(code: Status, text: str) -> Row:
    return Row(code, f"etcdserver: {text}")


# Requests that are wrong in themselves.
EMPTY_KEY: Final = _row(Status.INVALID_ARGUMENT, "key is not provided")
KEY_NOT_FOUND: Final = _row(Status.INVALID_ARGUMENT, "key not found")
VALUE_PROVIDED: Final = _row(Status.INVALID_ARGUMENT, "value is provided")
LEASE_PROVIDED: Final = _row(Status.INVALID_ARGUMENT, "lease is provided")
TOO_MANY_OPERATIONS: Final = _row(Status.INVALID_ARGUMENT, "too many operations in txn request")
DUPLICATE_KEY: Final = _row(Status.INVALID_ARGUMENT, "duplicate key given in txn request")
SORT_OPTION: Final = _row(Status.INVALID_ARGUMENT, "invalid sort option")
BAD_MEMBER_URLS: Final = _row(Status.INVALID_ARGUMENT, "given member URLs are invalid")
REQUEST_TOO_LARGE: Final = _row(Status.INVALID_ARGUMENT, "request is too large")
DOWNGRADE_FORMAT: Final = _row(Status.INVALID_ARGUMENT, "wrong downgrade target version format")
DOWNGRADE_TARGET: Final = _row(Status.INVALID_ARGUMENT, "invalid downgrade target version")

# Revisions, leases and space.
COMPACTED: Final = _row(Status.OUT_OF_RANGE, "mvcc: required revision has been compacted")
FUTURE_REVISION: Final = _row(Status.OUT_OF_RANGE, "mvcc: required revision is a future revision")
LEASE_TTL_TOO_LARGE: Final = _row(Status.OUT_OF_RANGE, "too large lease TTL")
LEASE_NOT_FOUND: Final = _row(Status.NOT_FOUND, "requested lease not found")
LEASE_EXISTS: Final = _row(Status.FAILED_PRECONDITION, "lease already exists")
NO_SPACE: Final = _row(Status.RESOURCE_EXHAUSTED, "mvcc: database space exceeded")
TOO_MANY_REQUESTS: Final = _row(Status.RESOURCE_EXHAUSTED, "too many requests")

# Members.
MEMBER_NOT_FOUND: Final = _row(Status.NOT_FOUND, "member not found")
PEER_URL_EXISTS: Final = _row(Status.FAILED_PRECONDITION, "Peer URLs already exists")
NOT_ENOUGH_STARTED: Final = _row(
    Status.FAILED_PRECONDITION, "re-configuration failed due to not enough started members"
)
NOT_A_LEARNER: Final = _row(Status.FAILED_PRECONDITION, "can only promote a learner member")
LEARNER_NOT_READY: Final = _row(
    Status.FAILED_PRECONDITION,
    "can only promote a learner member which is in sync with leader",
)
TOO_MANY_LEARNERS: Final = _row(Status.FAILED_PRECONDITION, "too many learner members in cluster")
NOT_LEADER: Final = _row(Status.FAILED_PRECONDITION, "not leader")
BAD_TRANSFEREE: Final = _row(Status.FAILED_PRECONDITION, "bad leader transferee")
NOT_FOR_LEARNER: Final = _row(Status.FAILED_PRECONDITION, "rpc not supported for learner")
NO_DOWNGRADE: Final = _row(Status.FAILED_PRECONDITION, "no inflight downgrade job")

# Authentication.
AUTH_NOT_ENABLED: Final = _row(Status.FAILED_PRECONDITION, "authentication is not enabled")
ROOT_USER_MISSING: Final = _row(Status.FAILED_PRECONDITION, "root user does not exist")
ROOT_ROLE_MISSING: Final = _row(Status.FAILED_PRECONDITION, "root user does not have root role")
USER_EXISTS: Final = _row(Status.FAILED_PRECONDITION, "user name already exists")
USER_EMPTY: Final = _row(Status.INVALID_ARGUMENT, "user name is empty")
USER_NOT_FOUND: Final = _row(Status.FAILED_PRECONDITION, "user name not found")
ROLE_EXISTS: Final = _row(Status.FAILED_PRECONDITION, "role name already exists")
ROLE_EMPTY: Final = _row(Status.INVALID_ARGUMENT, "role name is empty")
ROLE_NOT_FOUND: Final = _row(Status.FAILED_PRECONDITION, "role name not found")
ROLE_NOT_GRANTED: Final = _row(Status.FAILED_PRECONDITION, "role is not granted to the user")
PERMISSION_NOT_GRANTED: Final = _row(
    Status.FAILED_PRECONDITION, "permission is not granted to the role"
)
PERMISSION_NOT_GIVEN: Final = _row(Status.INVALID_ARGUMENT, "permission not given")
AUTH_FAILED: Final = _row(
    Status.INVALID_ARGUMENT, "authentication failed, invalid user ID or password"
)
BAD_AUTH_MANAGEMENT: Final = _row(Status.INVALID_ARGUMENT, "invalid auth management")
AUTH_REVISION_OLD: Final = _row(Status.INVALID_ARGUMENT, "revision of auth store is old")
PERMISSION_DENIED: Final = _row(Status.PERMISSION_DENIED, "permission denied")
BAD_TOKEN: Final = _row(Status.UNAUTHENTICATED, "invalid auth token")

# The member or the cluster, at this moment.
NO_LEADER: Final = _row(Status.UNAVAILABLE, "no leader")
LEADER_CHANGED: Final = _row(Status.UNAVAILABLE, "leader changed")
STOPPED: Final = _row(Status.UNAVAILABLE, "server stopped")
TIMED_OUT: Final = _row(Status.UNAVAILABLE, "request timed out")
CORRUPT: Final = _row(Status.DATA_LOSS, "corrupt cluster")

# Texts that clients see without the prefix.
SESSION_EXPIRED: Final = Row(Status.UNKNOWN, "mutex: session is expired")
NO_ELECTED_LEADER: Final = Row(Status.UNKNOWN, "election: no leader")
NOT_ELECTED: Final = Row(Status.UNKNOWN, "election: not leader")
LEADER_KEY_MISSING: Final = Row(Status.UNKNOWN, '"leader" field must be provided')
UNKNOWN_METHOD: Final = _row(Status.UNKNOWN, "unknown method")
QUOTA_EXCEEDED: Final = Row(
    Status.RESOURCE_EXHAUSTED, "raftkv: the quota of a prefix or of the user is used up"
)
RANGE_TOO_LARGE: Final = Row(
    Status.RESOURCE_EXHAUSTED,
    f"the range has more than {ETCD_RANGE_BYTES_MAX} bytes: read it with a limit or by RangeStream",
)
RANGE_STREAM_OPTION: Final = Row(
    Status.UNIMPLEMENTED, "etcdserver: RangeStream takes no sort order and no revision filters"
)

TABLE: Final[dict[type[errors.RaftkvError], Row]] = {
    errors.TooLarge: REQUEST_TOO_LARGE,
    errors.KeyNotFound: KEY_NOT_FOUND,
    errors.DuplicateKey: DUPLICATE_KEY,
    errors.Compacted: COMPACTED,
    errors.FutureRevision: FUTURE_REVISION,
    errors.TtlOutOfRange: LEASE_TTL_TOO_LARGE,
    errors.LeaseNotFound: LEASE_NOT_FOUND,
    errors.LeaseExists: LEASE_EXISTS,
    errors.NoSpace: NO_SPACE,
    errors.QuotaExceeded: QUOTA_EXCEEDED,
    errors.TooManyRequests: TOO_MANY_REQUESTS,
    errors.MemberNotFound: MEMBER_NOT_FOUND,
    errors.MemberExists: PEER_URL_EXISTS,
    errors.ChangeRefused: NOT_ENOUGH_STARTED,
    errors.AuthNotEnabled: AUTH_NOT_ENABLED,
    errors.RootUserMissing: ROOT_USER_MISSING,
    errors.RootRoleMissing: ROOT_ROLE_MISSING,
    errors.UserExists: USER_EXISTS,
    errors.UserNotFound: USER_NOT_FOUND,
    errors.RoleExists: ROLE_EXISTS,
    errors.RoleNotFound: ROLE_NOT_FOUND,
    errors.RoleNotGranted: ROLE_NOT_GRANTED,
    errors.PermissionNotGranted: PERMISSION_NOT_GRANTED,
    errors.AuthenticationFailed: AUTH_FAILED,
    errors.InvalidAuthManagement: BAD_AUTH_MANAGEMENT,
    errors.AuthRevisionOld: AUTH_REVISION_OLD,
    errors.PermissionDenied: PERMISSION_DENIED,
    errors.InvalidAuthToken: BAD_TOKEN,
    errors.NotLeader: NOT_LEADER,
    errors.NoLeader: NO_LEADER,
    errors.LeadershipLost: LEADER_CHANGED,
    errors.Stopping: STOPPED,
    errors.Corrupt: CORRUPT,
    errors.ReadTimedOut: TIMED_OUT,
    errors.OutcomeUnknown: TIMED_OUT,
}
"""Errors with one meaning whatever was asked."""

REASONS: Final[dict[str, Row]] = {
    "empty_key": EMPTY_KEY,
    "value_provided": VALUE_PROVIDED,
    "lease_provided": LEASE_PROVIDED,
    "sort_option": SORT_OPTION,
    "too_many_operations": TOO_MANY_OPERATIONS,
    "nesting": TOO_MANY_OPERATIONS,
    "user_name_empty": USER_EMPTY,
    "role_name_empty": ROLE_EMPTY,
    "permission_not_given": PERMISSION_NOT_GIVEN,
}
"""`InvalidRequest`, by the `reason` among its facts."""


def row_of(error: errors.RaftkvError) -> Row:
    """What a client is told. Errors that etcd has no words for keep their own."""
    row = TABLE.get(type(error))
    if row is not None:
        return row
    if isinstance(error, errors.InvalidRequest):
        row = REASONS.get(error.facts.get("reason", ""))
        if row is not None:
            return row
        if "lease" in error.facts:
            return LEASE_NOT_FOUND  # no lease has such an id
    if isinstance(error, errors.Refused):
        return _row(Status.INVALID_ARGUMENT, error.message)
    return _row(Status.INTERNAL, error.message)
