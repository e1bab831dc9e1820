"""The locks of one open cluster: who holds, gets, asks about and breaks them.

Guarantees: of two grants of one name that exclude each other and are both unlost, one was
released before the other was made; the later one has the larger token. First come, first served:
among sessions, and within each of them. Whoever gives up waiting leaves nothing behind.

A lock that was held stays with its session until another one asks for it. Getting it again then
takes no commit, no event loop and, on the blocking face, no other thread (`try_cached`).

Not guaranteed: that a holder knows at once that it lost its lock. A commit that compares
`AnyGrant.held`, or admits the token, is safe without knowing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ringhold.bridge import Bridge, Unpicklable, check_loop
from ringhold.env import Env, forks
from ringhold.errors import (
    Closed,
    Conflict,
    DeadlockError,
    LockTimeout,
    RingholdError,
    SessionExpired,
)
from ringhold.locks.arguments import check_timeout, told_s
from ringhold.locks.cache import SessionLocks
from ringhold.locks.cached_lock import CachedLock
from ringhold.locks.claims import TRY_S
from ringhold.locks.grant import AnyGrant
from ringhold.locks.held import ThreadCalls
from ringhold.locks.inquiry import Inquiries
from ringhold.locks.keys import (
    EXCLUSIVE,
)
from ringhold.locks.mailbox import Mailbox
from ringhold.locks.session import Session
from ringhold.store.base import Store
from ringhold.store.repeat import ANSWER_S, check_answers, unanswered
from ringhold.types import Mode, decode_name

logger = logging.getLogger("ringhold")

G = TypeVar("G", bound=AnyGrant)

VERIFY_S = 1.0
"""How often a session looks whether what it holds was broken by somebody else."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for. `raw` is the name in the store, `name` the one told to people."""

    raw: bytes
    name: str
    mode: Mode
    reentrant: bool
    delay_s: float


