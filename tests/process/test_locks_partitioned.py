"""Goal: a holder that cannot reach etcd any more knows that its lock is lost before anybody else
gets it, and keeps its lock when it is cut off for less than its session lives.

Method: a player (`lock_player`) holds a lock behind a proxy that passes nothing on in silence, or
on an island whose cable is cut; it asks all the time whether it still holds it, and notes each way
in which it is told. Another player, with a connection of its own, waits for the lock. All moments
are on one clock. Each partition is proven by a put of the holder that does not arrive.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from cutting_proxy import CuttingProxy
from etcd_servers import Etcd, etcd, shared_etcd
from etcd_stores import store_behind
from lock_processes import Remote, now_ns, players, until
from partition import Island, island

import ringhold
from ringhold.env import RealEnv
from ringhold.locks.session import Session

TTL_S = 4.0
MARGIN_S = 0.25
"""How long before its lease a session ends itself, at this TTL."""
NEXT_S = TTL_S + 2
SHORT_S = 1.2
"""Less than a session certainly has left: a quarter of the TTL may have passed, and the margin."""

_names = itertools.count()


@dataclass
class Wire:
    """Between one player and etcd."""

    proxy: CuttingProxy | None = None
    far: Island | None = None

    def cut(self, *, answers_only: bool = False) -> None:
        if self.proxy is not None:
            (self.proxy.hold_replies if answers_only else self.proxy.hold)()
        elif self.far is not None:
            self.far.cut(outgoing=not answers_only)

    def heal(self) -> None:
        if self.proxy is not None:
            self.proxy.go_on()
        elif self.far is not None:
            self.far.heal()


@dataclass
class Site:
    wire: Wire
    cluster: ringhold.Cluster
    holder: Remote
    """Behind the wire."""
    other: Remote

    def queue_behind_holder(self, name: str) -> None:
        self.other.tell("acquire", name=name)
        until(lambda: len(self.cluster.locks.waiters(name)) == 1, "a waiter")


@contextmanager
def behind_proxy(server: Etcd) -> Iterator[tuple[Wire, str, Remote]]:
    name = f"partitioned-{next(_names)}"
    url = server.url(name)
    ringhold.create(url).close()
    with (
        CuttingProxy(server.endpoints[0]) as proxy,
        players(server.url(name, endpoints=[proxy.endpoint]), 1, session_ttl=TTL_S) as [holder],
    ):
        yield Wire(proxy=proxy), url, holder


@contextmanager
def on_island() -> Iterator[tuple[Wire, str, Remote]]:
    with island() as far, etcd("debian", host=far.host_address) as server:
        url = server.url("partitioned")
        ringhold.create(url).close()
        holder = Remote(url, TTL_S, far.popen)
        try:
            assert holder.answer() == {"ready": True}
            yield Wire(far=far), url, holder
        finally:
            holder.end()


@pytest.fixture(params=["proxy", pytest.param("cable", marks=pytest.mark.system)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        by_proxy = request.param == "proxy"
        wired = behind_proxy(shared_etcd("distro", 1)) if by_proxy else on_island()
        wire, url, holder = stack.enter_context(wired)
        (other,) = stack.enter_context(players(url, 1, session_ttl=TTL_S))
        cluster = stack.enter_context(ringhold.open(url))
        yield Site(wire, cluster, holder, other)


@pytest.mark.parametrize(
    ("lost", "asks"), [("everything", True), ("everything", False), ("answers", True)]
)
def test_it_knows_of_its_loss_before_the_next_is_granted(site: Site, lost: str, asks: bool) -> None:
    holder, other, cluster = site.holder, site.other, site.cluster
    token = holder.ask("acquire", name="held")["token"]
    holder.ask("observe", name="held", asks=asks)
    site.queue_behind_holder("held")

    cut_ns = now_ns()
    site.wire.cut(answers_only=lost == "answers")
    holder.ask("attempt", key="cut off")
    granted = other.answer()
    told = holder.ask("observed", name="held", timeout=5)
    # While it stood still nobody could tell it anything.
    late_s = holder.ask("late", name="held")["ns"] / 1e9
    attempted = holder.ask("attempted", key="cut off")
    # The fault: nothing that the holder sends is answered, or even arrives.
    assert attempted == {"outcome": "none yet"}
    assert lost == "answers" or cluster.kv.get("cut off") is None

    after_s = {what: (told_ns - cut_ns) / 1e9 for what, told_ns in told.items()}
    next_s = (granted["ended"] - cut_ns) / 1e9
    print(f"{lost} lost: {after_s}, the next grant after {next_s:.2f} s, late {late_s:.2f} s")
    assert granted["token"] > token
    for what, moment_s in after_s.items():
        assert 0 < moment_s < next_s + late_s, f"{what}: {after_s}, {next_s} s"
    assert after_s.get("held_ns", 0) < next_s
    assert max(after_s.values()) < TTL_S + late_s, "it was not by its own deadline"
    # Requests that arrive without an answer renew the lease, until the holder gives up.
    assert next_s < (NEXT_S if lost == "everything" else NEXT_S + TTL_S)

    other.ask("admit", name="held")
    site.wire.heal()
    assert holder.ask("attempted", key="cut off", timeout=60)["outcome"] in {
        "done",
        "OutcomeUnknown",
        "StoreUnavailable",
    }
    put = {"name": "held", "key": "guarded", "value": "stale"}
    assert holder.refused("check", name="held") == "LockLost"
    assert holder.refused("guarded", **put) in {"LockLost", "StaleToken"}
    assert holder.refused("admit", name="held") == "StaleToken"
    assert holder.refused("release", name="held") == "LockLost"
    other.ask("check", name="held")
    other.ask("release", name="held")
    assert holder.ask("acquire", name="held", timeout=20)["token"] > granted["token"]
    assert cluster.kv.get("guarded") is None


def test_a_short_partition_costs_only_time(site: Site) -> None:
    holder, other = site.holder, site.other
    token = holder.ask("acquire", name="held")["token"]
    holder.ask("observe", name="held")
    site.queue_behind_holder("held")

    cut_ns = now_ns()
    site.wire.cut()
    holder.ask("attempt", key="cut off")
    time.sleep(SHORT_S)
    assert site.cluster.kv.get("cut off") is None
    healed_ns = now_ns()
    site.wire.heal()
    cut_s = (healed_ns - cut_ns) / 1e9
    assert cut_s < TTL_S * 3 / 4 - MARGIN_S, "too busy a machine for this test"
    attempted = holder.ask("attempted", key="cut off", timeout=30)
    assert attempted["outcome"] == "done"
    assert attempted["ended"] > healed_ns

    # For longer than the lease would have lived that it had when it was cut off.
    until(lambda: now_ns() > cut_ns + (TTL_S + 1) * 1e9, "the end of the old lease")
    holder.ask("check", name="held")
    holder.ask("guarded", name="held", key="guarded", value="fresh")
    told = holder.ask("observed", name="held")
    assert told.pop("held_ns") > healed_ns
    assert set(told.values()) == {0}, told
    until(lambda: holder.ask("phase") == {"phase": "active"}, "a renewed session")
    assert site.cluster.kv["guarded"] == b"fresh"
    released = holder.ask("release", name="held")
    granted = other.answer()
    assert granted["token"] > token
    assert granted["ended"] > released["began"]


def test_the_silence_of_one_of_two_endpoints_costs_nothing() -> None:
    server = shared_etcd("distro", 1)
    name = f"partitioned-{next(_names)}"
    with (
        ringhold.create(server.url(name)) as cluster,
        CuttingProxy(server.endpoints[0]) as first,
        CuttingProxy(server.endpoints[0]) as second,
    ):
        proxies = [first, second]
        url = server.url(name, endpoints=[proxy.endpoint for proxy in proxies])
        with players(url, 1, session_ttl=TTL_S) as [holder]:
            holder.ask("acquire", name="held")
            holder.ask("observe", name="held")
            used, spare = sorted(proxies, key=lambda proxy: proxy.bytes_up, reverse=True)
            for number, silent in enumerate((used, spare)):
                assert silent.open_connections > 0
                silent.hold()
                passed = silent.bytes_up
                end_ns = now_ns() + int((TTL_S + 1) * 1e9)
                holder.ask("guarded", name="held", key="guarded", value=str(number))
                until(lambda due=end_ns: now_ns() > due, "the end of a lease")
                until(lambda: holder.ask("phase") == {"phase": "active"}, "a renewed session")
                assert silent.bytes_up == passed, "it was not silent"
                silent.go_on()
            holder.ask("check", name="held")
            told = holder.ask("observed", name="held")
            del told["held_ns"]
            assert set(told.values()) == {0}, told
            assert cluster.kv["guarded"] == b"1"
            holder.ask("release", name="held")


@pytest.mark.parametrize("ttl_s", [2.0, 4.0])
def test_its_session_ends_early_enough_for_holders_to_be_told(ttl_s: float) -> None:
    """Before etcd can end the lease, which counts from later than the renewal was sent."""
    told_ns = []

    async def test() -> None:
        server = shared_etcd("distro", 1)
        with CuttingProxy(server.endpoints[0]) as proxy:
            async with store_behind(server, proxy) as store:
                session = Session(store, RealEnv(), ttl_s=ttl_s)
                state = await session.ensure()
                state.on_loss("test", lambda: told_ns.append(now_ns()))
                proxy.hold()
                late_s = 0.0
                async with asyncio.timeout(30):
                    while not told_ns:  # Nobody looks at the session but itself.
                        slept_ns = now_ns()
                        await asyncio.sleep(0.01)
                        late_s = max(late_s, (now_ns() - slept_ns) / 1e9 - 0.01)
                left_s = (state.deadline_ns - told_ns[0]) / 1e9 + MARGIN_S
                proxy.go_on()
                await session.close()
        # On a loop that stands still nothing is told: that is not the session's delay.
        assert -late_s < left_s <= MARGIN_S

    asyncio.run(test())
