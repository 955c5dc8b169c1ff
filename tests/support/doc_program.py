"""Runs a Python example in which `await` may stand at the top level: `doc_program SOURCE`."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from types import CodeType, FunctionType


def run(source: str) -> None:
    """Run `source` as a program."""
    code: CodeType = compile(source, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = FunctionType(code, {"__name__": "__main__", "__builtins__": __builtins__})()
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    run(sys.argv[1])
