"""Health and version, at the paths and in the forms of etcd's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import raftkv
from raftkv.api.gate import public
from raftkv.api.http.exchange import TEXT, Exchange
from raftkv.api.http.handling import answering
from raftkv.api.http.router import Answer, Param, Route
from raftkv.errors import InvalidRequest, RaftkvError

ETCD_VERSION: Final = "3.6.0"
ETCD_CLUSTER_VERSION: Final = "3.6"
"""What etcd's clients are told: the version whose interface is spoken."""

LIVE: Final = ("serializable_read",)
READY: Final = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")

Check = Callable[[Exchange, RaftkvError | None], str | None]
"""The reason why a check fails, or None. Given what the linearizable read came to."""


def _serializable_read(x: Exchange, read: RaftkvError | None) -> str | None:
    x.door.store.machine.get(b"\0health")
    return None


def _linearizable_read(x: Exchange, read: RaftkvError | None) -> str | None:
    return None if read is None else read.message


def _state(name: str, x: Exchange, read: RaftkvError | None) -> str | None:
    return x.door.store.health().get(name)


CHECKS: Final[dict[str, Check]] = {
    "serializable_read": _serializable_read,
    "linearizable_read": _linearizable_read,
    "data_corruption": partial(_state, "corrupt"),
    "non_learner": partial(_state, "learner"),
}


def get_health(x: Exchange) -> None:
    x.door.store.read_index(partial(_health, x))


def _health(x: Exchange, error: RaftkvError | None) -> None:
    # An unhealthy member is an answer here, not an error.
    reasons = dict(x.door.store.health())
    if error is not None:
        reasons.setdefault("linearizable_read", error.message)
    for name in _excluded(x, None):
        reasons.pop(name, None)
    reason = "; ".join(reasons[name] or name for name in sorted(reasons))
    x.json({"health": "false" if reasons else "true", "reason": reason}, 503 if reasons else 200)


def get_live(x: Exchange) -> None:
    _checks(x, None, "livez", LIVE)


def get_ready(x: Exchange) -> None:
    excluded = _excluded(x, READY)
    if "linearizable_read" in excluded:
        _checks(x, None, "readyz", READY)
    else:
        x.door.store.read_index(lambda error: _checks(x, error, "readyz", READY))


def _excluded(x: Exchange, known: tuple[str, ...] | None) -> set[str]:
    names = {name for name in x.query["exclude"].split(",") if name}
    if known is not None and not names <= set(known):
        raise InvalidRequest(f"exclude takes names of checks: {', '.join(known)}")
    return names


@answering
def _checks(x: Exchange, read: RaftkvError | None, page: str, names: tuple[str, ...]) -> None:
    excluded = _excluded(x, names)
    lines = []
    failed = False
    for name in names:
        reason = None if name in excluded else CHECKS[name](x, read)
        if name in excluded:
            lines.append(f"[+]{name} excluded: ok")
        elif reason is None:
            lines.append(f"[+]{name} ok")
        else:
            failed = True
            lines.append(f"[-]{name} failed: {reason}")
    if failed:
        text = "\n".join([*lines, f"{page} check failed\n"])
    else:
        text = "\n".join([*lines, "ok\n"]) if x.query["verbose"] else "ok\n"
    x.send(
        text.encode(),
        TEXT,
        503 if failed else 200,
        b"X-Content-Type-Options: nosniff\r\n",
    )


def get_version(x: Exchange) -> None:
    x.json(
        {
            "version": raftkv.__version__,
            "etcdserver": ETCD_VERSION,
            "etcdcluster": ETCD_CLUSTER_VERSION,
        }
    )


HEALTH: Final = "Health"
VERBOSE: Final = Param("verbose", "flag", "List every check.", default=False)
EXCLUDE: Final = Param("exclude", "text", "Checks to leave out, separated by commas.", default="")
TEXT_ANSWERS: Final = (
    Answer(200, "All is well: `ok`, or the list of checks.", None, "text/plain"),
    Answer(503, "What is not: the list of checks.", None, "text/plain"),
)

ROUTES: Final = [
    Route(
        "GET", "/health", get_health, "getHealth", "Whether this member serves", HEALTH,
        guard=public,
        query=(EXCLUDE,),
        answers=(Answer(200, "It does.", "Health"), Answer(503, "It does not.", "Health")),
    ),
    Route(
        "GET", "/livez", get_live, "getLivez", "Whether this process is alive", HEALTH,
        guard=public,
        doc="A failure here asks for a restart.", query=(VERBOSE, EXCLUDE), answers=TEXT_ANSWERS,
    ),
    Route(
        "GET", "/readyz", get_ready, "getReadyz", "Whether to send requests here", HEALTH,
        guard=public,
        query=(VERBOSE, EXCLUDE), answers=TEXT_ANSWERS,
    ),
    Route(
        "GET", "/version", get_version, "getVersion", "Which version this is", HEALTH,
        guard=public,
        answers=(Answer(200, "The versions.", "Version"),),
    ),
]  # fmt: skip
