"""Every flag of etcd 3.4 to 3.7, and what giving it to a member comes to.

A setting of `raftkv.server.config` that has the name of one of etcd's flags *is* that flag, and
takes the variable ``ETCD_…`` too. The other flags are in two tables: those that a member can go
without, so that they are accepted and named in a warning, and those whose absence would surprise,
so that a value that asks for something is refused. The page for users is made from the same tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from raftkv.errors import ConfigError

PREFIX: Final = "ETCD_"
EXPERIMENTAL: Final = "experimental-"

SWITCHES: Final = frozenset(
    {
        "pre-vote", "initial-election-tick-advance", "strict-reconfig-check", "enable-grpc-gateway",
        "socket-reuse-port", "socket-reuse-address", "discovery-insecure-transport",
        "discovery-insecure-skip-tls-verify", "client-cert-auth", "auto-tls",
        "peer-client-cert-auth", "peer-auto-tls", "peer-skip-client-san-verification",
        "enable-v2", "enable-pprof", "enable-log-rotation", "disable-log-sampling", "debug",
        "enable-distributed-tracing", "experimental-enable-distributed-tracing", "memory-mlock",
        "experimental-memory-mlock", "experimental-initial-corrupt-check",
        "experimental-compact-hash-check-enabled", "experimental-enable-lease-checkpoint",
        "experimental-enable-lease-checkpoint-persist",
        "experimental-txn-mode-write-with-shared-buffer",
        "experimental-stop-grpc-service-on-defrag",
        "experimental-peer-skip-client-san-verification", "force-new-cluster", "unsafe-no-fsync",
    }
)  # fmt: skip
"""Flags that are given without a value, or with ``=true`` or ``=false``."""

FALSE: Final = frozenset({"", "0", "false", "f", "off"})
"""Values that switch a flag off, in lower case."""

SUPPORTED_ELSEWHERE: Final = {
    "advertise-client-urls", "auth-token", "auth-token-ttl", "auto-compaction-mode",
    "auto-compaction-retention", "auto-tls", "cert-file", "cipher-suites",
    "client-cert-allowed-hostname", "client-cert-auth", "client-crl-file", "cors", "data-dir",
    "discovery-srv", "discovery-srv-name", "election-timeout", "force-new-cluster",
    "heartbeat-interval", "host-whitelist", "initial-advertise-peer-urls",
    "initial-cluster", "initial-cluster-state", "initial-cluster-token", "key-file",
    "listen-client-urls", "listen-peer-urls", "log-format", "log-level", "name", "peer-auto-tls",
    "peer-cert-allowed-cn", "peer-cert-allowed-hostname", "peer-cert-file",
    "peer-client-cert-auth", "peer-crl-file", "peer-key-file", "peer-trusted-ca-file", "pre-vote",
    "quota-backend-bytes", "snapshot-catchup-entries", "tls-max-version", "tls-min-version",
    "trusted-ca-file",
}  # fmt: skip
"""Flags of etcd that are settings of raftkv and in no table below."""

WITHOUT_EFFECT: Final[dict[str, str]] = {
    "snapshot-count": "snapshots are taken by size: `--snapshot-log-bytes`",
    "initial-election-tick-advance": "a member stands for election as soon as it may",
    "max-snapshots": "as many are kept as recovery needs",
    "max-wals": "as much of the log is kept as recovery and lagging members need",
    "backend-bbolt-freelist-type": "there is no bbolt",
    "backend-batch-interval": "the tables are a cache of the log and are not synced by the clock",
    "backend-batch-limit": "what arrives together is one batch",
    "max-txn-ops": "a list has at most 1,024 operations",
    "max-request-bytes": "a request has at most 1.5 MiB",
    "max-concurrent-streams": "1,024 streams for each connection",
    "enable-grpc-gateway": "always on",
    "grpc-keepalive-min-time": "pings are answered at a bounded rate",
    "grpc-keepalive-interval": "two hours, as etcd has it",
    "grpc-keepalive-timeout": "20 s, as etcd has it",
    "socket-reuse-port": "one process has a port",
    "socket-reuse-address": "always on",
    "raft-read-timeout": "members ping each other every second and give up after ten",
    "raft-write-timeout": "members ping each other every second and give up after ten",
    "strict-reconfig-check": "always on",
    "max-learners": "at most 8",
    "discovery-fallback": "there is no v2 discovery",
    "discovery-dial-timeout": "goes with `--discovery-endpoints`",
    "discovery-request-timeout": "goes with `--discovery-endpoints`",
    "discovery-keepalive-time": "goes with `--discovery-endpoints`",
    "discovery-keepalive-timeout": "goes with `--discovery-endpoints`",
    "discovery-insecure-transport": "goes with `--discovery-endpoints`",
    "discovery-insecure-skip-tls-verify": "goes with `--discovery-endpoints`",
    "v2-deprecation": "there is no v2 store",
    "self-signed-cert-validity": "how long is not for choosing",
    "bcrypt-cost": "passwords are hashed with argon2id",
    "metrics": "as with `basic`: no histogram of gRPC calls",
    "logger": "there is one",
    "log-package-levels": "there is one level",
    "log-outputs": "lines go to standard error; send them on from there",
    "debug": "`--log-level=debug`",
    "enable-log-rotation": "lines go to standard error; rotate behind it",
    "log-rotation-config-json": "lines go to standard error; rotate behind it",
    "disable-log-sampling": "no line is left out",
    "enable-distributed-tracing": "spans are not sent under this name",
    "distributed-tracing-address": "spans are not sent under this name",
    "distributed-tracing-service-name": "spans are not sent under this name",
    "distributed-tracing-instance-id": "spans are not sent under this name",
    "distributed-tracing-sampling-rate": "spans are not sent under this name",
    "proxy-failure-wait": "there is no v2 proxy",
    "proxy-refresh-interval": "there is no v2 proxy",
    "proxy-dial-timeout": "there is no v2 proxy",
    "proxy-write-timeout": "there is no v2 proxy",
    "proxy-read-timeout": "there is no v2 proxy",
    "corrupt-check-time": "members compare their state once a second",
    "compact-hash-check-time": "members compare their state once a second",
    "compaction-batch-limit": "a compaction is spread over time by itself",
    "compaction-sleep-interval": "a compaction is spread over time by itself",
    "watch-progress-notify-interval": "every 10 s",
    "downgrade-check-time": "there is no downgrade",
    "warning-apply-duration": "single requests are not logged",
    "warning-unary-request-duration": "single requests are not logged",
    "memory-mlock": "the system decides what stays in memory",
    "bootstrap-defrag-threshold-megabytes": "freed pages are used again without defragmenting",
    "feature-gates": "the features behind gates are always on, or not there",
    "unsafe-no-fsync": "every write is synced",
    "experimental-initial-corrupt-check": "what is read from disk is always verified",
    "experimental-compact-hash-check-enabled": "members compare their state once a second",
    "experimental-enable-lease-checkpoint": "always on: leases go on where they were",
    "experimental-enable-lease-checkpoint-persist": "always on: leases go on where they were",
    "experimental-txn-mode-write-with-shared-buffer": "there is no such buffer",
    "experimental-stop-grpc-service-on-defrag": "nothing stops for defragmenting",
    "experimental-wait-cluster-ready-timeout": "a member serves once it has caught up",
}
"""Flags that a member can go without, and why."""

REFUSED: Final[dict[str, str]] = {
    "config-file": "a file of settings is TOML; see `raftkv serve --show-config`",
    "wal-dir": "the log is in the data directory; mount the disk there",
    "listen-client-http-urls": "HTTP and gRPC share `--listen-client-urls`",
    "listen-metrics-urls": "`/metrics` and `/health` are at `--listen-client-urls`",
    "discovery": "name the members in `--initial-cluster`",
    "discovery-proxy": "name the members in `--initial-cluster`",
    "discovery-token": "name the members in `--initial-cluster`",
    "discovery-endpoints": "name the members in `--initial-cluster`",
    "discovery-cert": "name the members in `--initial-cluster`",
    "discovery-key": "name the members in `--initial-cluster`",
    "discovery-cacert": "name the members in `--initial-cluster`",
    "discovery-user": "name the members in `--initial-cluster`",
    "discovery-password": "name the members in `--initial-cluster`",
    "enable-v2": "there is no v2 API",
    "experimental-enable-v2v3": "there is no v2 API",
    "proxy": "there is no v2 proxy",
    "client-cert-file": "a member has one certificate for both directions",
    "client-key-file": "a member has one certificate for both directions",
    "peer-client-cert-file": "a member has one certificate for both directions",
    "peer-client-key-file": "a member has one certificate for both directions",
    "peer-skip-client-san-verification": "certificates are verified in full",
    "enable-pprof": "profile from outside, with py-spy",
}
"""Flags that ask for something that would be missed, and what to do instead."""

_EXPERIMENTAL_ONCE: Final = (
    "corrupt-check-time", "compact-hash-check-time", "compaction-batch-limit",
    "compaction-sleep-interval", "watch-progress-notify-interval", "downgrade-check-time",
    "warning-apply-duration", "warning-unary-request-duration", "memory-mlock", "max-learners",
    "bootstrap-defrag-threshold-megabytes", "snapshot-catchup-entries",
    "peer-skip-client-san-verification", "backend-bbolt-freelist-type",
    "enable-distributed-tracing", "distributed-tracing-address",
    "distributed-tracing-service-name", "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
)  # fmt: skip

FORMERLY: Final = {EXPERIMENTAL + name: name for name in _EXPERIMENTAL_ONCE}
"""Flags that earlier versions called experimental, and their names since."""

NAMES: Final = frozenset({*SUPPORTED_ELSEWHERE, *WITHOUT_EFFECT, *REFUSED, *FORMERLY})
"""Every flag of etcd, without dashes in front."""

QUIET_VARIABLES: Final = frozenset({"ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY", "ETCD_VERSION"})
"""Variables that are about etcd's program, not about what it does."""

