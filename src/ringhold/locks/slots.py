"""k slots in the store, one for each holder, and a queue before them: semaphores, elections.

Guarantees: each slot has one holder at a time and there are `limit` of them, since a slot is taken
by a commit that compares its key absent. Nobody overtakes: a newcomer takes a slot only while
nobody waits, the n-th waiter only one that is free beyond those of all before it, and what was
free for it stays so until it or one behind it takes it. Whoever gives up waiting leaves nothing
behind; what cannot be cleaned up ends the session, and its lease takes the keys away. Two limits
are never in use at once: all keys of one limit lie in one range, and every entry compares that
the rest is empty.

Not guaranteed: that a holder knows at once that it lost its slot. What lies outside of the store
needs the token.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ringhold.env import Env, finish
from ringhold.errors import (
    Closed,
    Compacted,
    Conflict,
    InvalidInput,
    OutcomeUnknown,
    RingholdError,
)
from ringhold.locks.following import LOOK_S, end_watch
from ringhold.locks.records import EXCLUSIVE, LockParty, token_of
from ringhold.locks.session import SESSION_BYTES, SessionState
from ringhold.owner import told_owner
from ringhold.store.base import Absent, Born, Compare, Empty, Put, Store, prefix_end
from ringhold.store.keyspace import named_prefix
from ringhold.store.repeat import commit_sure
from ringhold.types import Entry

logger = logging.getLogger("ringhold")

LIMIT_MAX = (1 << 31) - 1
EXPIRY_POLL_S = 0.05
"""How often a waiter looks for leases that are overdue or whose process died, in a store that
does not end them by itself."""

LIMIT_BYTES = SLOT_BYTES = 4
COUNTER_BYTES = 8
HOLDER = b"x"
WAITER = b"q"


class SlotRecord(msgspec.Struct, frozen=True, array_like=True):
    """Value of a holder's or waiter's key. `request` (session, counter) is unique for ever."""

    request: bytes
    owner: int
    pid: int
    host: str
    since_s: float
    value: bytes


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(SlotRecord).decode


@dataclass(frozen=True, slots=True)
class Slots:
    """One semaphore or election (`what`) with its keys; `name` is told to people."""

    what: str
    name: str
    prefix: bytes
    limit: int

    @classmethod
    def of(cls, what: str, letter: bytes, raw: bytes, name: str, limit: int) -> Slots:
        return cls(what, name, named_prefix(letter, raw), limit)

    @property
    def mode(self) -> str:
        return EXCLUSIVE if self.limit == 1 else "shared"

    @property
    def own(self) -> bytes:
        return self.prefix + self.limit.to_bytes(LIMIT_BYTES, "big")

    def slot(self, number: int) -> bytes:
        return self.own + HOLDER + number.to_bytes(SLOT_BYTES, "big")

    def waiter(self, request: bytes) -> bytes:
        return self.own + WAITER + request

    def no_waiter(self) -> Empty:
        return Empty(self.own + WAITER, prefix_end(self.own + WAITER))

    def no_other_limit(self) -> list[Compare]:
        own_end = prefix_end(self.own)
        return [Empty(self.prefix, self.own), Empty(own_end, prefix_end(self.prefix))]

    def token(self, revision: int) -> int:
        """The fencing token of a slot taken at `revision`; exclusive if it is the only one."""
        return token_of(revision) if self.limit == 1 else token_of(revision) - 1


class SlotUse:
    """Who holds and awaits slots at one revision."""

    def __init__(self, slots: Slots, revision: int, found: list[tuple[bytes, Entry]]):
        self.revision = revision
        self.holders: list[Entry] = []
        self.queue: list[tuple[bytes, Entry]] = []
        self.other_limit = 0
        self._slots = slots
        self._taken: dict[bytes, None] = {}
        limit_end = len(slots.prefix) + LIMIT_BYTES
        for key, entry in found:
            if not key.startswith(slots.own):
                self.other_limit = int.from_bytes(key[len(slots.prefix) : limit_end], "big")
            if key[limit_end : limit_end + 1] == HOLDER:
                self.holders.append(entry)
                self._taken[key] = None
            else:
                self.queue.append((key, entry))
        self.holders.sort(key=lambda entry: entry.created)
        self.queue.sort(key=lambda item: item[1].created)

    @property
    def free(self) -> int:
        return self._slots.limit - len(self.holders)

    @property
    def open(self) -> bool:
        """Whether a newcomer may take a slot."""
        return not (self.other_limit or self.queue) and self.free > 0

    def free_slot(self, place: int) -> bytes:
        """The key of a free slot, another one for each `place` below `free`."""
        keys = (self._slots.slot(number) for number in range(self._slots.limit))
        return next(itertools.islice((key for key in keys if key not in self._taken), place, None))

    def place(self, own: Born) -> int | None:
        """How many wait before the waiter whose key is `own`; None when that is gone."""
        for place, (key, entry) in enumerate(self.queue):
            if key == own.key:
                return place if entry.created == own.revision else None
        return None

    def check_limit(self) -> None:
        """InvalidInput when somebody uses the name with another limit."""
        slots = self._slots
        if self.other_limit:
            raise InvalidInput(
                f"{slots.what} {slots.name!r} is in use with the limit {self.other_limit}; "
                f"it cannot be used with {slots.limit} meanwhile"
            )

    def parties(self, *, waiting: bool) -> list[LockParty]:
        """The holders in the order of their grants, or the waiters in that of their arrival."""
        entries = [entry for _, entry in self.queue] if waiting else self.holders
        return [
            _party(self._slots.mode, entry, 0 if waiting else self._slots.token(entry.created))
            for entry in entries
        ]


def _party(mode: str, entry: Entry, token: int) -> LockParty:
    record = decode(entry.value)
    return LockParty(
        session=record.request[:SESSION_BYTES].hex(),
        owner=told_owner(record.owner),
        mode=mode,
        token=token,
        pid=record.pid,
        host=record.host,
        since=record.since_s,
    )


async def read_slots(store: Store, slots: Slots) -> SlotUse:
    snapshot = await store.snapshot()
    try:
        found = await snapshot.range(slots.prefix, prefix_end(slots.prefix))
    finally:
        await snapshot.close()
    return SlotUse(slots, snapshot.revision, found)


async def until_change(
    store: Store,
    prefix: bytes,
    from_revision: int,
    closing: asyncio.Event,
    check: Callable[[], None],
    state: SessionState | None = None,
) -> None:
    """Until a key below `prefix` changes; has dead sessions' leases ended and checks meanwhile.

    Returns also when `state` is lost. Closed once `closing` is set.
    """
    unasked = store.leases_end_unasked
    look_s = LOOK_S if unasked else EXPIRY_POLL_S
    change = asyncio.ensure_future(_next_change(store, prefix, from_revision))
    closed = asyncio.ensure_future(closing.wait())
    if state is not None:
        state.on_loss(change, change.cancel)
    try:
        while not (change.done() or closed.done()):
            if not unasked:
                await store.expire_leases()
            check()
            await asyncio.wait(
                [change, closed], timeout=look_s, return_when=asyncio.FIRST_COMPLETED
            )
    finally:
        if state is not None:
            state.forget(change)
        change.cancel()
        closed.cancel()
        results = await asyncio.gather(change, closed, return_exceptions=True)
    if closing.is_set():
        raise Closed("the cluster is closed")
    if isinstance(results[0], Exception) and not isinstance(results[0], Compacted):
        raise results[0]


async def _next_change(store: Store, prefix: bytes, from_revision: int) -> None:
    changes = store.watch(prefix, from_revision)
    try:
        async for _ in changes:
            return
        raise Closed("the cluster is closed")
    finally:
        await end_watch(changes)


class SlotRequest:
    """One attempt of one owner to get one slot within one session."""

    def __init__(
        self,
        store: Store,
        env: Env,
        state: SessionState,
        slots: Slots,
        *,
        owner: int,
        value: bytes,
        number: int,
        closing: asyncio.Event,
    ):
        self._store = store
        self._env = env
        self._state = state
        self._slots = slots
        self._owner = owner
        self._user_value = value
        self._closing = closing
        self._request = state.id + number.to_bytes(COUNTER_BYTES, "big")
        self._queue_key = slots.waiter(self._request)
        self._queued = False
        self._granted: Born | None = None

    async def run(self, *, wait: bool) -> Born:
        """The key of the slot taken. TimeoutError when it would have to `wait`."""
        try:
            return await self._run(wait=wait)
        except BaseException:
            if self._queued or self._granted is not None:
                await finish(asyncio.ensure_future(self._withdraw()))
            raise

    async def _run(self, *, wait: bool) -> Born:
        while True:
            use = await read_slots(self._store, self._slots)
            if not (use.open or self._store.leases_end_unasked):
                # The holders may be processes that just died: nobody else may have noticed.
                await self._store.expire_leases()
                use = await read_slots(self._store, self._slots)
            use.check_limit()
            try:
                if use.open:
                    compares = [self._slots.no_waiter(), *self._slots.no_other_limit()]
                    return await self._take(use.free_slot(0), compares)
                if not wait:
                    raise TimeoutError
                own = await self._enqueue()
            except Conflict:
                continue
            return await self._wait_in_queue(own)

    async def _enqueue(self) -> Born:
        put = Put(self._queue_key, self._value(), self._state.id)
        self._queued = True
        commit = commit_sure(
            self._store, self._env, compares=self._slots.no_other_limit(), puts=[put]
        )
        return Born(self._queue_key, await self._outlive(commit))

    async def _wait_in_queue(self, own: Born) -> Born:
        while True:
            self._state.check()
            use = await read_slots(self._store, self._slots)
            place = use.place(own)
            if place is None:
                self._state.lose()
                self._state.check()
            elif place < use.free:
                try:
                    return await self._take(use.free_slot(place), [own], [own.key])
                except Conflict:
                    continue
            await until_change(
                self._store,
                self._slots.prefix,
                use.revision + 1,
                self._closing,
                self._state.check,
                self._state,
            )

    async def _take(
        self, slot: bytes, compares: Sequence[Compare], deletes: Sequence[bytes] = ()
    ) -> Born:
        commit = commit_sure(
            self._store,
            self._env,
            compares=[Absent(slot), *compares],
            puts=[Put(slot, self._value(), self._state.id)],
            deletes=deletes,
        )
        return Born(slot, await self._outlive(commit, slot))

    def _value(self) -> bytes:
        opener = self._state.record
        now_s = self._env.clock.wall()
        return encode(
            SlotRecord(self._request, self._owner, opener.pid, opener.host, now_s, self._user_value)
        )

    async def _outlive(self, commit: Coroutine[Any, Any, int], slot: bytes | None = None) -> int:
        """The outcome of `commit`, which is learned even when this task is cancelled."""

        def note(revision: int) -> None:
            if slot is not None:
                self._granted = Born(slot, revision)

        try:
            return await finish(asyncio.ensure_future(commit), undo=note)
        except OutcomeUnknown:
            # Nobody can say whether the key is there; without its lease it will not stay.
            self._state.lose()
            raise

    async def _withdraw(self) -> None:
        """Takes back whatever this request left in the store."""
        granted = self._granted
        try:
            await commit_sure(
                self._store,
                self._env,
                compares=[] if granted is None else [granted],
                deletes=[self._queue_key, *([] if granted is None else [granted.key])],
                timeout_s=1.0,
            )
        except Conflict:
            # The slot went with the session, so it is nobody's to take back any more.
            self._granted = None
            await self._withdraw()
        except RingholdError as error:
            if not isinstance(error, Closed):
                logger.warning(
                    "%s %r: a request could not be withdrawn: %s",
                    self._slots.what,
                    self._slots.name,
                    error,
                )
            self._state.lose()
