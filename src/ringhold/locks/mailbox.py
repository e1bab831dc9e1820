"""Letters between sessions: one watch per session tells it of locks that others want.

Not guaranteed: that a letter arrives in time, or at all when the log of the store was compacted
before it was read; then everything that hangs on letters is looked at anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ringhold.env import Env
from ringhold.errors import Closed, Compacted, RingholdError
from ringhold.locks.cache import SessionLocks
from ringhold.locks.keys import (
    ANSWER,
    ASK,
    CLAIM,
    LOOK,
    Claim,
    Question,
    Use,
    decode_bool,
    decode_claim,
    decode_question,
    decode_use,
    encode,
    letter_parts,
    mailbox,
)
from ringhold.locks.session import SESSION_BYTES, SessionState
from ringhold.store.base import Put, Store, prefix_end
from ringhold.store.repeat import commit_sure
from ringhold.types import EventKind

logger = logging.getLogger("ringhold")

ANSWER_S = 0.5
"""How long another session is waited for that was asked who uses a lock."""

RETRY_S = 0.1
NUMBER_BYTES = 8


class Mailbox:
    """Reads the letters to one session, and writes its questions and answers."""

    def __init__(
        self,
        store: Store,
        env: Env,
        state: SessionState,
        locks: SessionLocks,
        use_of: Callable[[bytes], Use],
    ):
        self._store = store
        self._env = env
        self._state = state
        self._locks = locks
        self._use_of = use_of
        self._asked: dict[bytes, asyncio.Future[bytes]] = {}
        self._number = 0
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._start(self._read())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and task.exception() is not None:
            logger.error("reading letters about locks failed", exc_info=task.exception())
            self._state.lose()

    async def _read(self) -> None:
        prefix = mailbox(self._state.id)
        revision = self._state.born.revision + 1
        while not self._state.expired:
            try:
                async for changes in self._store.watch(prefix, revision):
                    for event in changes.events:
                        if event.kind is EventKind.PUT and event.value is not None:
                            self._open(event.key, event.value)
                    revision = changes.revision + 1
            except Compacted:
                revision = await self._read_all(prefix)
            except Closed:
                return
            except RingholdError as error:
                logger.info("letters about locks cannot be read: %s", error)
                await self._env.sleep(RETRY_S)

    async def _read_all(self, prefix: bytes) -> int:
        """Letters that may have been missed; the revision to watch from."""
        snapshot = await self._store.snapshot()
        try:
            for key, entry in await snapshot.range(prefix, prefix_end(prefix)):
                self._open(key, entry.value)
            for name in list(self._locks.locks):
                self._locks.look(name)
            return snapshot.revision + 1
        finally:
            await snapshot.close()

    def _open(self, key: bytes, value: bytes) -> None:
        kind, about = letter_parts(key)
        if kind == LOOK:
            self._locks.look(about)
        elif kind == ASK:
            question = decode_question(value)
            answer = encode(self._use_of(question.name))
            self._start(self._answer(key, question.asker, about[SESSION_BYTES:], answer))
        elif kind == CLAIM:
            claim = decode_claim(value)
            answer = encode(self._locks.deadlocks.stands_by(claim))
            self._start(self._answer(key, claim.asker, about[SESSION_BYTES:], answer))
        elif kind == ANSWER:
            future = self._asked.get(about)
            if future is not None and not future.done():
                future.set_result(value)

    async def ask(self, session: bytes, name: bytes) -> Use | None:
        """Who uses the lock `name` in another session; None if that does not answer."""
        answer = await self._ask(session, ASK, encode(Question(self._state.id, name)))
        return None if answer is None else decode_use(answer)

    async def ask_claim(self, session: bytes, claim: Claim) -> bool:
        """Whether another session answers that it stands by it (`Deadlocks`)."""
        answer = await self._ask(session, CLAIM, encode(claim))
        return answer is not None and decode_bool(answer)

    async def _ask(self, session: bytes, kind: bytes, value: bytes) -> bytes | None:
        self._number += 1
        number = self._number.to_bytes(NUMBER_BYTES, "big")
        question = mailbox(session) + kind + self._state.id + number
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        put = Put(question, value, self._state.id)
        try:
            await commit_sure(self._store, self._env, puts=[put])
            async with asyncio.timeout(ANSWER_S):
                return await future
        except TimeoutError:
            return None
        finally:
            del self._asked[number]
            deletes = [question, mailbox(self._state.id) + ANSWER + number]
            self._start(self._discard(deletes))

    async def _answer(self, question: bytes, asker: bytes, number: bytes, answer: bytes) -> None:
        key = mailbox(asker) + ANSWER + number
        try:
            await commit_sure(
                self._store,
                self._env,
                puts=[Put(key, answer, asker)],
                deletes=[question],
            )
        except RingholdError as error:
            logger.debug("a question about a lock was not answered: %s", error)

    async def _discard(self, keys: list[bytes]) -> None:
        try:
            await commit_sure(self._store, self._env, deletes=keys)
        except RingholdError as error:
            logger.debug("letters about a lock were left to the lease: %s", error)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
