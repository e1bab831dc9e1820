"""Commits whose answer got lost are asked for again, so that callers see one outcome; and stores
that give none in time are told from others.

Guarantees that `commit_sure` applies its changes at most once however often an answer was lost.
It does not guarantee an answer: OutcomeUnknown when the store stayed silent for `timeout_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ringhold.env import Env
from ringhold.errors import Closed, OutcomeUnknown, StoreUnavailable
from ringhold.store.base import Compare, Put, Transactional

NONCE_BYTES = 16
REPEAT_PAUSE_S = 0.1
ANSWER_S = 3.0
"""Longer than the largest commits of others take."""


async def until_known(
    attempt: Callable[[], Awaitable[int]], env: Env, *, timeout_s: float = 30.0
) -> int:
    """What `attempt`, a commit under one nonce, returns or raises once its outcome is known.

    After an answer that got lost "unavailable" tells of the later attempt alone: the first may
    have been applied, and the outcome stays unknown.
    """
    deadline_ns = env.clock.monotonic_ns() + int(timeout_s * 1e9)
    unknown: OutcomeUnknown | None = None
    while True:
        try:
            return await attempt()
        except OutcomeUnknown as error:
            unknown = error
        except StoreUnavailable:
            if unknown is None:
                raise
        except Closed as error:
            if unknown is None:
                raise
            raise unknown from error
        if env.clock.monotonic_ns() >= deadline_ns:
            raise unknown
        await env.sleep(REPEAT_PAUSE_S)


async def commit_sure(
    store: Transactional,
    env: Env,
    *,
    compares: Sequence[Compare] = (),
    puts: Sequence[Put] = (),
    deletes: Sequence[bytes] = (),
    nonce: bytes | None = None,
    timeout_s: float = 30.0,
) -> int:
    """As `Store.commit`, repeated under one nonce until its outcome is known."""
    nonce = nonce or env.random_bytes(NONCE_BYTES)
    return await until_known(
        lambda: store.commit(compares=compares, puts=puts, deletes=deletes, nonce=nonce),
        env,
        timeout_s=timeout_s,
    )


async def check_answers(store: Transactional) -> None:
    """StoreUnavailable if the store does not commit: whoever waited in vain for what others may
    have has then learned nothing about them."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await store.commit()
    except TimeoutError:
        raise unanswered() from None


def unanswered() -> StoreUnavailable:
    return StoreUnavailable(f"the store has not answered for {ANSWER_S:g} s")
