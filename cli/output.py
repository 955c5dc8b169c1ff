"""What goes to standard output: tables for people, JSON for programs.

Without ``-o`` a terminal gets tables and a pipe gets the API's JSON. Colours appear only on a
terminal whose user has not set NO_COLOR.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from raftkv.cli.exits import FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raftkv.client.results import Record

Format = Literal["table", "json", "ndjson"]
FORMATS = ("table", "json", "fields", "api", "ndjson")
"""What ``-o`` takes: etcdctl's JSON and fields where etcd has the command, and our API's JSON."""


class Failure(click.ClickException):
    """An error told in one line on standard error, with its exit code."""

    def __init__(self, message: str, exit_code: int = FAILED, advice: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance
        self.advice = advice

    def show(self, file: Any = None) -> None:
        text = self.message.strip()
        if text and text[-1] not in ".!?":
            text += "."
        advice = f" {self.advice}" if self.advice else ""
        note(f"{click.style('error:', fg='red', bold=True)} {text}{advice}")


def note(text: str) -> None:
    """A line on standard error; styles are dropped unless that is a terminal."""
    click.echo(text, err=True, color=None if colours(sys.stderr) else False)


def colours(stream: Any) -> bool:
    """Whether `stream` should get colours."""
    return bool(
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def choose_output(given: str | None) -> Output:
    """As asked for with ``-o``, else as suits standard output."""
    if given in ("json", "fields"):
        return Output("json", etcd=given)
    if given in ("table", "ndjson"):
        return Output(given)  # type: ignore[arg-type]
    return Output("table" if given is None and sys.stdout.isatty() else "json")


def printable(text: str) -> str:
    """Text that any terminal can show: control characters and non-text bytes are escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in _surrogates(text)
    )


def _surrogates(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def value_text(value: bytes) -> str:
    """A value for a table: its text, or its base64 with a mark."""
    try:
        return printable(value.decode())
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(value).decode()}"


def record_json(record: Record | None) -> dict[str, Any] | None:
    """A record in the form that the API gives it."""
    if record is None:
        return None
    return {
        **_encoded("key", record.key_bytes, "key_encoding", always=False),
        **_encoded("value", record.value, "encoding", always=True),
        "create_revision": record.create_revision,
        "mod_revision": record.mod_revision,
        "version": record.version,
        "lease": record.lease,
    }


def _encoded(name: str, data: bytes, encoding: str, *, always: bool) -> dict[str, str]:
    try:
        return {name: data.decode(), encoding: "utf-8"} if always else {name: data.decode()}
    except UnicodeDecodeError:
        return {name: base64.b64encode(data).decode(), encoding: "base64"}


def key_json(key: str) -> dict[str, str]:
    """A key in the form that the API gives it."""
    return _encoded("key", key.encode("utf-8", "surrogateescape"), "key_encoding", always=False)


def plain(value: Any) -> Any:
    """A result as JSON can hold it."""
    from raftkv.client.results import Record

    if isinstance(value, Record):
        return record_json(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return _encoded("value", value, "encoding", always=True)
    if isinstance(value, str):
        return _surrogates(value)
    return value


class Output:
    """Standard output in one format."""

    __slots__ = ("etcd", "format")

    def __init__(self, format_: Format, *, etcd: str | None = None) -> None:
        self.format = format_
        self.etcd = etcd
        """The form of etcdctl to use where etcd has the command: ``json``, ``fields`` or none."""

    def line(self, text: str) -> None:
        """A line of text."""
        click.echo(text, color=None if colours(sys.stdout) else False)

    def json(self, value: Any) -> None:
        """One JSON document: indented for people to read, on one line in ndjson."""
        indent = 2 if self.format == "json" and sys.stdout.isatty() else None
        click.echo(json.dumps(value, ensure_ascii=False, indent=indent))

    def one(self, value: Any, text: Callable[[], str]) -> None:
        """One result: `text` for people, `value` for programs."""
        if self.format == "table":
            self.line(text())
        else:
            self.json(plain(value))

    def rows(
        self,
        items: Sequence[Any],
        columns: Sequence[str],
        row: Callable[[Any], Sequence[object]],
        *,
        name: str,
        empty: str,
    ) -> None:
        """Several results: a table, a JSON object with the list `name`, or one a line."""
        if self.format == "table":
            if items:
                self.table(columns, [row(item) for item in items])
            else:
                note(empty)
        elif self.format == "json":
            self.json({name: plain(items)})
        else:
            for item in items:
                self.json(plain(item))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table whose numbers stand to the right."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        cells = [[cell if cell is not None else "" for cell in row] for row in rows]
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for place, column in enumerate(columns):
            numbers = bool(cells) and all(isinstance(row[place], int | float) for row in cells)
            table.add_column(column, justify="right" if numbers else "left", overflow="ellipsis")
        for row in cells:
            table.add_row(*(Text(str(cell)) for cell in row))
        terminal = sys.stdout.isatty()
        console = Console(
            file=sys.stdout,
            highlight=False,
            no_color=not colours(sys.stdout),
            force_terminal=terminal,
            width=None if terminal else 2000,
        )
        if terminal:
            console.print(table, no_wrap=True)
            return
        with console.capture() as captured:
            console.print(table, no_wrap=True)
        for line in captured.get().splitlines():
            click.echo(line.rstrip())


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, told (done, total) in bytes; nothing when that is no terminal."""
    if not sys.stderr.isatty():
        quiet: AbstractContextManager[None] = nullcontext()
        with quiet:
            yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn(text),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, no_color=not colours(sys.stderr)),
        transient=True,
    ) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def size_text(size: int) -> str:
    """Bytes for people: ``1.5 MiB``."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
