"""Decoders of what other members send."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from raftkv.consensus.codec import (
    decode_change,
    decode_conf,
    decode_messages,
    encode_change,
    encode_conf,
    encode_messages,
)
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    ConfState,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    SnapshotMeta,
)
from raftkv.errors import PeerError
from raftkv.machine import commands
from raftkv.server.frames import (
    FrameKind,
    FrameParser,
    Hello,
    Purpose,
    check_welcome,
    decode_hello,
    encode_welcome,
    frame,
    refusal,
)
from raftkv.server.introduction import decode_introduction, encode_introduction
from raftkv.server.membership import change_context, read_context
from raftkv.server.shell_frames import ShellFrame
from raftkv.server.snapshot_stream import _LENGTH, _decode_offer
from raftkv.storage.snapshots import SnapshotInfo
from tests.fuzz.engine import Read, Target, plain
from tests.fuzz.mutate import blind, msgpack_tree
from tests.support.rig import Rig, Site

FRAME_BYTES_MAX = 16 * 1024
CONF = ConfState((1, 2, 3), (4,), (1, 2, 5), (5,), True)
META = SnapshotMeta(900, 7, CONF)
INFO = SnapshotInfo(META, 0xC1, 123_456, bytes(range(32)))
BATCH = commands.encode_batch(1, 2, 3, [commands.put(b"key", b"value"), commands.delete(b"a")])
CHANGE = ConfigChange(
    ((ChangeKind.ADD_LEARNER, 9), (ChangeKind.REMOVE, 2)),
    change_context(1, 2, 3, [9, "nine", ["http://nine:1"], [], True]),
)


def messages() -> list[Message]:
    """One of every kind that is sent, and appends with entries."""
    entries = (
        Entry(11, 3, EntryKind.BATCH, b""),
        Entry(12, 3, EntryKind.BATCH, BATCH),
        Entry(13, 4, EntryKind.CONFIG, encode_change(CHANGE)),
    )
    found = [
        Message(kind, 1, 2, 5, 10, 3, (), 9, True, 8, 2, None, b"context")
        for kind in MessageKind
        if kind not in (MessageKind.PERSISTED, MessageKind.SNAPSHOT)
    ]
    found.append(Message(MessageKind.APPEND, 1, 2, 5, 10, 3, entries, 9, False, 0, 0, None, b""))
    found.append(Message(MessageKind.SNAPSHOT, 1, 2, 5, 0, 0, (), 0, False, 0, 0, META, b""))
    return found


# -- frames --------------------------------------------------------------------------------------


def _frame_samples() -> list[bytes]:
    return [
        frame(FrameKind.PING, bytes(8)),
        frame(FrameKind.HELLO, Hello(1, 2, 3).encode()) + frame(FrameKind.PING, b"12345678"),
        frame(FrameKind.MESSAGES, encode_messages(messages())) * 3,
        frame(FrameKind.SHELL + ShellFrame.HASH, b"") + frame(255, bytes(5000)),
    ]


def _read_frames(data: bytes) -> bool:
    """Given in pieces, at once, and byte by byte: always the same frames and the same end."""
    whole = FrameParser(FRAME_BYTES_MAX)
    frames = whole.feed(data)
    pieces = FrameParser(FRAME_BYTES_MAX)
    rng = random.Random(data)
    found = []
    at = 0
    while at < len(data):
        step = rng.choice((1, 2, 7, 9, 100, 5000))
        found += pieces.feed(data[at : at + step])
        at += step
        assert pieces.held_bytes <= FRAME_BYTES_MAX + 8
    assert found == frames
    assert (pieces.error is None) == (whole.error is None)
    again = b"".join(frame(kind, payload) for kind, payload in frames)
    assert data.startswith(again)
    if whole.error is not None:
        raise whole.error
    assert whole.held_bytes == len(data) - len(again)
    return True


def _mend_frames(rng: random.Random, data: bytes) -> bytes:
    """Frames around the same payloads, as far as their lengths lead."""
    out = []
    at = 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if not 1 <= length <= len(data) - at - 8:
            break
        out.append(frame(data[at + 8], data[at + 9 : at + 8 + length]))
        at += 8 + length
    return b"".join(out) + data[at:]


# -- payloads ------------------------------------------------------------------------------------


def _hello_samples() -> list[bytes]:
    hello = Hello(0xC1, 0xA1, 0xA2, Purpose.SNAPSHOT)
    return [
        b"\0" + hello.encode(),
        b"\0" + Hello(0xC1, 0xA1, 0xA2).encode() + b"more, of a later version",
        b"\1" + encode_welcome(hello, cluster_id=0xC1, member_id=0xA2),
    ]


def _read_hello(data: bytes) -> bool:
    """Both halves of the handshake; the first byte says which."""
    hello = Hello(0xC1, 0xA1, 0xA2, Purpose.SNAPSHOT)
    if data[:1] == b"\1":
        assert check_welcome(data[1:], hello) == 1
        return True
    got = decode_hello(data[1:])
    assert data[1:].startswith(got.encode())
    why = refusal(got, cluster_id=0xC1, member_id=0xA2)
    return why is None


def _introduction_samples() -> list[bytes]:
    rows = [(1, "one", ["http://one:1", "http://one:2"], True), (2, "", [], False)]
    return [encode_introduction(0xC1, rows), encode_introduction(2**64 - 1, [])]


def _read_introduction(data: bytes) -> bool:
    cluster_id, members = decode_introduction(data)
    assert decode_introduction(encode_introduction(cluster_id, members)) == (cluster_id, members)
    return True


def _read_messages(data: bytes) -> bool:
    got = decode_messages(data)
    assert decode_messages(encode_messages(got)) == got
    return True


def _read_change(data: bytes) -> bool:
    """The change, and the shell's part of it."""
    got = decode_change(data)
    assert decode_change(encode_change(got)) == got
    origin, boot, sequence, attributes = read_context(got.context)
    if got.context:
        again = change_context(origin, boot, sequence, attributes)
        assert read_context(again) == (origin, boot, sequence, attributes)
    return True


