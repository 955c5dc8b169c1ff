"""cert: a certificate authority for those who have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import FORMATS, choose_output
from raftkv.cli.session import chosen, guarded

COMMANDS = {
    "ca": Lazy("raftkv.cli.cert:ca", "Make a CA, which signs all others."),
    "member": Lazy("raftkv.cli.cert:member", "Make the certificate of a member."),
    "client": Lazy("raftkv.cli.cert:client", "Make the certificate of a client."),
    "revoke": Lazy("raftkv.cli.cert:revoke", "Revoke certificates."),
    "show": Lazy("raftkv.cli.cert:show", "Show what a certificate says."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def cert() -> None:
    """Make certificates for TLS.

    \b
      raftkv cert ca
      raftkv cert member m1 --host 10.0.0.1 --host m1.example.com
      raftkv cert client alice

    They are put into the directory `certs`. Keep ca.key away from members and clients.
    """


def making(days: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--dir, --days and --force."""

    def options(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--force", is_flag=True, help="Replace files that are there already."),
            click.option(
                "--days", type=click.IntRange(1, 36_500), default=days, show_default=True,
                metavar="N", help="How long it is valid.",
            ),
            directory,
        ):  # fmt: skip
            command = option(command)
        return command

    return options


directory = click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("certs"),
    show_default=True, metavar="PATH", help="Where the files are.",
)  # fmt: skip
output_format = click.option(
    "-o", "--output", envvar="RAFTKV_OUTPUT", type=click.Choice(FORMATS), help="How to print."
)


@click.command()
@click.option("--name", default="raftkv CA", show_default=True, metavar="TEXT")
@making(days=3650)
def ca(name: str, folder: Path, days: int, force: bool) -> None:
    """Make a CA, which signs all others.

    Its files are ca.crt, which everybody gets, and ca.key, which nobody else gets.
    """

    def make() -> None:
        from raftkv.server.tls.authority import Authority, write_pair

        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pair = Authority.make(name, days=days).pem()
        write_pair(folder / "ca.crt", folder / "ca.key", pair, force=force)

    guarded(make)
    _made(folder, "ca")


@click.command()
@click.argument("name")
@click.option(
    "--host", "hosts", multiple=True, required=True, metavar="HOST",
    help="A name or address in the member's URLs; may be repeated.",
)  # fmt: skip
@making(days=365)
def member(name: str, hosts: tuple[str, ...], folder: Path, days: int, force: bool) -> None:
    """Make the certificate of a member.

    Its files are NAME.crt and NAME.key. It is good for the client port and the peer port, as
    --cert-file and --peer-cert-file.
    """
    _issue(folder, name, force, lambda authority: authority.member(name, hosts, days=days))


@click.command()
@click.argument("name")
@making(days=365)
def client(name: str, folder: Path, days: int, force: bool) -> None:
    """Make the certificate of a client.

    Its files are NAME.crt and NAME.key. With --client-cert-auth, and access control on, NAME is the
    user that it stands for.
    """
    _issue(folder, name, force, lambda authority: authority.client(name, days=days))


@click.command()
@click.argument(
    "paths", nargs=-1, metavar="[FILE]...", type=click.Path(dir_okay=False, path_type=Path)
)
@directory
@click.option(
    "--days", type=click.IntRange(1, 36_500), default=365, show_default=True, metavar="N",
    help="How long the list counts; after that nobody is let in.",
)  # fmt: skip
def revoke(paths: tuple[Path, ...], folder: Path, days: int) -> None:
    """Revoke certificates.

    They are added to the list crl.pem of the CA, for --client-crl-file and --peer-crl-file. Without
    a FILE the list is only made anew, for more --days.
    """
    path = folder / "crl.pem"

    def make() -> None:
        from raftkv.server.tls.authority import PUBLIC_MODE, read_certificate, write

        certificates = [read_certificate(one) for one in paths]
        before = path if path.exists() else None
        crl = _authority(folder).revocations(before, certificates, days=days)
        write(path, crl, PUBLIC_MODE)

    guarded(make)
    click.echo(f"{path}: {len(paths)} revoked")


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@output_format
def show(path: Path, output: str | None) -> None:
    """Show what a certificate says."""
    shown = guarded(lambda: _described(path))

    def text() -> str:
        width = max(map(len, shown))
        lines = []
        for name, value in shown.items():
            told = ", ".join(value) if isinstance(value, list) else value
            lines.append(f"{name:<{width}}  {told}")
        return "\n".join(lines)

    choose_output(chosen("output", output)).one(shown, text)


def _issue(folder: Path, name: str, force: bool, issue: Callable[[Any], Any]) -> None:
    if name in ("", "ca", ".", "..") or "/" in name or "\0" in name:
        raise click.UsageError(f"{name!r} cannot be the name of a file beside ca.crt")

    def make() -> None:
        from raftkv.server.tls.authority import write_pair

        pair = issue(_authority(folder))
        write_pair(folder / f"{name}.crt", folder / f"{name}.key", pair, force=force)

    guarded(make)
    _made(folder, name)


def _authority(folder: Path) -> Any:
    from raftkv.server.tls.authority import Authority

    return Authority.load(folder / "ca.crt", folder / "ca.key")


def _made(folder: Path, name: str) -> None:
    click.echo(f"{folder / name}.crt\n{folder / name}.key")


def _described(path: Path) -> dict[str, Any]:
    from raftkv.server.tls.authority import described, read_certificate

    return described(read_certificate(path))
