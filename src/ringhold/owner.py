"""Who acquires a lock: a thread of the blocking face, a task of the async one.

Owners are numbers that are never given twice in a process. The interpreter's own thread and task
identities are reused as soon as one ends, and a newcomer would pass for a holder long gone.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from contextvars import ContextVar
from typing import Any

USER_OWNER_MAX = (1 << 62) - 1
"""Owners up to this number are those that users name; those given out here are larger."""

_numbers = itertools.count(USER_OWNER_MAX + 1)
_large: dict[int, int] = {}
_told: dict[int, int] = {}
_thread = threading.local()
_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()

calling_owner: ContextVar[int | None] = ContextVar("ringhold_calling_owner", default=None)
"""Set by the blocking face for what it runs on the loop: the owner that waits for the answer."""


def next_owner() -> int:
    """A number for an owner that is neither a thread nor a task."""
    return next(_numbers)


def user_owner(number: int) -> int:
    """The number that stands for the owner whom users call `number`."""
    if number <= USER_OWNER_MAX:
        return number
    known = _large.get(number)
    if known is None:
        known = _large.setdefault(number, next_owner())
        _told[known] = number
    return known


def told_owner(number: int) -> int:
    """The owner as people are told of it."""
    if number <= USER_OWNER_MAX:
        return number
    return _told.get(number, number - USER_OWNER_MAX)


def thread_owner() -> int:
    """The number of the calling thread."""
    try:
        number: int = _thread.owner
    except AttributeError:
        number = _thread.owner = next(_numbers)
    return number


def task_owner() -> int:
    """The number of the current task; RuntimeError outside of one."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a lock is owned by a task: acquire it in one, or give owner=")
    number = _tasks.get(task)
    if number is None:
        number = _tasks[task] = next(_numbers)
    return number


def current_owner() -> int:
    """The caller's number, also in a coroutine that runs on the loop for a blocked thread."""
    owner = calling_owner.get()
    return task_owner() if owner is None else owner
