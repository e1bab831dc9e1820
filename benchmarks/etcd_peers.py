"""What etcd itself gives to whoever calls it by grpcio: puts, and the locks that it has."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import grpc

from ringhold.store.etcd.protobuf import Message
from ringhold.store.etcd.wire import (
    HeaderOnly,
    LeaseGrantRequest,
    LeaseGrantResponse,
    PutRequest,
    RangeRequest,
    RangeResponse,
)

CALL_S = 30.0
PREFIX = b"bare/put/"


def stub(channel: Any, path: str, answer: type[Message]) -> Any:
    return channel.unary_unary(
        f"/{path}",
        request_serializer=lambda request: request.encode(),
        response_deserializer=answer.decode,
    )


class BarePuts:
    """Puts by the calling thread."""

    def __init__(self, endpoint: str, value: bytes):
        self._channel = grpc.insecure_channel(endpoint)
        self._put = stub(self._channel, "etcdserverpb.KV/Put", HeaderOnly)
        self._range = stub(self._channel, "etcdserverpb.KV/Range", RangeResponse)
        self._value = value

    def run(self, start: int, count: int) -> None:
        for number in range(start, start + count):
            self._put(PutRequest(PREFIX + b"%012d" % number, self._value), timeout=CALL_S)

    def count(self) -> int:
        answer = self._range(RangeRequest(PREFIX, PREFIX + b"\xff", keys_only=True))
        return int(answer.count)

    def close(self) -> None:
        self._channel.close()


class AsyncPuts:
    """Puts by tasks of grpc.aio, `width` at a time."""

    def __init__(self, runner: asyncio.Runner, endpoint: str, value: bytes, width: int):
        self._runner = runner
        self._width = width
        self._channel = runner.run(_opened(endpoint))
        self._put = stub(self._channel, "etcdserverpb.KV/Put", HeaderOnly)
        self._value = value
        self._done = 0

    def run(self, start: int, count: int) -> None:
        self._runner.run(self._run(start, count))

    async def _run(self, start: int, count: int) -> None:
        async def some(numbers: range) -> None:
            for number in numbers:
                key = b"bare/async/%012d" % number
                answer = await self._put(PutRequest(key, self._value), timeout=CALL_S)
                self._done += answer.header.revision > 0

        async with asyncio.TaskGroup() as group:
            for task in range(self._width):
                group.create_task(some(range(start + task, start + count, self._width)))

    def count(self) -> int:
        return self._done

    def close(self) -> None:
        self._runner.run(self._channel.close())


async def _opened(endpoint: str) -> Any:
    return grpc.aio.insecure_channel(endpoint)


class LockRequest(Message):
    name: Annotated[bytes, 1] = b""
    lease: Annotated[int, 2] = 0


class LockResponse(Message):
    key: Annotated[bytes, 2] = b""


class UnlockRequest(Message):
    key: Annotated[bytes, 1] = b""


class PlainLock:
    """etcd's own lock service: a key under a lease, by creation revision."""

    def __init__(self, endpoint: str):
        self._channel = grpc.insecure_channel(endpoint)
        grant = stub(self._channel, "etcdserverpb.Lease/LeaseGrant", LeaseGrantResponse)
        self._lease = grant(LeaseGrantRequest(600), timeout=CALL_S).id
        self._lock = stub(self._channel, "v3lockpb.Lock/Lock", LockResponse)
        self._unlock = stub(self._channel, "v3lockpb.Lock/Unlock", HeaderOnly)

    def pairs(self, count: int) -> None:
        for _ in range(count):
            key = self._lock(LockRequest(b"bare/lock", self._lease), timeout=CALL_S).key
            assert key.startswith(b"bare/lock/")
            self._unlock(UnlockRequest(key), timeout=CALL_S)

    def close(self) -> None:
        self._channel.close()
