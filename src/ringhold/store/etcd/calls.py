"""Calls to etcd over gRPC: endpoints, users, and what an error says about the request.

Guarantees: nothing is ever sent twice by itself, except after etcd refused a token, which it does
before it looks at the request. A call that failed tells whether the request may have been applied
(`Failed.sent`) or was refused for good (`Refused`). After a failure the next call goes to the next
endpoint. A peer that is silent is given up after ATTEMPT_S.

The stubs of grpcio that block are used through their futures: those of grpc.aio hang or crash in
forked children. A connection belongs to one event loop and one process; its sockets are its own,
so that a forked child never shares one with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ringhold.env import Env
from ringhold.errors import Closed, InvalidInput, StoreUnavailable
from ringhold.store.etcd import wire
from ringhold.store.etcd.address import EtcdAddress
from ringhold.store.etcd.channels import WATCH, Channels, channels_to
from ringhold.store.etcd.library import grpc
from ringhold.store.etcd.wire import Message, WireError

logger = logging.getLogger("ringhold")

ATTEMPT_S = 3.0
"""How long one request may take; etcd itself gives up on a proposal after 5 s or more."""

ATTEMPT_S_MIN = 0.05
"""For the last try, whose time is nearly up."""

AT_ONCE = 16
"""How many calls `Connection.each` makes at a time: their answers have up to 1 MiB each."""

HAS_LEADER = ("hasleader", "true")
"""Asks a member that has lost the others to say so rather than to be silent."""

NO_TOKEN = ""
"""What is sent to an etcd that demands no users, as any token of before might be refused."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    path: str
    response: type[Response]


TXN: Method[wire.TxnRequest, wire.TxnResponse] = Method("KV/Txn", wire.TxnResponse)
TOGETHER: Method[wire.TogetherRequest, wire.TogetherResponse] = Method(
    "KV/Txn", wire.TogetherResponse
)
RANGE: Method[wire.RangeRequest, wire.RangeResponse] = Method("KV/Range", wire.RangeResponse)
TERM: Method[wire.RangeRequest, wire.TermOnly] = Method("KV/Range", wire.TermOnly)
LEASE_GRANT: Method[wire.LeaseGrantRequest, wire.LeaseGrantResponse] = Method(
    "Lease/LeaseGrant", wire.LeaseGrantResponse
)
LEASE_REVOKE: Method[wire.LeaseRequest, wire.HeaderOnly] = Method(
    "Lease/LeaseRevoke", wire.HeaderOnly
)
# A stream of which one request and one answer are used: on the wire that is a plain call.
LEASE_KEEP_ALIVE: Method[wire.LeaseRequest, wire.LeaseKeepAliveResponse] = Method(
    "Lease/LeaseKeepAlive", wire.LeaseKeepAliveResponse
)
LEASE_TIME_TO_LIVE: Method[wire.LeaseRequest, wire.LeaseKeepAliveResponse] = Method(
    "Lease/LeaseTimeToLive", wire.LeaseKeepAliveResponse
)
STATUS: Method[wire.StatusRequest, wire.StatusResponse] = Method(
    "Maintenance/Status", wire.StatusResponse
)
AUTHENTICATE: Method[wire.AuthenticateRequest, wire.AuthenticateResponse] = Method(
    "Auth/Authenticate", wire.AuthenticateResponse
)


class Failed(Exception):
    """No answer of use came. `sent`: whether the request may have been applied all the same."""

    def __init__(self, message: str, *, sent: bool):
        super().__init__(message)
        self.sent = sent


class Refused(Exception):
    """etcd answered that it will not, or it is not trusted: nothing was applied.

    repeated: it may be that an earlier try of the same call was.
    """

    def __init__(self, code: grpc.StatusCode, details: str):
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.repeated = False

    @property
    def certificate(self) -> bool:
        """Whether it is the certificate of the one endpoint, or ours, that is not accepted."""
        return self.code is grpc.StatusCode.UNAVAILABLE

    def says(self, text: str) -> bool:
        return text in self.details


# By their names, since a forked child has another copy of grpcio.
_SILENT = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    # A member that lost its quorum says "context deadline exceeded" under this code.
    "UNKNOWN",
    "CANCELLED",
    "INTERNAL",
    "ABORTED",
)
_NOT_SENT = (
    "failed to connect to all addresses",
    "errors resolving ",
    "DNS resolution failed",
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: rpc not supported for learner",
)
_CERTIFICATES = ("certificate", "hostname verification", "unknown_ca")
TOKEN_REFUSED = (
    "invalid auth token",
    "revision of auth store is old",
    # There was none, because etcd had no use for it before.
    "user name is empty",
)
NO_LEASE = "requested lease not found"
_UNWRAPPED = "Unwrap failed (TSI_DATA_CORRUPTED)"
"""With TLS 1.3 a server refuses a client after its handshake, by what gRPC takes for damage."""


