"""Put a defect into production code for a while, and take it out again without a trace.

A defect is a few edits of source text. Applying one compiles the edited function and swaps its
code object in place, so everybody who holds the function runs the defect, however they imported
it. A piece of text that is not there exactly once means that production code has moved on and the
defect must be thought over: `ShapeChanged`, never a defect that silently does nothing.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType

_FLAGS = __future__.annotations.compiler_flag


class ShapeChanged(Exception):
    """The code that a defect was written for is not as it was."""


@dataclass(frozen=True)
class Edit:
    """Replace `old` by `new` in the function `where`, as "package.module:Class.function"."""

    where: str
    old: str
    new: str


def find(where: str) -> FunctionType:
    """The function named. Raises ShapeChanged."""
    module_name, _, path = where.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for name in path.split("."):
            found = inspect.getattr_static(found, name)
    except (ImportError, AttributeError) as error:
        raise ShapeChanged(f"{where} is gone: {error}") from error
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    if not isinstance(found, FunctionType):
        raise ShapeChanged(f"{where} is no function any more")
    return found


def edited(function: FunctionType, edits: Sequence[Edit]) -> CodeType:
    """The code of `function` after `edits`. Raises ShapeChanged."""
    where = edits[0].where
    lines, first = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    for edit in edits:
        count = source.count(edit.old)
        if count != 1:
            raise ShapeChanged(f"{where} has {edit.old!r} {count} times, not once")
        source = source.replace(edit.old, edit.new)
    source = "\n" * (first - 1) + source
    try:
        module = compile(
            source, inspect.getsourcefile(function) or "?", "exec", _FLAGS, dont_inherit=True
        )
    except SyntaxError as error:
        raise ShapeChanged(f"{where} does not compile after the edit: {error}") from error
    [code] = [
        constant
        for constant in module.co_consts
        if isinstance(constant, CodeType) and constant.co_name == function.__name__
    ]
    if code.co_freevars != function.__code__.co_freevars:
        raise ShapeChanged(f"{where} closes over other variables after the edit")
    return code.replace(co_qualname=function.__code__.co_qualname)


@contextmanager
def patched(edits: Sequence[Edit]) -> Iterator[None]:
    """Production code with all `edits` for the time being. Raises ShapeChanged."""
    by_function: dict[str, list[Edit]] = {}
    for edit in edits:
        by_function.setdefault(edit.where, []).append(edit)
    with ExitStack() as stack:
        for where, group in by_function.items():
            function = find(where)
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = edited(function, group)
        yield
