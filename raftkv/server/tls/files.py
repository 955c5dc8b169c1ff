"""TLS contexts made of files, and made again when the files change.

The files are looked at before a handshake, at most once a second. What was loaded is used until
the new files can be: a certificate without its key, or a CA file that is half written, costs a
warning and no connection.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raftkv.errors import ConfigError
from raftkv.limits import TLS_RELOAD_SECONDS
from raftkv.server.tls.identity import Identity

log = logging.getLogger(__name__)

VERSIONS: Final = {"tls1.2": ssl.TLSVersion.TLSv1_2, "tls1.3": ssl.TLSVersion.TLSv1_3}
CIPHER_SUITES: Final = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
"""The suites of TLS 1.2 that may be used, by their names in the RFCs; those of 1.3 are all fit."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of one side, as paths; empty ones are not used."""

    cert: str = ""
    key: str = ""
    ca: str = ""
    crl: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Those that are used."""
        return tuple(filter(None, (self.cert, self.key, self.ca, self.crl)))


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """What is agreed on with anybody."""

    min_version: str = "tls1.2"
    max_version: str = "tls1.3"
    cipher_suites: tuple[str, ...] = ()
    """Of TLS 1.2, out of `CIPHER_SUITES`; none: all of them."""


class ContextSource:
    """The context of one side, always of the newest files that could be loaded. Thread-safe."""

    def __init__(
        self,
        files: TlsFiles,
        policy: TlsPolicy,
        *,
        server_side: bool,
        mutual: bool,
        alpn: tuple[str, ...] = (),
        verify_server: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mutual`: a server wants a certificate of the CA from whoever comes.

        Raises ConfigError naming the file that cannot be used.
        """
        self.files = files
        self.server_side = server_side
        self._policy = policy
        self._mutual = mutual
        self._alpn = alpn
        self._verify_server = verify_server
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._seen = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for a handshake that begins now."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at >= TLS_RELOAD_SECONDS:
                self._looked_at = now
                self._reload()
            return self._context

    def user_of(self, identity: Identity | None) -> str | None:
        """See `stream.Side`."""
        return None

    def _reload(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._context = self._load()
        except ConfigError as error:
            log.warning("the TLS files changed, the old ones stay in use: %s", error.message)
        else:
            log.info("TLS files loaded anew", extra={"files": ",".join(self.files.paths)})

    def _look(self) -> tuple[object, ...]:
        """What tells that a file is another: when it was written, its size, which one it is."""
        found: list[object] = []
        for path in self.files.paths:
            try:
                status = os.stat(path)
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        protocol = ssl.PROTOCOL_TLS_SERVER if self.server_side else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(protocol)
        context.minimum_version = VERSIONS[self._policy.min_version]
        context.maximum_version = VERSIONS[self._policy.max_version]
        suites = self._policy.cipher_suites or tuple(CIPHER_SUITES)
        context.set_ciphers(":".join(CIPHER_SUITES[name] for name in suites))
        # A session that is resumed is not verified again, so none is: CRL and CA always count.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        if self.server_side:
            context.num_tickets = 0
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        self._load_own(context)
        self._load_trusted(context)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        files = self.files
        if not files.cert:
            return
        readable(files.cert)
        readable(files.key)
        try:
            context.load_cert_chain(files.cert, files.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{files.cert} and {files.key} are not a certificate and its key: {_reason(error)}",
                file=files.cert,
            ) from error

    def _load_trusted(self, context: ssl.SSLContext) -> None:
        files = self.files
        if not self.server_side and not self._verify_server:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return
        if self.server_side and self._mutual:
            context.verify_mode = ssl.CERT_REQUIRED
        for path in filter(None, (files.ca, files.crl)):
            readable(path)
            try:
                context.load_verify_locations(path)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{path} holds nothing to verify with, in PEM: {_reason(error)}", file=path
                ) from error
        # Whatever is in the CA file is trusted, also when it is not self-signed; as in Go.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if files.crl:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def readable(path: str) -> None:
    """Raise ConfigError in words unless the file can be read."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", file=path) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted, which a member that starts by itself cannot open")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)