def failure_of(error: grpc.RpcError) -> Failed | Refused:
    code, details = error.code(), error.details() or ""
    if code.name not in _SILENT:
        return Refused(code, details)
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOT_SENT):
        if any(text in details.lower() for text in _CERTIFICATES):
            return Refused(code, details)
        return Failed(details, sent=False)
    return Failed(f"{code.name}: {details}", sent=True)


def backoff_s(attempt: int, env: Env) -> float:
    """Seconds to wait after so many failures in a row: up to 1 s, with jitter."""
    jitter = 0.5 + env.random_bytes(1)[0] / 256
    return min(0.02 * 2.0 ** min(attempt, 6), 1.0) * jitter


class _Answers:
    """Wakes the loop once for all calls that were answered meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._answered: deque[asyncio.Future[None]] = deque()

    async def of(self, call: Any) -> bytes:
        """The bytes of the answer. grpc.RpcError. Cancelling it cancels the call."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        call.add_done_callback(lambda _: self._done(waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            call.cancel()
            raise
        raw: bytes = call.result()
        return raw

    def _done(self, waiter: asyncio.Future[None]) -> None:
        with self._lock:
            self._answered.append(waiter)
            if len(self._answered) > 1:
                return
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        with self._lock:
            answered, self._answered = self._answered, deque()
        for waiter in answered:
            if not waiter.done():
                waiter.set_result(None)


