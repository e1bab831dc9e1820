"""Goal: `for_each` keeps the order of results, bounds what is under way and what it takes from
its items, and leaves no task behind.
Method: items from a generator that counts what was taken, coroutines that yield to each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ringhold.files.tasks import for_each


def test_results_are_in_order_and_items_are_taken_as_room_comes() -> None:
    taken = ended = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    async def work(number: int) -> int:
        nonlocal ended
        for _ in range(number % 7):
            await asyncio.sleep(0)
        assert taken - ended <= 4
        assert len(asyncio.all_tasks()) <= 5
        ended += 1
        return number * 2

    results = asyncio.run(for_each(items(), work, at_once=4))
    assert results == [number * 2 for number in range(100)]


def test_the_first_error_ends_the_others() -> None:
    async def main() -> None:
        async def work(number: int) -> None:
            if number == 3:
                raise KeyError(number)
            await asyncio.Event().wait()

        with pytest.raises(KeyError):
            await for_each(range(10), work, at_once=4)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
