"""Which option holds: the command's own, the root's, or the variable."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from raftkv.cli.lazy import Lazy, LazyGroup
from raftkv.cli.main import cli
from raftkv.cli.session import Session, common_options
from tests.unit.client_door import real_door

DEAD = "http://127.0.0.1:1"


@click.command()
@common_options
def probe(session: Session) -> None:
    """Print the options that hold."""
    click.echo(
        f"{session.endpoints}|{session.timeout or 0:g}|{session.output.format}|"
        f"{session.user}|{session.token}|"
        + "|".join(session.tls.get(name, "") for name in ("cacert", "cert", "key"))
    )


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cli, LazyGroup)
    monkeypatch.setitem(cli.lazy, "probe", Lazy(f"{__name__}:probe", "Print options.", "Other"))


def held(*args: str, env: dict[str, str]) -> list[str]:
    result = CliRunner().invoke(cli, args, env=env)
    assert result.exit_code == 0, result.output
    return result.stdout.rstrip("\n").split("|")


@pytest.mark.parametrize(
    ("place", "option", "variable", "values"),
    [
        (0, "--endpoints", "RAFTKV_ENDPOINTS", ("http://own", "http://root", "http://env")),
        (1, "--timeout", "RAFTKV_TIMEOUT", ("1", "2", "3")),
        (2, "--output", "RAFTKV_OUTPUT", ("json", "table", "ndjson")),
        (3, "--user", "RAFTKV_USER", ("own:p", "root:p", "env:p")),
        (4, "--token", "RAFTKV_TOKEN", ("own", "root", "env")),
        (5, "--cacert", "RAFTKV_CACERT", ("own.pem", "root.pem", "env.pem")),
        (6, "--cert", "RAFTKV_CERT", ("own.pem", "root.pem", "env.pem")),
        (7, "--key", "RAFTKV_KEY", ("own.pem", "root.pem", "env.pem")),
    ],
)
def test_an_explicit_option_wins_over_its_variable_wherever_it_stands(
    place: int, option: str, variable: str, values: tuple[str, str, str]
) -> None:
    own, root, fallback = values
    env: dict[str, str] = {variable: fallback}
    assert held("probe", env=env)[place] == fallback
    assert held(option, root, "probe", env=env)[place] == root
    assert held("probe", option, own, env=env)[place] == own
    assert held(option, root, "probe", option, own, env=env)[place] == own


@pytest.mark.parametrize("before", [True, False])
def test_who_one_is_by_an_option_puts_aside_the_other_way_of_the_environment(before: bool) -> None:
    def identity(*option: str, **env: str) -> list[str]:
        args: Any = (*option, "probe") if before else ("probe", *option)
        return held(*args, env=env)[3:5]

    assert identity("--user", "a:p", RAFTKV_TOKEN="t") == ["a:p", ""]
    assert identity("--token", "t", RAFTKV_USER="a:p") == ["", "t"]
    assert identity("--user", "", RAFTKV_USER="a:p", RAFTKV_TOKEN="t") == ["", ""]
    assert identity(RAFTKV_USER="a:p") == ["a:p", ""]


def test_a_root_option_reaches_the_store_that_it_names() -> None:
    with real_door() as door:
        result = CliRunner().invoke(
            cli, ["--endpoints", door.url, "put", "a", "b"], env={"RAFTKV_ENDPOINTS": DEAD}
        )
    assert result.exit_code == 0, result.output
