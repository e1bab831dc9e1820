"""Watches: one stream to etcd for all watches of a store.

Guarantees what `Store.watch` promises across lost connections: a watch goes on after the last
revision that it was told whole. A member that lost the others ends the stream (see `HAS_LEADER`),
and a silent one is noticed by pings; the next stream goes to another endpoint. What a caller does
not fetch is not collected for ever: such a watch is ended at etcd and begun again later.

The stream is read by a thread of its own, since grpcio's streams block (see `calls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ringhold.env import Env
from ringhold.errors import Closed, StoreUnavailable
from ringhold.store.base import Changes, prefix_end
from ringhold.store.etcd import wire
from ringhold.store.etcd.calls import (
    TOKEN_REFUSED,
    Connection,
    Failed,
    Refused,
    backoff_s,
    failure_of,
    is_token_refused,
)
from ringhold.store.etcd.library import grpc
from ringhold.store.etcd.names import Names
from ringhold.store.etcd.wire import WatchCreateRequest, WatchRequest, WatchResponse, WireError
from ringhold.store.requests import no_longer_kept
from ringhold.types import Event, EventKind

logger = logging.getLogger("ringhold")

EVENTS_MAX = 10_000
"""So many events wait for whoever watches; then the watch pauses."""

MESSAGES_MAX = 64
"""So many messages wait for the loop; then the stream is not read."""

DELETED = 1
NO_PERMISSION = ("permission denied", *TOKEN_REFUSED)


@dataclass(eq=False)
class Watch:
    """One watch. `following`: the revision to go on from, all before it were collected."""

    prefix: bytes
    asked: int
    following: int
    id: int = 0
    """At the present stream; 0 when it has none there."""
    begun_earlier: bool = False
    confirmed: bool = False
    """etcd has begun it."""
    collected: deque[Changes] = field(default_factory=deque)
    events: int = 0
    parts: list[wire.Event] = field(default_factory=list)
    """Of a message that comes in fragments."""
    denied: bool = False
    """etcd refused it, and that may be the token's fault."""
    failure: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        self.news.set()


