"""top: the cluster, live in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from raftkv.cli.output import colours, size_text
from raftkv.cli.session import TIMEOUT_DEFAULT, Session, common_options, guarded
from raftkv.cli.standing import Standing, commit_index, health_text, once_each, places
from raftkv.cli.status import show
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Status

HISTORY = 60
BARS = "▁▂▃▄▅▆▇█"
MEMBERS_ASKED_SECONDS = 10.0
GOES = ("q", "Q", "\x03", "\x1b", "\x04")
"""Keys that leave: q, Ctrl-C, Escape, Ctrl-D."""

COLUMNS = (
    # Title, the least width of a terminal that shows it.
    ("MEMBER", 0), ("ROLE", 0), ("TERM", 100), ("LAG", 0), ("APPLIED", 110), ("WRITES/S", 0),
    ("DATA", 0), ("QUOTA", 0), ("LOG", 120), ("WAITING", 90), ("WATCHES", 100), ("CONNS", 90),
    ("UP", 80), ("HEALTH", 0),
)  # fmt: skip


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@common_options
def top(session: Session, interval: float) -> None:
    """Watch all members, live.

    q or Ctrl-C leaves. Without a terminal it shows the members once, as `raftkv status` does.
    """
    if not (sys.stdout.isatty() and sys.stdin.isatty()) or session.output.format != "table":
        show(session)
        return
    guarded(lambda: asyncio.run(_live(session, interval)))


@dataclass(slots=True)
class Picture:
    """What was seen so far; `take` another look into it, and draw it."""

    interval: float
    standings: list[Standing] = field(default_factory=list)
    writes: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    """Writes a second by the whole cluster, one figure a look."""
    _seen: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Endpoint -> when its applied revision was what."""
    _rates: dict[str, float] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    """Endpoint -> name of the member there, once it has answered."""

    def take(self, standings: Sequence[Standing], now: float) -> None:
        """Another look at the members; `now` in seconds on any steady clock."""
        self.standings = list(standings)
        for endpoint, view in standings:
            before = self._seen.pop(endpoint, None)
            self._rates.pop(endpoint, None)
            if isinstance(view, RaftkvError):
                continue
            self._seen[endpoint] = (now, view.revision)
            self._names[endpoint] = view.name
            if before is not None and now > before[0]:
                grown = max(0, view.revision - before[1])
                self._rates[endpoint] = grown / (now - before[0])
        if self._rates:
            self.writes.append(max(self._rates.values()))

    def rate(self, endpoint: str) -> float | None:
        """Revisions a second that an endpoint applied lately; None: not known yet."""
        return self._rates.get(endpoint)

    def drawn(self, width: int) -> Group:
        """The whole screen, for a terminal of this many columns."""
        from rich.console import Group
        from rich.text import Text

        answers = [view for _, view in self.standings if not isinstance(view, RaftkvError)]
        parts: list[RenderableType] = [self._headline(answers, width), Text()]
        if self.standings:
            parts.append(self._table(width))
        for endpoint, view in self.standings:
            if not isinstance(view, RaftkvError) and (health := health_text(view)) != "ok":
                parts.append(
                    Text(f"{view.name or endpoint}: {health}", style="yellow", overflow="ellipsis")
                )
        parts.append(Text(f"\nq leaves; a look every {self.interval:g} s", style="dim"))
        return Group(*parts)

    def _headline(self, answers: list[Status], width: int) -> Text:
        from rich.text import Text

        line = Text("raftkv", style="bold")
        if not self.standings:
            line.append("   asking the members")
            return line
        if not answers:
            line.append("   no member answers", style="bold red")
            return line
        leaders = [view for view in answers if view.role == "leader"]
        newest = max(answers, key=lambda view: view.term)
        if width >= 100:
            line.append(f"   cluster {newest.cluster_id}", style="dim")
        if leaders:
            leader = max(leaders, key=lambda view: view.term)
            line.append("   leader ")
            line.append(leader.name or leader.member_id, style="bold green")
        else:
            line.append("   no leader", style="bold red")
        line.append(f"   term {newest.term}   revision {max(v.revision for v in answers):,}")
        down = len(self.standings) - len(answers)
        line.append(
            f"   {len(answers)} of {len(self.standings)} answer", style="bold red" if down else ""
        )
        line.append(f"\n\nwrites/s {self.writes[-1] if self.writes else 0:>9,.0f} ")
        room = max(0, min(HISTORY, width - 40))
        line.append(sparkline(list(self.writes)[-room:] if room else []), style="cyan")
        if any(self.writes):
            line.append(f"  most {max(self.writes):,.0f}", style="dim")
        return line

    def _table(self, width: int) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        shown = [place for place, (_, least) in enumerate(COLUMNS) if width >= least]
        for place in shown:
            title = COLUMNS[place][0]
            left = title in ("MEMBER", "ROLE", "HEALTH")
            table.add_column(title, justify="left" if left else "right", no_wrap=True)
        agreed = commit_index(self.standings)
        for endpoint, view in self.standings:
            if isinstance(view, RaftkvError):
                name = self._names.get(endpoint) or endpoint.partition("://")[2]
                cells: list[Any] = [name, "down", *[""] * (len(COLUMNS) - 3), "no answer"]
                style = "red"
            else:
                cells = self._cells(endpoint, view, agreed)
                style = "green" if view.role == "leader" else ""
                style = style if view.healthy else "yellow"
            table.add_row(*(cells[place] for place in shown), style=style)
        return table

    def _cells(self, endpoint: str, view: Status, agreed: int) -> list[Any]:
        raw, rate = view.raw, self.rate(endpoint)
        used, quota = int(raw.get("db_used_bytes") or 0), int(raw.get("quota_bytes") or 0)
        return [
            view.name or endpoint,
            view.role,
            str(view.term),
            f"{max(0, agreed - view.applied_index):,}",
            f"{view.applied_index:,}",
            "" if rate is None else f"{rate:,.0f}",
            size_text(used or view.db_bytes),
            f"{used / quota:.0%}" if quota else "",
            size_text(int(raw.get("wal_bytes") or 0)),
            f"{int(raw.get('pending') or 0):,}",
            f"{int(raw.get('watchers') or 0):,}",
            f"{int(raw.get('connections') or 0):,}",
            duration_text(float(raw.get("uptime_seconds") or 0)),
            "ok" if view.healthy else "!",
        ]


