"""Whole files in and out: to memory, from and to files of this machine, and copies.

These run on the cluster's loop, whatever loop or thread asked for them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from fsspec.utils import isfilelike  # type: ignore[import-untyped]

from ringhold.files import local
from ringhold.files.core import FileCore, ViewSource
from ringhold.files.paths import Parts
from ringhold.files.read import FileReader
from ringhold.store.view import View

WINDOW_CHUNKS = 4


async def cat(
    core: FileCore, parts: Parts, source: ViewSource, start: int | None, end: int | None
) -> bytes:
    """The bytes [start, end) of a file; negative ones count from its end."""
    reader = await core.open_reader(parts, source)
    size = reader.size
    first = 0 if start is None else start if start >= 0 else max(0, size + start)
    last = size if end is None else end if end >= 0 else size + end
    pieces = await reader.read(first, last)
    if len(pieces) == 1 and isinstance(whole := pieces[0].obj, bytes):
        return whole if len(whole) == len(pieces[0]) else bytes(pieces[0])
    return b"".join(pieces)


async def locate(core: FileCore, parts: Parts, source: ViewSource) -> list[dict[str, Any]]:
    """The chunks of a file in order, and the nodes each belongs on."""
    reader = await core.open_reader(parts, source)
    located: list[dict[str, Any]] = []
    for offset, ref in await reader.refs():
        table, _ = await core.placement.table(ref.partition)
        holders = table.for_chunk(ref.chunk.number, ref.replicas)
        located.append(
            {
                "offset": offset,
                "length": ref.length,
                "chunk": str(ref.chunk),
                "partition": ref.partition,
                "nodes": [holder.name for holder in holders],
            }
        )
    return located


async def download(
    core: FileCore, parts: Parts, source: ViewSource, target: Any, callback: Any
) -> None:
    """Copies a file to the local path or file object `target`; of a directory, makes one.

    A regular file at that path is replaced at the end, or stays as it was.
    """
    status = await core.stat(parts, source())
    if status.is_directory:
        return await local.make_directories(core.env, os.fspath(target))
    reader = await core.open_reader(parts, source)
    callback.set_size(reader.size)
    if isfilelike(target):
        async for _, pieces in _windows(core, reader, callback):
            for piece in pieces:
                await core.env.blocking(target.write, piece)
        return None
    path = os.fspath(target)
    await local.make_directories(core.env, os.path.dirname(path))
    async with local.replacing(core.env, path) as sink:
        async for offset, pieces in _windows(core, reader, callback):
            await sink(pieces, offset)
    return None


async def _windows(
    core: FileCore, reader: FileReader, callback: Any
) -> AsyncIterator[tuple[int, list[memoryview]]]:
    window = WINDOW_CHUNKS * core.cluster.chunk_bytes
    for offset in range(0, reader.size, window):
        pieces = await reader.read(offset, offset + window)
        yield offset, pieces
        callback.relative_update(sum(len(piece) for piece in pieces))


async def upload(
    core: FileCore,
    path: str,
    parts: Parts,
    source: ViewSource,
    callback: Any,
    *,
    exclusive: bool,
    make_parents: bool,
) -> None:
    """Copies the local file `path`; of a directory, makes one."""
    disk = core.env.disk
    if await local.is_directory(core.env, path):
        return await core.make_directory(parts, exist_ok=True, view=source())
    async with local.open_local(core.env, path) as fd:
        callback.set_size((await disk.fstat(fd)).size)
        writer = await core.open_writer(
            parts, source, exclusive=exclusive, make_parents=make_parents
        )
        try:
            while data := await disk.pread(fd, core.cluster.chunk_bytes, writer.size):
                await writer.write(data)
                callback.relative_update(len(data))
            await writer.close()
        finally:
            await writer.discard()
    return None


async def copy(
    core: FileCore,
    source: Parts,
    target: Parts,
    view: View | None,
    *,
    exclusive: bool,
    make_parents: bool,
) -> None:
    """Copies a file without moving its data; of a directory, makes one."""
    if (await core.stat(source, view)).is_directory:
        return await core.make_directory(target, exist_ok=True, view=view)
    await core.copy(source, target, view, exclusive=exclusive, make_parents=make_parents)
    return None
