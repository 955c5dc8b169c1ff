"""What `raftkv -o json` and `-o fields` print, held against etcdctl 3.5 at the same server.

    python -m tests.interop.cli [--form json|fields] [--secure]

Each step is the same request, written as each of the two commands takes it. Both are asked one
after the other of one member, on keys of their own where the request changes something. Revisions,
ids that the server chose, hashes, times and fields that 3.5 does not know are not compared.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.interop.peers import etcd_programs
from tests.interop.security import Security, add_options, cluster_of, serving
from tests.support.processes import Cluster, free_ports

SECONDS: Final = 60
TXN_OURS: Final = (
    '{"if": [{"key": "KEY", "target": "value", "op": "=", "operand": "1"}], "then": ['
    '{"op": "put", "key": "KEY", "value": "2"}, {"op": "get", "key": "KEY"}, '
    '{"op": "delete", "key": "none"}, {"op": "get", "key": "none"}]}'
)
TXN_THEIRS: Final = 'value("KEY") = "1"\n\nput KEY 2\nget KEY\ndel none\nget none\n\n\n'

_UNEQUAL: Final = [
    (re.compile(r'"(revision|create_revision|mod_revision|authRevision)":\d+'), r'"\1":0'),
    (re.compile(r'"(ID|id|hash|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":\d+'), r'"\1":0'),
    (re.compile(r'"(Revision|CreateRevision|ModRevision|ID|Hash|DBSize)" : \d+'), r'"\1" : 0'),
    (re.compile(r'"(PrevCreateRevision|PrevModRevision|Raft\w*Index)" : \d+'), r'"\1" : 0'),
    (re.compile(r'"(ttl|TTL)"( ?: ?)-?\d+'), r'"\1"\2<time>'),
    (re.compile(r'"took":"[^"]*"|"Took" : \S+'), "<took>"),
    (re.compile(r',"(storageVersion|hash_revision|dbSizeQuota)":("[^"]*"|\d+)'), ""),
    (re.compile(r',"downgradeInfo":\{\}'), ""),
    (re.compile(r"compacted revision \d+"), "compacted revision 0"),
]  # fmt: skip

_MEMBERS: Final = re.compile(r'(\{"ID":0[^{}]*\},?)+(?=\])')
"""Listed by id, which is random."""

_OWN: Final = [
    re.compile(pattern)
    for pattern in (
        r'"key":"[^"]*"', r'"keys":\["[^"]*"\]', r'"(users|roles)":\[[^]]*\]',
        r'(\{"id":0\},?)+', r'("ID" : 0\n)+', r'"Roles" : .*',
    )
]  # fmt: skip

# Arguments for raftkv, and for etcdctl; KEY, ID, REV stand for what each has of its own.
Step = tuple[str, str]
STEPS: Final[list[Step]] = [
    ("put KEY 1 --prev", "put KEY 1 --prev-kv"),
    ("put KEY 1 --prev", "put KEY 1 --prev-kv"),
    ("get KEY", "get KEY"),
    ("get --prefix KEY", "get KEY --prefix"),
    ("get KEY --end KEY0 --limit 1", "get KEY KEY0 --limit 1"),
    ("get --prefix KEY --keys-only", "get KEY --prefix --keys-only"),
    ("get --prefix none", "get none --prefix"),
    ("get none", "get none"),
    ("txn", "txn"),
    ("txn", "txn"),
    ("put KEY/lease 1 --lease ID", "put KEY/lease 1 --lease ID"),
    ("lease show ID", "lease timetolive ID --keys"),
    ("lease show 7", "lease timetolive 7 --keys"),
    ("lease list", "lease list"),
    ("lease keep-alive ID --once", "lease keep-alive ID --once"),
    ("del KEY --prev", "del KEY --prev-kv"),
    ("del --prefix none", "del none --prefix"),
    ("del none", "del none"),
    ("watch KEY --from REV -n 4 --prev", "watch KEY --rev REV --prev-kv"),
    ("lease revoke ID", "lease revoke ID"),
    ("lease grant 100", "lease grant 100"),
    ("member list", "member list"),
    ("endpoint status", "endpoint status"),
    ("endpoint health", "endpoint health"),
    ("endpoint hashkv", "endpoint hashkv"),
    ("alarm list", "alarm list"),
    ("user add KEY-user --no-password", "user add KEY-user --no-password"),
    ("role add KEY-role", "role add KEY-role"),
    ("role grant-permission KEY-role readwrite --prefix foo",
     "role grant-permission KEY-role readwrite foo --prefix"),
    ("role grant-permission KEY-role read a --end b",
     "role grant-permission KEY-role read a b"),
    ("role get KEY-role", "role get KEY-role"),
    ("user grant-role KEY-user KEY-role", "user grant-role KEY-user KEY-role"),
    ("user get KEY-user", "user get KEY-user"),
    ("user list", "user list"),
    ("role list", "role list"),
    ("role revoke-permission KEY-role --prefix foo",
     "role revoke-permission KEY-role foo --prefix"),
    ("user revoke-role KEY-user KEY-role", "user revoke-role KEY-user KEY-role"),
    ("user delete KEY-user", "user delete KEY-user"),
    ("role delete KEY-role", "role delete KEY-role"),
    ("auth status", "auth status"),
    ("member add http://127.0.0.1:PORT; member remove ADDED",
     "member add new --learner --peer-urls http://127.0.0.1:PORT; member remove ADDED"),
    ("compact REV", "compaction REV"),
    # The last: in a secure run it was on until here.
    ("auth disable", "auth disable"),
]  # fmt: skip


class Teller:
    """One of the two programs, and what is its own."""

    def __init__(self, command: list[str], form: str, key: str) -> None:
        self.command = command
        self.form = form
        self.own = {"KEY": key, "PORT": str(free_ports(1)[0])}
        self.record: list[str] = []

    def ask(self, arguments: str, stdin: str = "", form: str = "") -> str:
        """What it prints; nothing else."""
        for name, value in self.own.items():
            arguments = arguments.replace(name, value)
            stdin = stdin.replace(name, value)
        command = [*self.command, *arguments.split()]
        flag = "-o" if self.command[0] == sys.executable else "-w"
        if arguments.startswith("watch") and flag == "-w":
            # It would wait for more.
            command = ["timeout", "3", *command]
        done = subprocess.run(
            [*command, flag, form or self.form], input=stdin, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip
        return done.stdout

    def step(self, arguments: str, stdin: str) -> str:
        """One step, for the record."""
        text = ""
        for command in arguments.split("; "):
            text += self.ask(command, stdin)
            if found := re.search(r'"member":\{"ID":(\d+)', text):
                self.own["ADDED"] = f"{int(found[1]):x}"
        if self.own.get("REV", "0") == "0" and (found := re.search(r'evision"( : |:)(\d+)', text)):
            self.own["REV"] = found[2]
        # Whole numbers only: an id of nineteen digits can have those of the port in it.
        text = re.sub(rf"\b{self.own['PORT']}\b", "PORT", text).replace(self.own["KEY"], "KEY")
        for pattern, instead in _UNEQUAL:
            text = pattern.sub(instead, text)
        return _MEMBERS.sub(
            lambda found: ",".join(sorted(re.findall(r"\{[^{}]*\}", found[0]))), text
        )


def compare(url: str, form: str, security: Security) -> int:
    """All steps in one form; how many differ."""
    security.enable(url)
    raftkv = [sys.executable, "-m", "raftkv", "--endpoints", url, *security.raftkv_flags]
    etcdctl = [str(etcd_programs() / "etcdctl"), f"--endpoints={url}", *security.etcdctl_flags]
    ours, theirs = Teller(raftkv, form, f"k-{form}"), Teller(etcdctl, form, f"c-{form}")
    for each in (ours, theirs):
        granted = theirs.ask("lease grant 500", form="simple")
        each.own["ID"] = granted.split()[1]
    differing = 0
    for left, right in STEPS:
        if form == "fields" and "ADDED" in left:
            continue  # it has no such form
        told = [ours.step(left, TXN_OURS), theirs.step(right, TXN_THEIRS)]
        # Each adds a user, a role and a lease: how many there are by now is not the same. Keys are
        # in base64 in JSON.
        for pattern in _OWN:
            told = [pattern.sub("<own>", each) for each in told]
        if told[0] != told[1]:
            differing += 1
            print(f"raftkv {left}\netcdctl {right}")
            diff = difflib.unified_diff(
                told[1].splitlines(), told[0].splitlines(), "etcdctl", "raftkv", lineterm=""
            )
            print("\n".join(diff))
    security.disable(url)
    print(f"{form}: {len(STEPS) - differing} steps as etcdctl, {differing} not")
    return differing


async def told_of(cluster: Cluster) -> None:
    """Wait until the member's client address is in the list of members, which is compared too."""
    async with asyncio.timeout(20):
        while True:
            found = await cluster.insist(cluster.members[0], "GET", "/api/members")
            if all(each["client_urls"] for each in found["members"]):
                return
            await asyncio.sleep(0.05)


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", action="append", choices=("json", "fields"))
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cluster = cluster_of(options, Path(name))
        async with serving(cluster, enabled=False) as security:
            url = cluster.urls[0]
            await told_of(cluster)
            differing = 0
            for form in options.form or ["json", "fields"]:
                differing += await asyncio.to_thread(compare, url, form, security)
    if differing:
        sys.exit(f"{differing} steps differ")


if __name__ == "__main__":
    asyncio.run(main())
