"""Who may call which RPC: a guard for each, see `raftkv.api.gate`. One without is refused."""

from __future__ import annotations

from typing import Any, Final

from raftkv.api.etcd.ranges import interval
from raftkv.api.gate import Guard, admin, by_command, known, public
from raftkv.api.http.handling import prefix_end, reading
from raftkv.machine.access import Access, Accesses, Kind


def reads_range(request: Any) -> Accesses:
    """What a Range reads."""
    return reading(*interval(request.key, request.range_end))


def reads_name(request: Any) -> Accesses:
    """What is read of a lock or an election: all keys under its name."""
    prefix = request.name + b"/"
    return reading(prefix, prefix_end(prefix))


def is_user(request: Any) -> Accesses:
    """Users may see themselves."""
    return (Access(Kind.USER, 0, request.name.encode()),)


def has_role(request: Any) -> Accesses:
    """Users may see the roles they have."""
    return (Access(Kind.ROLE, 0, request.role.encode()),)


def _service(name: str, **methods: Guard) -> dict[str, Guard]:
    return {f"/{name}/{method}": guard for method, guard in methods.items()}


GUARDS: Final[dict[str, Guard]] = {
    **_service(
        "etcdserverpb.KV",
        Range=reads_range, RangeStream=reads_range,
        Put=by_command, DeleteRange=by_command, Txn=by_command, Compact=admin,
    ),
    # Each watcher is judged by itself, by `Caller.watch`; the stream goes on when one is refused.
    **_service("etcdserverpb.Watch", Watch=known),
    # Leases are judged by the keys that hang on them.
    **_service(
        "etcdserverpb.Lease",
        LeaseGrant=by_command, LeaseRevoke=by_command, LeaseKeepAlive=known,
        LeaseTimeToLive=known, LeaseLeases=known,
    ),
    **_service(
        "etcdserverpb.Cluster",
        MemberList=known, MemberAdd=admin, MemberRemove=admin, MemberUpdate=admin,
        MemberPromote=admin,
    ),
    **_service(
        "etcdserverpb.Maintenance",
        Status=known, Alarm=admin, Defragment=admin, Hash=admin, HashKV=admin, Snapshot=admin,
        MoveLeader=admin, Downgrade=admin,
    ),
    **_service(
        "etcdserverpb.Auth",
        Authenticate=public, AuthStatus=known, AuthEnable=admin, AuthDisable=admin,
        UserAdd=admin, UserGet=is_user, UserList=admin, UserDelete=admin,
        UserChangePassword=admin, UserGrantRole=admin, UserRevokeRole=admin,
        RoleAdd=admin, RoleGet=has_role, RoleList=admin, RoleDelete=admin,
        RoleGrantPermission=admin, RoleRevokePermission=admin,
    ),
    **_service("v3lockpb.Lock", Lock=reads_name, Unlock=by_command),
    **_service(
        "v3electionpb.Election",
        Campaign=reads_name, Proclaim=by_command, Leader=reads_name, Observe=reads_name,
        Resign=by_command,
    ),
}  # fmt: skip
