"""Command groups whose members are imported when they are used, so that help is quick."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from raftkv.cli.output import Failure


@contextmanager
def one_line() -> Iterator[None]:
    """Tell a wrong command line like any other error: one line, with where to look."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "raftkv"
        advice = f"See `{path} --help`."
        raise Failure(error.format_message(), error.exit_code, advice) from error


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is, and the line about it in its group's help."""

    place: str
    """``module:attribute``."""
    help: str
    section: str = "Commands"


class LazyGroup(click.Group):
    """A group over a table of `Lazy` commands, listed by section in the table's order."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.lazy, n=1)
            if near:
                raise click.UsageError(
                    f"there is no command {args[0]!r}; did you mean {near[0]!r}?", ctx
                ) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.lazy.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
