"""Health and version, at the paths and in the forms of etcd's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import raftkv
from raftkv.api.etcd import answers
from raftkv.api.etcd.version import CLUSTER_VERSION, SERVER_VERSION
from raftkv.api.gate import public
from raftkv.api.http.exchange import TEXT, Exchange
from raftkv.api.http.handling import answering
from raftkv.api.http.refusals import RouteNotFound
from raftkv.api.http.router import Answer, Param, Route
from raftkv.errors import InvalidRequest, RaftkvError

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


ALARMS: Final = {"no_space": "NOSPACE", "corrupt": "CORRUPT"}
"""Problems of `Store.health` that are alarms, and etcd's names of them."""


def get_health(x: Exchange) -> None:
    if x.query["serializable"]:
        _health(x, None)
    else:
        x.door.store.read_index(partial(_health, x))


def _health(x: Exchange, error: RaftkvError | None) -> None:
    # An unhealthy member is an answer here, not an error.
    reason = _ailment(x, error)
    x.json({"health": "false" if reason else "true", "reason": reason}, 503 if reason else 200)


def _ailment(x: Exchange, error: RaftkvError | None) -> str:
    """Why this member is not healthy, in etcd's words: the first of its reasons, or empty."""
    problems = x.door.store.health()
    excluded = _excluded(x, None)
    for name, alarm in ALARMS.items():
        if name in problems and not excluded & {name, alarm}:
            return f"ALARM {alarm}"
    if x.query["serializable"]:
        return ""
    if "no_leader" in problems and "no_leader" not in excluded:
        return "RAFT NO LEADER"
    if "learner" in problems and "learner" not in excluded:
        return f"RANGE ERROR:{answers.NOT_FOR_LEARNER.text}"
    if error is not None and "linearizable_read" not in excluded:
        return f"RANGE ERROR:{answers.row_of(error).text}"
    return ""


def get_live(x: Exchange) -> None:
    _checks(x, None, "livez", LIVE)


def get_live_check(x: Exchange) -> None:
    _checks(x, None, "livez", (_named(x, LIVE),))


def get_ready_check(x: Exchange) -> None:
    name = _named(x, READY)
    if name == "linearizable_read":
        x.door.store.read_index(lambda error: _checks(x, error, "readyz", (name,)))
    else:
        _checks(x, None, "readyz", (name,))


def _named(x: Exchange, known: tuple[str, ...]) -> str:
    name = x.places[0].decode("utf-8", "replace")
    if name not in known:
        raise RouteNotFound(f"There is no check {name[:64]!r}", near=list(known))
    return name


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
            "etcdserver": SERVER_VERSION,
            "etcdcluster": CLUSTER_VERSION,
            "storage": SERVER_VERSION,
        }
    )


HEALTH: Final = "Health"
VERBOSE: Final = Param("verbose", "flag", "List every check.", default=False)
EXCLUDE: Final = Param("exclude", "text", "Checks to leave out, separated by commas.", default="")
SERIALIZABLE: Final = Param(
    "serializable", "flag", "Look at this member alone, not at the cluster.", default=False
)
TEXT_ANSWERS: Final = (
    Answer(200, "All is well: `ok`, or the list of checks.", None, "text/plain"),
    Answer(503, "What is not: the list of checks.", None, "text/plain"),
)

ROUTES: Final = [
    Route(
        "GET", "/health", get_health, "getHealth", "Whether this member serves", HEALTH,
        guard=public,
        doc="As etcd answers: the reason is an alarm, a missing leader, or a read that fails.",
        query=(EXCLUDE, SERIALIZABLE),
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
        "GET", "/livez/{check}", get_live_check, "getLivezCheck", "One check of `/livez`", HEALTH,
        guard=public,
        query=(VERBOSE, EXCLUDE), answers=TEXT_ANSWERS, problems=(404,),
    ),
    Route(
        "GET", "/readyz/{check}", get_ready_check, "getReadyzCheck", "One check of `/readyz`",
        HEALTH,
        guard=public,
        query=(VERBOSE, EXCLUDE), answers=TEXT_ANSWERS, problems=(404,),
    ),
    Route(
        "GET", "/version", get_version, "getVersion", "Which version this is", HEALTH,
        guard=public,
        answers=(Answer(200, "The versions.", "Version"),),
    ),
]  # fmt: skip
