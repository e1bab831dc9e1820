"""Goal: a fence admits a token only if none that excludes it was admitted before, durably.

Method: tokens against a dumb model of the rule; two openings of one store, so that what one
admits binds the other; transactions guarded by the tokens of one lock, committed in every order.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_ABOVE, cluster_at, undisturbed

import ringhold
from ringhold.errors import Closed, InvalidInput, StaleToken
from ringhold.store.base import Put
from ringhold.store.keyspace import fence_key

_names = itertools.count()
TOKEN_END = 1 << 63


@pytest.fixture(params=["memory", "sqlite", *ETCD_ABOVE])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    return cluster_at(request.param, f"fence{next(_names)}", tmp_path)


@pytest.fixture
def url(where: tuple[str, dict[str, Any]]) -> str:
    return where[0]


@pytest.fixture
def cluster(where: tuple[str, dict[str, Any]]) -> Iterator[ringhold.Cluster]:
    url, options = where
    with ringhold.create(url, **options) as made:
        yield made


def refusal(fence: ringhold.Fence, token: int) -> StaleToken | None:
    try:
        fence.admit(token)
    except StaleToken as error:
        return error
    return None


def stale(fence: ringhold.Fence, token: int) -> bool:
    """Whether the fence refuses `token`; the error must then say why."""
    before = fence.last()
    error = refusal(fence, token)
    if error is None:
        return False
    assert (error.name, error.token, error.admitted) == (fence.name, token, before)
    assert fence.last() == before
    return True


def test_the_rule_against_a_model(cluster: ringhold.Cluster) -> None:
    chance = random.Random(5)
    fence = cluster.fence("x")
    assert fence.last() == 0
    last_exclusive = 0
    refused = 0
    for _ in range(150):
        token = max(1, last_exclusive + chance.randrange(-4, 6))
        wanted = token >= last_exclusive
        if wanted and token & 1:
            last_exclusive = token
        assert stale(fence, token) is not wanted
        refused += not wanted
        assert fence.last() == last_exclusive
    assert 0 < refused < 150


def test_a_shared_token_raises_the_bar_for_nobody(cluster: ringhold.Cluster) -> None:
    fence = cluster.fence("x")
    fence.admit(11)
    fence.admit(1 << 40)
    assert not stale(fence, 12)
    assert not stale(fence, 11)
    assert stale(fence, 10)


def test_only_a_growing_exclusive_token_writes(cluster: ringhold.Cluster) -> None:
    names = itertools.count()

    async def revision() -> int:
        return await cluster._cluster.kv.revision()

    def one_write() -> bool:
        fence = cluster.fence(f"x{next(names)}")
        fence.admit(7)
        before = cluster._bridge.run(revision())
        for token in (7, 8, 100, 7):
            fence.admit(token)
        between = cluster._bridge.run(revision())
        fence.admit(9)
        return (between, cluster._bridge.run(revision())) == (before, before + 1)

    assert undisturbed(cluster.url, one_write)


def test_what_was_admitted_outlives_the_cluster_object(tmp_path: Path) -> None:
    with ringhold.create(str(tmp_path / "c")) as cluster:
        cluster.fence("x").admit(TOKEN_END - 1)
    with ringhold.open(str(tmp_path / "c")) as cluster, ringhold.open(str(tmp_path / "c")) as other:
        assert cluster.fence("x").last() == TOKEN_END - 1
        assert stale(other.fence(b"x"), 5)
        other.fence("y").admit(5)
        assert not stale(cluster.fence("y"), 5)
        assert stale(cluster.fence("y"), 4)


def test_names_do_not_share_a_fence(cluster: ringhold.Cluster) -> None:
    for name in ("a", "ab", "a\0", b"\xff", b"\xff\xff", "ä"):
        fence = cluster.fence(name)
        assert fence.last() == 0
        fence.admit(9)
    assert cluster.fence("a").name == "a"


@pytest.mark.parametrize("token", [0, -1, TOKEN_END])
def test_impossible_tokens(cluster: ringhold.Cluster, token: int) -> None:
    with pytest.raises(InvalidInput):
        cluster.fence("x").admit(token)
    with cluster.transaction() as tx, pytest.raises(InvalidInput):
        tx.guard("x", token)
    assert cluster.fence("x").last() == 0


@pytest.mark.parametrize("token", [True, "5", 5.0, None, b"5"])
def test_tokens_of_other_types(cluster: ringhold.Cluster, token: Any) -> None:
    with pytest.raises(TypeError):
        cluster.fence("x").admit(token)
    with cluster.transaction() as tx, pytest.raises(TypeError):
        tx.guard("x", token)


def test_impossible_names(cluster: ringhold.Cluster) -> None:
    for name in ("", b"", "x" * (64 << 10), "\ud800"):
        with pytest.raises(InvalidInput):
            cluster.fence(name)
    for wrong in (None, 5, ["x"]):
        with pytest.raises(TypeError):
            cluster.fence(wrong)  # type: ignore[arg-type]
    assert stale(cluster.fence("nul\0\udcff"), 1) is False


def test_many_at_once_end_at_the_highest(cluster: ringhold.Cluster) -> None:
    tokens = [2 * number + 1 for number in range(40)]
    random.Random(3).shuffle(tokens)
    ready = threading.Barrier(4)
    admitted: list[int] = []

    def admit(mine: list[int]) -> None:
        ready.wait(10)
        for token in mine:
            error = refusal(cluster.fence("x"), token)
            if error is None:
                admitted.append(token)
            else:
                assert error.admitted > token

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(admit, tokens[n::4]) for n in range(4)]:
            done.result(60)
    assert cluster.fence("x").last() == max(tokens)
    assert max(tokens) in admitted


def test_a_closed_cluster_refuses(cluster: ringhold.Cluster) -> None:
    fence = cluster.fence("x")
    cluster.close()
    for call in (lambda: fence.admit(1), fence.last, lambda: cluster.fence("x")):
        with pytest.raises(Closed):
            call()


def test_the_async_face(url: str) -> None:
    async def main() -> None:
        async with ringhold.aio.create(url) as cluster:
            fence = cluster.fence("x")
            await fence.admit(5)
            with pytest.raises(StaleToken):
                await fence.admit(3)
            assert await fence.last() == 5

    asyncio.run(main())


def test_a_guard_admits_in_the_commit_of_the_transaction(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as grant:
        tx = cluster.begin()
        tx.guard("x", grant.token)
        tx.kv["a"] = b"1"
        assert cluster.fence("x").last() == 0
        tx.rollback()
        assert cluster.fence("x").last() == 0
        with cluster.transaction() as tx:
            tx.guard("x", grant.token)
        assert cluster.fence("x").last() == grant.token
    assert "a" not in cluster.kv


def test_a_lock_acquired_after_the_transaction_began_guards_it(cluster: ringhold.Cluster) -> None:
    with cluster.transaction() as tx, cluster.lock("x") as grant:
        tx.guard("x", grant.token)
        tx.kv["a"] = b"1"
        tx.commit()
    assert cluster.kv["a"] == b"1"


def test_a_fence_that_admitted_more_refuses_the_transaction(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as grant:
        cluster.fence("x").admit(grant.token + 2)
        tx = cluster.begin()
        tx.guard("x", grant.token)
        tx.kv["a"] = b"1"
        with pytest.raises(StaleToken) as caught:
            tx.commit()
        assert caught.value.admitted == grant.token + 2
        assert tx.status is ringhold.TransactionStatus.ABORTED
    assert "a" not in cluster.kv


def test_a_token_that_nobody_holds_does_not_guard(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as grant:
        for token in (grant.token + (1 << 21), grant.token - (1 << 21)):
            tx = cluster.begin()
            tx.guard("x", token)
            with pytest.raises(StaleToken):
                tx.commit()
    tx = cluster.begin()
    tx.guard("x", grant.token)
    with pytest.raises(StaleToken):
        tx.commit()
    assert cluster.fence("x").last() == 0


def test_transactions_of_one_holder_do_not_disturb_each_other(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as grant:
        both = [cluster.begin(), cluster.begin()]
        for number, tx in enumerate(both):
            tx.guard("x", grant.token)
            tx.kv[f"k{number}"] = b""
        # The first one raises the fence behind the back of the second one's revision.
        for tx in both:
            tx.commit()
    assert {"k0", "k1"} == {key for key, _ in cluster.kv.range("k")}


class Striking:
    """Passes calls on to a store; the fence of the lock x is set to `token` before a commit."""

    def __init__(self, store: Any, token: int):
        self._store = store
        self._token = token
        self.struck = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, **options: Any) -> int:
        if not self.struck:
            self.struck = True
            value = self._token.to_bytes(8, "big")
            await self._store.commit(puts=[Put(fence_key(b"ux"), value)])
        revision: int = await self._store.commit(**options)
        return revision


def test_a_fence_raised_between_reading_and_committing_is_read_again(url: str) -> None:
    async def main() -> None:
        async with ringhold.aio.create(url) as cluster, cluster.lock("x") as grant:

            async def guarded(admitted_meanwhile: int) -> None:
                tx = await cluster.begin()
                tx.guard("x", grant.token)
                store = Striking(tx._store, admitted_meanwhile)
                tx._store = store  # type: ignore[assignment]
                try:
                    await tx.commit()
                finally:
                    assert store.struck

            await guarded(grant.token - 2)
            with pytest.raises(StaleToken) as caught:
                await guarded(grant.token + 2)
            assert caught.value.admitted == grant.token + 2

    asyncio.run(main())


def test_a_shared_grant_guards_after_its_session_shared_the_lock_with_another(url: str) -> None:
    with ringhold.create(url) as cluster, ringhold.open(url) as other:
        with cluster.lock("x"):
            pass  # The session has all of it, and grants a share out of that.
        with cluster.lock("x", mode="shared") as grant:
            with cluster.transaction() as tx:
                tx.guard("x", grant.token)
                tx.kv["a"] = b"1"
            with other.lock("x", mode="shared", timeout=10):
                grant.check()
                with cluster.transaction() as tx:
                    tx.guard("x", grant.token)
                    tx.kv["a"] = b"2"
        assert cluster.kv["a"] == b"2"
