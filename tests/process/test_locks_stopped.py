"""Goal: a holder that was stopped for longer than its session lives knows that its lock is lost
as soon as it looks, and what it still does under it is refused; one that is stopped inside a
commit costs nobody else anything but the time.

Method: a player (`lock_player`) holds a lock and a file's lock and is stopped with SIGSTOP,
outside of a commit; its next order already waits for it when it goes on, so that its own code
runs before any timer. Meanwhile somebody takes the lock over, or only uses the store, or nobody
does anything at all. In a directory and on etcd, where nobody can stand inside a commit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_engines import etcd_url
from lock_processes import (
    Place,
    Remote,
    committing,
    in_commit,
    now_ns,
    pause_in_commit,
    place_in,
    players,
    resume,
    state,
    until,
)

import ringhold

TTL_S = {"directory": 1.2, "etcd-3.5": 2.0, "etcd-3.4-of-three": 2.0}
STOP_PER_TTL = 1.3
REFUSALS = {"LockLost", "StaleToken"}

_names = itertools.count()


def stand_still(holder: Remote, cluster: ringhold.Cluster, meanwhile: str, stop_s: float) -> int:
    """The holder, stopped already, stays so beyond its TTL; the token of who took over, or 0."""
    assert state(holder.pid) == "T"
    end_ns = now_ns() + int(stop_s * 1e9)
    token = 0
    if meanwhile == "taken over":
        grant = cluster.lock("held", timeout=20).acquire()
        assert grant is not None
        token = grant.token
        with cluster.fs.lock("/f", timeout=20):
            cluster.fs.pipe_file("/f", b"after")
        grant.release()
    while now_ns() < end_ns:
        if meanwhile == "store used":
            cluster.kv["other"] = b"%d" % now_ns()
        time.sleep(0.02)
    assert state(holder.pid) == "T"
    return token


@pytest.fixture(
    params=[
        "directory",
        "etcd-3.5",
        pytest.param("etcd-3.4-of-three", marks=pytest.mark.system),
    ]
)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def place(engine: str, tmp_path: Path) -> Place:
    if engine == "directory":
        return place_in(tmp_path / "c")
    return Place(etcd_url(engine, f"stopped-{next(_names)}"))


@pytest.fixture
def stop_s(engine: str) -> float:
    return TTL_S[engine] * STOP_PER_TTL


@pytest.fixture
def cluster(place: Place) -> Iterator[ringhold.Cluster]:
    with ringhold.create(place.url) as made:
        made.fs.pipe_file("/f", b"before")
        yield made


@pytest.fixture
def holder(cluster: ringhold.Cluster, place: Place, engine: str) -> Iterator[Remote]:
    with players(place.url, 1, session_ttl=TTL_S[engine]) as started:
        yield started[0]


@pytest.fixture
def pair(cluster: ringhold.Cluster, place: Place, engine: str) -> Iterator[list[Remote]]:
    with players(place.url, 2, session_ttl=TTL_S[engine]) as started:
        yield started


MEANWHILE = pytest.mark.parametrize(
    ("engine", "meanwhile"),
    [
        *itertools.product(["directory"], ["taken over", "store used", "nothing"]),
        ("etcd-3.5", "taken over"),
        pytest.param("etcd-3.5", "store used", marks=pytest.mark.long),
        pytest.param("etcd-3.5", "nothing", marks=pytest.mark.long),
        pytest.param("etcd-3.4-of-three", "taken over", marks=pytest.mark.system),
        pytest.param("etcd-3.4-of-three", "store used", marks=pytest.mark.long),
        pytest.param("etcd-3.4-of-three", "nothing", marks=pytest.mark.long),
    ],
)


@MEANWHILE
def test_its_next_check_says_so(
    cluster: ringhold.Cluster, holder: Remote, place: Place, stop_s: float, meanwhile: str
) -> None:
    token = holder.ask("acquire", name="held")["token"]
    place.pause_outside_commit(holder.pid)
    later = stand_still(holder, cluster, meanwhile, stop_s)
    assert later == 0 or later > token
    holder.tell("check", name="held")
    resume(holder.pid)
    assert holder.answer().get("error") == "LockLost"
    assert holder.ask("told_of_loss", name="held", timeout=10) == {"lost": True}
    # Lost for ever, though the next operation opens a new session.
    again = holder.ask("acquire", name="other")["token"]
    assert again > 0
    assert holder.refused("check", name="held") == "LockLost"
    assert holder.refused("release", name="held") == "LockLost"
    assert holder.ask("acquire", name="held", timeout=20)["token"] > max(token, later)


@MEANWHILE
@pytest.mark.parametrize("first", ["check", "guarded"])
def test_its_guarded_commit_is_refused(
    cluster: ringhold.Cluster,
    holder: Remote,
    place: Place,
    stop_s: float,
    meanwhile: str,
    first: str,
) -> None:
    put = {"name": "held", "key": "guarded", "value": "stale"}
    holder.ask("acquire", name="held")
    holder.ask("guarded", **put | {"value": "fresh"})
    place.pause_outside_commit(holder.pid)
    stand_still(holder, cluster, meanwhile, stop_s)
    holder.tell(first, **put if first == "guarded" else {"name": "held"})
    resume(holder.pid)
    assert holder.answer().get("error") in REFUSALS
    assert holder.refused("guarded", **put) in REFUSALS
    assert cluster.kv["guarded"] == b"fresh"


@MEANWHILE
def test_its_write_to_a_locked_file_is_refused(
    cluster: ringhold.Cluster, holder: Remote, place: Place, stop_s: float, meanwhile: str
) -> None:
    holder.ask("lock_file", path="/f")
    holder.ask("write_file", path="/f", value="held")
    place.pause_outside_commit(holder.pid)
    stand_still(holder, cluster, meanwhile, stop_s)
    holder.tell("write_file", path="/f", value="stale")
    resume(holder.pid)
    assert holder.answer().get("error") == "LockLost"
    expected = b"after" if meanwhile == "taken over" else b"held"
    assert cluster.fs.cat_file("/f") == expected
    assert holder.refused("leave_file", path="/f") == "LockLost"


def test_a_fence_refuses_its_token_once_a_later_one_was_shown(
    cluster: ringhold.Cluster, pair: list[Remote], place: Place
) -> None:
    holder, later = pair
    first = holder.ask("acquire", name="held")["token"]
    holder.ask("admit", name="held")
    place.pause_outside_commit(holder.pid)
    assert state(holder.pid) == "T"
    assert later.ask("acquire", name="held", timeout=20)["token"] > first
    later.ask("admit", name="held")
    holder.tell("admit", name="held")
    resume(holder.pid)
    assert holder.answer().get("error") == "StaleToken"
    later.ask("admit", name="held")
    # It is the fence that remembers, not a process.
    with pytest.raises(ringhold.StaleToken):
        cluster.fence("held").admit(first)


@pytest.mark.parametrize("engine", ["directory"])
def test_a_stop_inside_a_commit_loses_nobody_s_lock(
    cluster: ringhold.Cluster, pair: list[Remote], place: Place, engine: str
) -> None:
    bystander, stopped = pair
    directory = place.directory
    assert directory is not None
    token = bystander.ask("acquire", name="held")["token"]
    stopped.tell("commit_for_ever")
    until(lambda: cluster.kv.get("busy"), "a commit")
    pause_in_commit(stopped.pid, directory)
    assert state(stopped.pid) == "T"
    assert in_commit(stopped.pid, directory)
    assert committing(directory) != 0
    end_ns = now_ns() + int(TTL_S[engine] * 2.5e9)
    until(lambda: now_ns() >= end_ns, "the end of the stop")
    resume(stopped.pid)
    cluster.kv["after"] = b"1"
    assert cluster.lock("held").acquire(timeout=TTL_S[engine]) is None, (
        "it was taken from its holder"
    )
    assert bystander.ask("told_of_loss", name="held", timeout=0) == {"lost": False}
    bystander.ask("check", name="held")
    bystander.ask("guarded", name="held", key="guarded", value="1")
    bystander.ask("release", name="held")
    assert bystander.ask("acquire", name="held", timeout=5)["token"] > token
