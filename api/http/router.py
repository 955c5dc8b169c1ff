"""Routes as declarations: what is accepted, what is answered, and who handles it.

A `Route` is the only place where a call is described. The router finds it, its parameters are read
by it, and `openapi.py` renders it, so that the served description cannot drift from the program.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.gate import PUBLIC, Guard, public
from raftkv.api.http.codec import DECIMAL, INT64_MAX, decode_base64, parse_hex_id, unquote
from raftkv.api.http.fields import Field
from raftkv.api.http.refusals import MethodNotAllowed, RouteNotFound
from raftkv.checks import check
from raftkv.errors import InvalidRequest

if TYPE_CHECKING:
    from raftkv.api.http.exchange import Exchange

Handler = Callable[["Exchange"], None]

FLAGS: Final = {"": True, "1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class Param:
    """One query parameter. `kind`: flag, integer, seconds, text, key, hex or choice."""

    name: str
    kind: str
    doc: str
    default: Any = None
    minimum: int = 0
    maximum: int = INT64_MAX
    choices: tuple[str, ...] = ()

    def read(self, text: bytes) -> Any:
        """The value of one occurrence, already without percent-encoding."""
        kind = self.kind
        if kind == "key":
            return text  # decoded with `key_encoding` once all parameters are known
        try:
            word = text.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{self.name} is not valid UTF-8") from None
        if kind == "flag":
            if word not in FLAGS:
                raise InvalidRequest(f"{self.name} is a flag: give 1 or 0, not {word[:64]!r}")
            return FLAGS[word]
        if kind == "integer":
            if not DECIMAL.fullmatch(word) or not self.minimum <= int(word) <= self.maximum:
                raise InvalidRequest(
                    f"{self.name} must be a whole number from {self.minimum} to {self.maximum}, "
                    f"not {word[:64]!r}"
                )
            return int(word)
        if kind == "seconds":
            return self._seconds(word)
        if kind == "hex":
            return parse_hex_id(word, self.name)
        if kind == "choice" and word not in self.choices:
            raise InvalidRequest(
                f"{self.name} must be one of {', '.join(self.choices)}, not {word[:64]!r}"
            )
        return word

    def _seconds(self, word: str) -> float:
        try:
            seconds = float(word)
        except ValueError:
            seconds = -1.0
        if not self.minimum <= seconds <= self.maximum:  # false for NaN too
            raise InvalidRequest(
                f"{self.name} must be seconds from {self.minimum} to {self.maximum}, "
                f"not {word[:64]!r}"
            )
        return seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """One documented answer: a schema by name, or another kind of body."""

    status: int
    doc: str
    schema: str | None = None
    media: str = "application/json"


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API."""

    method: str
    template: str
    """Path with `{name}` places; a place that ends the path of `/api/kv` takes slashes too."""
    handler: Handler
    operation: str
    """Unique name (OpenAPI operationId)."""
    summary: str
    tag: str
    guard: Guard = field(kw_only=True)
    """Who may call this, given the exchange; see `raftkv.api.gate`."""
    doc: str = ""
    query: tuple[Param, ...] = ()
    body: tuple[Field, ...] | str | None = None
    """Fields of a JSON body; or a schema's name when the handler checks it; or None."""
    body_required: bool = True
    raw_body: str = ""
    """Set when the body is taken as it is: what it means."""
    headers: tuple[str, ...] = ()
    """Request headers with a meaning here, by name in `openapi.HEADERS`."""
    answers: tuple[Answer, ...] = ()
    problems: tuple[int, ...] = ()
    """Statuses of problem answers beyond those of every call."""
    greedy: bool = False
    """The last place takes everything up to the query, slashes and empty parts included."""
    writes: bool = False
    once: bool = True
    """Of writes: an `Idempotency-Key` is obeyed. Not by changes of membership and leadership, which
    consensus itself carries, nor by renewals, which may be repeated anyway."""
    _by_name: dict[bytes, Param] = field(init=False, repr=False, default_factory=dict)
    defaults: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for param in self.query:
            self._by_name[param.name.encode()] = param
            self.defaults[param.name] = param.default

    def read_query(self, query: bytes) -> dict[str, Any]:
        """Values of all declared parameters. Raises `InvalidRequest` for anything else.

        A flag may come without a value. A plus sign is a blank, as forms send it.
        """
        if not query:
            return self.defaults
        values = dict(self.defaults)
        seen = set()
        for part in query.split(b"&"):
            if not part:
                continue
            raw_name, _, raw = part.partition(b"=")
            param = self._by_name.get(raw_name) or self._by_name.get(
                unquote(raw_name.replace(b"+", b" "), "A parameter's name")
            )
            if param is None:
                raise self._unknown(raw_name)
            if param.name in seen:
                raise InvalidRequest(f"The parameter {param.name} is given twice")
            seen.add(param.name)
            values[param.name] = param.read(unquote(raw.replace(b"+", b" "), param.name))
        if values.get("key_encoding") == "base64":
            for param in self.query:
                if param.kind == "key" and values[param.name] is not None:
                    values[param.name] = decode_base64(values[param.name], param.name)
        return values

    def _unknown(self, name: bytes) -> InvalidRequest:
        allowed = [param.name for param in self.query]
        shown = name[:64].decode("utf-8", "replace")
        return InvalidRequest(
            f"Unknown query parameter {shown!r}; "
            + (f"allowed here: {', '.join(allowed)}" if allowed else "none is allowed here"),
            parameter=shown,
            allowed=allowed,
        )


