"""Whether a file is being closed because an exception leaves the `with` block around it.

Context managers that merely call `close` (`fsspec.open`, `contextlib.closing`, pandas' handles,
`io.TextIOWrapper`) do not tell the file of the exception, and a half-written file would be
published over the old one. What they know still stands on the stack: the arguments of their
`__exit__`, and the instruction of the `with` statement itself.
"""

from __future__ import annotations

import inspect
import opcode
import sys
from types import FrameType

FRAMES_MAX = 12
"""How far up a block is looked for; wrappers of wrappers need about two frames each."""

_EXITS = ("__exit__", "__aexit__")
_WITH_RAISED = opcode.opmap["WITH_EXCEPT_START"]

Leaving = tuple[FrameType, ...]


def blocks_being_left() -> Leaving:
    """The frames above the caller's in which a `with` block is being left by an exception.

    What is opened below them is the work of a handler, no victim of that exception.
    """
    return tuple(frame for frame, raised in _exits(sys._getframe(1)) if raised)


def left_by_exception(opened_below: Leaving) -> bool:
    """Whether the innermost block being left above the caller is left by an exception, and not
    one of `opened_below`."""
    for frame, raised in _exits(sys._getframe(1)):
        return raised and not any(frame is other for other in opened_below)
    return False


def _exits(start: FrameType) -> list[tuple[FrameType, bool]]:
    """The blocks being left, innermost first, and whether by an exception."""
    found: list[tuple[FrameType, bool]] = []
    frame: FrameType | None = start
    for _ in range(FRAMES_MAX):
        if frame is None:
            break
        if frame.f_code.co_name in _EXITS:
            found.append((frame, _is_given_exception(frame)))
        elif _is_leaving(frame):
            found.append((frame, True))
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


def _is_leaving(frame: FrameType) -> bool:
    """Whether `frame` stands at a `with` statement that hands an exception to an `__exit__`,
    which has no frame of its own when it is written in C."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _WITH_RAISED