class Connection:
    """Calls etcd on the loop that made it.

    attempt_s: how long one endpoint may take to answer a request that others may answer as well
    """

    def __init__(self, channels: Channels, env: Env, *, attempt_s: float = ATTEMPT_S):
        self.channels = channels
        self.address = channels.address
        self._env = env
        self._attempt_s = attempt_s
        self._answers: _Answers | None = None
        self._place = env.random_bytes(1)[0] % len(self.address.endpoints)
        self._token: str | None = None
        """None until there is one; NO_TOKEN where etcd has no use for it."""
        self._authenticating: asyncio.Future[str] | None = None

    @property
    def endpoint(self) -> str:
        """Where the next call goes."""
        return self.address.endpoints[self._place]

    def leave(self, endpoint: str) -> None:
        """`endpoint` did not answer: the next call goes to the one after it."""
        if endpoint == self.endpoint:
            self._place = (self._place + 1) % len(self.address.endpoints)

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        timeout_s: float = ATTEMPT_S,
    ) -> Response:
        """The answer of one endpoint. Failed, Refused."""
        raw = request.encode()
        token = await self._current_token()
        try:
            return await self._once(method, raw, token, timeout_s)
        except Refused as refused:
            if token is None or not is_token_refused(refused):
                raise
        if self._token == token:
            self._token = None
        return await self._once(method, raw, await self._current_token(), timeout_s)

    async def _once(
        self,
        method: Method[Any, Response],
        raw: bytes,
        token: str | None,
        timeout_s: float,
    ) -> Response:
        endpoint = self.endpoint
        metadata = _metadata(token)
        try:
            stub = self.channels.stub(endpoint, method.path)
            answer = await self._answer(endpoint, stub, raw, timeout_s, metadata)
            return method.response.decode(answer)
        except grpc.RpcError as error:
            failure = failure_of(error)
            if isinstance(failure, Failed) or failure.certificate:
                self.leave(endpoint)
            raise failure from None
        except WireError as error:
            raise Failed(f"what {endpoint} answers is not etcd's: {error}", sent=True) from error
        except ValueError as error:
            raise self._closed_meanwhile(error) from error

    def _closed_meanwhile(self, error: ValueError) -> Failed | Closed:
        """Of what gRPC says of a channel that another thread or task has closed: with the store, or
        because the process has forked."""
        if self.channels.closed:
            return Closed("the store is closed")
        return Failed(str(error), sent=False)

    async def _answer(
        self, endpoint: str, stub: Any, raw: bytes, timeout_s: float, metadata: Any
    ) -> bytes:
        if self._answers is None:
            self._answers = _Answers()
        self.channels.keep_polled(endpoint, self._env.clock.monotonic_ns())
        return await self._answers.of(stub.future(raw, timeout_s, metadata))

    async def until(
        self, method: Method[Request, Response], request: Request, timeout_s: float
    ) -> Response:
        """The answer to a request that may be repeated, of whichever endpoint gives one in time.

        StoreUnavailable, Refused.
        """
        deadline_ns = self._env.clock.monotonic_ns() + int(timeout_s * 1e9)
        failures = 0
        strangers: dict[str, None] = {}
        while True:
            endpoint = self.endpoint
            left_s = (deadline_ns - self._env.clock.monotonic_ns()) / 1e9
            try:
                attempt_s = max(ATTEMPT_S_MIN, min(self._attempt_s, left_s))
                return await self.call(method, request, timeout_s=attempt_s)
            except Refused as refused:
                strangers[endpoint] = None
                if refused.certificate and len(strangers) < len(self.address.endpoints):
                    continue
                refused.repeated = failures > 0
                raise
            except Failed as error:
                pause_s = backoff_s(failures, self._env)
                failures += 1
                left_s = (deadline_ns - self._env.clock.monotonic_ns()) / 1e9
                if left_s <= pause_s + ATTEMPT_S_MIN:
                    raise self.unavailable(error) from None
            await self._env.sleep(pause_s)

    async def each(
        self, do: Callable[[Item], Coroutine[Any, Any, Result]], items: Sequence[Item]
    ) -> list[Result]:
        """What `do`, which calls etcd, gives for each item; the first error once all have ended."""
        results: dict[int, Result] = {}
        left = iter(enumerate(items))

        async def some() -> None:
            for index, item in left:
                results[index] = await do(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(items))):
                    group.create_task(some())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [results[index] for index in range(len(items))]

    def unavailable(self, error: Failed) -> StoreUnavailable:
        hint = ""
        if _UNWRAPPED in str(error):
            hint = "; most likely it does not accept this client's certificate, or demands one"
        return StoreUnavailable(f"etcd at {', '.join(self.address.endpoints)}: {error}{hint}")

    def refusal(self, refused: Refused) -> Exception:
        """What a caller is told who asked for nothing out of the ordinary."""
        where = f"etcd at {', '.join(self.address.endpoints)}"
        if refused.says("database space exceeded"):
            return StoreUnavailable(
                f"{where} has used up its quota (--quota-backend-bytes) and takes no more writes: "
                "compact it, defragment every member, then disarm the alarm NOSPACE"
            )
        if refused.says("too many requests"):
            return StoreUnavailable(f"{where} is overloaded: {refused.details}")
        if refused.says("request is too large") or refused.says("larger than max"):
            return InvalidInput(
                f"{where} takes requests of up to --max-request-bytes, which is less than "
                f"max_request_bytes={self.address.max_request_bytes} of the URL says"
            )
        if refused.says("too many operations"):
            return InvalidInput(
                f"{where} takes up to --max-txn-ops operations, which is less than "
                f"max_txn_ops={self.address.max_txn_ops} of the URL says"
            )
        if self.address.user is None and refused.says("user name is empty"):
            return StoreUnavailable(
                f"{where} demands a user: name one in the URL, ?user=NAME&password_file=FILE",
                retryable=False,
            )
        return StoreUnavailable(f"{where} refuses: {refused}", retryable=False)

    async def _current_token(self) -> str | None:
        if self.address.user is None:
            return None
        while self._token is None:
            await self._fetch_token()
        return self._token

    async def _fetch_token(self) -> None:
        if self._authenticating is None:
            self._authenticating = asyncio.ensure_future(self._authenticate())
            self._authenticating.add_done_callback(self._authenticated)
        # Cancelling one of those who wait leaves it to the others.
        await asyncio.shield(self._authenticating)

    def _authenticated(self, done: asyncio.Future[str]) -> None:
        self._authenticating = None
        if not done.cancelled() and done.exception() is None:
            self._token = done.result()

    async def _authenticate(self) -> str:
        user = self.address.user or ""
        request = wire.AuthenticateRequest(user, self.channels.password)
        try:
            answer = await self._once(AUTHENTICATE, request.encode(), None, self._attempt_s)
            return answer.token
        except Refused as refused:
            if not refused.says("authentication is not enabled"):
                raise
            logger.warning(
                "etcd at %s lets anybody enter: the user and password of the URL are of no use "
                "until `etcdctl auth enable`",
                ", ".join(self.address.endpoints),
            )
            return NO_TOKEN

    async def stream(self, requests: Iterator[bytes]) -> Any:
        """A watch stream: iterating over it blocks, and raises grpc.RpcError. Failed, Refused."""
        token = await self._current_token()
        metadata = _metadata(token)
        try:
            stub: Any = self.channels.channel(self.endpoint).stream_stream(WATCH)
            return stub(requests, metadata=metadata)
        except ValueError as error:
            raise self._closed_meanwhile(error) from error

    def enter_as(self, *others: Connection) -> None:
        """With the token of another connection, if one has any."""
        tokens = [other._token for other in others]
        self._token = next((token for token in tokens if token is not None), None)

    def forget_token(self) -> None:
        self._token = None

    async def close(self) -> None:
        if self._authenticating is not None:
            self._authenticating.cancel()
        await self._env.blocking(self.channels.close)


def _metadata(token: str | None) -> Any:
    return (HAS_LEADER, ("token", token)) if token else (HAS_LEADER,)


async def revoke(connection: Connection, lease_id: int, timeout_s: float) -> None:
    """Ends a lease, if it has not ended already. StoreUnavailable."""
    try:
        await connection.until(LEASE_REVOKE, wire.LeaseRequest(lease_id), timeout_s)
    except Refused as refused:
        if not refused.says(NO_LEASE):
            raise connection.refusal(refused) from None


def is_token_refused(refused: Refused) -> bool:
    return any(refused.says(text) for text in TOKEN_REFUSED)


async def connection_to(address: EtcdAddress, env: Env) -> Connection:
    """Connects to nothing yet. OSError for a file of the URL that cannot be read, InvalidInput for
    one that holds something else."""
    return Connection(await env.blocking(channels_to, address), env)
