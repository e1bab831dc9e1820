"""How much of a file system a node leaves free.

Deleting takes space too: the store has to commit that a chunk is not needed any more before the
node removes it, and may lie on the same file system. A node therefore refuses chunks before the
file system is full. What others write there it cannot refuse, and other processes with puts under
way at this moment may each take one chunk more than they see room for.
"""

from __future__ import annotations

import errno

from ringhold.env import Disk

RESERVE_BYTES_MIN = 4 << 20
RESERVE_BYTES_MAX = 1 << 30
RESERVE_PER_CENT = 1


def reserve_bytes(total: int) -> int:
    """What stays free of a file system of `total` bytes."""
    return max(RESERVE_BYTES_MIN, min(RESERVE_BYTES_MAX, total * RESERVE_PER_CENT // 100))


async def check_space(disk: Disk, fd: int, count: int, node: str) -> None:
    """OSError (ENOSPC) unless `count` more bytes on the file system of `fd` leave the reserve."""
    free, total = await disk.free_bytes(fd)
    reserve = reserve_bytes(total)
    if free - count < reserve:
        raise OSError(
            errno.ENOSPC,
            f"node {node} is full: {free} of {total} bytes are free, and {reserve} stay so",
        )
