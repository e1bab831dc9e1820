"""Long work on the event loop in pieces, so that what must happen in time still does.

A lease is renewed by the loop that also lists directories. Between two pieces every other task
gets its turn; a piece takes about a millisecond.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

PIECE = 1000


async def in_pieces(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """`items` in order, at most `PIECE` at a time; fewer are given without a pause."""
    for start in range(0, len(items), PIECE):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + PIECE]
