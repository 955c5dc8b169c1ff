"""Settings: one source of defaults, four places to set them, and errors that name the culprit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import ConfigError
from raftkv.server import config as configuration
from raftkv.server.config import SETTINGS, ServerConfig, load_config


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "member.toml"
    path.write_text('name = "file"\nlog-level = "error"\nmax_watchers = 7\n')
    config = load_config(
        {"name": "flag", "log_level": None},
        {"RAFTKV_NAME": "variable", "RAFTKV_LOG_LEVEL": "debug"},
        path,
    )
    assert (config.name, config.log_level, config.max_watchers) == ("flag", "debug", 7)
    assert config.election_timeout == ServerConfig().election_timeout


def test_the_file_may_come_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "member.toml"
    path.write_text('listen-client-urls = ["http://10.0.0.1:1", "http://[::1]:2/"]\n')
    config = load_config(environment={"RAFTKV_CONFIG_FILE": str(path)})
    assert config.client_addresses == (("10.0.0.1", 1), ("::1", 2))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nmae = 'x'", "nmae"),
        ("name = 7", "name in"),
        ("max-watchers = true", "max-watchers in"),
        ("max-watchers = 1\nmax_watchers = 2", "twice"),
        ("name = ", "not TOML"),
        ("name = " + "9" * 5000, "not TOML"),
        ("name = " + "[" * 5000, "not TOML"),
        ("quota-backend-bytes = 'lots'", "8GiB"),
        ("listen-client-urls = 5", "list of URLs"),
        ("listen-client-urls = [5]", "http://127.0.0.1:2379"),
    ],
)
def test_a_bad_file_is_refused_naming_the_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(config_file=path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(config_file=tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(config_file=tmp_path / "binary")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"name": ""}, "--name"),
        ({"name": "a,b"}, "--name"),
        ({"name": "a\nb"}, "--name must be a line"),
        ({"listen_client_urls": "ftp://h:1"}, "--listen-client-urls"),
        ({"listen_client_urls": "h:1"}, "--listen-client-urls"),
        ({"listen_client_urls": "http://h"}, "--listen-client-urls"),
        ({"listen_client_urls": "http://h:99999"}, "not a URL"),
        ({"listen_client_urls": "http://h:1/path"}, "only http://HOST:PORT"),
        ({"listen_client_urls": ()}, "at least one"),
        ({"listen_peer_urls": "http://127.0.0.1:2379"}, "both use port 2379"),
        ({"heartbeat_interval": "soon"}, "--heartbeat-interval"),
        ({"heartbeat_interval": 0}, "from 1 to"),
        ({"heartbeat_interval": "500ms"}, "5 times"),
        ({"pre_vote": "perhaps"}, "--pre-vote"),
        ({"log_level": "loud"}, "debug, info"),
        ({"max_watchers": "1.5"}, "whole number"),
        ({"quota_backend_bytes": "1TiBB"}, "--quota-backend-bytes"),
        ({"quota_backend_bytes": True}, "whole number"),
        ({"initial_cluster_token": ""}, "--initial-cluster-token"),
        ({"initial_cluster": "nonsense"}, "NAME=PEER_URL"),
        ({"initial_cluster": "b=http://h:1"}, "but not this member"),
        ({"name": "a", "initial_cluster": "a=http://h:1,b=http://h:1"}, "both 'a' and 'b'"),
        (
            {"name": "m0", "initial_cluster": ",".join(f"m{i}=http://h:{i}" for i in range(16))},
            "at most 15",
        ),
        (
            {
                "name": "a",
                "initial_cluster": "a=http://h:1",
                "initial_advertise_peer_urls": "http://h:2",
            },
            "must agree",
        ),
    ],
)
def test_a_setting_that_cannot_work_is_named(flags: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(flags)


def test_what_is_derived() -> None:
    alone = ServerConfig(name="a", listen_client_urls=("http://0.0.0.0:5",))
    assert alone.data_directory == Path("a.raftkv")
    assert alone.founding_members == {"a": ("http://127.0.0.1:2380",)}
    assert alone.advertised_client_urls[0].endswith(":5")
    assert "0.0.0.0" not in alone.advertised_client_urls[0]
    one_of_two = ServerConfig(
        name="b",
        data_dir="/d",
        advertise_client_urls=("http://me:1",),
        initial_cluster="a=http://h:1,b=http://h:2,b=http://h:3",
        initial_advertise_peer_urls=("http://h:3", "http://h:2"),
    )
    assert one_of_two.data_directory == Path("/d")
    assert one_of_two.founding_members == {"a": ("http://h:1",), "b": ("http://h:2", "http://h:3")}
    assert one_of_two.advertised_client_urls == ("http://me:1",)


def test_a_configuration_survives_its_flags() -> None:
    config = ServerConfig(
        name="b",
        pre_vote=False,
        quota_backend_bytes=2**30,
        listen_client_urls=("http://h:1", "http://h:2"),
        log_format="json",
    )
    pairs = [argument.removeprefix("--").split("=", 1) for argument in config.to_flags()]
    assert load_config({key.replace("-", "_"): value for key, value in pairs}) == config
    assert ServerConfig().to_flags() == []


def test_misspelt_variables_are_seen() -> None:
    environment = {
        "RAFTKV_DATADIR": "x",
        "RAFTKV_DATA_DIR": "x",
        "RAFTKV_ENDPOINTS": "",
        "HOME": "",
    }
    assert configuration.unknown_variables(environment) == ["RAFTKV_DATADIR"]


def test_every_setting_explains_itself_and_has_a_sound_default() -> None:
    for setting in SETTINGS:
        assert setting.help.strip() and setting.placeholder and setting.group, setting.name
        if setting.default not in ("", ()):
            assert setting.parse(setting.default) == setting.default
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)


@given(st.integers(0, 2**40), st.sampled_from(["", "B", "KiB", "k", "MiB", "M", "GiB", " g"]))
def test_sizes_have_units_of_1024(number: int, unit: str) -> None:
    power = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3}[unit.strip().lower()[:1]]
    assert configuration.parse_size(f"{number}{unit}") == number * 1024**power


@pytest.mark.parametrize(
    ("text", "ms"), [("5", 5), ("5ms", 5), ("2s", 2000), ("1m", 60_000), (7, 7)]
)
def test_durations_are_milliseconds(text: object, ms: int) -> None:
    assert configuration.parse_duration_ms(text) == ms


@pytest.mark.parametrize(("word", "meaning"), [("yes", True), ("OFF", False), (True, True)])
def test_flags_take_the_usual_words(word: object, meaning: bool) -> None:
    assert configuration.parse_flag(word) is meaning
