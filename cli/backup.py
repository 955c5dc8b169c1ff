"""backup base, list, verify, restore: folders of snapshots and archived log."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from raftkv.cli.exits import FAILED
from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import Failure, note, progress_bar, size_text
from raftkv.cli.session import Session, common_options, guarded
from raftkv.cli.snapshot import new_member, new_member_options, restored_text

COMMANDS = {
    "base": Lazy("raftkv.cli.backup:base", "Put a snapshot of the store into a folder."),
    "list": Lazy("raftkv.cli.backup:list_", "Tell what folders hold."),
    "verify": Lazy("raftkv.cli.backup:verify", "Read all of it, and tell what is damaged."),
    "restore": Lazy("raftkv.cli.backup:restore", "Make a new data directory as of a moment."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def backup() -> None:
    """Folders of backups, and a restore to any moment.

    A folder is what --backup-dir or --archive-dir of `raftkv serve` names; several may be given.
    """


def folders_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """One or more folders, and which cluster's backups in them are meant."""
    option = click.option(
        "--cluster", metavar="ID", help="Whose backups, if there are several clusters'."
    )
    kind = click.Path(exists=True, file_okay=False)
    return click.argument("folders", nargs=-1, required=True, type=kind)(option(command))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@common_options
def base(session: Session, folder: Path) -> None:
    """Put a snapshot of the store into a folder, from any member.

    Archived log brings it to any later moment: see `raftkv backup restore`.
    """
    with progress_bar("saving a base") as progress:

        async def work(client: Any) -> Any:
            status = await client.cluster.status()
            into = folder / status.cluster_id
            into.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = into / f"base-{os.getpid()}-{time.time_ns()}.partial"
            saved = await client.cluster.save_snapshot(partial, progress=progress)
            made_ms, member = time.time_ns() // 1_000_000, int(status.member_id, 16)
            final = into / f"base-{saved.index or 0:016x}-{made_ms:013d}-{member:016x}.snapshot"
            os.rename(partial, final)
            return saved, final

        saved, final = session.run(work)
    session.output.one(
        {"path": str(final), "size_bytes": saved.size_bytes, "index": saved.index},
        lambda: f"{final}: {size_text(saved.size_bytes)} at index {saved.index}",
    )


@click.command("list")
@folders_argument
@common_options
def list_(session: Session, folders: tuple[str, ...], cluster: str | None) -> None:
    """Tell what folders hold: bases, archived log, and what is missing between."""
    tool = _tool()
    found: dict[int, Any] = guarded(lambda: tool.look(folders))
    wanted = None if cluster is None else _cluster_id(cluster)
    rows: list[dict[str, Any]] = []
    for cluster_id, holdings in sorted(found.items()):
        if wanted in (None, cluster_id):
            rows += _rows(tool, cluster_id, holdings)
    session.output.rows(
        rows,
        ("CLUSTER", "WHAT", "FIRST INDEX", "LAST INDEX", "FILES"),
        lambda row: tuple(row.values()),
        name="backups",
        empty="there is no backup in these folders",
    )


def _rows(tool: Any, cluster_id: int, holdings: Any) -> list[dict[str, Any]]:
    """Bases, and archived log without a gap, in the order of the log."""

    def row(what: str, first: int, last: int, files: str) -> dict[str, Any]:
        names = ("cluster_id", "what", "first_index", "last_index", "files")
        return dict(zip(names, (f"{cluster_id:016x}", what, first, last, files), strict=True))

    rows = [row("base", index, index, path) for index, path in holdings.bases]
    rows += [
        row("log", first, last, f"{files} archived")
        for first, last, files in tool.stretches(holdings.segments)
    ]
    rows += [row("MISSING", first, last, "") for first, last in tool.gaps(holdings.segments)]
    return sorted(rows, key=lambda one: (one["first_index"], one["what"]))


@click.command()
@folders_argument
@common_options
def verify(session: Session, folders: tuple[str, ...], cluster: str | None) -> None:
    """Read all of it and compare every checksum; exit code 1 when anything is wrong."""
    tool = _tool()

    def work() -> tuple[int, Any, list[str]]:
        wanted = None if cluster is None else _cluster_id(cluster)
        cluster_id, holdings = tool.choose(tool.look(folders), wanted)
        return cluster_id, holdings, tool.verify(cluster_id, holdings)

    cluster_id, holdings, faults = guarded(work)
    files = len(holdings.bases) + len(holdings.segments)
    result = {"cluster_id": f"{cluster_id:016x}", "files": files, "faults": faults}
    session.output.one(
        result,
        lambda: "\n".join(faults) or f"{files} files of cluster {cluster_id:016x}: all whole",
    )
    if faults:
        raise Failure(f"{len(faults)} faults in {files} files", FAILED)


@click.command()
@folders_argument
@click.option("--to-revision", type=click.IntRange(min=1), metavar="N", help="End there.")
@click.option(
    "--to-time", metavar="TIME", help="End there: 2026-01-31T12:00:00Z, or seconds since 1970."
)
@new_member_options
@common_options
def restore(
    session: Session,
    folders: tuple[str, ...],
    cluster: str | None,
    to_revision: int | None,
    to_time: str | None,
    **settings: str,
) -> None:
    """Make a new data directory as of a moment: the end of what is archived, unless told.

    Run it for each member of the new cluster, as `raftkv snapshot restore`, each time with the
    same folders and the same moment. The cluster is a new one.
    """
    if to_revision is not None and to_time is not None:
        raise click.UsageError("give --to-revision or --to-time, not both")
    tool = _tool()
    moment = tool.Moment(to_revision, None if to_time is None else time_ms(to_time))

    def work() -> dict[str, Any]:
        wanted = None if cluster is None else _cluster_id(cluster)
        cluster_id, holdings = tool.choose(tool.look(folders), wanted)
        with progress_bar("restoring") as progress:
            reached: dict[str, Any] = tool.restore(
                cluster_id, holdings, new_member(settings), moment, progress=progress
            )
        return reached

    reached = guarded(work)
    if to_time is not None:
        note(f"the last write before {to_time} that is archived was at {reached['time']}")
    session.output.one(
        {"data_dir": settings["data_dir"], "name": settings["name"], **reached},
        lambda: (
            f"revision {reached['revision']} of {reached['time']}, {reached['keys']} keys\n"
            + restored_text(settings)
        ),
    )


def time_ms(text: str) -> int:
    """Milliseconds since 1970. A time without a zone is UTC. Raises UsageError."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        return int(float(text) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{text!r} is no time; write 2026-01-31T12:00:00Z, or seconds since 1970"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _cluster_id(text: str) -> int:
    if not re.fullmatch(r"[0-9a-fA-F]{16}", text):
        raise click.UsageError(f"{text!r} is no cluster id: it has 16 hexadecimal digits")
    return int(text, 16)


def _tool() -> Any:
    # Reached by name: what it needs of the store is loaded for these commands only.
    return importlib.import_module("raftkv.server.point_in_time")
