"""The description, for programs and for people: `GET /openapi.json` and `GET /docs`.

The page is one piece of HTML rendered here from the description. It asks for nothing else, neither
from this member nor from the internet, and its content policy says so to the browser.
"""

from __future__ import annotations

import html
from typing import Any, Final

import orjson

from raftkv.api.gate import public
from raftkv.api.http.codec import dump_json
from raftkv.api.http.exchange import HTML, JSON, Exchange
from raftkv.api.http.router import Answer, Route

SECURITY: Final = (
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
)

STYLE: Final = """
:root{color-scheme:light dark;--bg:#fdfdfc;--fg:#1d2126;--dim:#5d6570;--line:#e3e5e8;--card:#fff;
--accent:#1259c3;--code:#f3f4f6;--get:#0b6e4f;--put:#8a5a00;--post:#1259c3;--delete:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--dim:#9aa3ad;--line:#2b3036;
--card:#1a1e22;--accent:#7fb2ff;--code:#22272c;--get:#5fd0a5;--put:#e8b45a;--post:#7fb2ff;
--delete:#ff8a80}}
*{box-sizing:border-box}html{scroll-behavior:smooth;scroll-padding-top:1rem}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,sans-serif;
display:grid;grid-template-columns:17rem minmax(0,1fr)}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1.2rem 1rem;
border-right:1px solid var(--line);font-size:.87rem}
nav h2{font-size:.75rem;letter-spacing:.06em;text-transform:uppercase;color:var(--dim);
margin:1.1rem 0 .3rem}nav ul{list-style:none;margin:0;padding:0}nav a{display:block;padding:.1rem 0}
main{padding:2rem clamp(1rem,4vw,3.5rem);max-width:60rem}
h1{margin:0 0 .3rem}a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
code,pre,.path{font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:.9em}
code{background:var(--code);padding:.08em .3em;border-radius:4px}
pre{background:var(--code);padding:.8rem;border-radius:8px;overflow:auto}
section.call{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1rem 1.2rem;margin:1rem 0}section.call:target{border-color:var(--accent)}
section.call h3{margin:0;font-size:1rem;display:flex;gap:.6rem;align-items:baseline;flex-wrap:wrap}
.verb{font-weight:700}.verb.get{color:var(--get)}.verb.put{color:var(--put)}
.verb.post{color:var(--post)}.verb.delete{color:var(--delete)}
.sum{color:var(--dim);font-weight:400;font-family:system-ui,sans-serif}
table{border-collapse:collapse;width:100%;margin:.6rem 0;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;
border-bottom:1px solid var(--line)}th{color:var(--dim);font-weight:600}
h4{margin:.9rem 0 .2rem;font-size:.85rem;color:var(--dim)}
details summary{cursor:pointer;color:var(--dim);font-size:.9rem}
@media(max-width:50rem){body{display:block}nav{position:static;height:auto;border-right:0;
border-bottom:1px solid var(--line)}}
"""


def get_openapi(x: Exchange) -> None:
    x.send(dump_json(x.door.openapi), JSON)


def get_docs(x: Exchange) -> None:
    x.send(render_docs(x.door.openapi).encode(), HTML, headers=SECURITY)


def render_docs(spec: dict[str, Any]) -> str:
    """The whole page."""
    calls = [
        (path, method, operation)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    ]
    info = spec["info"]
    menu, body = [], []
    for tag in spec["tags"]:
        mine = [call for call in calls if tag["name"] in call[2]["tags"]]
        anchor = tag["name"].lower().replace(" ", "-")
        menu.append(f'<h2><a href="#{anchor}">{_text(tag["name"])}</a></h2><ul>')
        menu += [
            f'<li><a href="#{operation["operationId"]}">{_text(operation["summary"])}</a></li>'
            for _, _, operation in mine
        ]
        menu.append("</ul>")
        body.append(f'<h2 id="{anchor}">{_text(tag["name"])}</h2>{_prose(tag["description"])}')
        body += [_call(path, method, operation) for path, method, operation in mine]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(info['title'])} HTTP API</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body>"
        f'<nav aria-label="Calls"><a href="#top"><strong>{_text(info["title"])}</strong> '
        f"{_text(info['version'])}</a>{''.join(menu)}"
        '<h2><a href="#schemas">Schemas</a></h2></nav>'
        f'<main id="top"><h1>{_text(info["title"])} HTTP API</h1>{_prose(info["description"])}'
        '<p>For programs: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1).</p>'
        f"{''.join(body)}{_schemas(spec['components']['schemas'])}</main></body></html>"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _prose(text: str) -> str:
    """Paragraphs, with words between backticks as code."""
    out = []
    for paragraph in text.strip().split("\n\n"):
        parts = _text(paragraph).split("`")
        out.append(
            "<p>"
            + "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))
            + "</p>"
        )
    return "".join(out)


