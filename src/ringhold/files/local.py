"""Files of this machine as source and destination of put and get, through `env`.

A file that is got appears under its name at the end, whole; until then, and after a failure or a
cancellation, what had that name is as it was. That file is a new one: other hard links to the old
one keep the old contents. Not promised: that it survives a crash of the machine. What is no
regular file (a FIFO, /dev/null) is written as the data comes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from ringhold.env import Buffer, Env

Sink = Callable[[Sequence[Buffer], int], Awaitable[None]]
"""Takes the next pieces of a file, which begin at an offset."""


@asynccontextmanager
async def open_local(
    env: Env, path: str, flags: int = os.O_RDONLY, *, mode: int = 0
) -> AsyncIterator[int]:
    """A descriptor of the file `path`, closed at the end."""
    fd = await env.disk.open(path, flags, mode=mode)
    try:
        yield fd
    finally:
        await env.disk.close(fd)


@asynccontextmanager
async def replacing(env: Env, path: str) -> AsyncIterator[Sink]:
    """Takes what becomes the file `path` when the block ends; nothing does after an exception."""
    # Through a link, as writing would go, and not in its place.
    path = await env.blocking(os.path.realpath, path)
    mode = await env.blocking(_mode_of, path)
    if mode is not None and not stat.S_ISREG(mode):
        async with open_local(env, path, os.O_WRONLY) as fd:
            yield lambda pieces, _: env.blocking(_write_all, fd, pieces)
        return
    draft = os.path.join(os.path.dirname(path), f".ringhold-{env.random_bytes(8).hex()}")
    created = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        async with open_local(env, draft, created, mode=0o666) as fd:
            if mode is not None:
                await env.blocking(os.fchmod, fd, stat.S_IMODE(mode))
            yield lambda pieces, offset: env.disk.pwrite(fd, pieces, offset)
        await env.disk.rename(draft, path, source_fd=None, target_fd=None)
    except BaseException:
        # It may not have been made yet, or have been renamed before the cancellation came.
        with suppress(FileNotFoundError):
            await env.disk.unlink(draft)
        raise


def _mode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _write_all(fd: int, pieces: Sequence[Buffer]) -> None:
    """For what has no offsets."""
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while len(view):
            view = view[os.write(fd, view) :]


async def is_directory(env: Env, path: str) -> bool:
    try:
        return (await env.disk.stat(path)).is_dir
    except (FileNotFoundError, NotADirectoryError):
        return False


async def make_directories(env: Env, path: str) -> None:
    """Creates `path` and what is missing above it; what exists is no error."""
    missing: list[str] = []
    while path and not await is_directory(env, path):
        missing.append(path)
        path = os.path.dirname(path)
    for name in reversed(missing):
        try:
            await env.disk.mkdir(name, mode=0o777)
        except FileExistsError:
            if not await is_directory(env, name):
                raise
