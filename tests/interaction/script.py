"""Runs an interaction script: one command a line in, everything that happens out.

add voters=1,2,3 [learners=4] [setting=value ...]   members 1..n; settings of RaftConfig
campaign M | tick M [count=N] | propose M DATA ... | read M CONTEXT | transfer M to=T
change M +V ... lL ... -R ...          add voters, learners; remove
join M | crash M [power] | start M | snapshot M [keep=N] | isolate M ... | heal
cut A B                                loses what A sends to B
ready [M ...]                          hands over output; writes and applying wait
persist M [count=N] | apply M          completes the oldest write; applies what waits
deliver [A->B] [count=N] [drop]        the oldest messages
stabilize                              all of these until nothing moves
status M | log M
"""

from __future__ import annotations

from raftkv.consensus.node import describe_conf
from raftkv.consensus.types import (
    ChangeKind,
    ConfigChange,
    Entry,
    EntryKind,
    Message,
    ProposalDropped,
    Ready,
)
from tests.interaction.group import Group

_CHANGES = {"+": ChangeKind.ADD_VOTER, "l": ChangeKind.ADD_LEARNER, "-": ChangeKind.REMOVE}


def render_entry(entry: Entry) -> str:
    """index/term and what it holds."""
    what = "config" if entry.kind is EntryKind.CONFIG else (entry.data.decode() or "no-op")
    return f"{entry.index}/{entry.term} {what}"


def render_message(message: Message) -> str:
    """`1->2 APPEND term=3 prev=1/11 commit=11`: only what matters for the kind."""
    parts = [f"{message.source}->{message.target} {message.kind.name} term={message.term}"]
    if message.index or message.log_term:
        parts.append(f"at={message.index}" + f"/{message.log_term}" * bool(message.log_term))
    if message.commit_index:
        parts.append(f"commit={message.commit_index}")
    if message.reject:
        parts.append("rejected")
    if message.hint_index or message.hint_term:
        parts.append(f"hint={message.hint_index}/{message.hint_term}")
    if message.snapshot is not None:
        parts.append(f"snapshot={message.snapshot.index}/{message.snapshot.term}")
    if message.context:
        # Round ids hold a random number; a trace shows only that there is one.
        text = message.context.decode() if len(message.context) < 24 else "round"
        parts.append(f"context={text}")
    if message.entries:
        parts.append("[" + ", ".join(render_entry(entry) for entry in message.entries) + "]")
    return " ".join(parts)


