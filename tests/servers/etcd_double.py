"""Stands before a real etcd and gives some of the answers itself.

    with EtcdDouble(server.endpoints[0]) as double:
        cluster = ringhold.open(server.url("name", endpoints=[double.endpoint]))
        double.fail("KV/Txn", grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out",
                    applied=True)

For what no administrator can bring about at will: errors that etcd gives now and then, with or
without having done what was asked, versions that are not installed, answers that are none. What it
is not told to answer it passes on as bytes, streams as well.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc

STREAMS = ("Watch/Watch", "Lease/LeaseKeepAlive")
METADATA = ("token", "hasleader")
THREADS = 32
CLOSE_S = 10.0
# What is left of a call without limit is more, but too much to be one.
NO_LIMIT_S = 1e8
PREFIX = "/etcdserverpb."


@dataclass
class _Told:
    """What to answer; `times` None is always. An error, or with `code` None these bytes."""

    code: grpc.StatusCode | None
    details: str
    reply: bytes
    applied: bool
    containing: bytes
    times: int | None


class EtcdDouble(grpc.GenericRpcHandler):
    def __init__(self, target: str):
        self._target = target
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}
        self.calls: Counter[str] = Counter()
        self.endpoint = ""

    def fail(
        self,
        method: str,
        code: grpc.StatusCode,
        details: str,
        *,
        applied: bool = False,
        containing: bytes = b"",
        times: int | None = None,
    ) -> None:
        """Requests like "KV/Txn" that contain these bytes get this error; `applied`: after etcd
        has done what they ask. A stream gets it instead of its first answer."""
        self._tell(method, _Told(code, details, b"", applied, containing, times))

    def reply(self, method: str, data: bytes, *, times: int | None = None) -> None:
        """Requests of this method get these bytes, and etcd hears nothing of them."""
        self._tell(method, _Told(None, "", data, False, b"", times))

    def go_on(self) -> None:
        """Passes everything."""
        with self._lock:
            self._told.clear()

    def _tell(self, method: str, told: _Told) -> None:
        with self._lock:
            self._told[method] = told

    def _for(self, method: str, request: bytes) -> _Told | None:
        with self._lock:
            self.calls[method] += 1
            told = self._told.get(method)
            if told is None or told.times == 0 or told.containing not in request:
                return None
            if told.times is not None:
                told.times -= 1
            return told

    # Within gRPC

    def __enter__(self) -> Self:
        self._channel = grpc.insecure_channel(
            self._target, [("grpc.max_receive_message_length", -1)]
        )
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS),
            handlers=[self],
            options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)],
        )
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # First what is passed on: a stream would keep its thread.
        self._channel.close()
        assert self._server.stop(0).wait(CLOSE_S), "the double does not end"

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.removeprefix(PREFIX)
        if method in STREAMS:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(method, requests, context)
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._call(method, request, context)
        )

    def _call(self, method: str, request: bytes, context: Any) -> bytes:
        told = self._for(method, request)
        if told is not None and told.code is None:
            return told.reply
        if told is None or told.applied:
            stub: Any = self._channel.unary_unary(PREFIX + method)
            try:
                answer: bytes = stub(request, **_limits(context))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
        if told is not None:
            context.abort(told.code, told.details)
        return answer

    def _stream(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        told = self._for(method, b"")
        if told is not None and told.code is None:
            yield told.reply
            return
        if told is not None:
            context.abort(told.code, told.details)
        stub: Any = self._channel.stream_stream(PREFIX + method)
        answers = stub(requests, **_limits(context))
        context.add_callback(answers.cancel)
        try:
            yield from answers
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


def _limits(context: Any) -> dict[str, Any]:
    """The client's time and metadata, but for what gRPC itself puts in."""
    metadata = [each for each in context.invocation_metadata() if each.key in METADATA]
    left_s = context.time_remaining()
    return {"timeout": left_s if left_s < NO_LIMIT_S else None, "metadata": metadata}
