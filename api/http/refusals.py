"""What only the HTTP door can refuse: a message it cannot read, or a place that does not exist.

Each is a leaf of `raftkv.errors.Refused`, so it has a `code` and stands in the one table of
`raftkv.api.outcomes` like every other refusal.
"""

from __future__ import annotations

from raftkv.errors import Refused


class BadHttp(Refused):
    """Bytes that are not an HTTP/1.1 request (RFC 9112)."""

    code = "bad_http"


class RequestTimedOut(Refused):
    """The request's head or body did not arrive in time, so nothing of it was done."""

    code = "request_timed_out"


class ExpectationFailed(Refused):
    """An `Expect` header that asks for anything but ``100-continue`` (RFC 9110, 10.1.1)."""

    code = "expectation_failed"


class TargetTooLong(Refused):
    """The request target is over its limit; facts: limit."""

    code = "target_too_long"


class HeadersTooLarge(Refused):
    """Too many headers, or too many bytes of them; facts: limit."""

    code = "headers_too_large"


class HttpVersionUnsupported(Refused):
    """Neither HTTP/1.0 nor HTTP/1.1."""

    code = "http_version_unsupported"


class RouteNotFound(Refused):
    """No such path; facts: near (paths that resemble it)."""

    code = "route_not_found"


class MethodNotAllowed(Refused):
    """The path exists, but not for this method; facts: allow."""

    code = "method_not_allowed"


class UnsupportedMediaType(Refused):
    """The body's content type is not what this call reads; facts: expected."""

    code = "unsupported_media_type"


class PreconditionFailed(Refused):
    """`If-Match` or `If-None-Match` did not hold; facts: current (the record, or null)."""

    code = "precondition_failed"


class Misdirected(Refused):
    """The request names a host that this member does not answer as."""

    code = "misdirected"


class ForeignOrigin(Refused):
    """A browser sent a write on behalf of a page of another site."""

    code = "foreign_origin"
