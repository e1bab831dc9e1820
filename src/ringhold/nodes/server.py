"""The storage daemon: one node directory behind the protocol, on this host only.

Guaranteed: an answer "stored" means what `DirectoryNode.put` means by it. SIGTERM and SIGINT end
the daemon after the requests under way were answered. A client that sends garbage, too much, or
nothing at all harms nobody but itself: memory and requests under way are bounded, a connection
without a handshake is closed. Two daemons never serve one directory.

Not guaranteed: protection from other users of the host. Anybody who can connect can read and
delete chunks, so no address but loopback is served.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

from ringhold.env import Buffer, Env, process_id
from ringhold.errors import Corrupt, InvalidInput, NodeDown, RingholdError
from ringhold.nodes.address import loopback_address
from ringhold.nodes.adoption import is_empty, make_directory
from ringhold.nodes.base import CHUNK_BYTES_MAX, ChunkId, ChunkState, Identity
from ringhold.nodes.connection import STALL_S, Budget, Connection
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.mount import LOCK, SUBDIRECTORIES
from ringhold.nodes.protocol import (
    CHUNKS_PER_REQUEST_MAX,
    PACKED_CHUNK_BYTES,
    ChunksRequest,
    Frame,
    GetAnswer,
    GetRequest,
    Head,
    Hello,
    ListAnswer,
    ListRequest,
    Operation,
    PutRequest,
    Status,
    decode_meta,
    encode_error,
    encode_frame,
    encode_meta,
    pack_chunks,
    unpack_chunks,
)
from ringhold.store.lock_files import LockFile

logger = logging.getLogger("ringhold")

HANDSHAKE_S = 5.0
DRAIN_S = 10.0
BACKLOG = 128
REQUESTS_MAX = 64
MEMORY_BYTES_MAX = 256 << 20
CONNECTION_BYTES_MAX = 64 << 20
SMALL_BYTES = 64 << 10
LIST_PAGE_CHUNKS = 1 << 16

Answer = tuple[bytes, Buffer]
_STATES = {ChunkState.GOOD: 0, ChunkState.MISSING: 1, ChunkState.DAMAGED: 2}


class Service:
    """What all connections share: the node, whose identity only adoption changes, and memory."""

    def __init__(self, directory: str, env: Env):
        self.directory = directory
        self.env = env
        self.tasks = asyncio.TaskGroup()
        self.memory = Budget(MEMORY_BYTES_MAX)
        self.identity: Identity | None = None
        self.node = DirectoryNode(directory, "unadopted", env)
        self.sessions: dict[int, Session] = {}
        self._adopting = asyncio.Lock()

    async def open(self) -> None:
        """InvalidInput when the directory is neither a node nor empty."""
        found = await self.node.identity()
        if found is not None:
            await self._become(found)
        elif not await is_empty(self.env, self.directory):
            raise InvalidInput(
                f"{self.directory} holds something else than a node: give a node directory, or "
                "an empty one to be adopted"
            )

    async def adopt(self, identity: Identity) -> None:
        async with self._adopting:
            await DirectoryNode(self.directory, identity.name, self.env).adopt(identity)
            await self._become(identity)

    async def _become(self, identity: Identity) -> None:
        if self.identity == identity:
            return
        old = self.node
        self.node = DirectoryNode(self.directory, identity.name, self.env, expected=identity)
        self.identity = identity
        await old.close()

    async def verify_failed(self) -> None:
        """Reads everything back after an fsync failed in an earlier life of the daemon."""
        try:
            if self.identity is None or not await self.node.is_marked_failed():
                return
            damaged = await self.node.verify_all()
        except (OSError, RingholdError) as error:
            logger.error("%s: still failed: %s", self.directory, error)
        else:
            logger.warning("%s: verified, %d chunks damaged", self.directory, len(damaged))


def _accounted(head: Head) -> int:
    """Bytes of a received frame that count as memory in use; small ones never wait for any."""
    size = head.meta_bytes + head.body_bytes
    return size if size > SMALL_BYTES else 0


@asynccontextmanager
async def _held(budget: Budget, count: int) -> AsyncIterator[None]:
    await budget.take(count)
    try:
        yield
    finally:
        budget.give(count)


class Session:
    """One connection of a client. What it has under way is bounded, in number and in bytes, so
    that a client that reads no answers takes its own share and not everybody's."""

    def __init__(self, service: Service, connection: Connection, number: int):
        self.connection = connection
        self._service = service
        self._number = number
        self._greeted = False
        self._expected: Identity | None = None
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._received = 0
        self._answers = Budget(CONNECTION_BYTES_MAX)
        self._waiting: tuple[int, asyncio.Future[None]] | None = None
        self._progress: asyncio.TimerHandle | None = None
        self._blocked = False
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._no_handshake)

    # What the connection tells

    def admit(self, head: Head) -> bool:
        if head.status is not Status.REQUEST or not head.request:
            raise Corrupt("frame: only requests are taken here", what="frame")
        if head.request in self._requests:
            raise Corrupt(f"frame: request {head.request} is under way already", what="frame")
        if not self._greeted and (head.operation is not Operation.HELLO or head.body_bytes):
            raise Corrupt("frame: HELLO comes first", what="frame")
        size = _accounted(head)
        self._blocked = len(self._requests) >= REQUESTS_MAX or (
            self._received > 0 and self._received + size > CONNECTION_BYTES_MAX
        )
        if self._blocked:
            return False
        if size:
            if self._waiting is None:
                self._waiting = (size, self._service.memory.request(size))
            if not self._waiting[1].done():
                self._waiting[1].add_done_callback(self._memory_came)
                return False
            self._watch_progress(-1)
        return True

    def _watch_progress(self, bytes_before: int) -> None:
        """Who announced a body and does not send it must not keep others waiting for memory."""
        if self.connection.bytes_received == bytes_before:
            self.connection.abort()
            return
        loop, now = asyncio.get_running_loop(), self.connection.bytes_received
        self._progress = loop.call_later(STALL_S, self._watch_progress, now)

    def _memory_came(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            self.connection.proceed()

    def frame_received(self, frame: Frame) -> None:
        if frame.head.operation is Operation.HELLO:
            # At once, not in the task: the requests behind it may be here already.
            self._expected = decode_meta(frame.meta, Hello).identity
            self._greeted = True
            self._handshake.cancel()
        if self._progress is not None:
            self._progress.cancel()
        # From here on the task has the memory. A task cancelled before its first step runs
        # nothing of its own, so that giving back is left to its callback.
        self._waiting = None
        self._received += _accounted(frame.head)
        task = self._service.tasks.create_task(self._serve(frame))
        self._requests[frame.head.request] = task
        task.add_done_callback(functools.partial(self._request_done, frame.head))

    def _request_done(self, head: Head, task: asyncio.Task[None]) -> None:
        self._received -= _accounted(head)
        self._service.memory.give(_accounted(head))
        del self._requests[head.request]
        if self._blocked:
            self.connection.proceed()

    def frame_damaged(self, error: Corrupt) -> None:
        self._service.tasks.create_task(self._refuse(error))

    def connection_ended(self, error: Exception | None) -> None:
        self._handshake.cancel()
        if self._progress is not None:
            self._progress.cancel()
        self._service.sessions.pop(self._number, None)
        if self._waiting is not None:
            self._service.memory.withdraw(*self._waiting)
            self._waiting = None
        for task in list(self._requests.values()):
            task.cancel()

    # Ends

    def _no_handshake(self) -> None:
        self.connection.abort()

    async def _refuse(self, error: Corrupt) -> None:
        """Tells what is wrong with the stream of frames, then closes."""
        meta = encode_meta(encode_error(error))
        try:
            await self.connection.send(encode_frame(Operation.HELLO, Status.ERROR, 0, meta))
        except ConnectionError:
            return  # gone before it could be told
        finally:
            self.connection.close()

    async def drain(self) -> None:
        """Takes no more requests, answers those under way, closes."""
        self.connection.stop_reading()
        self._handshake.cancel()
        waiting = list(self._requests.values())
        if waiting:
            await asyncio.wait(waiting)
        self.connection.close()
        await self.connection.ended

    # Requests

    async def _serve(self, frame: Frame) -> None:
        try:
            if frame.head.operation is Operation.GET:
                # What the answer takes is known only when it was read.
                async with (
                    _held(self._answers, CHUNK_BYTES_MAX),
                    _held(self._service.memory, CHUNK_BYTES_MAX),
                ):
                    await self._answer(frame)
            else:
                await self._answer(frame)
        except ConnectionError:
            return  # the client went away: there is nobody to tell

    async def _answer(self, frame: Frame) -> None:
        operation, status = frame.head.operation, Status.ANSWER
        body: Buffer = b""
        try:
            meta, body = await self._dispatch(frame)
        except Exception as error:
            if not isinstance(error, (OSError, RingholdError)):
                logger.exception("request %s of a client failed", operation.name)
            status, meta = Status.ERROR, encode_meta(encode_error(error))
        size = memoryview(body).nbytes
        head = encode_frame(operation, status, frame.head.request, meta, size)
        await self.connection.send(head, body)

    async def _dispatch(self, frame: Frame) -> Answer:
        operation = frame.head.operation
        if operation is Operation.HELLO:
            return encode_meta(Hello(self._service.identity)), b""
        if operation is Operation.IDENTITY:
            return encode_meta(Hello(await self._service.node.identity())), b""
        if operation is Operation.ADOPT:
            wanted = decode_meta(frame.meta, Hello).identity
            if wanted is None:
                raise InvalidInput("adoption needs an identity")
            await self._service.adopt(wanted)
            self._expected = wanted
            return encode_meta(Hello(wanted)), b""
        self._check_expected()
        return await _OPERATIONS[operation](self._service.node, frame)

    def _check_expected(self) -> None:
        found = self._service.identity
        if found is None:
            raise NodeDown(f"{self._service.directory}: no cluster has adopted this node")
        if self._expected is not None and self._expected != found:
            raise NodeDown(
                f"{self._service.directory} is {found}, not {self._expected}", node=found.name
            )


async def _put(node: DirectoryNode, frame: Frame) -> Answer:
    request = decode_meta(frame.meta, PutRequest)
    await node.put(ChunkId(request.run, request.number), frame.body, request.digest)
    return b"", b""


async def _get(node: DirectoryNode, frame: Frame) -> Answer:
    request = decode_meta(frame.meta, GetRequest)
    chunk = ChunkId(request.run, request.number)
    part = await node.get(chunk, request.offset, request.length)
    return encode_meta(GetAnswer(part.header, part.offset)), part.data


def _requested(frame: Frame) -> list[ChunkId]:
    packed = decode_meta(frame.meta, ChunksRequest).chunks
    if len(packed) > CHUNKS_PER_REQUEST_MAX * PACKED_CHUNK_BYTES:
        raise InvalidInput(f"more than {CHUNKS_PER_REQUEST_MAX} chunks in one request")
    return unpack_chunks(packed)


async def _has(node: DirectoryNode, frame: Frame) -> Answer:
    return b"", bytes(await node.has(_requested(frame)))


async def _verify(node: DirectoryNode, frame: Frame) -> Answer:
    return b"", bytes(_STATES[state] for state in await node.verify(_requested(frame)))


async def _delete(node: DirectoryNode, frame: Frame) -> Answer:
    await node.delete(_requested(frame))
    return b"", b""


async def _list(node: DirectoryNode, frame: Frame) -> Answer:
    request = decode_meta(frame.meta, ListRequest)
    if request.partition is not None:
        chunks = await node.list_chunks(request.partition)
        return encode_meta(ListAnswer(None)), pack_chunks(chunks)
    found: list[ChunkId] = []
    start = request.start
    while start < SUBDIRECTORIES and len(found) < LIST_PAGE_CHUNKS:
        found += await node.list_subdirectory(start)
        start += 1
    next_start = start if start < SUBDIRECTORIES else None
    return encode_meta(ListAnswer(next_start)), pack_chunks(found)


_OPERATIONS: dict[Operation, Callable[[DirectoryNode, Frame], Coroutine[Any, Any, Answer]]] = {
    Operation.PUT: _put,
    Operation.GET: _get,
    Operation.HAS: _has,
    Operation.VERIFY: _verify,
    Operation.DELETE: _delete,
    Operation.LIST: _list,
}


def _format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ready_line(address: str, node: str | None) -> str:
    """The line a daemon prints once it serves."""
    return json.dumps({"ready": True, "address": address, "node": node, "pid": process_id()})


@asynccontextmanager
async def _locked(directory: str, env: Env) -> AsyncIterator[None]:
    """The right to be the one daemon of `directory`; ends with the process, however it ends."""
    lock = await env.blocking(LockFile, f"{directory}/{LOCK}", undo=LockFile.close)
    try:
        if not await env.blocking(lock.try_acquire):
            raise NodeDown(f"{directory} is served by another daemon already")
        yield
    finally:
        await env.blocking(lock.close)


@asynccontextmanager
async def _stop_signals() -> AsyncIterator[asyncio.Event]:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _new_session(service: Service, numbers: Iterator[int]) -> Connection:
    number = next(numbers)
    connection = Connection()
    connection.owner = service.sessions[number] = Session(service, connection, number)
    return connection


async def serve(
    directory: str,
    host: str,
    port: int,
    env: Env,
    *,
    ready: Callable[[str], None],
) -> None:
    """Serves `directory` on a loopback address until SIGTERM or SIGINT (main thread only).

    `ready` is called with "host:port" once requests are taken; port 0 picks one. A missing
    directory is made. InvalidInput for another address and for a directory with other content;
    NodeDown when another daemon serves it, or when it cannot be read; OSError when the port is
    taken.
    """
    address = loopback_address(host, "listen address")
    await make_directory(env, directory)
    service = Service(directory, env)
    try:
        await service.open()
        async with _locked(directory, env), _stop_signals() as stop:
            # What can be wrong from outside goes wrong before the group of tasks begins, which
            # would wrap it. Connections wait in the listening socket until there is the group.
            with _listening(address, port) as listening:
                bound = _format_address(address, listening.getsockname()[1])
                await _serve(service, listening, stop, functools.partial(ready, bound))
    finally:
        await service.node.close()


def _listening(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=BACKLOG)


async def _serve(
    service: Service, listening: socket.socket, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    factory = functools.partial(_new_session, service, itertools.count())
    async with service.tasks as tasks:
        server = await asyncio.get_running_loop().create_server(factory, sock=listening)
        recovery = tasks.create_task(service.verify_failed())
        try:
            ready()
            await stop.wait()
        finally:
            server.close()
            recovery.cancel()
            await _end(service)


async def _end(service: Service) -> None:
    """Drains all connections for a while, then ends the rest."""
    sessions = list(service.sessions.values())
    try:
        async with asyncio.timeout(DRAIN_S), asyncio.TaskGroup() as draining:
            for session in sessions:
                draining.create_task(session.drain())
    except TimeoutError:
        logger.warning("%s: requests under way after %s s", service.directory, DRAIN_S)
    finally:
        for session in sessions:
            session.connection.abort()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For `asyncio.Runner`: uvloop's loop where that is installed, else None, asyncio's own."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