class LockService(Unpicklable):
    """The locks of the sessions of one open cluster, one session after the other."""

    def __init__(self, store: Store, env: Env, session: Session, bridge: Bridge):
        self.bridge = bridge
        self.calls = ThreadCalls(env)
        self.held: dict[tuple[bytes, int], AnyGrant] = {}
        """The latest grant of every owner, lost or not, until it is released."""
        self.inquiries = Inquiries(store, env, self)
        self._store = store
        self._env = env
        self.clock = env.clock.boottime_ns
        self._session = session
        self.current: SessionLocks | None = None
        self.mailboxes: dict[SessionLocks, Mailbox] = {}
        self._ending: dict[asyncio.Task[None], None] = {}
        self.lost: dict[bytes, None] = {}
        """The sessions of this opening that were lost."""
        self._acquiring: dict[tuple[bytes, int], None] = {}
        self._idle = asyncio.Event()
        self._verifier: asyncio.Task[None] | None = None
        self.closed = False
        self.generation = forks.generation

    # Any thread

    def check_process(self) -> None:
        self.bridge.check_process()

    def check_open(self) -> None:
        if self.closed or self.generation != forks.generation:
            self.bridge.check_process()
            raise Closed("the cluster is closed")

    def check_holder(self, name: str) -> None:
        """As `check_open`, for whoever uses a grant of the lock `name`."""
        if self.bridge.foreign:
            pid = self.bridge.pid
            raise Closed(
                f"lock {name!r} was acquired by process {pid}, which this one was forked from: "
                "it is not held here",
                pid=pid,
            )
        self.check_open()

    def try_cached(self, kind: type[G], terms: Terms, owner: int) -> G | None:
        """The grant if the session has the lock at hand; None says nothing.

        On an interrupt nothing stays held.
        """
        locks = self.current
        if locks is None:
            return None
        raw = terms.raw
        lock = locks.locks.get(raw)
        if lock is None or self.clock() >= locks.state.fresh_until_ns:
            return None
        key = (raw, owner)
        held = self.held
        if key in held or lock.delay_s < terms.delay_s or lock.base >= lock.base_end:
            return None
        mode = terms.mode
        try:
            if not locks.table.try_acquire(raw, owner, mode):
                return None
            grant = kind(self, locks, lock, key, mode is EXCLUSIVE, terms.name, None)
            # The gate may have opened for the last time just before: then it is nobody's lock.
            if not lock.dead and held.setdefault(key, grant) is grant:
                return grant
        except BaseException:
            self._undo(locks, key)
            raise
        locks.release(raw, owner)
        return None

    def wait_here(
        self, kind: type[G], terms: Terms, owner: int, timeout_s: float | None
    ) -> G | None:
        """Waits on the calling thread if the session has the lock and others here are using it.

        None says nothing. Raises LockTimeout, DeadlockError and what the store raises; on an
        interrupt nothing stays held.
        """
        locks, raw = self.current, terms.raw
        lock = None if locks is None else locks.locks.get(raw)
        key = (raw, owner)
        if (
            locks is None
            or lock is None
            or key in self.held
            or lock.mode not in (terms.mode, EXCLUSIVE)
            or lock.delay_s < terms.delay_s
            or self.clock() >= locks.state.fresh_until_ns
        ):
            return None
        self.bridge.check_callable()
        try:
            if not locks.acquire_here(lock, key, terms.mode, timeout_s):
                return None
            grant = kind(self, locks, lock, key, terms.mode is EXCLUSIVE, terms.name, None)
            self._hold(locks, key, grant, terms.name)
            return grant
        except LockTimeout:
            raise _timed_out(terms.name, timeout_s) from None
        except DeadlockError as error:
            raise _deadlock(terms.name, _why(error)) from error
        except BaseException:
            self._undo(locks, key)
            raise

    def _hold(
        self, locks: SessionLocks, key: tuple[bytes, int], grant: AnyGrant, name: str
    ) -> None:
        """Notes a new grant. DeadlockError when another thread of the same owner was faster."""
        other = self.held.setdefault(key, grant)
        if other is grant:
            return
        if not other.is_lost:
            locks.release(*key)
            raise _deadlock(name, "it is held by this very owner")
        # A block that lost it is still to be left, and has to say so.
        grant.cover(other)
        self.held[key] = grant

    def _undo(self, locks: SessionLocks, key: tuple[bytes, int]) -> None:
        """After an interrupt: gives back what may or may not have been got."""
        self.held.pop(key, None)
        locks.tell(locks.table.cancel(*key))
        if locks.table.mode(*key) is not None:
            locks.release(*key)

    def last(self, raw: bytes, owner: int) -> AnyGrant | None:
        """The owner's latest grant, lost or not, that was not released."""
        return self.held.get((raw, owner))

    def wait_s(self, timeout: float | None) -> float | None:
        return check_timeout(timeout)

    # The loop

    async def acquire(self, kind: type[G], terms: Terms, owner: int, timeout_s: float | None) -> G:
        """Waits for the lock for up to `timeout_s` (None: for ever, 0: not at all).

        Raises LockTimeout when others had the lock all the time, DeadlockError when the wait would
        never end, StoreUnavailable when the store does not answer, and RuntimeError on another loop
        than that of the cluster.
        """
        self.check_open()
        check_loop(self.bridge.loop)
        key = (terms.raw, owner)
        again = self._again(kind, terms, key)
        if again is not None:
            return again
        cached = self.try_cached(kind, terms, owner)
        if cached is not None:
            return cached
        self._acquiring[key] = None
        self._idle.clear()
        try:
            # A try waits for the store; for other sessions it does not (see `claims.TRY_S`).
            async with asyncio.timeout(ANSWER_S if timeout_s == 0 else timeout_s):
                return await self._acquire(kind, terms, key, patient=timeout_s != 0)
        except LockTimeout:
            raise _timed_out(terms.name, timeout_s) from None
        except TimeoutError:
            if timeout_s == 0:
                raise unanswered() from None
            await check_answers(self._store)
            raise _timed_out(terms.name, timeout_s) from None
        except DeadlockError as error:
            raise _deadlock(terms.name, _why(error)) from error
        finally:
            del self._acquiring[key]
            if not self._acquiring:
                self._idle.set()

    def _again(self, kind: type[G], terms: Terms, key: tuple[bytes, int]) -> G | None:
        """A further grant of what the owner holds already, if it may have one."""
        if key in self._acquiring:
            raise _deadlock(terms.name, "it is awaited by this very owner")
        outer = self.held.get(key)
        if outer is None or outer.is_lost:
            return None
        if not terms.reentrant:
            raise _deadlock(terms.name, "it is held by this very owner")
        if terms.mode is EXCLUSIVE and outer.mode != EXCLUSIVE.value:
            raise _deadlock(terms.name, "it is held shared by this very owner: use upgrade()")
        return outer.again(kind)

    async def _acquire(
        self, kind: type[G], terms: Terms, key: tuple[bytes, int], *, patient: bool
    ) -> G:
        while True:
            locks = await self.open_locks()
            try:
                lock = await locks.acquire(key, terms.mode, patient=patient, delay_s=terms.delay_s)
                await self._confirm(locks, key)
            except SessionExpired:
                self.check_open()
                # The place in the queue went with the session; start with a new one.
                locks.state.lose()
                continue
            exclusive = terms.mode is EXCLUSIVE
            grant = kind(self, locks, lock, key, exclusive, terms.name, None)
            self._hold(locks, key, grant, terms.name)
            if self._verifier is None:
                self._verifier = asyncio.ensure_future(self._verify())
            return grant

    async def _confirm(self, locks: SessionLocks, key: tuple[bytes, int]) -> None:
        """Nothing new is granted within a suspended session before the store was asked."""
        if self.clock() < locks.state.fresh_until_ns:
            return
        try:
            await self._store.commit(compares=[locks.state.born])
        except BaseException as error:
            locks.release(*key)
            if isinstance(error, Conflict):
                raise SessionExpired("the session has expired") from error
            raise

    async def open_locks(self) -> SessionLocks:
        state = await self._session.ensure()
        self.check_open()
        locks = self.current
        if locks is None or locks.state is not state:
            locks = SessionLocks(self._store, self._env, state, self._on_broken, self.held.get)
            use_of = functools.partial(self.inquiries.use_of, locks)
            mailbox = Mailbox(self._store, self._env, state, locks, use_of)
            locks.deadlocks.ask = mailbox.ask_claim
            self.mailboxes[locks] = mailbox
            self.current = locks
            state.on_loss(locks, lambda: self._on_loss(locks))
        return locks

    def _on_loss(self, locks: SessionLocks) -> None:
        if self.current is locks:
            self.current = None
        self.lost[locks.state.id] = None
        locks.end(SessionExpired("the session has expired"))
        self._mark_lost(lambda grant: grant.within(locks))
        mailbox = self.mailboxes.pop(locks)
        if self.closed:
            return
        ending = asyncio.ensure_future(self._end(locks, mailbox))
        self._ending[ending] = None
        ending.add_done_callback(self._ending.pop)

    async def _end(self, locks: SessionLocks, mailbox: Mailbox) -> None:
        await mailbox.close()
        await locks.ended()

    def _on_broken(self, lock: CachedLock) -> None:
        logger.warning("lock %r was taken from its session", decode_name(lock.name[1:]))
        self._mark_lost(lambda grant: grant.of(lock))

    def _mark_lost(self, concerned: Callable[[AnyGrant], bool]) -> None:
        for latest in list(self.held.values()):
            grant: AnyGrant | None = latest
            while grant is not None:
                if concerned(grant):
                    grant.mark_lost()
                grant = grant.outer

    async def upgrade(
        self, locks: SessionLocks, key: tuple[bytes, int], timeout_s: float | None, name: str
    ) -> CachedLock:
        """See `AnyGrant.upgrade`."""
        self.check_open()
        try:
            async with asyncio.timeout(TRY_S if timeout_s == 0 else timeout_s):
                return await locks.upgrade(key)
        except TimeoutError:
            await check_answers(self._store)
            raise LockTimeout(
                f"lock {name!r} was not upgraded within {timeout_s} s; it is held shared",
                name=name,
            ) from None
        except DeadlockError as error:
            raise _deadlock(name, _why(error)) from error

    # Looking after what is held

    async def _verify(self) -> None:
        """Looks now and then whether what is held here still stands in the store."""
        try:
            while (locks := self.current) is not None and locks.locks:
                await self._verify_once(locks)
                await self._env.sleep(VERIFY_S)
        except Closed:
            logger.debug("the store was closed while locks were held")
        finally:
            self._verifier = None

    async def _verify_once(self, locks: SessionLocks) -> None:
        names = dict.fromkeys(raw for raw, _ in list(self.held))
        found = [lock for raw in names if (lock := locks.locks.get(raw)) is not None]
        held = [lock.held(locks.state.id) for lock in found]
        if not held:
            return
        try:
            snapshot = await self._store.snapshot()
            try:
                entries = await snapshot.get_many([compare.key for compare in held])
            finally:
                await snapshot.close()
        except Closed:
            raise
        except RingholdError as error:
            logger.info("looking after held locks: %s", error)
            return
        for lock, compare, entry in zip(found, held, entries, strict=True):
            if entry is None or entry.created != compare.revision:
                locks.look(lock.name)

    async def close(self) -> None:
        """Ends all waiting with Closed. Grants end with the session, which is closed next."""
        self.closed = True
        locks, self.current = self.current, None
        if locks is not None:
            locks.end(Closed("the cluster is closed"))
            await self._end(locks, self.mailboxes[locks])
            await locks.drop_delays()
        if self._acquiring:
            await self._idle.wait()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._verifier is not None:
            self._verifier.cancel()
            await asyncio.gather(self._verifier, return_exceptions=True)


def _timed_out(name: str, timeout_s: float | None) -> LockTimeout:
    return LockTimeout(f"lock {name!r} was not granted within {told_s(timeout_s)} s", name=name)


def _why(error: DeadlockError) -> str:
    """The lock table knows names and owners by other words than users do."""
    if error.owner:
        return "whoever is in the way waits, directly or through others, for this very owner"
    return str(error)


def _deadlock(name: str, why: str) -> DeadlockError:
    return DeadlockError(f"waiting for lock {name!r} would never end: {why}", name=name)
