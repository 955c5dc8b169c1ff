"""What a client believes over https, and what it shows of itself."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from raftkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Files in PEM; empty ones are not used."""

    cacert: str = ""
    """The CA of the members; without one, those that the system trusts."""
    cert: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert) is not bool(self.key):
            raise ConfigError("a client's certificate needs its key, and a key a certificate")

    def __bool__(self) -> bool:
        return bool(self.cacert or self.cert)

    def context(self) -> ssl.SSLContext:
        """A context that verifies members. Raises ConfigError naming the file at fault."""
        if self.cacert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _load(lambda: context.load_verify_locations(self.cacert), self.cacert)
        else:
            context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.cert:
            _load(
                lambda: context.load_cert_chain(self.cert, self.key, password=_no_password),
                f"{self.cert} and {self.key}",
            )
        return context


REFUSALS = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
    }
)
"""Alerts (RFC 8446, section 6.2) that end a handshake, before anything of a request was read. With
TLS 1.3 they come after the client has sent it."""


def refusal(error: BaseException) -> str | None:
    """Why a member refused the handshake, if that is what `error` tells."""
    text = str(error)
    found = next((name for name in REFUSALS if name in text), None)
    if found is None:
        return None
    what = found.partition("ALERT_")[2].lower().replace("_", " ")
    return f"the member does not take our certificate, or the lack of one ({what})"


def _load(load: Callable[[], None], files: str) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot use {files} for TLS: {str(reason).lower().replace('_', ' ')}"
        ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted")