class _Node:
    """One path segment of the routing tree."""

    __slots__ = ("fixed", "greedy", "place", "routes")

    def __init__(self) -> None:
        self.fixed: dict[bytes, _Node] = {}
        self.place: _Node | None = None
        self.greedy: _Node | None = None
        self.routes: dict[bytes, Route] = {}


class Router:
    """Finds the route of a method and a path."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes
        self._root = _Node()
        names = [route.operation for route in routes]
        check(len(set(names)) == len(names), "operation names are unique", names=names)
        for route in routes:
            check(
                (route.guard is public) == (route.operation in PUBLIC),
                "what needs no token is named in one table", route=route.operation,
            )  # fmt: skip
            node = self._root
            for part in route.template[1:].split("/"):
                node = self._step(node, part, route.greedy)
            method = route.method.encode()
            check(method not in node.routes, "one route a call", route=route.operation)
            node.routes[method] = route

    @staticmethod
    def _step(node: _Node, part: str, greedy: bool) -> _Node:
        if not part.startswith("{"):
            return node.fixed.setdefault(part.encode(), _Node())
        if greedy:
            node.greedy = node.greedy or _Node()
            return node.greedy
        node.place = node.place or _Node()
        return node.place

    def find(self, method: bytes, path: bytes) -> tuple[Route, tuple[bytes, ...]]:
        """The route and the values of its places, percent-encoding undone.

        Raises `RouteNotFound` or `MethodNotAllowed`.
        """
        node, places = self._walk(path)
        if node is None or not node.routes:
            raise RouteNotFound(
                f"There is nothing at {path[:256].decode('latin-1')}; see /docs",
                near=self.near(path),
            )
        route = node.routes.get(method)
        if route is None and method == b"HEAD":
            route = node.routes.get(b"GET")
        if route is None:
            raise MethodNotAllowed(
                f"{method.decode('latin-1')} is not allowed here", allow=allow(node.routes)
            )
        return route, tuple(unquote(place, "The path") for place in places)

    def _walk(self, path: bytes) -> tuple[_Node | None, list[bytes]]:
        places: list[bytes] = []
        if not path.startswith(b"/"):
            return None, places
        node: _Node | None = self._root
        start = 1
        while node is not None:
            end = path.find(b"/", start)
            part = path[start:] if end < 0 else path[start:end]
            fixed = node.fixed.get(part)
            if fixed is None and node.greedy is not None:
                places.append(path[start:])
                return node.greedy, places
            if fixed is None and part:
                places.append(part)
                node = node.place
            else:
                node = fixed
            if end < 0:
                return node, places
            start = end + 1
        return None, places

    def near(self, path: bytes) -> list[str]:
        """Templates that resemble `path`, the best first."""
        templates = sorted({route.template for route in self.routes})
        return difflib.get_close_matches(path[:128].decode("latin-1"), templates, n=3, cutoff=0.5)


def allow(routes: dict[bytes, Route]) -> list[str]:
    """Methods for an `Allow` header."""
    methods = {method.decode() for method in routes}
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)
