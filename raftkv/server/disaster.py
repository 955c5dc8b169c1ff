"""Going on alone after the majority of a cluster is lost for good.

The survivor writes into its log, as committed, what nobody is left to agree on: it is a voter, and
all others are removed. One write, so either all of it is there after a crash or nothing. Entries
that were not known to be committed count as committed: some of them were, and whose client had the
answer must not lose it; the others had no answer yet.

The cluster keeps its id. A lost member that came back would still believe in the old members, and
with enough of them there would be two clusters with one name: they have to be wiped.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raftkv.consensus.codec import decode_change, encode_change
from raftkv.consensus.confchange import ChangeRejected, changed, is_joint, is_voter, members
from raftkv.consensus.types import ChangeKind, ConfigChange, ConfState, Entry, EntryKind, HardState
from raftkv.errors import ConfigError
from raftkv.server.config import split_url
from raftkv.server.introduction import ask_introduction
from raftkv.server.opening import conf_of, open_member
from raftkv.server.tls.settings import peer_tls
from raftkv.storage.datadir import FORMAT_NAME

if TYPE_CHECKING:
    from raftkv.server.config import ServerConfig
    from raftkv.server.opening import Opened

log = logging.getLogger(__name__)

_READ_BYTES = 16 << 20


async def open_alone(config: ServerConfig) -> Opened:
    """Open the member of `config` as the only one of its cluster. Raises as `open_member`."""
    if not (config.data_directory / FORMAT_NAME).exists():
        raise ConfigError(
            f"--force-new-cluster goes on with a member's data, and {config.data_directory} holds "
            "none; restore a backup instead"
        )
    opened = await open_member(config)
    try:
        await _refuse_company(config, opened)
        if not force_new_cluster(opened):
            log.warning(
                "this member is alone in its cluster already; leave --force-new-cluster out from "
                "now on"
            )
    finally:
        opened.wal.close()
        opened.close(clean=True)
    return await open_member(config)


async def _refuse_company(config: ServerConfig, opened: Opened) -> None:
    """Raise ConfigError when another member answers: it is not lost, and must not be left behind.

    So the setting does no harm where it was forgotten after the members that were lost came back.
    """
    addresses = [
        split_url(url)
        for info in opened.machine.members()
        if info.member_id != opened.identity.member_id
        for url in info.peer_urls
    ]
    if not addresses:
        return
    try:
        cluster_id, _ = await ask_introduction(addresses, seconds=0, tls=peer_tls(config))
    except ConfigError:
        return
    if cluster_id == opened.identity.cluster_id:
        raise ConfigError(
            "--force-new-cluster is for the last member that is left, but another member of this "
            "cluster answers; leave the option out, or stop the others for good first"
        )


def alone(conf: ConfState, own: int) -> list[ConfigChange]:
    """The changes, each a step of its own, that leave `own` as the only member."""
    changes: list[ConfigChange] = []

    def step(change: ConfigChange) -> None:
        nonlocal conf
        conf = changed(conf, change)
        changes.append(change)

    if is_joint(conf):
        step(ConfigChange(()))
    if not is_voter(conf, own):
        step(ConfigChange(((ChangeKind.ADD_VOTER, own),)))
    for other in sorted(members(conf) - {own}):
        step(ConfigChange(((ChangeKind.REMOVE, other),)))
    return changes


def force_new_cluster(opened: Opened) -> bool:
    """Make the member of `opened` its cluster's only one; False when it was already.

    Durable when it returns. The files are to be closed and opened again before they are used.
    Raises ConfigError for a member that was removed, or that has no data.
    """
    own = opened.identity.member_id
    conf, last = _last_conf(opened)
    if own not in members(conf):
        raise ConfigError(
            "--force-new-cluster needs a member of the cluster, and the data here is of one that "
            "was removed or never took part"
        )
    changes = alone(conf, own)
    if not changes:
        return False
    hard, _ = opened.log.initial_state()
    term = max(hard.term, opened.log.term(last)) + 1
    entries = [
        Entry(last + number, term, EntryKind.CONFIG, encode_change(change))
        for number, change in enumerate(changes, start=1)
    ]
    opened.wal.write(entries, HardState(term, own, entries[-1].index), None)
    opened.wal.sync()
    log.warning(
        "this member goes on alone: what was not replicated to it is lost. The members that were "
        "removed must never be started again with the data they have",
        extra={
            "removed": ",".join(f"{other:016x}" for other in sorted(members(conf) - {own})),
            "kept_uncommitted": last - hard.commit_index,
        },
    )
    return True


def _last_conf(opened: Opened) -> tuple[ConfState, int]:
    """The membership after every entry of the log, and the index of the last one."""
    conf, at = conf_of(opened.machine), opened.machine.applied_index
    last = opened.log.last_index()
    while at < last:
        for entry in opened.log.entries(at + 1, last + 1, _READ_BYTES):
            at = entry.index
            if entry.kind is EntryKind.CONFIG:
                try:
                    conf = changed(conf, decode_change(entry.data))
                except ChangeRejected:
                    continue  # without effect, as on every member
    return conf, last
