"""snapshot save, status, restore."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import progress_bar, size_text
from raftkv.cli.session import Session, common_options, guarded

COMMANDS = {
    "save": Lazy("raftkv.cli.snapshot:save", "Download a snapshot of the whole store."),
    "status": Lazy("raftkv.cli.snapshot:status", "Check a snapshot file and tell what is in it."),
    "restore": Lazy("raftkv.cli.snapshot:restore", "Make a new data directory out of a snapshot."),
}


def new_member_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that describe one member of a restored cluster; see `new_member`."""
    for option in (
        click.option("--initial-advertise-peer-urls", default="", metavar="URL,..."),
        click.option("--initial-cluster-token", default="raftkv-cluster", show_default=True),
        click.option("--initial-cluster", default="", metavar="NAME=URL,..."),
        click.option("--name", default="default", show_default=True, metavar="NAME"),
        click.option("--data-dir", required=True, metavar="PATH"),
    ):
        command = option(command)
    return command


def new_member(settings: dict[str, str]) -> Any:
    """The configuration that `new_member_options` describe. Raises ConfigError."""
    from raftkv.server.config import load_config

    given: dict[str, object] = {name: value or None for name, value in settings.items()}
    if "https://" in settings["initial_cluster"] + settings["initial_advertise_peer_urls"]:
        # Nothing listens here, but what listens by default is http and would not fit.
        given |= {"listen_peer_urls": "https://127.0.0.1:2380", "peer_auto_tls": True}
    return load_config(given)


def restored_text(settings: dict[str, str]) -> str:
    """What to do with a restored directory."""
    name, data_dir = settings["name"], settings["data_dir"]
    return f"{data_dir} is ready: raftkv serve --name {name} --data-dir {data_dir}"


@click.group(cls=LazyGroup, lazy=COMMANDS)
def snapshot() -> None:
    """Save, check and restore the whole store."""


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
@common_options
def save(session: Session, path: Path, force: bool) -> None:
    """Download a snapshot of the whole store.

    The file appears at PATH once all of it is there and on disk.
    """
    if path.exists() and not force:
        raise click.UsageError(f"{path} exists already; --force replaces it")
    with progress_bar(f"saving {path.name}") as progress:
        saved = session.run(
            lambda client: client.cluster.save_snapshot(
                path, progress=progress, timeout=session.timeout
            )
        )
    at = f" at index {saved.index}" if saved.index is not None else ""
    session.output.one(saved, lambda: f"{saved.path}: {size_text(saved.size_bytes)}{at}")


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common_options
def status(session: Session, path: Path) -> None:
    """Check a snapshot file and tell what is in it."""
    found: dict[str, Any] = guarded(lambda: _offline().snapshot_status(path))

    def text() -> str:
        width = max(map(len, found), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in found.items())

    session.output.one(found, text)


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@new_member_options
@common_options
def restore(session: Session, path: Path, **settings: str) -> None:
    """Make a new data directory out of a snapshot.

    Run it once for each member of the new cluster, each with its own --name and --data-dir and the
    same --initial-cluster, then start the members with the same settings. The cluster is a new
    one: it shares nothing but the data with the one that was saved.
    """

    def work() -> None:
        with progress_bar(f"restoring {path.name}") as progress:
            _offline().snapshot_restore(path, new_member(settings), progress=progress)

    guarded(work)
    name, data_dir = settings["name"], settings["data_dir"]
    session.output.one({"data_dir": data_dir, "name": name}, lambda: restored_text(settings))


def _offline() -> Any:
    # Reached by name: what it needs of the store is loaded for these commands only.
    return importlib.import_module("raftkv.server.offline")