def _call(path: str, method: str, operation: dict[str, Any]) -> str:
    name = operation["operationId"]
    parts = [
        f'<section class="call" id="{name}"><h3><span class="verb {method}">{method.upper()}'
        f'</span><a class="path" href="#{name}">{_text(path)}</a>'
        f'<span class="sum">{_text(operation["summary"])}</span></h3>',
        _prose(operation.get("description", "")) if "description" in operation else "",
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        parts.append("<h4>Parameters</h4>" + _table(map(_parameter, parameters)))
    body = operation.get("requestBody")
    if body is not None:
        parts.append("<h4>Body</h4>")
        parts.append(_prose(body.get("description", "")) if "description" in body else "")
        parts += [_content(media, shown) for media, shown in body["content"].items()]
    answers, problems = [], []
    for status, response in operation["responses"].items():
        if "$ref" in response:
            problems.append(f"<code>{status}</code>")
        else:
            answers.append((f"<code>{status}</code>", _prose(response["description"])
                            + "".join(_content(media, shown) for media, shown
                                      in response.get("content", {}).items())))  # fmt: skip
    parts.append("<h4>Answers</h4>" + _table(answers))
    if problems:
        parts.append(f'<p>Problems (<a href="#schema-Problem">form</a>): {" ".join(problems)}</p>')
    return "".join(parts) + "</section>"


def _parameter(shown: dict[str, Any]) -> tuple[str, str]:
    schema = shown["schema"]
    kind = ", ".join(filter(None, map(str, schema.get("enum", [])))) or schema.get("type", "")
    default = f" Default: <code>{_text(schema['default'])}</code>." if "default" in schema else ""
    return (
        f"<code>{_text(shown['name'])}</code>",
        f"{_prose(shown['description'])}<small>{_text(shown['in'])}; {_text(kind)}.{default}"
        "</small>",
    )


def _table(rows: Any) -> str:
    inner = "".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in rows)
    return f"<table>{inner}</table>"


def _content(media: str, shown: dict[str, Any]) -> str:
    schema = shown.get("schema", {})
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f'<p><code>{_text(media)}</code>: <a href="#schema-{name}">{_text(name)}</a></p>'
    if "properties" in schema:
        required = schema.get("required", [])
        rows = [
            (
                f"<code>{_text(name)}</code>{'' if name not in required else ' *'}",
                _prose(field.get("description", "")),
            )
            for name, field in schema["properties"].items()
        ]
        return f"<p><code>{_text(media)}</code> (* required)</p>" + _table(rows)
    text = f": {_text(schema['description'])}" if "description" in schema else ""
    return f"<p><code>{_text(media)}</code>{text}</p>"


def _schemas(schemas: dict[str, Any]) -> str:
    parts = ['<h2 id="schemas">Schemas</h2>']
    for name, schema in sorted(schemas.items()):
        shown = _text(dump_json(schema, option=_INDENT).decode())
        parts.append(
            f'<section class="call" id="schema-{name}"><h3><a class="path" '
            f'href="#schema-{name}">{_text(name)}</a></h3><details><summary>JSON Schema</summary>'
            f"<pre>{shown}</pre></details></section>"
        )
    return "".join(parts)


_INDENT: Final = orjson.OPT_INDENT_2

ROUTES: Final = [
    Route(
        "GET", "/openapi.json", get_openapi, "getOpenapi", "This description", "Documentation",
        guard=public,
        answers=(Answer(200, "OpenAPI 3.1."),),
    ),
    Route(
        "GET", "/docs", get_docs, "getDocs", "This description, to read", "Documentation",
        guard=public,
        answers=(Answer(200, "A page.", None, "text/html"),),
    ),
]  # fmt: skip
