"""Files of this machine as source and destination of put and get, through `env.disk`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ringhold.env import Env

_READ = os.O_RDONLY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@asynccontextmanager
async def open_local(env: Env, path: str, *, write: bool = False) -> AsyncIterator[int]:
    """A descriptor of the file `path`, closed at the end."""
    fd = await env.disk.open(path, _WRITE if write else _READ, mode=0o666)
    try:
        yield fd
    finally:
        await env.disk.close(fd)


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
