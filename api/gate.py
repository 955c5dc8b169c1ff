"""The gate that every request of every door passes before it is given to a handler.

Today it keeps foreign web pages from writing through a visitor's browser; who the caller is and
what they may do is decided here too, once the store knows users.

A page of any site can make a browser send a form or a plain-text POST to a loopback address
without asking (CVE-2018-1098). Two things stop that: a JSON body needs a JSON content type, which
a browser sends across sites only after a preflight that is never granted, and a write that
carries an `Origin` must come from the host that it is sent to.
"""

from __future__ import annotations

from typing import Any, Final

from raftkv.api.http.refusals import ForeignOrigin, UnsupportedMediaType

READS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


class Gate:
    """Admits or refuses a request by its method and headers. Stateless; one a door."""

    __slots__ = ()

    def admit(self, method: bytes, headers: dict[bytes, bytes]) -> None:
        """Raise a `Refused` unless the request may go on. Headers have lower-case names."""
        origin = headers.get(b"origin")
        if origin is not None and method not in READS:
            check_origin(origin, headers.get(b"host", b""))

    def admit_rpc(self, path: str, token: str | bytes | None, request: Any) -> None:
        """Raise a `Refused` unless the caller of an RPC may send `request`.

        Called for every request message of etcd's API, whether it came over gRPC or as JSON.
        `path` is ``/package.Service/Method``; `token` is what the caller shows.
        """

    def admit_json(self, headers: dict[bytes, bytes]) -> None:
        """Raise unless the body is declared as JSON, or declared as nothing.

        No declaration passes: a browser always declares a body that it was made to send. So does
        no body at all, which some clients declare as bytes.
        """
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return
        declared = headers.get(b"content-type")
        if declared is None:
            return
        kind = declared.split(b";", 1)[0].strip().lower()
        if kind == b"application/json" or kind.endswith(b"+json"):
            return
        raise UnsupportedMediaType(
            f"This call reads JSON, not {kind.decode('latin-1')!r}: "
            "send `Content-Type: application/json`",
            expected="application/json",
        )


def check_origin(origin: bytes, host: bytes) -> None:
    """Raise `ForeignOrigin` unless `origin` (RFC 6454) names the `host` it was sent to."""
    scheme, _, rest = origin.partition(b"://")
    if rest and _authority(rest.lower(), scheme.lower()) == _authority(
        host.lower(), scheme.lower()
    ):
        return
    raise ForeignOrigin(
        f"The page {origin.decode('latin-1')!r} is of another site than this member; "
        "its writes are not taken"
    )


def _authority(host: bytes, scheme: bytes) -> bytes:
    default = b":443" if scheme == b"https" else b":80"
    return host.removesuffix(default)
