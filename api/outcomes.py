"""What each error means to a caller: one table a door, and a test that no error is missing.

A refusal says "definitely did not happen"; `OutcomeUnknown` says that nobody knows yet; anything
else is a failure of this member. The three never share an answer.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

from raftkv import errors
from raftkv.api.http import refusals


@dataclass(frozen=True, slots=True)
class HttpOutcome:
    """How the HTTP door says one error."""

    status: int
    title: str
    """One short sentence, the same for every occurrence (RFC 9457, section 3.1.3)."""
    retry_after_seconds: int | None = None
    """Set where another try, here or at another member, may well succeed."""


HTTP: Final[dict[type[errors.RaftkvError], HttpOutcome]] = {
    # The request.
    errors.InvalidRequest: HttpOutcome(400, "The request is malformed"),
    errors.DuplicateKey: HttpOutcome(400, "One transaction branch writes a key twice"),
    errors.TtlOutOfRange: HttpOutcome(400, "The TTL is out of range"),
    errors.FutureRevision: HttpOutcome(400, "The revision does not exist yet"),
    errors.TooLarge: HttpOutcome(413, "The request is too large"),
    # The caller.
    errors.AuthenticationFailed: HttpOutcome(401, "The user or the password is wrong"),
    errors.InvalidAuthToken: HttpOutcome(401, "A valid token is needed: log in"),
    errors.PermissionDenied: HttpOutcome(403, "The caller may not do this"),
    # Things that are not there, or no longer.
    errors.KeyNotFound: HttpOutcome(404, "The key does not exist"),
    errors.LeaseNotFound: HttpOutcome(404, "The lease does not exist"),
    errors.InstanceNotFound: HttpOutcome(404, "The service instance does not exist"),
    errors.MemberNotFound: HttpOutcome(404, "The member does not exist"),
    errors.UserNotFound: HttpOutcome(404, "The user does not exist"),
    errors.RoleNotFound: HttpOutcome(404, "The role does not exist"),
    errors.RoleNotGranted: HttpOutcome(404, "The user does not have the role"),
    errors.PermissionNotGranted: HttpOutcome(404, "The role does not have the permission"),
    errors.Compacted: HttpOutcome(410, "The revision has been compacted"),
    # Conflicts with what is there.
    errors.LeaseExists: HttpOutcome(409, "The lease exists already"),
    errors.InstanceClaimed: HttpOutcome(409, "Another process holds this service instance"),
    errors.MemberExists: HttpOutcome(409, "The member exists already"),
    errors.ChangeRefused: HttpOutcome(409, "The membership change is unsafe now"),
    errors.IdempotencyMismatch: HttpOutcome(409, "The idempotency key belongs to another request"),
    errors.UserExists: HttpOutcome(409, "The user exists already"),
    errors.RoleExists: HttpOutcome(409, "The role exists already"),
    errors.AuthNotEnabled: HttpOutcome(409, "Access control is off"),
    errors.RootUserMissing: HttpOutcome(409, "Access control needs a user named root"),
    errors.RootRoleMissing: HttpOutcome(409, "Access control needs the role root for root"),
    errors.InvalidAuthManagement: HttpOutcome(409, "Such users, roles or ranges cannot be"),
    errors.AuthRevisionOld: HttpOutcome(409, "Access rules changed meanwhile", 1),
    # The member or the cluster, at this moment.
    errors.TooManyRequests: HttpOutcome(429, "Too many requests", 1),
    errors.NoLeader: HttpOutcome(503, "No leader is known", 1),
    errors.NotLeader: HttpOutcome(503, "Only the leader can do this", 1),
    errors.LeadershipLost: HttpOutcome(503, "The leader changed before the write was agreed on", 1),
    errors.Stopping: HttpOutcome(503, "The member is stopping", 1),
    errors.Corrupt: HttpOutcome(503, "The member's state differs from the others'", 1),
    errors.ReadTimedOut: HttpOutcome(503, "The read was not answered in time", 1),
    errors.NoSpace: HttpOutcome(507, "The store is full"),
    errors.QuotaExceeded: HttpOutcome(507, "A quota is used up"),
    errors.OutcomeUnknown: HttpOutcome(504, "The outcome is unknown"),
    # HTTP itself.
    refusals.BadHttp: HttpOutcome(400, "Not a valid HTTP request"),
    refusals.ForeignOrigin: HttpOutcome(403, "A page of another site may not write"),
    refusals.RouteNotFound: HttpOutcome(404, "No such path"),
    refusals.MethodNotAllowed: HttpOutcome(405, "The path exists, but not for this method"),
    refusals.RequestTimedOut: HttpOutcome(408, "The request did not arrive in time"),
    refusals.PreconditionFailed: HttpOutcome(412, "The precondition does not hold"),
    refusals.TargetTooLong: HttpOutcome(414, "The request target is too long"),
    refusals.Misdirected: HttpOutcome(421, "Not a host that this member answers as"),
    refusals.UnsupportedMediaType: HttpOutcome(415, "The body's content type is not read here"),
    refusals.ExpectationFailed: HttpOutcome(417, "The expectation cannot be met"),
    refusals.HeadersTooLarge: HttpOutcome(431, "The request's headers are too large"),
    refusals.HttpVersionUnsupported: HttpOutcome(505, "This HTTP version is not spoken here"),
    # Failures of this member.
    errors.InvariantViolation: HttpOutcome(500, "The member found itself in an impossible state"),
    errors.ConfigError: HttpOutcome(500, "A setting cannot work"),
    errors.CorruptionError: HttpOutcome(500, "Stored bytes fail their check"),
    errors.FormatError: HttpOutcome(500, "Stored data is of another format"),
    errors.DiskFullError: HttpOutcome(500, "The disk is full"),
    errors.LockedError: HttpOutcome(500, "Another process owns the data directory"),
    errors.PeerError: HttpOutcome(500, "A peer answered with something that cannot be used"),
    # Bases, for what is raised without a leaf of its own.
    errors.StorageError: HttpOutcome(500, "The storage failed"),
    errors.OperatingError: HttpOutcome(500, "The environment failed"),
    errors.Refused: HttpOutcome(400, "The request was refused"),
    errors.RaftkvError: HttpOutcome(500, "The member failed"),
}

HTTP_REASONS: Final = {
    200: "OK", 201: "Created", 204: "No Content", 304: "Not Modified", 400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 410: "Gone", 412: "Precondition Failed",
    413: "Content Too Large",
    414: "URI Too Long", 415: "Unsupported Media Type", 417: "Expectation Failed",
    421: "Misdirected Request", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    499: "Client Closed Request", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}  # fmt: skip

IDENTIFIERS: Final = frozenset(("lease", "leader", "member_id", "cluster_id", "member"))
"""Facts that are 64-bit ids, shown as 16 hex digits like everywhere else."""


def http_outcome(error: BaseException) -> HttpOutcome:
    """The answer for `error`: its own row, else that of its nearest base."""
    for kind in type(error).__mro__:
        row = HTTP.get(kind)
        if row is not None:
            return row
    return HTTP[errors.RaftkvError]


def http_problem(error: BaseException) -> dict[str, Any]:
    """The body of an ``application/problem+json`` answer (RFC 9457).

    An exception that is no `RaftkvError` is a bug here: its text stays in the log, since it may
    hold what the caller must not see.
    """
    row = http_outcome(error)
    code = error.code if isinstance(error, errors.RaftkvError) else errors.RaftkvError.code
    problem: dict[str, Any] = {
        "type": f"urn:raftkv:problem:{code}",
        "title": row.title,
        "status": row.status,
        "detail": str(error)
        if isinstance(error, errors.RaftkvError)
        else "An unexpected error; the member's log tells more",
        "code": code,
        "outcome": (
            "refused"
            if isinstance(error, errors.Refused)
            else "unknown"
            if isinstance(error, errors.OutcomeUnknown)
            else "failed"
        ),
    }
    if isinstance(error, errors.RaftkvError):
        for name, value in error.facts.items():
            problem.setdefault(name, fact(name, value))
    return problem


def fact(name: str, value: Any) -> Any:
    """`value` as JSON can hold it, ids in hexadecimal."""
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        return f"{value:016x}" if name in IDENTIFIERS else value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): fact(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [fact(name, item) for item in value]
    return str(value)
