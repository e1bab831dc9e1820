"""The least client of etcd for tests: each call is made once, nothing is repeated nor hidden.

Plain grpcio and Ringhold's codec, so that a test can prove a fault without the store that is to
survive it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from ringhold.store.etcd import wire
from ringhold.store.etcd.wire import Message

CALL_S = 5.0
OPTIONS = [
    # Connections of their own for each client, with time to come about and none lost between.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 500),
]

Answer = TypeVar("Answer", bound=Message)


class Client:
    def __init__(self, channel: grpc.Channel):
        self._channel = channel
        self.metadata: list[tuple[str, str]] = []

    def call(
        self, method: str, request: Message, answer: type[Answer], timeout_s: float = CALL_S
    ) -> Answer:
        """grpc.RpcError, as it is."""
        stub = self._stub(self._channel.unary_unary, method, answer)
        answered: Answer = stub(request, timeout=timeout_s, metadata=self.metadata)
        return answered

    def begin(self, method: str, request: Message, answer: type[Message]) -> Any:
        """A call under way, as grpcio's future; it has no time of its own."""
        stub = self._stub(self._channel.unary_unary, method, answer)
        return stub.future(request, metadata=self.metadata)

    def stream(
        self, method: str, requests: Iterator[Message], answer: type[Answer], **options: Any
    ) -> Any:
        """The call, which iterates over the answers."""
        stub = self._stub(self._channel.stream_stream, method, answer)
        return stub(requests, metadata=self.metadata, **options)

    def _stub(self, kind: Callable[..., Any], method: str, answer: type[Message]) -> Any:
        return kind(
            f"/etcdserverpb.{method}",
            request_serializer=lambda request: request.encode(),
            response_deserializer=answer.decode,
        )

    def put(self, key: bytes, value: bytes = b"", lease: int = 0, timeout_s: float = CALL_S) -> int:
        """The revision."""
        request = wire.PutRequest(key, value, lease)
        return self.call("KV/Put", request, wire.HeaderOnly, timeout_s).header.revision

    def get(self, key: bytes, revision: int = 0, timeout_s: float = CALL_S) -> wire.KeyValue | None:
        request = wire.RangeRequest(key, revision=revision)
        answer = self.call("KV/Range", request, wire.RangeResponse, timeout_s)
        return answer.kvs[0] if answer.kvs else None

    def txn(self, request: wire.TxnRequest, timeout_s: float = CALL_S) -> wire.TxnResponse:
        return self.call("KV/Txn", request, wire.TxnResponse, timeout_s)

    def authenticate(self, user: str, password: str) -> None:
        """Enters; later calls carry the token."""
        request = wire.AuthenticateRequest(user, password)
        answer = self.call("Auth/Authenticate", request, wire.AuthenticateResponse)
        self.metadata = [("token", answer.token)]


@contextmanager
def client(*endpoints: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Client]:
    target = "ipv4:" + ",".join(endpoints)
    if credentials is None:
        channel = grpc.insecure_channel(target, OPTIONS)
    else:
        channel = grpc.secure_channel(target, credentials, OPTIONS)
    with channel:
        yield Client(channel)
