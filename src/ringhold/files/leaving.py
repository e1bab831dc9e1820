"""Whether a file is being closed because an exception leaves the `with` block around it.

Context managers of libraries that merely call `close` (`fsspec.open`, `contextlib.closing`,
pandas' handles) do not tell the file of the exception, and a half-written file would be published
over the old one. What they know still stands on the stack: the arguments of their `__exit__`.

Only libraries known to close so count. Whoever calls `close` in an `__exit__` of their own means
it: the file may be the report of that very exception. Not seen: classes written in C
(`io.TextIOWrapper` around a file, used as a block), whose `__exit__` has no frame.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType

FRAMES_MAX = 12
"""How far up a block is looked for; wrappers of wrappers need about two frames each."""

WRAPPERS = frozenset({"fsspec", "contextlib", "pandas"})
"""The top-level packages whose `__exit__` closes what it holds, whatever the reason; what they
hold is data being written, never a report on the exception."""

_GENERATORS = ("_GeneratorContextManager", "_AsyncGeneratorContextManager")
"""What `contextlib.contextmanager` makes: its `__exit__` runs the user's own code."""

_EXITS = ("__exit__", "__aexit__")

Leaving = tuple[FrameType, ...]


def blocks_being_left() -> Leaving:
    """The frames above the caller's in which a wrapper is told of an exception.

    What is opened below them is the work of a handler, no victim of that exception.
    """
    return tuple(frame for frame, raised in _exits(sys._getframe(1)) if raised)


def left_by_exception(opened_below: Leaving) -> bool:
    """Whether the innermost `__exit__` above the caller is a wrapper's that is told of an
    exception, and not one of `opened_below`."""
    for frame, raised in _exits(sys._getframe(1)):
        return raised and not any(frame is other for other in opened_below)
    return False


def _exits(start: FrameType) -> list[tuple[FrameType, bool]]:
    """The blocks being left, innermost first, and whether a wrapper leaves by an exception."""
    found: list[tuple[FrameType, bool]] = []
    frame: FrameType | None = start
    for _ in range(FRAMES_MAX):
        if frame is None:
            break
        if frame.f_code.co_name in _EXITS:
            found.append((frame, _is_wrapper(frame) and _is_given_exception(frame)))
        frame = frame.f_back
    return found


def _is_given_exception(frame: FrameType) -> bool:
    """Whether the second argument of the function in `frame` is an exception or its class."""
    code, values = frame.f_code, frame.f_locals
    given: object = None
    if code.co_argcount >= 2:
        given = values.get(code.co_varnames[1])
    elif code.co_flags & inspect.CO_VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ())
        # Without a named `self`, it is the first of them.
        given = next(iter(rest[1 - code.co_argcount :]), None)
    if isinstance(given, type):
        return issubclass(given, BaseException)
    return isinstance(given, BaseException)


def _is_wrapper(frame: FrameType) -> bool:
    if type(frame.f_locals.get("self")).__name__ in _GENERATORS:
        return False
    module = frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in WRAPPERS