class Script:
    """Executes commands against one group and gathers what happens."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.group = Group(voters=())

    def run(self, command: str) -> list[str]:
        """Run one line; what happened, line by line."""
        self.lines = []
        name, *words = command.split()
        arguments = [word for word in words if "=" not in word[1:]]
        options = dict(word.split("=", 1) for word in words if "=" in word[1:])
        try:
            getattr(self, f"do_{name}")(arguments, options)
        except ProposalDropped as error:
            self.lines.append(f"refused: {error}")
        return self.lines

    def do_add(self, _: list[str], options: dict[str, str]) -> None:
        members = {key: _ids(options.pop(key, "")) for key in ("voters", "learners")}
        values = {"true": True, "false": False}
        settings = {key: values.get(text) for key, text in options.items()}
        for key, text in options.items():
            if settings[key] is None:
                settings[key] = int(text)  # type: ignore[assignment]
        self.group = Group(
            members["voters"],
            learners=members["learners"],
            eager_writes=False,
            eager_apply=False,
            trace=lambda text: self.lines.append(text),
            **settings,
        )
        self.group.on_ready = self._show_ready

    def _show_ready(self, member_id: int, ready: object) -> None:
        assert isinstance(ready, Ready)
        out = []
        if ready.soft_state is not None:
            soft = ready.soft_state
            out.append(f"{soft.role.name.lower()} leader={soft.leader} term={soft.term}")
        write = ready.write
        if write is not None:
            text = "write"
            if write.hard_state is not None:
                hard = write.hard_state
                text += f" hard=(term={hard.term} vote={hard.vote} commit={hard.commit_index})"
            if write.snapshot is not None:
                text += f" snapshot={write.snapshot.index}/{write.snapshot.term}"
            if write.entries:
                text += " [" + ", ".join(render_entry(entry) for entry in write.entries) + "]"
            out.append(text)
            out += [f"  then {render_message(reply)}" for reply in write.replies]
        out += [f"send {render_message(message)}" for message in ready.messages]
        if ready.committed:
            entries = ", ".join(render_entry(entry) for entry in ready.committed)
            out.append(f"committed [{entries}]")
        out += [f"read {s.context.decode()} at={s.index}" for s in ready.read_states]
        out += [f"refused {r.kind.name} {r.context.decode()}" for r in ready.refused]
        self.lines.append(f"ready {member_id}:")
        self.lines += [f"  {line}" for line in out]

    def do_campaign(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group[int(arguments[0])].campaign()

    def do_tick(self, arguments: list[str], options: dict[str, str]) -> None:
        for _ in range(int(options.get("count", "1"))):
            for member_id in arguments:
                self.group[int(member_id)].tick()

    def do_propose(self, arguments: list[str], _: dict[str, str]) -> None:
        data = [b"=" + text.encode() for text in arguments[1:]]
        self.group[int(arguments[0])].propose(data)

    def do_change(self, arguments: list[str], _: dict[str, str]) -> None:
        steps = tuple((_CHANGES[word[0]], int(word[1:])) for word in arguments[1:])
        self.group[int(arguments[0])].propose_change(ConfigChange(steps))

    def do_read(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group.read(int(arguments[0]), arguments[1].encode())

    def do_transfer(self, arguments: list[str], options: dict[str, str]) -> None:
        self.group[int(arguments[0])].transfer_leader(int(options["to"]))

    def do_join(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group.add(int(arguments[0]))

    def do_crash(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group.crash(int(arguments[0]), power="power" in arguments)

    def do_start(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group.start(int(arguments[0]))
        self.do_status(arguments, {})

    def do_snapshot(self, arguments: list[str], options: dict[str, str]) -> None:
        meta = self.group.snapshot(int(arguments[0]), keep=int(options.get("keep", "0")))
        first = self.group[int(arguments[0])].first_index
        self.lines.append(f"snapshot index={meta.index} term={meta.term}; log from {first}")

    def do_isolate(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group.isolate(*map(int, arguments))

    def do_cut(self, arguments: list[str], _: dict[str, str]) -> None:
        self.group.cut.add((int(arguments[0]), int(arguments[1])))

    def do_heal(self, _: list[str], __: dict[str, str]) -> None:
        self.group.heal()

    def do_ready(self, arguments: list[str], _: dict[str, str]) -> None:
        for member_id in map(int, arguments) if arguments else list(self.group.members):
            self.group.handle(member_id)

    def do_persist(self, arguments: list[str], options: dict[str, str]) -> None:
        member_id = int(arguments[0])
        for _ in range(int(options.get("count", "1"))):
            self.group.persist(member_id)

    def do_apply(self, arguments: list[str], _: dict[str, str]) -> None:
        member_id = int(arguments[0])
        while self.group.members[member_id].unapplied:
            self.group.apply(member_id)

    def do_deliver(self, arguments: list[str], options: dict[str, str]) -> None:
        left = int(options.get("count", "1000"))
        links = {word for word in arguments if "->" in word}
        for message in list(self.group.network):
            link = f"{message.source}->{message.target}"
            if left and (not links or link in links):
                left -= 1
                self.group.network.remove(message)
                self._pass(message, drop="drop" in arguments)

    def _pass(self, message: Message, *, drop: bool = False) -> None:
        lost = (
            drop
            or (message.source, message.target) in self.group.cut
            or self.group.members[message.target].node is None
        )
        self.lines.append(("lost    " if lost else "deliver ") + render_message(message))
        if not drop:
            self.group.deliver(message)

    def do_stabilize(self, _: list[str], __: dict[str, str]) -> None:
        for _round in range(1000):
            moved = False
            for member_id, member in self.group.members.items():
                moved |= self.group.handle(member_id)
                while member.writes:
                    self.group.persist(member_id)
                    moved = True
                while member.unapplied:
                    self.group.apply(member_id)
                    moved = True
            messages, self.group.network = self.group.network, []
            for message in messages:
                self._pass(message)
            if not moved and not messages:
                self.group.check()
                return
        raise AssertionError("the group does not come to rest")

    def do_status(self, arguments: list[str], _: dict[str, str]) -> None:
        status = self.group[int(arguments[0])].status()
        self.lines.append(
            f"{status.member_id} {status.role.name.lower()} term={status.term} "
            f"leader={status.leader} commit={status.commit_index} applied={status.applied_index} "
            f"stable={status.stable_index} last={status.last_index} {describe_conf(status.conf)}"
        )
        for peer, progress in status.peers.items():
            self.lines.append(
                f"  {peer}: {progress.state.name.lower()} match={progress.match} "
                f"next={progress.next}" + " paused" * progress.paused
            )

    def do_log(self, arguments: list[str], _: dict[str, str]) -> None:
        node = self.group[int(arguments[0])]
        entries = node.entries(node.first_index, node.last_index + 1)
        self.lines.append(f"from {node.first_index}: " + ", ".join(map(render_entry, entries)))


def _ids(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def rewrite(text: str) -> str:
    """A script's text with the trace that it gives now under each command.

    Lines that begin with `#` and empty lines are kept; the trace of a command is indented.
    """
    script = Script()
    out = []
    for line in text.splitlines():
        if line.startswith("    "):
            continue
        out.append(line)
        if line and not line.startswith("#"):
            out += [f"    {happened}".rstrip() for happened in script.run(line)]
    return "\n".join(out) + "\n"
