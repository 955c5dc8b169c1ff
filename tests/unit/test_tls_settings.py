"""Settings of TLS: what fits together, and what is refused in words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import ConfigError
from raftkv.server.config import ServerConfig, load_config
from raftkv.server.tls.settings import check_exposure, client_side, peer_tls

HTTPS = {"listen_client_urls": "https://127.0.0.1:2379"}
PEERS = {"listen_peer_urls": "https://127.0.0.1:2380"}
PAIR = {"cert_file": "c", "key_file": "k"}
PEER_PAIR = {"peer_cert_file": "c", "peer_key_file": "k"}


def test_settings_have_etcds_names_in_all_three_spellings(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'cert-file = "server.crt"\nkey-file = "server.key"\nclient-cert-auth = true\n'
        'trusted-ca-file = "ca.crt"\nlisten-client-urls = ["https://127.0.0.1:1"]\n'
        'client-cert-allowed-hostname = ["a", "b"]\n'
    )
    environment = {
        "RAFTKV_PEER_AUTO_TLS": "true",
        "RAFTKV_LISTEN_PEER_URLS": "https://127.0.0.1:2",
        "RAFTKV_TLS_MIN_VERSION": "TLS1.3",
    }
    config = load_config({"client_crl_file": "crl.pem"}, environment, path)
    assert config.client_cert_auth and config.peer_auto_tls and config.cert_file == "server.crt"
    assert config.client_cert_allowed_hostname == ("a", "b")
    assert config.tls_min_version == "tls1.3" and config.client_crl_file == "crl.pem"
    assert "--client-cert-auth=True" in config.to_flags()
    again = dict(flag.removeprefix("--").split("=", 1) for flag in config.to_flags())
    assert load_config({name.replace("-", "_"): value for name, value in again.items()}) == config


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (HTTPS, "needs --cert-file"),
        ({**HTTPS, "cert_file": "c"}, "--cert-file and --key-file belong together"),
        (PAIR, "--cert-file needs https://"),
        ({"auto_tls": True}, "--auto-tls needs https://"),
        (PEERS, "needs --peer-cert-file"),
        (PEER_PAIR, "--peer-cert-file needs https://"),
        ({**HTTPS, **PAIR, "client_cert_auth": True}, "needs --trusted-ca-file"),
        ({**HTTPS, **PAIR, "client_crl_file": "x"}, "needs --trusted-ca-file"),
        ({**HTTPS, "auto_tls": True, "trusted_ca_file": "x"}, "needs --cert-file"),
        ({**PEERS, **PEER_PAIR, "peer_client_cert_auth": "on"}, "needs --peer-trusted-ca-file"),
        ({**PEERS, **PEER_PAIR, "peer_cert_allowed_cn": "x"}, "needs --peer-trusted-ca-file"),
        (
            {**PEERS, **PEER_PAIR, "initial_cluster": "default=http://127.0.0.1:2380"},
            "must all be http or all be https",
        ),
        ({"tls_min_version": "tls1.1"}, "must be one of tls1.2, tls1.3"),
        ({"tls_min_version": "TLS1.3", "tls_max_version": "TLS1.2"}, "above --tls-max-version"),
        ({"cipher_suites": "TLS_RSA_WITH_RC4_128_SHA"}, "there are TLS_ECDHE"),
        (
            {
                "tls_min_version": "tls1.3",
                "cipher_suites": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            },
            "TLS 1.2",
        ),
    ],
)
def test_what_does_not_fit_together(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ServerConfig(**flags)


def test_self_made_certificates_are_kept(tmp_path: Path) -> None:
    config = ServerConfig(
        **HTTPS, **PEERS, data_dir=str(tmp_path / "m"), auto_tls=True, peer_auto_tls=True
    )
    side, peers = client_side(config), peer_tls(config)
    assert side is not None and peers is not None and not peers.mutual
    cert = Path(side.files.cert)
    made = cert.read_bytes()
    key = Path(side.files.key)
    assert key.stat().st_mode & 0o777 == 0o600
    again = client_side(config)
    assert again is not None and cert.read_bytes() == made
    assert side.context().get_ca_certs() == []


OUTSIDE = {"listen_client_urls": "http://192.0.2.1:2379"}
ANYWHERE = {"listen_peer_urls": "http://0.0.0.0:2380"}


@pytest.mark.parametrize(
    ("flags", "access_control", "refused", "warned"),
    [
        ({}, False, "", ""),
        (OUTSIDE, False, "read and change everything; use https", ""),
        ({**OUTSIDE, "allow_insecure": True}, False, "", "read and change everything"),
        (OUTSIDE, True, "", "clear text"),
        (ANYWHERE, True, "take part in the cluster", ""),
        ({**ANYWHERE, "allow_insecure": True}, True, "", "take part in the cluster"),
        ({"listen_client_urls": "http://[::1]:1,http://localhost:2"}, False, "", ""),
        ({"listen_client_urls": "http://name.example:1"}, False, "--allow-insecure", ""),
        (
            {"listen_client_urls": "https://192.0.2.1:1", **PAIR},
            False, "", "open to everybody who reaches it",
        ),
        ({"listen_client_urls": "https://192.0.2.1:1", **PAIR}, True, "", ""),
        (
            {"listen_client_urls": "https://192.0.2.1:1", **PAIR, "trusted_ca_file": "x"},
            False, "", "",
        ),
        ({"listen_peer_urls": "https://192.0.2.1:1", **PEER_PAIR}, False, "", "asks nobody"),
    ],
)  # fmt: skip
def test_being_open_to_a_network_takes_a_word(
    flags: dict[str, Any],
    access_control: bool,
    refused: str,
    warned: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = ServerConfig(**flags)
    with caplog.at_level(logging.WARNING):
        if refused:
            with pytest.raises(ConfigError, match=refused):
                check_exposure(config, access_control=access_control)
        else:
            check_exposure(config, access_control=access_control)
    assert warned in caplog.text
    assert bool(caplog.records) is bool(warned)
