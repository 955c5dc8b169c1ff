"""completion and version."""

from __future__ import annotations

import platform

import click

from raftkv import __version__, form
from raftkv.cli.output import FORMATS, choose_output


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  raftkv completion bash > ~/.local/share/bash-completion/completions/raftkv
    zsh:   raftkv completion zsh > ~/.zfunc/_raftkv
    fish:  raftkv completion fish > ~/.config/fish/completions/raftkv.fish
    """
    from click.shell_completion import get_completion_class

    from raftkv.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover - click knows all three
        raise click.UsageError(f"there is no completion for {shell}")
    script = kind(cli, {}, "raftkv", "_RAFTKV_COMPLETE")
    click.echo(script.source_template % script.source_vars())


@click.command()
@click.option("-o", "--output", "-w", "--write-out", "output", type=click.Choice(FORMATS))
def version(output: str | None) -> None:
    """Print versions."""
    outer = (click.get_current_context().find_root().obj or {}).get("output")
    found = {"version": __version__, "form": form(), "python": platform.python_version()}
    choose_output(output or outer).one(
        found, lambda: f"raftkv {found['version']} ({found['form']}, Python {found['python']})"
    )
