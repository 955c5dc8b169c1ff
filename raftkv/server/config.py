"""The settings of one member: names, units, defaults, help and checks, all in this file.

Every field of `ServerConfig` is a setting, and each setting has three spellings made from the
field's name: the flag ``--data-dir``, the variable ``RAFTKV_DATA_DIR`` and the key ``data-dir``
(or ``data_dir``) of a TOML file. `load_config` takes a setting from the first of flag, variable,
file and default that has it. The command line builds its options from `SETTINGS`, so a default
or a sentence of help is written once.

Flags mean what they mean in etcd wherever etcd has one of that name, and are then taken from
etcd's variable (``ETCD_DATA_DIR``), too; see `raftkv.server.etcd_flags`.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from raftkv import limits
from raftkv.errors import ConfigError, InvalidRequest
from raftkv.server import etcd_flags
from raftkv.server.auto_compaction import Retention, parse_retention
from raftkv.server.tls.settings import check_tls
from raftkv.server.token_spec import parse_token_spec

ENVIRONMENT_PREFIX: Final = "RAFTKV_"
CONFIG_FILE_VARIABLE: Final = "RAFTKV_CONFIG_FILE"
CLIENT_VARIABLES: Final = frozenset(
    {
        CONFIG_FILE_VARIABLE,
        "RAFTKV_ENDPOINTS",
        "RAFTKV_TIMEOUT",
        "RAFTKV_OUTPUT",
        "RAFTKV_USER",
        "RAFTKV_PASSWORD",
        "RAFTKV_TOKEN",
        "RAFTKV_CACERT",
        "RAFTKV_CERT",
        "RAFTKV_KEY",
    }
)
"""Variables with our prefix that are not settings of a member."""

_WILDCARD_HOSTS = frozenset({"0.0.0.0", "::"})
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": limits.KIB,
    "kib": limits.KIB,
    "m": limits.MIB,
    "mib": limits.MIB,
    "g": limits.GIB,
    "gib": limits.GIB,
}
_DURATION_MS = {"": 1, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


class BadValue(ValueError):
    """Why a value was not accepted, as the end of a sentence that begins with its name."""


Parser = Callable[[object], Any]


def parse_text(value: object) -> str:
    """A string without control characters."""
    if not isinstance(value, str) or any(ord(c) < 32 for c in value):
        raise BadValue("must be a line of text")
    return value


def parse_integer(value: object) -> int:
    """A whole number, from an integer or its decimal digits."""
    if isinstance(value, bool):
        raise BadValue("must be a whole number")
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise BadValue(f"must be a whole number, not {value!r}")


def parse_number_or_text(value: object) -> str:
    """A line of text, or a whole number as its digits."""
    return str(value) if type(value) is int else parse_text(value)


def parse_size(value: object) -> int:
    """A number of bytes: an integer, or text such as ``64MiB`` (units of 1024)."""
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,18})\s*([A-Za-z]*)", value.strip())
        unit = _SIZE_UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise BadValue(f"must be a size in bytes such as 1048576, 64MiB or 8GiB, not {value!r}")
        return int(found[1]) * unit
    return parse_integer(value)


def parse_duration_ms(value: object) -> int:
    """Milliseconds: an integer, or text such as ``100ms``, ``2s`` or ``1h30m``."""
    if isinstance(value, str):
        parts = re.findall(r"([0-9]{1,12})\s*(ms|s|m|h|\Z)", value.strip())
        if not re.fullmatch(r"[0-9]{1,12}|([0-9]{1,12}\s*(ms|s|m|h))+", value.strip()):
            raise BadValue(f"must be milliseconds such as 100, 100ms or 2s, not {value!r}")
        return sum(int(number) * _DURATION_MS[unit] for number, unit in parts)
    return parse_integer(value)


def parse_flag(value: object) -> bool:
    """True or false, from a boolean or the usual words for one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in {"true", "1", "yes", "on"}:
            return True
        if word in {"false", "0", "no", "off"}:
            return False
    raise BadValue(f"must be true or false, not {value!r}")


