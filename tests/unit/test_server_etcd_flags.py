"""etcd's flags and variables: which are settings here, which do nothing, which are refused."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from raftkv.cli.main import cli
from raftkv.errors import ConfigError
from raftkv.server import etcd_flags
from raftkv.server.config import SETTINGS, load_config
from tests.support import etcd_flag_table

KEYS = {setting.key for setting in SETTINGS}


def served(*arguments: str, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["serve", "--show-config", *arguments], env=environment)
    return result.exit_code, result.stdout, result.stderr


def test_the_page_has_the_table_of_what_the_program_does() -> None:
    assert etcd_flag_table.on_page() == etcd_flag_table.table(), (
        "write it anew: python -m tests.support.etcd_flag_table"
    )


def test_each_flag_has_one_place() -> None:
    places = [
        *etcd_flags.SUPPORTED_ELSEWHERE,
        *etcd_flags.WITHOUT_EFFECT,
        *etcd_flags.REFUSED,
        *etcd_flags.FORMERLY,
    ]
    assert len(places) == len(set(places))
    assert etcd_flags.SUPPORTED_ELSEWHERE <= KEYS
    assert etcd_flags.SWITCHES <= etcd_flags.NAMES


def test_a_variable_of_etcd_is_taken_and_ours_wins() -> None:
    environment = {"ETCD_NAME": "theirs", "ETCD_HEARTBEAT_INTERVAL": "50", "RAFTKV_NAME": "ours"}
    config = load_config({}, environment)
    assert (config.name, config.heartbeat_interval) == ("ours", 50)


def test_a_bad_variable_of_etcd_is_named() -> None:
    with pytest.raises(ConfigError, match="ETCD_PRE_VOTE must be true or false"):
        load_config({}, {"ETCD_PRE_VOTE": "perhaps"})


def test_an_old_name_means_the_setting() -> None:
    code, shown, told = served(
        "--experimental-snapshot-catchup-entries", "7",
        ETCD_EXPERIMENTAL_SNAPSHOT_CATCHUP_ENTRIES="9",
    )  # fmt: skip
    assert (code, told) == (0, "")
    assert "snapshot-catchup-entries = 7\n" in shown
    _, shown, _ = served(ETCD_EXPERIMENTAL_SNAPSHOT_CATCHUP_ENTRIES="9")
    assert "snapshot-catchup-entries = 9\n" in shown


def test_one_dash_and_a_switch_without_a_value_as_etcd_takes_them() -> None:
    code, shown, told = served("-pre-vote", "-name", "n7", "-log-level=warn", "-unsafe-no-fsync")
    assert code == 0
    assert 'name = "n7"\n' in shown and "pre-vote = true\n" in shown
    assert 'log-level = "warning"\n' in shown
    assert told == "warning: --unsafe-no-fsync has no effect: every write is synced\n"
    _, shown, _ = served("--pre-vote", "false")
    assert "pre-vote = false\n" in shown


@pytest.mark.parametrize("flag", list(etcd_flags.flags(KEYS)), ids=lambda flag: flag.name)
def test_every_flag_of_etcd_fares_as_the_table_says(flag: etcd_flags.EtcdFlag) -> None:
    if flag.standing == "supported" or flag.name == "config-file":
        return
    code, shown, told = served(f"--{flag.name}=1")
    lines = told.splitlines()
    assert len(lines) == 1 and f"--{flag.name} " in lines[0]
    assert (code, " has no effect: " in told) == ((0, True) if taken(flag) else (2, False))
    variable = etcd_flags.variable_of(flag.name)
    assert served(**{variable: "1"}) == (code, shown, told.replace(f"--{flag.name}", variable, 1))


def taken(flag: etcd_flags.EtcdFlag) -> bool:
    return flag.standing == "no effect"


def test_what_is_refused_may_be_switched_off() -> None:
    code, _, told = served("--enable-v2=false", "--proxy=off", "--force-new-cluster=false",
                           ETCD_DISCOVERY_SRV="")  # fmt: skip
    assert (code, told) == (0, "")


def test_a_variable_that_etcd_does_not_have_is_told_once() -> None:
    code, _, told = served(ETCD_NAEM="x", ETCD_UNSUPPORTED_ARCH="arm64", ETCDCTL_API="3")
    assert (code, told) == (0, "warning: ETCD_NAEM is set, but etcd has no such flag\n")


def test_durations_as_go_writes_them() -> None:
    assert load_config({"election_timeout": "1s500ms"}).election_timeout == 1500
    for text in ("1s500", "s", "1h m"):
        with pytest.raises(ConfigError, match="milliseconds"):
            load_config({"election_timeout": text})


def test_help_shows_no_flag_without_effect() -> None:
    shown = CliRunner().invoke(cli, ["serve", "--help"]).stdout
    assert not set(re.findall(r"--([a-z-]+)", shown)) & set(etcd_flags.WITHOUT_EFFECT)
