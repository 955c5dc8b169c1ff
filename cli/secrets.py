"""Passwords on the command line: asked for without an echo, or read from standard input."""

from __future__ import annotations

import os
import sys

import click

from raftkv.cli.exits import USAGE
from raftkv.cli.output import Failure

PASSWORD_VARIABLE = "RAFTKV_PASSWORD"  # noqa: S105
"""The password of the user that commands are run as."""


def own_password(user: str) -> str:
    """The password of the user whom a command is run as: from the environment, or asked for."""
    given = os.environ.get(PASSWORD_VARIABLE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise Failure(
            f"there is no password for {user!r}", USAGE, f"Set {PASSWORD_VARIABLE} to it."
        )
    return str(click.prompt(f"Password of {user}", hide_input=True, err=True))


def new_password(user: str, from_stdin: bool) -> str:
    """A password for `user`: the first line of standard input, or asked for twice."""
    if from_stdin:
        line = sys.stdin.readline()
        password = line.rstrip("\r\n")
    elif sys.stdin.isatty():
        password = str(
            click.prompt(
                f"New password of {user}", hide_input=True, confirmation_prompt=True, err=True
            )
        )
    else:
        raise Failure("there is no terminal to ask for the password on", USAGE,
                      "Give --password-stdin, or --no-password.")  # fmt: skip
    if not password:
        raise Failure("the password is empty", USAGE)
    return password
