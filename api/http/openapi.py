"""The OpenAPI 3.1 description, rendered from the routes that are really served."""

from __future__ import annotations

from typing import Any, Final

import raftkv
from raftkv.api.gate import public
from raftkv.api.http.fields import object_schema
from raftkv.api.http.router import Answer, Param, Route
from raftkv.api.http.schemas import SCHEMAS
from raftkv.api.outcomes import HTTP, HTTP_REASONS
from raftkv.limits import IDEMPOTENCY_KEY_BYTES_MAX

PROBLEM_MEDIA: Final = "application/problem+json"

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "If-Match": {
        "description": 'Only when the key\'s mod_revision is this ("7"), or the key exists (*).',
        "schema": {"type": "string"},
    },
    "If-None-Match": {
        "description": "Writing: only when the key does not exist (*), or its mod_revision is "
        "another. Reading: 304 when it is still this.",
        "schema": {"type": "string"},
    },
    "Last-Event-ID": {
        "description": "Resume after this event.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
    "Idempotency-Key": {
        "description": "Any text of the client's choice. A repeat with the same key answers the "
        "first result and changes nothing.",
        "schema": {"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES_MAX},
    },
}

ANSWER_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Raftkv-Revision": {
        "description": "The store's revision when the answer was made.",
        "schema": {"type": "integer"},
    },
    "Raftkv-Term": {
        "description": "The Raft term this member is in.",
        "schema": {"type": "integer"},
    },
    "Raftkv-Member": {
        "description": "The member that answered.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    },
}

PROBLEMS_EVERYWHERE: Final = (400, 401, 403, 408, 413, 414, 417, 421, 429, 431, 500, 503, 505)
PROBLEMS_OF_WRITES: Final = (409, 504)

TAGS: Final = {
    "Keys and values": "Text is text; a value is the request's body as sent. What is not UTF-8 "
    "comes back as base64, and says so.",
    "Transactions": "Several conditions and operations as one.",
    "Watches": "Changes as they happen, in order, each once, resumable.",
    "Leases": "A time to live that many keys can share.",
    "Services": "Processes that say where they are for as long as they live.",
    "Quotas": "Most keys and bytes of a prefix or a user.",
    "Cluster": "Members, leadership, history, backups.",
    "Access control": "Users, roles and what they may read and write.",
    "Health": "Probes and metrics.",
    "Documentation": "This.",
}

ABOUT: Final = """\
A key-value store replicated with Raft, with watches, transactions, leases and services that expire.

Every answer carries the revision, the term and the member in its headers. Every error is
`application/problem+json`; its `outcome` says whether the request did not happen (`refused`), may
have happened (`unknown`), or failed here (`failed`). A write with an `Idempotency-Key` may be
repeated safely after any of them. While access control is on, a call needs the token of a user
who may do all that it does. Unknown query parameters and JSON fields are refused by name.
"""


def build_openapi(routes: list[Route]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "raftkv",
            "version": raftkv.__version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "From `POST /api/auth/login`, while access control is on.",
                }
            },
            "headers": ANSWER_HEADERS,
            "responses": {
                f"Problem{status}": {
                    "description": _problem_text(status),
                    "headers": _answer_headers(),
                    "content": {PROBLEM_MEDIA: {"schema": _reference("Problem")}},
                }
                for status in sorted({row.status for row in HTTP.values()})
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [route.tag],
    }
    if route.doc:
        operation["description"] = route.doc
    parameters = [_place(name, route) for name in places(route.template)]
    parameters += [_query(param) for param in route.query]
    parameters += [_header(name) for name in request_headers(route)]
    if parameters:
        operation["parameters"] = parameters
    body = _body(route)
    if body is not None:
        operation["requestBody"] = body
    operation["responses"] = _responses(route)
    if route.guard is public:
        operation["security"] = []
    return operation


def places(template: str) -> list[str]:
    """Names of the places in a path template."""
    return [part[1:-1] for part in template.split("/") if part.startswith("{")]


def request_headers(route: Route) -> tuple[str, ...]:
    """Headers with a meaning for a route."""
    return (*route.headers, "Idempotency-Key") if route.writes and route.once else route.headers


def _place(name: str, route: Route) -> dict[str, Any]:
    text = "Percent-encoded; slashes need no encoding." if route.greedy else "Percent-encoded."
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": text,
        "schema": {"type": "string", "minLength": 1},
    }


def _query(param: Param) -> dict[str, Any]:
    schema: dict[str, Any]
    if param.kind == "flag":
        schema = {"type": "string", "enum": ["", "0", "1", "false", "true"]}
    elif param.kind in ("integer", "seconds"):
        schema = {
            "type": "integer" if param.kind == "integer" else "number",
            "minimum": param.minimum,
            "maximum": param.maximum,
        }
    elif param.kind == "choice":
        schema = {"type": "string", "enum": list(param.choices)}
    else:
        schema = {"type": "string"}
    if param.default not in (None, False, ""):
        schema["default"] = param.default
    shown: dict[str, Any] = {
        "name": param.name,
        "in": "query",
        "description": param.doc,
        "schema": schema,
    }
    if param.kind == "flag":
        shown["allowEmptyValue"] = True
    return shown


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", **HEADERS[name]}


def _body(route: Route) -> dict[str, Any] | None:
    if route.raw_body:
        return {
            "description": route.raw_body,
            "required": False,  # an empty value is a value
            "content": {"*/*": {"schema": {}}},
        }
    if route.body is None:
        return None
    body = route.body
    schema = _reference(body) if isinstance(body, str) else object_schema(body)
    return {"required": route.body_required, "content": {"application/json": {"schema": schema}}}


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for answer in route.answers:
        shown = responses.setdefault(
            str(answer.status), {"description": answer.doc, "headers": _answer_headers()}
        )
        if shown["description"] != answer.doc:
            shown["description"] += " " + answer.doc
        if answer.media:
            shown.setdefault("content", {})[answer.media] = _media(answer)
    for status in sorted(problem_statuses(route)):
        problem = {"$ref": f"#/components/responses/Problem{status}"}
        if str(status) in responses:
            content = responses[str(status)]["content"]
            content[PROBLEM_MEDIA] = {"schema": _reference("Problem")}
        else:
            responses[str(status)] = problem
    return responses


def problem_statuses(route: Route) -> set[int]:
    """Statuses of all problems that a call can answer."""
    statuses = {*PROBLEMS_EVERYWHERE, *route.problems}
    return statuses | set(PROBLEMS_OF_WRITES) if route.writes else statuses


def _media(answer: Answer) -> dict[str, Any]:
    if answer.schema is not None:
        if answer.media == "text/event-stream":
            text = f"Each event's data is one `{answer.schema}`."
            return {"schema": {"type": "string", "description": text}}
        return {"schema": _reference(answer.schema)}
    if answer.media == "application/json":
        return {"schema": {"type": "object"}}
    return {"schema": {"type": "string"}} if answer.media.startswith("text/") else {}


def _answer_headers() -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ANSWER_HEADERS}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _problem_text(status: int) -> str:
    titles = [row.title for row in HTTP.values() if row.status == status]
    return f"{HTTP_REASONS[status]}: " + "; ".join(titles) + "."