def parse_words(value: object) -> tuple[str, ...]:
    """Words, from a comma-separated text or a list."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise BadValue("must be a list of words")
    return tuple(word for word in (parse_text(item).strip() for item in items) if word)


def parse_urls(value: object) -> tuple[str, ...]:
    """URLs ``http://HOST:PORT`` or ``https://HOST:PORT``, from a comma-separated text or a list."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise BadValue("must be a list of URLs")
    urls = tuple(item.strip() if isinstance(item, str) else item for item in items)
    for url in urls:
        split_url(url)
    return tuple(str(url).rstrip("/") for url in urls)


def split_url(url: object) -> tuple[str, int]:
    """Host and port of ``http[s]://HOST:PORT``; raises `BadValue` for anything else."""
    if not isinstance(url, str):
        raise BadValue(f"must hold URLs such as http://127.0.0.1:2379, not {url!r}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadValue(f"holds {url!r}, which is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or port is None:
        raise BadValue(f"must hold URLs such as http://127.0.0.1:2379, not {url!r}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise BadValue(f"holds {url!r}; only {parts.scheme}://HOST:PORT may be given")
    return host, port


def parse_initial_cluster(value: object) -> str:
    """Text of the form ``name=url,name=url``; see `split_initial_cluster`."""
    text = parse_text(value)
    split_initial_cluster(text)
    return text


def split_initial_cluster(text: str) -> dict[str, tuple[str, ...]]:
    """Peer URLs by member name, in the order given; a name may come several times."""
    members: dict[str, tuple[str, ...]] = {}
    owners: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, url = part.partition("=")
        if not name or not equals:
            raise BadValue(f"must be NAME=PEER_URL,NAME=PEER_URL,...; {part!r} is not of that form")
        url = parse_urls(url)[0]
        if url in owners:
            raise BadValue(f"gives {url} to both {owners[url]!r} and {name!r}")
        owners[url] = name
        members[name] = (*members.get(name, ()), url)
    return members


def parse_names(value: object) -> tuple[str, ...]:
    """Names, or ``*`` for any, from a comma-separated text or a list; in lower case."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise BadValue("must be a list of names")
    names = (parse_text(item).strip().lower() for item in items)
    return tuple(dict.fromkeys(name for name in names if name))


def parse_origins(value: object) -> tuple[str, ...]:
    """Origins of web pages (RFC 6454), or ``*`` for any; in lower case."""
    origins = tuple(origin.rstrip("/") for origin in parse_names(value))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
            raise BadValue(f"must hold origins such as https://example.com, not {origin!r}")
    return origins


def parse_auth_token(value: object) -> str:
    """The text of ``--auth-token``; see `raftkv.server.token_spec`."""
    text = parse_text(value)
    try:
        parse_token_spec(text)
    except ValueError as error:
        raise BadValue(str(error)) from None
    return text


ETCD_WORDS: Final = {"warn": "warning", "dpanic": "error", "panic": "error", "fatal": "error",
                     "console": "text"}  # fmt: skip
"""What etcd calls choices of ours. It has levels above error, at which nothing here is logged."""


def one_of(*choices: str) -> Parser:
    """A parser of one word out of `choices`, or of etcd's word for one of them."""

    def parse(value: object) -> str:
        word = value.strip().lower() if isinstance(value, str) else ""
        choice = word if word in choices else ETCD_WORDS.get(word, "")
        if choice not in choices:
            raise BadValue(f"must be one of {', '.join(choices)}, not {value!r}")
        return choice

    return parse


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as the command line and the documentation see it."""

    name: str
    """The field's name in `ServerConfig`, for example ``data_dir``."""
    default: Any
    parse: Parser
    placeholder: str
    """What stands for the value in help, for example ``PATH``."""
    help: str
    group: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The option, for example ``--data-dir``."""
        return "--" + self.key

    @property
    def key(self) -> str:
        """The key in a TOML file, for example ``data-dir``."""
        return self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, for example ``RAFTKV_DATA_DIR``."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables that it may be given in, those that win first: ours, then etcd's."""
        etcd = (etcd_flags.variable_of(name) for name in etcd_flags.names_of(self.key))
        return (self.variable, *etcd)


def _setting(
    default: Any,
    parse: Parser,
    placeholder: str,
    help_text: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {
        "parse": parse,
        "placeholder": placeholder,
        "help": help_text,
        "group": group,
        "choices": choices,
    }
    return field(default=default, metadata=metadata)


def _choice(default: str, choices: tuple[str, ...], help_text: str, *, group: str) -> Any:
    return _setting(
        default, one_of(*choices), "|".join(choices), help_text, group=group, choices=choices
    )


def _file(help_text: str) -> Any:
    return _setting("", parse_text, "FILE", help_text, group="TLS")


def _words(placeholder: str, help_text: str) -> Any:
    return _setting((), parse_words, placeholder, help_text, group="TLS")


def _switch(help_text: str, *, group: str) -> Any:
    return _setting(False, parse_flag, "[BOOL]", help_text, group=group)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The settings of one member, checked. Raises `ConfigError` naming the setting at fault.

    Units are in the help of each field: sizes in bytes, durations in milliseconds.
    """

    name: str = _setting(
        "default",
        parse_text,
        "NAME",
        "This member's name, unique in its cluster.",
        group="Member",
    )
    data_dir: str = _setting(
        "",
        parse_text,
        "PATH",
        "Where this member keeps its log, tables and snapshots.  [default: NAME.raftkv]",
        group="Member",
    )
    listen_client_urls: tuple[str, ...] = _setting(
        ("http://127.0.0.1:2379",),
        parse_urls,
        "URL,...",
        "Where to listen for clients.",
        group="Member",
    )
    advertise_client_urls: tuple[str, ...] = _setting(
        (),
        parse_urls,
        "URL,...",
        "Client URLs to tell the cluster about.  [default: where it listens]",
        group="Member",
    )
    listen_peer_urls: tuple[str, ...] = _setting(
        ("http://127.0.0.1:2380",),
        parse_urls,
        "URL,...",
        "Where to listen for the other members.",
        group="Member",
    )
    initial_advertise_peer_urls: tuple[str, ...] = _setting(
        (),
        parse_urls,
        "URL,...",
        "Peer URLs to tell the cluster about.  [default: where it listens]",
        group="Cluster",
    )
    initial_cluster: str = _setting(
        "",
        parse_initial_cluster,
        "NAME=URL,...",
        "Names and peer URLs of all first members.  [default: this member alone]",
        group="Cluster",
    )
    initial_cluster_state: str = _choice(
        "new",
        ("new", "existing"),
        "Whether to found a cluster or to join one that runs.",
        group="Cluster",
    )
    initial_cluster_token: str = _setting(
        "raftkv-cluster",
        parse_text,
        "TEXT",
        "Keeps clusters apart: members of different tokens never talk to each other.",
        group="Cluster",
    )
    heartbeat_interval: int = _setting(
        100,
        parse_duration_ms,
        "MS",
        "Milliseconds between a leader's heartbeats.",
        group="Timing",
    )
    election_timeout: int = _setting(
        600,
        parse_duration_ms,
        "MS",
        "Milliseconds without a leader after which a member stands for election.",
        group="Timing",
    )
    pre_vote: bool = _setting(
        True,
        parse_flag,
        "BOOL",
        "Ask whether an election could be won before standing for one.",
        group="Timing",
    )
    snapshot_log_bytes: int = _setting(
        limits.SNAPSHOT_MIN_LOG_BYTES,
        parse_size,
        "SIZE",
        "Take a snapshot when the log since the last one outgrows the data and this size.",
        group="Storage",
    )
    snapshot_catchup_entries: int = _setting(
        limits.LOG_TAIL_ENTRIES,
        parse_integer,
        "N",
        "Log entries kept behind a snapshot, for members that lag a little.",
        group="Storage",
    )
    disk_stall_ms: int = _setting(
        limits.DISK_STALL_MS_DEFAULT,
        parse_duration_ms,
        "MS",
        "A leader whose log is at one write or sync for so long gives leadership up.",
        group="Storage",
    )
    wal_segment_bytes: int = _setting(
        limits.WAL_SEGMENT_BYTES,
        parse_size,
        "SIZE",
        "Size of one file of the log.",
        group="Storage",
    )
    quota_backend_bytes: int = _setting(
        limits.QUOTA_BYTES_DEFAULT,
        parse_size,
        "SIZE",
        "Most bytes of data; past it only deletes and compaction pass.",
        group="Storage",
    )
    auto_compaction_mode: str = _choice(
        "periodic",
        ("periodic", "revision"),
        "Whether history is kept for a time, or for a number of revisions.",
        group="Storage",
    )
    auto_compaction_retention: str = _setting(
        "0",
        parse_number_or_text,
        "TIME|N",
        "History that is kept: hours or a time such as 30m, or revisions; 0 keeps all.",
        group="Storage",
    )
    join: tuple[str, ...] = _setting(
        (),
        parse_urls,
        "URL,...",
        "Client URLs of a running cluster to be added to, at the first start.",
        group="Cluster",
    )
    force_new_cluster: bool = _setting(
        False,
        parse_flag,
        "true|false",
        "After the majority is lost for good: go on alone with the data that is here. The other "
        "members must never come back.",
        group="Cluster",
    )
    discovery_srv: str = _setting(
        "",
        parse_text,
        "DOMAIN",
        "Domain whose SRV records name the first members, instead of --initial-cluster.",
        group="Cluster",
    )
    discovery_srv_name: str = _setting(
        "",
        parse_text,
        "NAME",
        "Suffix of the service that is asked for: _etcd-server-NAME._tcp.DOMAIN.",
        group="Cluster",
    )
    discovery_resolver: str = _setting(
        "",
        parse_text,
        "HOST:PORT",
        "Name server to ask.  [default: those of this machine]",
        group="Cluster",
    )
    feature_level: int = _setting(
        limits.FEATURE_LEVEL,
        parse_integer,
        "N",
        "Newest features to take part in; a lower one keeps a downgrade possible.",
        group="Cluster",
    )
    backup_dir: str = _setting(
        "",
        parse_text,
        "PATH",
        "Where to put backups, made by this member itself.  [default: none are made]",
        group="Backup",
    )
    backup_interval: int = _setting(
        limits.BACKUP_INTERVAL_MS_DEFAULT,
        parse_duration_ms,
        "MS",
        "Time between two backups.",
        group="Backup",
    )
    backup_keep: int = _setting(
        limits.BACKUPS_KEPT_DEFAULT,
        parse_integer,
        "N",
        "Backups of this member to keep.",
        group="Backup",
    )
    archive_dir: str = _setting(
        "",
        parse_text,
        "PATH",
        "Where to archive the log, for a restore to any moment.  [default: it is not archived]",
        group="Backup",
    )
    archive_interval: int = _setting(
        limits.ARCHIVE_INTERVAL_MS_DEFAULT,
        parse_duration_ms,
        "MS",
        "Longest time that applied entries wait for being archived.",
        group="Backup",
    )
    archive_bytes: int = _setting(
        limits.ARCHIVE_BYTES_DEFAULT,
        parse_size,
        "SIZE",
        "Most that this member archives; past it the oldest goes.",
        group="Backup",
    )
    auth_token: str = _setting(
        "simple",
        parse_auth_token,
        "SPEC",
        "Tokens of users: simple (random, kept by the cluster), or "
        "jwt,sign-method=ES256,pub-key=FILE,priv-key=FILE.",
        group="Access",
    )
    auth_token_ttl: int = _setting(
        limits.TOKEN_TTL_SECONDS_DEFAULT,
        parse_integer,
        "SECONDS",
        "Seconds after which a token that is not used ends.",
        group="Access",
    )
    slow_request_ms: int = _setting(
        limits.SLOW_REQUEST_MS_DEFAULT,
        parse_duration_ms,
        "MS",
        "Log requests that take longer than this; 0 logs none.",
        group="Observing",
    )
    audit_log: str = _setting(
        "",
        parse_text,
        "FILE",
        "Write a line for each request to this file: who, what, outcome; never values.",
        group="Observing",
    )
    audit_log_size: int = _setting(
        limits.AUDIT_FILE_BYTES,
        parse_size,
        "SIZE",
        "Begin another audit file when one has this size.",
        group="Observing",
    )
    audit_log_files: int = _setting(
        limits.AUDIT_FILES,
        parse_integer,
        "N",
        "Audit files to keep, the one being written included.",
        group="Observing",
    )
    trace_endpoint: str = _setting(
        "",
        parse_text,
        "URL",
        "Send traces to this OpenTelemetry collector (OTLP over HTTP); needs raftkv[otel].",
        group="Observing",
    )
    trace_one_in: int = _setting(
        1_000,
        parse_integer,
        "N",
        "Trace one request in N, and all that come with a sampled traceparent.",
        group="Observing",
    )
    cors: tuple[str, ...] = _setting(
        (),
        parse_origins,
        "ORIGIN,...",
        "Web pages that may call this member: of these origins, or * for any.  [default: none]",
        group="Access",
    )
    host_whitelist: tuple[str, ...] = _setting(
        ("*",),
        parse_names,
        "HOST,...",
        "Host names that HTTP requests in clear text may be for; * for any.",
        group="Access",
    )
    allow_insecure: bool = _switch(
        "Listen on other addresses than loopback without TLS.", group="Access"
    )
    cert_file: str = _file("Certificate of the client port, in PEM, with intermediates.")
    key_file: str = _file("Its key.")
    trusted_ca_file: str = _file("CA of the clients, who then need a certificate of it.")
    client_cert_auth: bool = _switch(
        "Take the common name of a client's certificate for its user.", group="TLS"
    )
    client_crl_file: str = _file("Certificates of clients that were revoked.")
    client_cert_allowed_hostname: tuple[str, ...] = _words(
        "NAME,...", "Only clients whose certificate is for one of these hosts."
    )
    auto_tls: bool = _switch("Make a certificate of the client port for oneself.", group="TLS")
    peer_cert_file: str = _file("Certificate of this member towards the others.")
    peer_key_file: str = _file("Its key.")
    peer_trusted_ca_file: str = _file("CA of the members, who then need a certificate of it.")
    peer_client_cert_auth: bool = _switch(
        "Insist on certificates of members; a CA alone does, too.", group="TLS"
    )
    peer_crl_file: str = _file("Certificates of members that were revoked.")
    peer_cert_allowed_cn: tuple[str, ...] = _words(
        "NAME,...", "Only members with one of these common names."
    )
    peer_cert_allowed_hostname: tuple[str, ...] = _words(
        "NAME,...", "Only members whose certificate is for one of these hosts."
    )
    peer_auto_tls: bool = _switch(
        "Encrypt between members without certificates of a CA.", group="TLS"
    )
    tls_min_version: str = _choice("tls1.2", ("tls1.2", "tls1.3"), "Oldest version.", group="TLS")
    tls_max_version: str = _choice("tls1.3", ("tls1.2", "tls1.3"), "Newest version.", group="TLS")
    cipher_suites: tuple[str, ...] = _words(
        "NAME,...", "Suites of TLS 1.2.  [default: all with ECDHE and AEAD]"
    )
    max_connections: int = _setting(
        limits.CONNECTIONS_MAX,
        parse_integer,
        "N",
        "Most client connections at a time.",
        group="Limits",
    )
    max_connections_per_address: int = _setting(
        0,
        parse_integer,
        "N",
        "Most client connections at a time from one address; 0: as many as all together.",
        group="Limits",
    )
    rate_limit_address: int = _setting(
        0,
        parse_integer,
        "N",
        "Most requests a second from one client address; 0: any number.",
        group="Limits",
    )
    rate_limit_user: int = _setting(
        0,
        parse_integer,
        "N",
        "Most requests a second of one user; 0: any number.",
        group="Limits",
    )
    max_watchers: int = _setting(
        limits.WATCHERS_MAX,
        parse_integer,
        "N",
        "Most watches at a time.",
        group="Limits",
    )
    event_loop: str = _choice(
        "uvloop",
        ("uvloop", "asyncio"),
        "Which event loop drives the member.",
        group="Process",
    )
    log_level: str = _choice(
        "info",
        ("debug", "info", "warning", "error"),
        "Least severe lines to log.",
        group="Process",
    )
    log_format: str = _choice(
        "text",
        ("text", "console", "json"),
        "Log lines for people (text; console means the same) or for machines.",
        group="Process",
    )

    def __post_init__(self) -> None:
        for setting in SETTINGS_BY_NAME.values():
            value = getattr(self, setting.name)
            if value != setting.default:
                object.__setattr__(
                    self, setting.name, _parsed(setting, value, where=setting.flag, path=None)
                )
        _check_config(self)

    @property
    def retention(self) -> Retention:
        """History that automatic compaction leaves."""
        return parse_retention(self.auto_compaction_mode, self.auto_compaction_retention)

    @property
    def data_directory(self) -> Path:
        """Where the member keeps its files; ``NAME.raftkv`` unless one was given."""
        return Path(self.data_dir or f"{self.name}.raftkv")

    @property
    def client_addresses(self) -> tuple[tuple[str, int], ...]:
        """Hosts and ports to listen on for clients; port 0 means any free one."""
        return tuple(split_url(url) for url in self.listen_client_urls)

    @property
    def peer_addresses(self) -> tuple[tuple[str, int], ...]:
        """Hosts and ports to listen on for peers."""
        return tuple(split_url(url) for url in self.listen_peer_urls)

    @staticmethod
    def addresses_of(urls: Iterable[str]) -> list[tuple[str, int]]:
        """Hosts and ports of checked URLs."""
        return [split_url(url) for url in urls]

    @property
    def advertised_client_urls(self) -> tuple[str, ...]:
        """What clients may dial; a wildcard address becomes this machine's name."""
        if self.advertise_client_urls:
            return self.advertise_client_urls
        return tuple(_dialable(url) for url in self.listen_client_urls)

    @property
    def advertised_peer_urls(self) -> tuple[str, ...]:
        """What the other members may dial."""
        if self.initial_advertise_peer_urls:
            return self.initial_advertise_peer_urls
        listed = split_initial_cluster(self.initial_cluster).get(self.name)
        return listed or self.listen_peer_urls

    @property
    def founding_members(self) -> dict[str, tuple[str, ...]]:
        """Peer URLs by name of the first members; always holds this one."""
        if not self.initial_cluster:
            return {self.name: self.advertised_peer_urls}
        return split_initial_cluster(self.initial_cluster)

    def to_flags(self) -> list[str]:
        """Arguments of ``raftkv serve`` that give this configuration; defaults are left out."""
        arguments: list[str] = []
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            if value != setting.default:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                arguments.append(f"{setting.flag}={text.lower() if value is False else text}")
        return arguments


def _collect_settings() -> tuple[Setting, ...]:
    return tuple(
        Setting(name=item.name, default=item.default, **item.metadata)
        for item in dataclasses.fields(ServerConfig)
    )


SETTINGS: Final = _collect_settings()
SETTINGS_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


def load_config(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    config_file: str | Path | None = None,
) -> ServerConfig:
    """The configuration out of flags, environment and TOML file, in that order of precedence.

    A setting that etcd has, too, is also taken from etcd's variable when ours is not set.
    `flags` holds the settings given on the command line by field name; a value of None counts as
    not given. `config_file` falls back to the variable ``RAFTKV_CONFIG_FILE``.

    Raises `ConfigError` for a file that cannot be read, a key that no setting has, or a value
    that cannot work; the message names it and where it came from.
    """
    environment = environment or {}
    path = config_file or environment.get(CONFIG_FILE_VARIABLE) or None
    from_file = _read_file(Path(path)) if path is not None else {}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if (flags or {}).get(setting.name) is not None:
            given, where = (flags or {})[setting.name], setting.flag
        elif found := [name for name in setting.variables if environment.get(name)]:
            given, where = environment[found[0]], found[0]
        elif setting.name in from_file:
            given, where = from_file[setting.name], f"{setting.key} in {path}"
        else:
            continue
        values[setting.name] = _parsed(setting, given, where=where, path=path)
    return ServerConfig(**values)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that nothing reads, most likely misspelt; for a warning."""
    known = CLIENT_VARIABLES | {setting.variable for setting in SETTINGS}
    return sorted(
        name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    )


def _parsed(setting: Setting, value: object, *, where: str, path: object) -> Any:
    try:
        return setting.parse(value)
    except BadValue as error:
        raise ConfigError(
            f"{where} {error}", setting=setting.key, value=value, file=str(path) if path else None
        ) from None


def _read_file(path: Path) -> dict[str, object]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}", file=str(path)
        ) from error
    except (ValueError, RecursionError) as error:  # endless digits and brackets raise these
        raise ConfigError(
            f"the configuration file {path} is not TOML: {error}", file=str(path)
        ) from error
    values: dict[str, object] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in SETTINGS_BY_NAME:
            raise ConfigError(
                f"{path} sets {key!r}, which is not a setting; `raftkv serve --help` lists them",
                setting=key,
                file=str(path),
            )
        if name in values:
            raise ConfigError(f"{path} sets {key!r} twice", setting=key, file=str(path))
        values[name] = value
    return values


def _dialable(url: str) -> str:
    host, port = split_url(url)
    if host not in _WILDCARD_HOSTS:
        return url
    return f"{urlsplit(url).scheme}://{platform.node() or '127.0.0.1'}:{port}"


def _reject(name: str, text: str, **facts: object) -> NoReturn:
    setting = SETTINGS_BY_NAME[name]
    raise ConfigError(f"{setting.flag} {text}", setting=setting.key, **facts)


_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "heartbeat_interval": (1, 10_000),
    "election_timeout": (10, 50_000),
    "disk_stall_ms": (100, 3_600_000),
    "snapshot_log_bytes": (limits.MIB, 1024 * limits.GIB),
    "snapshot_catchup_entries": (0, 10_000_000),
    "wal_segment_bytes": (2 * limits.WAL_RECORD_BYTES_MAX, 4 * limits.GIB),
    "quota_backend_bytes": (16 * limits.MIB, 16 * 1024 * limits.GIB),
    "feature_level": (0, limits.FEATURE_LEVEL),
    "backup_interval": (1_000, 366 * 24 * 60 * 60 * 1000),
    "backup_keep": (1, limits.BACKUPS_KEPT_MAX),
    "archive_interval": (100, 24 * 60 * 60 * 1000),
    "archive_bytes": (limits.ARCHIVE_FILE_BYTES_MAX, 1024 * 1024 * limits.GIB),
    "auth_token_ttl": (limits.TOKEN_TTL_SECONDS_MIN, limits.TOKEN_TTL_SECONDS_MAX),
    "slow_request_ms": (0, 3_600_000),
    "audit_log_size": (limits.KIB, 1024 * limits.GIB),
    "audit_log_files": (1, 1_000),
    "trace_one_in": (1, 1_000_000_000),
    "max_connections": (1, 1_000_000),
    "max_connections_per_address": (0, 1_000_000),
    "rate_limit_address": (0, 10_000_000),
    "rate_limit_user": (0, 10_000_000),
    "max_watchers": (1, 10_000_000),
}


def _check_config(config: ServerConfig) -> None:
    if not config.name or "=" in config.name or "," in config.name or len(config.name) > 255:
        _reject("name", "must be 1 to 255 characters without = and ,")
    for name in ("listen_client_urls", "listen_peer_urls"):
        if not getattr(config, name):
            _reject(name, "must give at least one URL")
    for name, (least, most) in _BOUNDS.items():
        value = getattr(config, name)
        if not least <= value <= most:
            _reject(name, f"must be from {least} to {most}, not {value}")
    if config.election_timeout < 5 * config.heartbeat_interval:
        _reject(
            "election_timeout",
            f"({config.election_timeout} ms) must be at least 5 times --heartbeat-interval "
            f"({config.heartbeat_interval} ms), so that one lost heartbeat elects nobody",
        )
    try:
        parse_retention(config.auto_compaction_mode, config.auto_compaction_retention)
    except InvalidRequest as error:
        _reject("auto_compaction_retention", str(error))
    for client in config.client_addresses:
        if client[1] and client in config.peer_addresses:
            _reject("listen_peer_urls", f"and --listen-client-urls both use port {client[1]}")
    _check_cluster(config)
    check_tls(config)


def _check_cluster(config: ServerConfig) -> None:
    if not config.initial_cluster_token:
        _reject("initial_cluster_token", "must not be empty")
    if config.join and (config.discovery_srv or config.initial_cluster):
        _reject("join", "learns the members from the cluster; leave out what else names them")
    if config.discovery_srv and config.initial_cluster:
        _reject("discovery_srv", "and --initial-cluster both name the first members; give one")
    if config.discovery_srv_name and not config.discovery_srv:
        _reject("discovery_srv_name", "needs --discovery-srv")
    if not config.initial_cluster:
        return
    members = config.founding_members
    if config.name not in members:
        _reject(
            "initial_cluster",
            f"names {', '.join(members)}, but not this member ({config.name}); "
            "give --name one of them or add it",
        )
    if len(members) > limits.VOTERS_MAX:
        _reject("initial_cluster", f"names {len(members)} members; at most {limits.VOTERS_MAX}")
    advertised, listed = config.advertised_peer_urls, members[config.name]
    if config.initial_advertise_peer_urls and set(advertised) != set(listed):
        _reject(
            "initial_advertise_peer_urls",
            f"is {', '.join(advertised)}, but --initial-cluster has {', '.join(listed)} "
            f"for {config.name}; they must agree",
        )
