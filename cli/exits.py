"""Exit codes of the `raftkv` command, and what to tell people about each error.

One table for the program and its documentation; scripts may rely on it.
"""

from __future__ import annotations

from typing import Final

from raftkv.errors import ConfigError, OutcomeUnknown, RaftkvError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
PRECONDITION: Final = 4
UNAVAILABLE: Final = 5
UNKNOWN: Final = 6
INTERRUPTED: Final = 130

MEANINGS: Final[dict[int, str]] = {
    OK: "done",
    FAILED: "refused by the store, or something here failed",
    USAGE: "the command line or the configuration is wrong",
    NOT_FOUND: "the key, lease, instance, member, user or role does not exist",
    PRECONDITION: "a precondition or a transaction's compare did not hold",
    UNAVAILABLE: "no member could serve the request; nothing was done",
    UNKNOWN: "the outcome is unknown: the write may have taken effect",
    INTERRUPTED: "stopped by Ctrl-C",
}

_CODES: Final[dict[str, int]] = {
    "key_not_found": NOT_FOUND,
    "lease_not_found": NOT_FOUND,
    "instance_not_found": NOT_FOUND,
    "member_not_found": NOT_FOUND,
    "user_not_found": NOT_FOUND,
    "role_not_found": NOT_FOUND,
    "role_not_granted": NOT_FOUND,
    "permission_not_granted": NOT_FOUND,
    "auth_revision_old": UNAVAILABLE,
    "precondition_failed": PRECONDITION,
    "unreachable": UNAVAILABLE,
    "no_leader": UNAVAILABLE,
    "not_leader": UNAVAILABLE,
    "leadership_lost": UNAVAILABLE,
    "stopping": UNAVAILABLE,
    "corrupt": UNAVAILABLE,
    "too_many_requests": UNAVAILABLE,
    "read_timed_out": UNAVAILABLE,
}

_ADVICE: Final[dict[str, str]] = {
    "unreachable": "Start a store with `raftkv dev`, or name yours with --endpoints.",
    "no_leader": "Try again in a moment; `raftkv status` shows the members.",
    "leadership_lost": "Nothing was written; try again.",
    "stopping": "Try again, or name another member with --endpoints.",
    "too_many_requests": "Try again in a moment.",
    "read_timed_out": "Try again, or allow more time with --timeout.",
    "corrupt": "Ask another member with --endpoints; wipe this one and add it again.",
    "no_space": "Delete keys and run `raftkv compact`, or raise --quota-backend-bytes.",
    "quota_exceeded": "Delete keys; `raftkv quota list` shows the quotas to who may see them.",
    "compacted": "Start from a newer revision.",
    "outcome_unknown": "Read the key before you repeat the write.",
    "instance_claimed": "Choose another instance id, or take it over with --takeover.",
    "bad_answer": "Check --endpoints.",
    "invalid_auth_token": "Log in with --user NAME, or show a token with --token.",
    "authentication_failed": "Check --user and the password.",
    "permission_denied": "`raftkv auth status` shows who you are and which roles you have.",
    "root_user_missing": "`raftkv user add root` adds one.",
    "root_role_missing": "`raftkv user grant-role root root` grants it.",
    "auth_not_enabled": "`raftkv auth enable` switches access control on.",
    "auth_revision_old": "Try again.",
    "change_refused": "`raftkv member list` shows the members.",
}


def exit_code(error: RaftkvError) -> int:
    """The exit code for an error."""
    if isinstance(error, OutcomeUnknown):
        return UNKNOWN
    if isinstance(error, ConfigError):
        return USAGE
    return _CODES.get(error.code, FAILED)


def advice(error: RaftkvError) -> str:
    """What to do about an error, as a sentence, or an empty text."""
    return _ADVICE.get(error.code, "")
