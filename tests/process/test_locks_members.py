"""Goal: a change of etcd's leader costs nobody his lock, a lost quorum costs time, and what a
session cannot be sure of any more it gives up by itself.

Method: players (`lock_player`) hold locks on an etcd of three members, or wait for them, while
members are killed, stopped or replaced as the leader. Holders ask all the time whether they still
hold theirs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from etcd_servers import Etcd, etcd
from lock_processes import Remote, now_ns, players, until

import ringhold

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TTL_S = 6.0
LONG_TTL_S = 12.0
SHORT_TTL_S = 2.0
NO_QUORUM_S = 5.0
ELECTION_S = 2.0
"""Without a split vote. The new leader then adds one election timeout, 1 s, to all leases."""
AGAIN_S = 10.0


@pytest.fixture
def server() -> Iterator[Etcd]:
    with etcd("debian", members=3) as server:
        yield server


@pytest.fixture
def cluster(server: Etcd) -> Iterator[ringhold.Cluster]:
    with ringhold.create(server.url("members")) as cluster:
        yield cluster


def hold(player: Remote, name: str) -> int:
    token: int = player.ask("acquire", name=name)["token"]
    player.ask("observe", name=name)
    return token


def wait_for(player: Remote, name: str, cluster: ringhold.Cluster) -> None:
    player.tell("acquire", name=name)
    until(lambda: len(cluster.locks.waiters(name)) == 1, "a waiter")


def holds_still(player: Remote, name: str) -> None:
    player.ask("check", name=name)
    told = player.ask("observed", name=name)
    del told["held_ns"]
    assert set(told.values()) == {0}, told


@pytest.mark.parametrize("fault", ["moved", "killed", "stopped"])
def test_a_new_leader_costs_nobody_his_lock(
    server: Etcd, cluster: ringhold.Cluster, fault: str
) -> None:
    with players(cluster.url, 4, session_ttl=TTL_S) as [holder, waiter, dying, heir]:
        tokens = hold(holder, "held"), hold(dying, "left")
        wait_for(waiter, "held", cluster)
        wait_for(heir, "left", cluster)

        old = server.leader()
        struck_ns = now_ns()
        if fault == "moved":
            server.move_leader()
        elif fault == "killed":
            old.kill()
        else:
            old.stop()
        dying.process.kill()
        server.wait_ready()
        assert server.leader() is not old

        # Until any lease would have ended that the old leader gave.
        until(lambda: now_ns() > struck_ns + (TTL_S + 1) * 1e9, "the end of a TTL")
        holds_still(holder, "held")
        holder.ask("guarded", name="held", key="guarded", value="still")
        inherited = heir.answer()
        inherited_s = (inherited["ended"] - struck_ns) / 1e9
        released = holder.ask("release", name="held")
        granted = waiter.answer()
        granted_s = (granted["ended"] - released["began"]) / 1e9
        print(f"{fault}: of the dead after {inherited_s:.2f} s, released after {granted_s:.2f} s")
        assert inherited["token"] > tokens[1]
        # The time of a lease begins anew with a new leader.
        assert inherited_s < ELECTION_S + 1 + TTL_S + 2
        assert granted["token"] > tokens[0]
        assert granted_s < AGAIN_S
        if old.stopped:
            old.cont()


def test_without_a_quorum_locks_are_suspended_and_come_back(
    server: Etcd, cluster: ringhold.Cluster
) -> None:
    with (
        players(cluster.url, 3, session_ttl=LONG_TTL_S) as [holder, waiter, newcomer],
        players(cluster.url, 1, session_ttl=SHORT_TTL_S) as [brief],
    ):
        token = hold(holder, "held")
        hold(brief, "brief")
        newcomer.ask("acquire", name="before")
        newcomer.ask("release", name="before")
        wait_for(waiter, "held", cluster)

        begin_ns = now_ns()
        away = server.members[:2]
        for member in away:
            member.stop()
        told = brief.ask("observed", name="brief", timeout=NO_QUORUM_S)
        late_s = brief.ask("late", name="brief")["ns"] / 1e9
        for player in (holder, newcomer):
            until_phase(player, "suspended")
        suspended_s = (now_ns() - begin_ns) / 1e9
        holder.ask("attempt", key="without quorum")
        # Though at hand a moment ago: nobody could say whether it still is.
        newcomer.tell("acquire", name="before", timeout=0.5)
        until(lambda: now_ns() > begin_ns + NO_QUORUM_S * 1e9, "the end of the fault")
        assert holder.ask("attempted", key="without quorum") == {"outcome": "none yet"}
        holds_still(holder, "held")
        assert holder.ask("phase") == {"phase": "suspended"}
        healed_ns = now_ns()
        for member in away:
            member.cont()
        brief_s = {what: (moment_ns - begin_ns) / 1e9 for what, moment_ns in told.items()}
        print(f"suspended after {suspended_s:.2f} s; of {SHORT_TTL_S} s: {brief_s}")
        refused = newcomer.answer()
        assert refused.get("token") is None, refused
        bound_s = SHORT_TTL_S + late_s
        assert max(brief_s.values()) < bound_s, "its session was not ended by its own clock"
        assert min(brief_s.values()) > 0, "it was not told of its loss"

        active_s = until_phase(holder, "active")
        holder.ask("guarded", name="held", key="guarded", value="still")
        holds_still(holder, "held")
        assert holder.ask("attempted", key="without quorum", timeout=30)["outcome"] == "done"
        taken = brief.ask("acquire", name="brief", timeout=30)
        released = holder.ask("release", name="held")
        granted = waiter.answer()
        again_s = [(moment["ended"] - healed_ns) / 1e9 for moment in (taken, granted)]
        print(f"active after {active_s:.2f} s, granted after {again_s} s")
        assert granted["token"] > token
        assert granted["ended"] > released["began"]
        assert max(again_s) < AGAIN_S


def until_phase(player: Remote, phase: str) -> float:
    """How many seconds it took."""
    began = time.monotonic()
    until(lambda: player.ask("phase") == {"phase": phase}, f"a session that is {phase}")
    return time.monotonic() - began
