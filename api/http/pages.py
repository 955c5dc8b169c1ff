"""What web pages of other sites may do here, and under which names this member answers.

Without settings a foreign page may send nothing that changes anything (`raftkv.api.gate`). With
``--cors`` pages of the named origins may call everything, as with etcd: every answer to them says
so, and so does the answer to the browser's question before (the preflight). With
``--host-whitelist`` a request in clear text must name a host on the list, or it is misdirected
(RFC 9110, section 15.5.20): a page whose name was made to lead here (DNS rebinding) asks under
that name, and is its own origin.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from raftkv.api.http.refusals import Misdirected

ANY: Final = "*"
METHODS: Final = b"POST, GET, OPTIONS, PUT, DELETE"
HEADERS: Final = (
    b"accept, content-type, authorization, if-match, if-none-match, idempotency-key, last-event-id"
)
SHOWN: Final = b"ETag, Raftkv-Revision, Raftkv-Term, Raftkv-Member, Retry-After"


class Pages:
    """The rules of one member. `origins` and `hosts` are in lower case, and may hold `ANY`."""

    def __init__(self, origins: Collection[str], hosts: Collection[str]) -> None:
        self._any_origin = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self._hosts = frozenset(host.encode() for host in hosts)
        self._check_hosts = bool(hosts) and ANY not in hosts

    def grant(self, headers: dict[bytes, bytes], *, secure: bool) -> bytes:
        """The header lines that let the asking page have the answer; empty when it may not.

        `secure`: the request came over TLS. Raises `Misdirected`.
        """
        if self._check_hosts and not secure:
            self._check_host(hostname(headers.get(b"host", b"")))
        if self._any_origin:
            return _lines(b"*")
        origin = headers.get(b"origin", b"").lower()
        if origin not in self._origins:
            return b""
        return _lines(origin) + b"Vary: Origin\r\n"

    def _check_host(self, name: bytes) -> None:
        if name not in self._hosts:
            raise Misdirected(
                f"This member does not answer as {name.decode('latin-1')!r}; "
                "--host-whitelist names what it answers as"
            )


def hostname(authority: bytes) -> bytes:
    """The name or address of a Host header, in lower case, without port and brackets."""
    if authority.startswith(b"["):
        return authority[1:].partition(b"]")[0].lower()
    return authority.partition(b":")[0].lower()


def _lines(origin: bytes) -> bytes:
    return (
        b"Access-Control-Allow-Methods: %b\r\n"
        b"Access-Control-Allow-Origin: %b\r\n"
        b"Access-Control-Allow-Headers: %b\r\n"
        b"Access-Control-Expose-Headers: %b\r\n" % (METHODS, origin, HEADERS, SHOWN)
    )
