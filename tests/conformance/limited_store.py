"""A store that takes no more in one commit than a stock etcd does, whatever engine is underneath.

What is larger is refused with an AssertionError that names the operation, and noted in `refused`:
background work may swallow the error.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ringhold.assembly import creation
from ringhold.errors import InvalidInput
from ringhold.store.base import EMBEDDED_LIMITS, Compare, Limits, Put, Store

STOCK_ETCD = Limits(compares=128, changes=128)
STOCK_ETCD_BYTES = 3 << 19
"""``--max-txn-ops`` and ``--max-request-bytes`` as etcd has them by default."""


class TooLarge(AssertionError):
    pass


class LimitedFace:
    """Anything that commits: a store, or its direct face."""

    def __init__(self, inner: Any, world: LimitedWorld):
        self._inner = inner
        self._world = world
        self._refuses = inner.limits != EMBEDDED_LIMITS if hasattr(inner, "limits") else False
        self.limits = inner.limits if self._refuses else STOCK_ETCD

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return LimitedFace(found, self._world) if name == "direct" else found

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        compares, puts, deletes = list(compares), list(puts), list(deletes)
        if not (self._world.asked and self._refuses):
            self._world.check(compares, puts, deletes)
        revision: int = await self._inner.commit(
            compares=compares, puts=puts, deletes=deletes, nonce=nonce
        )
        return revision


class LimitedWorld:
    """Wraps the stores of all clusters that are opened meanwhile.

    `asked`: what is larger was asked for by the test in one transaction, and is refused with
    InvalidInput, by the engine itself where that is etcd.
    """

    def __init__(self) -> None:
        self.asked = False
        self.refused: list[str] = []
        self.commits = 0
        self.most = Limits(0, 0)

    def check(self, compares: list[Compare], puts: list[Put], deletes: list[bytes]) -> None:
        size = sum(len(put.key) + len(put.value) for put in puts) + sum(map(len, deletes))
        size += sum(len(repr(compare)) for compare in compares)
        found = Limits(len(compares), len(puts) + len(deletes))
        self.commits += 1
        if STOCK_ETCD.allow(found.compares, found.changes) and size <= STOCK_ETCD_BYTES:
            self.most = Limits(
                max(found.compares, self.most.compares),
                max(found.changes, self.most.changes),
            )
            return
        if self.asked:
            raise InvalidInput(f"{found}, {size} bytes, exceeds {STOCK_ETCD}")
        callers = [
            frame.name
            for frame in traceback.extract_stack()
            if "/ringhold/" in frame.filename and "/store/" not in frame.filename
        ]
        refused = f"{' > '.join(callers[-4:])}: {found}, {size} bytes, exceeds {STOCK_ETCD}"
        self.refused.append(refused)
        raise TooLarge(refused)

    @contextmanager
    def patched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[LimitedWorld]:
        open_store = creation.open_store

        async def limited(*args: Any, **options: Any) -> Store:
            store: Any = LimitedFace(await open_store(*args, **options), self)
            return store

        with monkeypatch.context() as patch:
            patch.setattr(creation, "open_store", limited)
            yield self
        assert self.refused == []
        assert self.commits
