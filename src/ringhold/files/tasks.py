"""Several coroutines at once, ended together: no task outlives the call that started it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from ringhold.env import finish

T = TypeVar("T")
R = TypeVar("R")


async def cancel_and_wait(tasks: Sequence[asyncio.Task[T]]) -> None:
    """Cancels `tasks` and waits until each has ended, even while being cancelled itself."""
    for task in tasks:
        task.cancel()
    if tasks:
        await finish(asyncio.gather(*tasks, return_exceptions=True))


async def for_each(
    items: Iterable[T], function: Callable[[T], Awaitable[R]], *, at_once: int
) -> list[R]:
    """``function(item)`` of every item, `at_once` of them at a time, results in order.

    The first error ends the others and is raised.
    """
    numbered = enumerate(items)
    results: dict[int, R] = {}

    async def work() -> None:
        for number, item in numbered:
            results[number] = await function(item)

    tasks = [asyncio.ensure_future(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(tasks)
    return [results[number] for number in range(len(results))]
