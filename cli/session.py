"""What every command that talks to a store shares: its options, its client, its errors."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from raftkv.cli.exits import INTERRUPTED, advice, exit_code
from raftkv.cli.output import FORMATS, Failure, Output, choose_output
from raftkv.cli.secrets import own_password
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

R = TypeVar("R")
T = TypeVar("T")
ENDPOINT_DEFAULT = "http://127.0.0.1:2379"
TIMEOUT_DEFAULT = 10.0


@dataclass(slots=True)
class Session:
    """The options of a command, and the way to run something with a client."""

    endpoints: str
    timeout: float | None
    """Seconds a request may take, as the user gave it; None: what suits the call."""
    output: Output
    user: str = field(default="", repr=False)
    """A name, or ``name:password``; empty: nobody."""
    token: str = field(default="", repr=False)
    tls: dict[str, Any] = field(default_factory=dict)
    """Files for https: ``cacert``, ``cert`` and ``key``."""

    def run(self, work: Callable[[AsyncClient], Awaitable[R]]) -> R:
        """Run `work` with a client; its errors become one line and an exit code."""

        async def bounded() -> R:
            async with self.client(self.endpoints, patience=0) as client:
                return await work(client)

        return guarded(lambda: asyncio.run(bounded()))

    def client(self, endpoints: str | Sequence[str], **more: Any) -> AsyncClient:
        """A client of some endpoints, as the user that the options name."""
        from raftkv.client.client import AsyncClient

        user, colon, password = self.user.partition(":")
        if user and not colon:
            # Asked for once a command, whatever it does.
            password = own_password(user)
            self.user = f"{user}:{password}"
        return AsyncClient(
            endpoints,
            timeout=self.timeout or TIMEOUT_DEFAULT,
            user=user,
            password=password,
            token=self.token,
            **self.tls,
            **more,
        )


def guarded(work: Callable[[], R]) -> R:
    """Do `work`, turning errors of raftkv and of the system into `Failure`."""
    try:
        return work()
    except RaftkvError as error:
        raise Failure(error.message, exit_code(error), advice(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise Failure(f"{place}{error.strerror or error}") from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


def chosen(name: str, value: T | None) -> T | None:
    """What holds of an option that may also stand before the command.

    `value` is what the command at hand made of it. Its own command line wins, then the root's,
    then the environment.
    """
    if _given(name):
        return value
    outer = (click.get_current_context().find_root().obj or {}).get(name)
    return value if outer is None else outer


def credentials(user: str | None, token: str | None) -> tuple[str, str]:
    """Who asks: --user and --token of the command at hand, as `chosen`.

    One that is given puts aside the other if that is from the environment only.
    """
    names = ("user", "token")
    outer = click.get_current_context().find_root().obj or {}
    explicit = [_given(name) or outer.get(name) is not None for name in names]
    values = [chosen(name, value) or "" for name, value in zip(names, (user, token), strict=True)]
    if any(explicit):
        values = [value if said else "" for value, said in zip(values, explicit, strict=True)]
    return values[0], values[1]


def _given(name: str) -> bool:
    """Whether the option stands on the command line of the command at hand."""
    context = click.get_current_context()
    own = _PARAMETERS.get(name, name)
    return context.get_parameter_source(own) is ParameterSource.COMMANDLINE


TLS_OPTIONS = {
    "cacert": "The CA to trust over https.  [default: those of the system]",
    "cert": "The client's certificate for https.",
    "key": "The key of --cert.",
}
"""Files in PEM, under etcdctl's names."""


_PARAMETERS = {"user": "as_user", **{name: f"tls_{name}" for name in TLS_OPTIONS}}
"""Options whose parameter has another name than the root's."""


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--cacert, --cert and --key."""
    for name, text in reversed(TLS_OPTIONS.items()):
        command = click.option(
            f"--{name}", f"tls_{name}", envvar=f"RAFTKV_{name.upper()}", metavar="FILE", help=text
        )(command)
    return command


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--endpoints, --timeout, --user, --token, those of TLS and --output: one `session`."""

    @click.option(
        "--endpoints",
        envvar="RAFTKV_ENDPOINTS",
        metavar="URL,...",
        help=f"Client URLs of the members; fails over.  [default: {ENDPOINT_DEFAULT}]",
    )
    @click.option(
        "--timeout",
        envvar="RAFTKV_TIMEOUT",
        type=click.FloatRange(min=0.001),
        metavar="SECONDS",
        help=f"Longest time for one request, retries included.  [default: {TIMEOUT_DEFAULT:g}]",
    )
    @click.option(
        "--user",
        "as_user",
        envvar="RAFTKV_USER",
        metavar="NAME[:PASSWORD]",
        help="Log in; asks for the password, or takes it from RAFTKV_PASSWORD.",
    )
    @click.option(
        "--token",
        envvar="RAFTKV_TOKEN",
        metavar="TOKEN",
        help="Show this token instead of logging in.",
    )
    @tls_options
    @click.option(
        "-o",
        "--output",
        "-w",
        "--write-out",
        "output",
        envvar="RAFTKV_OUTPUT",
        type=click.Choice(FORMATS),
        help="How to print.  [default: table on a terminal, api on a pipe]",
    )
    @functools.wraps(command)
    def with_session(
        *args: Any,
        endpoints: str | None,
        timeout: float | None,
        as_user: str | None,
        token: str | None,
        output: str | None,
        **kwargs: Any,
    ) -> Any:
        files = {name: chosen(name, kwargs.pop(f"tls_{name}")) for name in TLS_OPTIONS}
        session = Session(
            chosen("endpoints", endpoints) or ENDPOINT_DEFAULT,
            chosen("timeout", timeout),
            choose_output(chosen("output", output)),
            *credentials(as_user, token),
            {name: path for name, path in files.items() if path},
        )
        return command(*args, session=session, **kwargs)

    return with_session
