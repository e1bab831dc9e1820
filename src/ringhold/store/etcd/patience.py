"""How long and how often a commit is sent to etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from ringhold.env import Env
from ringhold.store.etcd.calls import ATTEMPT_S, ATTEMPT_S_MIN, Failed, backoff_s


class Patience:
    """How long a commit is sent again. `unknown`: the failure after which it may be applied."""

    def __init__(self, env: Env, timeout_s: float):
        self._env = env
        self._deadline_ns = env.clock.monotonic_ns() + int(timeout_s * 1e9)
        self._failures = 0
        self._lost = False
        self._sending = False
        self.unknown: Failed | None = None

    def lose(self, commit: asyncio.Task[int]) -> None:
        """Nobody wants the commit any more: only what may be applied has to be known."""
        self._lost = True
        if not self._sending and self.unknown is None:
            commit.cancel()

    @contextlib.contextmanager
    def sending(self, writes: bool) -> Iterator[None]:
        """While a try is under way that may be applied."""
        self._sending = writes
        try:
            yield
        finally:
            self._sending = False

    @property
    def first(self) -> bool:
        """Whether nothing was tried before."""
        return self.unknown is None and not self._failures

    def left_s(self) -> float:
        return (self._deadline_ns - self._env.clock.monotonic_ns()) / 1e9

    def attempt_s(self) -> float:
        return max(ATTEMPT_S_MIN, min(ATTEMPT_S, self.left_s()))

    async def again(self) -> bool:
        """Whether to try once more, after a pause."""
        pause_s = backoff_s(self._failures, self._env)
        self._failures += 1
        if self._lost and self.unknown is None:
            return False
        if self.left_s() <= pause_s:
            return False
        await self._env.sleep(pause_s)
        return True