def _read_conf(data: bytes) -> bool:
    got = decode_conf(data)
    assert decode_conf(encode_conf(got)) == got
    return True


def _offer_samples() -> list[bytes]:
    packed = INFO.pack()
    message = Message(MessageKind.SNAPSHOT, 1, 2, 5, 0, 0, (), 0, False, 0, 0, META, b"")
    return [_LENGTH.pack(len(packed)) + packed + encode_messages([message])]


def _read_offer(data: bytes) -> bool:
    info, message = _decode_offer(data)
    packed = info.pack()
    again = _LENGTH.pack(len(packed)) + packed + encode_messages([message])
    assert _decode_offer(again) == (info, message)
    return True


# -- the replica's own frames --------------------------------------------------------------------

QUESTIONS = 1000
"""Number of the first question that a follower asks in an execution."""


def _shell_samples() -> list[bytes]:
    def sample(kind: ShellFrame, *fields: Any) -> bytes:
        return bytes((kind,)) + bytes(msgpack.packb(list(fields)))

    return [
        sample(ShellFrame.PROPOSAL_REFUSED, 1, 5, "no leader"),
        sample(ShellFrame.KEEP_ALIVE, [1, 4], [7, 8]),
        sample(ShellFrame.LEASE_TIME, [1, 5], 7),
        sample(ShellFrame.ANSWER, [1, QUESTIONS], [10, None]),
        sample(ShellFrame.ANSWER, [1, QUESTIONS + 1], [10, 9_000]),
        sample(ShellFrame.ANSWER, [1, QUESTIONS], "not the leader"),
        sample(ShellFrame.ANSWER, [1, QUESTIONS + 1], None),
        sample(ShellFrame.HASH, 1, bytes(16)),
        sample(ShellFrame.HASH, 10_000, bytes(16)),
    ]


def _read_shell(rig: Rig, leader: Site, follower: Site, data: bytes) -> bool:
    """A frame to the leader, or an answer to a follower that has asked.

    Whatever was asked is still open or has one answer; nothing fails in later turns.
    """
    if not data:
        return False
    kind, payload = data[0], data[1:]
    answers: list[Any] = []
    if kind == ShellFrame.ANSWER:
        desk = follower.replica._leases
        desk._asked.clear()
        desk._next_question = QUESTIONS
        desk.keep_alive(7, answers.append)
        desk.keep_alive(8, answers.append)
        desk.time(7, answers.append)
        desk.flush()
        rig.frames.clear()
        target, source = follower, leader.member_id
    else:
        target, source = leader, follower.member_id
    try:
        target.replica.receive_frame(source, kind, payload)
    finally:
        target.replica.turn()
        for _ in range(4):
            rig.step()
        rig.frames.clear()
        leader.replica.hashes.reset()
        if kind == ShellFrame.ANSWER:
            asked = target.replica._leases._asked
            still = 2 * (QUESTIONS in asked) + (QUESTIONS + 1 in asked)
            assert len(answers) + still == 3, "whoever asked waits for ever, or hears twice"
    return True


@contextmanager
def _shell() -> Iterator[Read]:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), 3)
        try:
            leader = rig.leader()
            rig.settle()
            rig.propose(leader, commands.lease_grant(7, 3600))
            rig.settle()
            follower = next(site for site in rig.sites.values() if site is not leader)
            yield lambda data: _read_shell(rig, leader, follower, data)
        finally:
            rig.close()


TARGETS = (
    Target(
        "peer-frames",
        "server/frames.py: FrameParser",
        _frame_samples,
        plain(_read_frames),
        (PeerError,),
        mend=_mend_frames,
    ),
    Target(
        "peer-hello",
        "server/frames.py: HELLO and WELCOME",
        _hello_samples,
        plain(_read_hello),
        (PeerError,),
    ),
    Target(
        "peer-introduction",
        "server/introduction.py: decode_introduction",
        _introduction_samples,
        plain(_read_introduction),
        (PeerError,),
        spoils=(msgpack_tree(),),
    ),
    Target(
        "shell-frames",
        "server/replica.py: receive_frame, and the lease desk behind it",
        _shell_samples,
        _shell,
        (PeerError,),
        spoils=(msgpack_tree(1),),
        pytest_executions=500,
    ),
    Target(
        "messages",
        "consensus/codec.py: decode_messages",
        lambda: [encode_messages(messages()), *(encode_messages([one]) for one in messages())],
        plain(_read_messages),
        (PeerError,),
        spoils=(msgpack_tree(),),
    ),
    Target(
        "config-change",
        "consensus/codec.py: decode_change; server/membership.py: read_context",
        lambda: [encode_change(CHANGE), encode_change(ConfigChange())],
        plain(_read_change),
        (PeerError,),
        spoils=(msgpack_tree(),),
    ),
    Target(
        "conf",
        "consensus/codec.py: decode_conf",
        lambda: [encode_conf(CONF), encode_conf(ConfState((1,)))],
        plain(_read_conf),
        (PeerError,),
        spoils=(msgpack_tree(),),
    ),
    Target(
        "snapshot-offer",
        "server/snapshot_stream.py: _decode_offer; storage/snapshots.py: SnapshotInfo.unpack",
        _offer_samples,
        plain(_read_offer),
        (PeerError,),
        spoils=(lambda rng, data: data[:4] + blind(rng, data[4:]),),
    ),
)