def sparkline(figures: Sequence[float]) -> str:
    """Figures as bars, the highest the full height."""
    most = max(figures, default=0)
    if most <= 0:
        return BARS[0] * len(figures)
    return "".join(BARS[min(len(BARS) - 1, int(each / most * len(BARS)))] for each in figures)


def duration_text(seconds: float) -> str:
    """How long, in its two largest units: ``3d 4h``."""
    whole = int(seconds)
    for name, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60),
                                      ("m", 60, "s", 1)):  # fmt: skip
        if whole >= size:
            return f"{whole // size}{name} {whole % size // part}{smaller}"
    return f"{whole}s"


async def _live(session: Session, interval: float) -> None:
    """Draw until a key or a signal says to leave. The terminal is as before afterwards."""
    from rich.console import Console
    from rich.live import Live

    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, leave.set)
    console = Console(no_color=not colours(sys.stdout), highlight=False)
    picture = Picture(interval)
    async with _Watcher(session) as watcher:
        with (
            _keys(loop, leave),
            Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live,
        ):
            pause = 0.0
            while not leave.is_set():
                live.update(picture.drawn(console.width), refresh=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(leave.wait(), pause)
                    break
                pause = interval
                looking = asyncio.ensure_future(watcher.look(interval))
                leaving = asyncio.ensure_future(leave.wait())
                await asyncio.wait((looking, leaving), return_when=asyncio.FIRST_COMPLETED)
                leaving.cancel()
                if not looking.done():
                    looking.cancel()
                    break
                picture.take(looking.result(), time.monotonic())


class _Watcher:
    """Asks all members again and again; now and then also who they are."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stack = contextlib.AsyncExitStack()
        self._asked_at = 0.0
        self._urls: list[str] = []
        self._members: list[str] = []
        self._wide: AsyncClient

    async def __aenter__(self) -> _Watcher:
        self._client = await self._stack.enter_async_context(
            self._session.client(self._session.endpoints, patience=0)
        )
        self._wide = self._client
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    async def look(self, interval: float) -> list[Standing]:
        """Every member's view. One that does not answer soon has none, so that the rest move."""
        now = time.monotonic()
        if not self._urls or now - self._asked_at > MEMBERS_ASKED_SECONDS:
            self._asked_at = now
            self._members, urls = await places(self._wide)
            if urls != self._urls:
                self._urls = urls
                self._wide = await self._stack.enter_async_context(
                    self._session.client(urls, patience=0)
                )
        seconds = min(self._session.timeout or TIMEOUT_DEFAULT, max(1.0, interval))
        return once_each(await self._wide.cluster.statuses(timeout=seconds), self._members)


@contextlib.contextmanager
def _keys(loop: asyncio.AbstractEventLoop, leave: asyncio.Event) -> Iterator[None]:
    """Read single keys, unseen; the terminal is as before at the end."""
    import termios
    import tty

    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def pressed() -> None:
        data = os.read(handle, 1024)
        if not data or data[:1].decode("latin-1") in GOES:
            leave.set()

    tty.setcbreak(handle)
    loop.add_reader(handle, pressed)
    try:
        yield
    finally:
        loop.remove_reader(handle)
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
