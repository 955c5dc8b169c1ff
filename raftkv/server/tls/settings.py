"""From the settings of a member to the two sides of its client port and of its peers."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from raftkv.errors import ConfigError, PeerError
from raftkv.server.tls.files import CIPHER_SUITES, ContextSource, TlsFiles, TlsPolicy
from raftkv.server.tls.identity import MEMBER_USAGES, Identity, import_x509

if TYPE_CHECKING:
    from raftkv.server.config import ServerConfig

log = logging.getLogger(__name__)

ALPN: Final = ("h2", "http/1.1")


class ClientSide(ContextSource):
    """The client port over TLS."""

    def __init__(
        self,
        files: TlsFiles,
        policy: TlsPolicy,
        *,
        mutual: bool = False,
        identifies: bool = False,
        allowed_hostnames: tuple[str, ...] = (),
    ) -> None:
        """`mutual`: clients need a certificate; `identifies`: its common name is a user."""
        super().__init__(files, policy, server_side=True, mutual=mutual, alpn=ALPN)
        self._identifies = identifies
        self._allowed_hostnames = allowed_hostnames

    def examine(self, identity: Identity | None) -> None:
        """See `stream.Side`."""
        allowed = self._allowed_hostnames
        if allowed and (identity is None or not any(map(identity.covers, allowed))):
            raise PeerError("the client's certificate is for none of the allowed host names")

    def user_of(self, identity: Identity | None) -> str | None:
        """Whom a certificate stands for, as etcd has it; None: nobody in particular."""
        return identity.common_name or None if identity and self._identifies else None


class PeerSide(ContextSource):
    """One direction between members. Whom to believe is said by `trouble`, once a peer has told
    which member it is."""

    def examine(self, identity: Identity | None) -> None:
        """See `stream.Side`."""


@dataclass(frozen=True, slots=True)
class PeerTls:
    """TLS between members."""

    accepting: PeerSide
    dialling: PeerSide
    mutual: bool
    """Both ends need a certificate of the CA. Otherwise the connection is merely encrypted."""
    allowed_names: tuple[str, ...] = ()
    allowed_hostnames: tuple[str, ...] = ()

    def trouble(self, identity: Identity | None, hosts: Collection[str] = ()) -> str | None:
        """Why whoever proved `identity` may not speak as a member; None: it may.

        `hosts`: those of the member's peer URLs, one of which the certificate has to be for.
        """
        if not self.mutual:
            return None
        if identity is None:
            return "a member needs a certificate"
        if not identity.usages() >= MEMBER_USAGES:
            return (
                "this is not a member's certificate: it must be good for both server and client "
                "authentication (extendedKeyUsage)"
            )
        if self.allowed_names and identity.common_name not in self.allowed_names:
            return "the common name of the certificate is none of the allowed ones"
        if self.allowed_hostnames and not any(map(identity.covers, self.allowed_hostnames)):
            return "the certificate is for none of the allowed host names"
        if hosts and not any(map(identity.covers, hosts)):
            return "the certificate is not for the host of this member's peer URLs"
        return None


def client_side(config: ServerConfig) -> ClientSide | None:
    """TLS of the client port; None: clear text. Raises ConfigError."""
    if not _uses_tls(config.listen_client_urls):
        return None
    files = TlsFiles(
        config.cert_file, config.key_file, config.trusted_ca_file, config.client_crl_file
    )
    if config.auto_tls and not files.cert:
        files = _own_files(config, "client", config.listen_client_urls)
    return ClientSide(
        files,
        _policy(config),
        mutual=config.client_cert_auth or bool(config.trusted_ca_file),
        identifies=config.client_cert_auth,
        allowed_hostnames=config.client_cert_allowed_hostname,
    )


def peer_tls(config: ServerConfig) -> PeerTls | None:
    """TLS between members; None: clear text. Raises ConfigError."""
    if not _uses_tls(config.listen_peer_urls):
        return None
    files = TlsFiles(
        config.peer_cert_file,
        config.peer_key_file,
        config.peer_trusted_ca_file,
        config.peer_crl_file,
    )
    if config.peer_auto_tls and not files.cert:
        files = _own_files(config, "peer", config.listen_peer_urls)
    mutual = bool(files.ca)
    if mutual:
        import_x509()
    policy = _policy(config)
    return PeerTls(
        PeerSide(files, policy, server_side=True, mutual=mutual),
        PeerSide(files, policy, server_side=False, mutual=mutual, verify_server=mutual),
        mutual,
        config.peer_cert_allowed_cn,
        config.peer_cert_allowed_hostname,
    )


def _policy(config: ServerConfig) -> TlsPolicy:
    return TlsPolicy(config.tls_min_version, config.tls_max_version, config.cipher_suites)


def _uses_tls(urls: Iterable[str]) -> bool:
    return any(url.startswith("https://") for url in urls)


def _own_files(config: ServerConfig, kind: str, urls: Iterable[str]) -> TlsFiles:
    """A certificate that vouches for itself, made at the first start and kept with the data."""
    from raftkv.server.tls.authority import self_signed

    folder = config.data_directory / "tls"
    hosts = sorted({urlsplit(url).hostname or "" for url in urls})
    cert, key = self_signed(folder, kind, hosts)
    return TlsFiles(str(cert), str(key))


# -- what settings say together ------------------------------------------------------------------


def check_tls(config: ServerConfig) -> None:
    """Refuse settings of TLS that do not fit each other. Raises ConfigError."""
    for prefix, listens, others, auto, auth in (
        ("", "listen_client_urls", ("advertise_client_urls",), "auto_tls", "client_cert_auth"),
        (
            "peer_",
            "listen_peer_urls",
            ("initial_advertise_peer_urls",),
            "peer_auto_tls",
            "peer_client_cert_auth",
        ),
    ):
        cert, key = f"{prefix}cert_file", f"{prefix}key_file"
        if bool(getattr(config, cert)) is not bool(getattr(config, key)):
            _reject(cert, f"and {_flag(key)} belong together")
        schemes = {urlsplit(url).scheme for url in getattr(config, listens)}
        if prefix:
            for name in others:
                schemes |= {urlsplit(url).scheme for url in getattr(config, name)}
            schemes |= {
                urlsplit(url).scheme for urls in config.founding_members.values() for url in urls
            }
            if len(schemes) > 1:
                _reject(listens, "and the other peer URLs must all be http or all be https")
        given = bool(getattr(config, cert)) or getattr(config, auto)
        if "https" in schemes and not given:
            _reject(listens, f"has https, which needs {_flag(cert)} and {_flag(key)}")
        if "https" not in schemes and given:
            _reject(cert if getattr(config, cert) else auto, f"needs https:// in {_flag(listens)}")
        if getattr(config, auth) and not getattr(config, f"{prefix}trusted_ca_file"):
            _reject(auth, f"needs {_flag(prefix + 'trusted_ca_file')}, the CA to believe")
    needs = {
        "client_crl_file": "trusted_ca_file",
        "client_cert_allowed_hostname": "trusted_ca_file",
        "peer_crl_file": "peer_trusted_ca_file",
        "peer_cert_allowed_cn": "peer_trusted_ca_file",
        "peer_cert_allowed_hostname": "peer_trusted_ca_file",
        "trusted_ca_file": "cert_file",
        "peer_trusted_ca_file": "peer_cert_file",
    }
    for name, needed in needs.items():
        if getattr(config, name) and not getattr(config, needed):
            _reject(name, f"needs {_flag(needed)}")
    if config.tls_min_version > config.tls_max_version:
        _reject("tls_min_version", "is above --tls-max-version")
    for suite in config.cipher_suites:
        if suite not in CIPHER_SUITES:
            _reject("cipher_suites", f"has {suite!r}; there are {', '.join(CIPHER_SUITES)}")
    if config.cipher_suites and config.tls_min_version == "tls1.3":
        _reject("cipher_suites", "chooses among those of TLS 1.2, which --tls-min-version excludes")


def check_exposure(config: ServerConfig, *, access_control: bool) -> None:
    """Refuse to be open to everybody on a network, unless that was asked for.

    `access_control`: whether it is on, as far as this member knows. Raises ConfigError.
    """
    if not access_control:
        for url in config.listen_client_urls:
            if url.startswith("http://") and not is_loopback(url):
                _exposed(config, url, "who reaches it may read and change everything")
            elif not is_loopback(url) and not config.trusted_ca_file:
                log.warning(
                    "%s is open to everybody who reaches it: require client certificates "
                    "(--client-cert-auth) or switch access control on (raftkv auth enable)",
                    url,
                )
    elif any(
        url.startswith("http://") and not is_loopback(url) for url in config.listen_client_urls
    ):
        log.warning("clients send passwords and tokens in clear text; use https with --cert-file")
    for url in config.listen_peer_urls:
        if is_loopback(url) or config.peer_trusted_ca_file:
            continue
        if url.startswith("http://"):
            _exposed(config, url, "who reaches it may take part in the cluster")
        else:
            log.warning(
                "%s asks nobody for a certificate (--peer-trusted-ca-file): who reaches it may "
                "take part in the cluster",
                url,
            )


def is_loopback(url: str) -> bool:
    """Whether only this machine can reach the address of a URL; names are not looked up."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _exposed(config: ServerConfig, url: str, harm: str) -> None:
    if not config.allow_insecure:
        raise ConfigError(
            f"{url} is not on loopback and has no TLS: {harm}; use https (see `raftkv cert`), or "
            "say --allow-insecure if the network is trusted",
            setting="allow-insecure",
        )
    log.warning("%s has no TLS: %s (--allow-insecure)", url, harm)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _reject(name: str, text: str) -> None:
    raise ConfigError(f"{_flag(name)} {text}", setting=name.replace("_", "-"))
