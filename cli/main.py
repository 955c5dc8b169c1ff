"""The `raftkv` command: the root of all groups, kept light."""

from __future__ import annotations

import click

from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.output import FORMATS

COMMANDS = {
    "serve": Lazy("raftkv.cli.serve:serve", "Run one member of a cluster.", "Run a store"),
    "dev": Lazy("raftkv.cli.dev:dev", "Run a whole local cluster in this terminal.", "Run a store"),
    "put": Lazy("raftkv.cli.kv:put", "Write a key.", "Keys"),
    "get": Lazy("raftkv.cli.kv:get", "Read a key, or a range of keys.", "Keys"),
    "del": Lazy("raftkv.cli.kv:delete", "Delete a key, or a range of keys.", "Keys"),
    "txn": Lazy("raftkv.cli.kv:txn", "Run a transaction given as JSON.", "Keys"),
    "watch": Lazy("raftkv.cli.watch:watch", "Print changes as they happen.", "Keys"),
    "compact": Lazy("raftkv.cli.kv:compact", "Forget old history.", "Keys"),
    "lease": Lazy(
        "raftkv.cli.lease:lease", "Leases: keys that go when their holder does.", "Coordination"
    ),
    "service": Lazy(
        "raftkv.cli.service:service", "Services that register with a TTL.", "Coordination"
    ),
    "auth": Lazy("raftkv.cli.auth:auth", "Switch access control on or off.", "Access control"),
    "user": Lazy("raftkv.cli.auth:user", "Users, and the roles they have.", "Access control"),
    "role": Lazy("raftkv.cli.auth:role", "Roles, and what they may do.", "Access control"),
    "cert": Lazy("raftkv.cli.cert:cert", "Make certificates for TLS.", "Access control"),
    "status": Lazy("raftkv.cli.status:status", "Show how each member is.", "Cluster"),
    "top": Lazy("raftkv.cli.top:top", "Watch all members, live.", "Cluster"),
    "health": Lazy("raftkv.cli.status:health", "Check that each member is healthy.", "Cluster"),
    "endpoint": Lazy(
        "raftkv.cli.endpoint:endpoint", "Endpoints, one by one, as etcdctl shows them.", "Cluster"
    ),
    "alarm": Lazy("raftkv.cli.endpoint:alarm", "Alarms, as etcdctl shows them.", "Cluster"),
    "member": Lazy("raftkv.cli.member:member", "List, add, remove and promote members.", "Cluster"),
    "leader": Lazy("raftkv.cli.member:leader", "Move leadership.", "Cluster"),
    "quota": Lazy("raftkv.cli.quota:quota", "Bounds of prefixes and users.", "Cluster"),
    "shrink": Lazy(
        "raftkv.cli.shrink:shrink",
        "Give free space back to the members' disks.",
        "Cluster",
    ),
    "snapshot": Lazy(
        "raftkv.cli.snapshot:snapshot", "Save, check and restore the whole store.", "Cluster"
    ),
    "backup": Lazy(
        "raftkv.cli.backup:backup", "Folders of backups, and a restore to any moment.", "Cluster"
    ),
    "completion": Lazy(
        "raftkv.cli.completion:completion", "Print the completion script of a shell.", "Other"
    ),
    "version": Lazy("raftkv.cli.completion:version", "Print versions.", "Other"),
}

OVERVIEW = """\
raftkv: a replicated key-value store with watches, transactions, leases and services

  raftkv dev                          start a store of three members in this terminal
  raftkv put greeting hello           write a key
  raftkv get greeting                 read it
  raftkv watch --prefix ""            see every change as it happens
  raftkv service run web --port 8000 --ttl 5 -- python3 -m http.server 8000
                                      run a program as a service that others find

`raftkv --help` lists all commands, `raftkv COMMAND --help` explains one.
"""


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 precondition, "
    "5 unavailable, 6 outcome unknown.",
)
@click.option("--endpoints", metavar="URL,...", help="Client URLs of the members.")
@click.option("--timeout", type=click.FloatRange(min=0.001), metavar="SECONDS", help="Per request.")
@click.option("--user", "as_user", metavar="NAME[:PASSWORD]", help="Log in.")
@click.option("--token", metavar="TOKEN", help="Show this token instead of logging in.")
@click.option("--cacert", metavar="FILE", help="The CA to trust over https.")
@click.option("--cert", metavar="FILE", help="The client's certificate.")
@click.option("--key", metavar="FILE", help="The key of --cert.")
@click.option(
    "-o", "--output", "-w", "--write-out", "output", type=click.Choice(FORMATS), help="Format."
)
@click.pass_context
def cli(
    context: click.Context,
    /,
    endpoints: str | None,
    timeout: float | None,
    as_user: str | None,
    token: str | None,
    output: str | None,
    **files: str | None,
) -> None:
    """A replicated key-value store with watches, transactions, leases and services."""
    context.obj = {
        "endpoints": endpoints, "timeout": timeout, "output": output,
        "user": as_user, "token": token, **files,
    }  # fmt: skip
    if context.invoked_subcommand is None:
        click.echo(OVERVIEW, nl=False)


def main() -> None:
    """The entry point of the installed command."""
    cli(prog_name="raftkv")