Standing = Literal["supported", "no effect", "refused"]


@dataclass(frozen=True, slots=True)
class EtcdFlag:
    """One flag of etcd, as raftkv takes it."""

    name: str
    standing: Standing
    note: str
    """Why it has no effect, or what to do instead, or the name that it has now."""


def unabbreviated(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Arguments in the form that any parser of options takes, from those that Go's takes.

    ``-name x`` becomes ``--name x``, and a switch alone gets its value. `names` holds all options
    there are, without dashes.
    """
    result: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[place:]]
        name, equals, value = argument.lstrip("-").partition("=")
        if len(name) > 1 and argument.startswith("-") and name in names:
            argument = f"--{name}{equals}{value}"
            following = arguments[place + 1 : place + 2]
            if name in SWITCHES and not equals and not {*following} & {"true", "false"}:
                argument += "=true"
        result.append(argument)
    return result


def variable_of(name: str) -> str:
    """The variable that etcd reads for a flag."""
    return PREFIX + name.upper().replace("-", "_")


def names_of(setting: str) -> tuple[str, ...]:
    """The names that etcd has for a setting of raftkv, given by its key; mostly one or none."""
    if setting not in NAMES:
        return ()
    former = EXPERIMENTAL + setting
    return (setting, former) if former in FORMERLY else (setting,)


def flags(settings: Collection[str]) -> Iterator[EtcdFlag]:
    """Every flag of etcd, by name. `settings` holds the keys of those of raftkv."""
    for name in sorted(NAMES):
        yield flag(name, settings)


def flag(name: str, settings: Collection[str]) -> EtcdFlag:
    """One flag of etcd; `name` must be one."""
    known = FORMERLY.get(name, name)
    renamed = f"now `--{known}`" if known != name else ""
    if known in settings:
        return EtcdFlag(name, "supported", renamed)
    if known in WITHOUT_EFFECT:
        return EtcdFlag(name, "no effect", renamed or WITHOUT_EFFECT[known])
    return EtcdFlag(name, "refused", renamed or REFUSED[known])


def remarks(
    given: Mapping[str, str], environment: Mapping[str, str], settings: Collection[str]
) -> Iterator[str]:
    """What to tell the operator about flags of etcd that are not settings here, a line each.

    `given` holds such flags from the command line, by name without dashes; the environment is
    searched for ``ETCD_…``. Raises `ConfigError` for a value that asks for what is not there.
    """
    for name, value in given.items():
        yield from _remark(f"--{name}", name, value, settings)
    by_variable = {variable_of(name): name for name in NAMES}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable in QUIET_VARIABLES:
            continue
        name = by_variable.get(variable, "")
        if not name:
            yield f"{variable} is set, but etcd has no such flag"
        elif FORMERLY.get(name, name) not in settings:
            yield from _remark(variable, name, environment[variable], settings)


def _remark(where: str, name: str, value: str, settings: Collection[str]) -> Iterator[str]:
    known = FORMERLY.get(name, name)
    if flag(known, settings).standing == "no effect":
        yield f"{where} has no effect: {WITHOUT_EFFECT[known]}"
    elif value.strip().lower() not in FALSE:
        raise ConfigError(f"{where} is not there: {REFUSED[known]}", setting=name)
