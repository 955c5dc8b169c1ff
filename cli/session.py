"""What every command that talks to a store shares: its options, its client, its errors."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raftkv.cli.exits import INTERRUPTED, advice, exit_code
from raftkv.cli.output import FORMATS, Failure, Output, choose_format
from raftkv.errors import RaftkvError

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient

R = TypeVar("R")
ENDPOINT_DEFAULT = "http://127.0.0.1:2379"
TIMEOUT_DEFAULT = 10.0


@dataclass(slots=True)
class Session:
    """The options of a command, and the way to run something with a client."""

    endpoints: str
    timeout: float
    output: Output

    def run(self, work: Callable[[AsyncClient], Awaitable[R]]) -> R:
        """Run `work` with a client; its errors become one line and an exit code."""

        async def bounded() -> R:
            from raftkv.client.client import AsyncClient

            async with AsyncClient(self.endpoints, timeout=self.timeout, patience=0) as client:
                return await work(client)

        return guarded(lambda: asyncio.run(bounded()))


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


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--endpoints, --timeout and --output, which leave as one `session` argument."""

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
        "-o",
        "--output",
        envvar="RAFTKV_OUTPUT",
        type=click.Choice(FORMATS),
        help="How to print.  [default: table on a terminal, json on a pipe]",
    )
    @functools.wraps(command)
    def with_session(
        *args: Any,
        endpoints: str | None,
        timeout: float | None,
        output: str | None,
        **kwargs: Any,
    ) -> Any:
        outer = click.get_current_context().find_root().obj or {}
        session = Session(
            endpoints or outer.get("endpoints") or ENDPOINT_DEFAULT,
            timeout or outer.get("timeout") or TIMEOUT_DEFAULT,
            Output(choose_format(output or outer.get("output"))),
        )
        return command(*args, session=session, **kwargs)

    return with_session