class Watches:
    """Of a store that began after the revision `born`."""

    def __init__(
        self,
        connection: Connection,
        names: Names,
        env: Env,
        check: Callable[[], None],
        born: int,
    ):
        self._born = born
        self._connection = connection
        self._names = names
        self._env = env
        self._check = check
        self._watches: dict[Watch, None] = {}
        self._by_id: dict[int, Watch] = {}
        self._ids = itertools.count(1)
        self._stream: _Stream | None = None
        self._runner: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        connection.channels.on_renewed = functools.partial(
            loop.call_soon_threadsafe, self._begin_anew
        )

    async def follow(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        watch = Watch(prefix, from_revision, max(from_revision, self._born + 1))
        self._watches[watch] = None
        try:
            self._begin(watch)
            while True:
                self._check()
                if watch.collected:
                    changes = watch.collected.popleft()
                    watch.events -= len(changes.events)
                    yield changes
                    continue
                if watch.failure is not None:
                    raise watch.failure
                if not watch.id and self._stream is not None:
                    self._begin(watch)
                watch.news.clear()
                await watch.news.wait()
        finally:
            del self._watches[watch]
            self._end(watch)
            if not self._watches:
                await self._stop()

    def _begin(self, watch: Watch, *, earlier: bool = False) -> None:
        """At the present stream, or by starting one.

        `earlier`: from the revision before, whose changes are passed over. etcd takes a watch
        from the very revision that it was compacted at, although it keeps no deletions of it,
        and refuses one from the revision before. A watch of the past costs 0.1 s, though.
        """
        if self._runner is None:
            self._runner = asyncio.ensure_future(self._run())
            self._runner.add_done_callback(self._stopped)
        if self._stream is None:
            return
        watch.id = next(self._ids)
        watch.begun_earlier = earlier
        watch.confirmed = False
        watch.parts = []
        self._by_id[watch.id] = watch
        start = self._names.key(watch.prefix)
        request = WatchCreateRequest(
            start,
            prefix_end(start),
            watch.following - earlier,
            progress_notify=True,
            watch_id=watch.id,
            fragment=True,
        )
        self._stream.send(WatchRequest(create_request=request))

    def _end(self, watch: Watch) -> None:
        if watch.id:
            del self._by_id[watch.id]
            if self._stream is not None:
                cancel = wire.WatchCancelRequest(watch.id)
                self._stream.send(WatchRequest(cancel_request=cancel))
            watch.id = 0

    async def _run(self) -> None:
        """Keeps a stream for the watches, as long as there are any."""
        failures = 0
        while True:
            try:
                served = await self._serve()
            except Failed as error:
                served = False
                logger.info("a watch of etcd was interrupted: %s", error)
            except Refused as refused:
                served = False
                if is_token_refused(refused):
                    self._connection.forget_token()
                else:
                    for watch in self._watches:
                        watch.fail(self._connection.refusal(refused))
            failures = 0 if served else failures + 1
            if failures:
                await self._env.sleep(backoff_s(failures - 1, self._env))

    def _begin_anew(self) -> None:
        if self._stream is not None:
            self._stream.break_off()

    def _stopped(self, runner: asyncio.Task[None]) -> None:
        if self._runner is not runner:
            return  # It was told to stop, and another one may serve the watches of now.
        self._runner = None
        failure = None if runner.cancelled() else runner.exception()
        if isinstance(failure, Exception):
            for watch in self._watches:
                watch.fail(failure)

    async def _serve(self) -> bool:
        """One stream from its beginning to its end; whether it brought anything."""
        endpoint = self._connection.endpoint
        stream = _Stream(self._received)
        try:
            await stream.open(self._connection)
            self._stream = stream
            for watch in self._watches:
                # One of which too much waits begins when that was fetched.
                if watch.failure is None and watch.events <= EVENTS_MAX:
                    self._begin(watch)
            ended = await stream.ended
            if ended is None:
                return True
            self._connection.leave(endpoint)
            if isinstance(ended, Failed) and stream.served:
                logger.info("the stream of watches from %s ended: %s", endpoint, ended)
                return True
            raise ended
        finally:
            self._stream = None
            stream.close()
            for watch in self._by_id.values():
                watch.id = 0
            self._by_id.clear()

    def _received(self, answer: WatchResponse) -> None:
        if answer.canceled and answer.watch_id < 0:
            self._refuse_unconfirmed(answer)
            return
        watch = self._by_id.get(answer.watch_id)
        if watch is None:
            return  # It was ended meanwhile.
        if answer.canceled:
            self._end_refused(watch, answer)
            return
        watch.denied = False
        if answer.created:
            watch.confirmed = True
            if answer.header.revision >= watch.following and not watch.begun_earlier:
                self._end(watch)
                self._begin(watch, earlier=True)
            return
        watch.parts += answer.events
        if answer.fragment:
            return
        if watch.parts:
            try:
                self._collect(watch)
            except Exception as error:
                self._end(watch)
                watch.fail(error)
                return
        else:
            # A sign that everything up to this revision was told.
            watch.following = max(watch.following, answer.header.revision + 1)
        if watch.events > EVENTS_MAX:
            self._end(watch)
        watch.news.set()

    def _refuse_unconfirmed(self, answer: WatchResponse) -> None:
        """etcd 3.4 does not say which watch it does not begin, nor does it begin another one at
        this stream."""
        for watch in list(self._by_id.values()):
            if not watch.confirmed:
                self._end_refused(watch, answer)
        if self._stream is not None:
            self._stream.cancel()

    def _end_refused(self, watch: Watch, answer: WatchResponse) -> None:
        del self._by_id[watch.id]
        watch.id = 0
        if answer.compact_revision:
            # A revision before the store's first is as good as that one.
            begins = watch.following == self._born + 1
            revision = watch.asked if begins else watch.following
            watch.fail(no_longer_kept(revision, answer.compact_revision))
        elif any(text in answer.cancel_reason for text in NO_PERMISSION) and self._renew_token(
            watch
        ):
            logger.info("a watch of etcd needs another token: %s", answer.cancel_reason)
        else:
            reason = answer.cancel_reason or "no reason was told"
            watch.fail(StoreUnavailable(f"etcd ended a watch: {reason}", retryable=False))

    def _renew_token(self, watch: Watch) -> bool:
        """Whether all watches begin again with a new token, since that of the stream may have
        expired: etcd says the same of a token and of a user without the right."""
        if watch.denied or not self._connection.address.user or self._stream is None:
            return False
        watch.denied = True
        self._connection.forget_token()
        self._stream.cancel()
        return True

    def _collect(self, watch: Watch) -> None:
        parts, watch.parts = watch.parts, []
        for revision, events in itertools.groupby(parts, lambda event: event.kv.mod_revision):
            if revision < watch.following:
                continue
            changes = Changes(revision, tuple(map(self._event, events)))
            watch.collected.append(changes)
            watch.events += len(changes.events)
            watch.following = revision + 1

    def _event(self, event: wire.Event) -> Event:
        if event.type == DELETED:
            key = event.kv.key[len(self._names.data) :]
            return Event(EventKind.DELETE, key, None, event.kv.mod_revision)
        key, entry = self._names.entry(event.kv)
        return Event(EventKind.PUT, key, entry.value, entry.revision)

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)

    async def close(self) -> None:
        for watch in self._watches:
            watch.fail(Closed("the store is closed"))
        await self._stop()


class _Stream:
    """One stream of watches. `ended` becomes what ended it, None if it was broken off."""

    def __init__(self, received: Callable[[WatchResponse], None]):
        self._loop = asyncio.get_running_loop()
        self._received = received
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(MESSAGES_MAX)
        self._call: Any = None
        self.ended: asyncio.Future[Failed | Refused | None] = self._loop.create_future()
        self.served = False

    async def open(self, connection: Connection) -> None:
        self._call = await connection.stream(self._sent())
        threading.Thread(target=self._read, name="ringhold-etcd-watch", daemon=True).start()

    def send(self, request: WatchRequest) -> None:
        self._requests.put(request.encode())

    def _sent(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        """In its thread."""
        try:
            for raw in self._call:
                answer = WatchResponse.decode(raw)
                self._room.acquire()
                self._tell(self._take, answer)
            failure: Failed | Refused = Failed("the stream was closed", sent=True)
        except grpc.RpcError as error:
            failure = failure_of(error)
        except WireError as error:
            failure = Failed(f"what it says is not etcd's: {error}", sent=True)
        self._tell(self._end, failure)

    def _tell(self, function: Callable[[Any], None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody watches.
            self._loop.call_soon_threadsafe(function, argument)

    def _take(self, answer: WatchResponse) -> None:
        self._room.release()
        self.served = True
        self._received(answer)

    def _end(self, failure: Failed | Refused | None) -> None:
        if not self.ended.done():
            self.ended.set_result(failure)

    def break_off(self) -> None:
        """Whatever is still on its way is not waited for."""
        self._end(None)

    def cancel(self) -> None:
        self._call.cancel()

    def close(self) -> None:
        self._received = _ignore
        self._requests.put(None)
        self._room.release(MESSAGES_MAX)
        if self._call is not None:
            self._call.cancel()


def _ignore(answer: WatchResponse) -> None:
    pass
