"""A process that does with locks what it is told: ``lock_player.py CLUSTER SESSION_TTL``, with the
directory or URL of the cluster.

Each line of its input is a JSON object ``{"do": WHAT, …}``, answered by one JSON line: what came
of it, or ``{"error": CLASS, "text": …}``. Times are nanoseconds of CLOCK_BOOTTIME, which all
processes of a host share. ``began`` is read before the call, ``ended`` after it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ringhold

BEAT_S = 0.01


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Observer:
    """Notes when a holder learned of its loss, in each of the ways in which it is told.

    `held_ns`: asked at this moment the grant was still held. The others are 0 until it is lost:
    a check failed, the event was set, the callback was called. A check that fails also sets the
    event; a holder that does not ask (`asks`) is told all the same.
    """

    def __init__(self, grant: Any, asks: bool):
        self._moments = dict.fromkeys(["event_ns", "callback_ns"], 0)
        if asks:
            self._moments |= {"held_ns": 0, "check_ns": 0}
        self.late_ns = 0
        """For how long this process stood still at most, in which it could not be told."""
        self._grant = grant
        self._lost = threading.Semaphore(0)
        grant.on_lost(self._called)
        for watching in (self._beat, self._wait, *([self._check] if asks else [])):
            threading.Thread(target=watching, daemon=True).start()

    def _called(self, grant: Any) -> None:
        self._moments["callback_ns"] = now_ns()
        self._lost.release()

    def _check(self) -> None:
        while not self._moments["check_ns"]:
            asked_ns = now_ns()
            try:
                self._grant.check()
            except ringhold.LockLost:
                self._moments["check_ns"] = now_ns()
            except ringhold.NotOwned:
                return
            else:
                self._moments["held_ns"] = asked_ns
                time.sleep(0.002)
        self._lost.release()

    def _beat(self) -> None:
        while not self._grant.lost.is_set():
            slept_ns = now_ns()
            time.sleep(BEAT_S)
            self.late_ns = max(self.late_ns, now_ns() - slept_ns - int(BEAT_S * 1e9))
        self._lost.release()

    def _wait(self) -> None:
        self._grant.lost.wait()
        self._moments["event_ns"] = now_ns()
        self._lost.release()

    def told(self, timeout: float) -> dict[str, int]:
        """After it was told in every way, or `timeout` seconds each."""
        for _ in range(4 if "check_ns" in self._moments else 3):
            if not self._lost.acquire(timeout=timeout):
                break
        return dict(self._moments)


class Attempt:
    """A put on a thread of its own."""

    def __init__(self, cluster: ringhold.Cluster, key: str, value: str):
        self.outcome: dict[str, Any] | None = None
        self._cluster = cluster
        self._put = key, value.encode()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._cluster.kv.put(*self._put)
        except Exception as error:
            self.outcome = {"outcome": type(error).__name__, "ended": now_ns()}
        else:
            self.outcome = {"outcome": "done", "ended": now_ns()}

    def result(self, timeout: float) -> dict[str, Any]:
        self._thread.join(timeout)
        return self.outcome or {"outcome": "none yet"}


class Player:
    def __init__(self, cluster: ringhold.Cluster):
        self.cluster = cluster
        self.grants: dict[str, Any] = {}
        self.contexts: dict[str, contextlib.ExitStack] = {}
        self.observers: dict[str, Observer] = {}
        self.attempts: dict[str, Attempt] = {}

    def acquire(self, name: str, mode: str = "exclusive", timeout: float = -1) -> dict[str, Any]:
        """The token, or None after the timeout."""
        began = now_ns()
        grant = self.cluster.lock(name, mode=mode).acquire(timeout=timeout)
        ended = now_ns()
        if grant is not None:
            self.grants[name] = grant
        return {"token": grant and grant.token, "began": began, "ended": ended}

    def release(self, name: str) -> dict[str, Any]:
        grant = self.grants.pop(name)
        began = now_ns()
        grant.release()
        return {"began": began, "ended": now_ns()}

    def upgrade(self, name: str) -> dict[str, Any]:
        self.grants[name].upgrade()
        return {"ended": now_ns()}

    def check(self, name: str) -> dict[str, Any]:
        self.grants[name].check()
        return {}

    def told_of_loss(self, name: str, timeout: float) -> dict[str, Any]:
        """Whether the grant's event of the loss is set within `timeout` seconds."""
        return {"lost": self.grants[name].lost.wait(timeout)}

    def observe(self, name: str, asks: bool = True) -> dict[str, Any]:
        """Looks after the grant from now on, without stopping."""
        self.observers[name] = Observer(self.grants[name], asks)
        return {}

    def observed(self, name: str, timeout: float = 0) -> dict[str, Any]:
        return dict(self.observers[name].told(timeout))

    def late(self, name: str) -> dict[str, Any]:
        return {"ns": self.observers[name].late_ns}

    def attempt(self, key: str, value: str = "") -> dict[str, Any]:
        """Begins a put, and goes on."""
        self.attempts[key] = Attempt(self.cluster, key, value)
        return {"began": now_ns()}

    def attempted(self, key: str, timeout: float = 0) -> dict[str, Any]:
        return self.attempts[key].result(timeout)

    def phase(self) -> dict[str, Any]:
        """What the session may be relied on for just now."""
        state = self.cluster._cluster._session.current
        return {"phase": "none" if state is None else state.state.value}

    def guarded(self, name: str, key: str, value: str) -> dict[str, Any]:
        """A put that holds only under the grant of `name`."""
        with self.cluster.transaction() as tx:
            tx.guard(name, self.grants[name].token)
            tx.kv[key] = value.encode()
        return {}

    def admit(self, name: str) -> dict[str, Any]:
        """Shows the grant's token to the fence of the same name."""
        self.cluster.fence(name).admit(self.grants[name].token)
        return {}

    def lock_file(self, path: str) -> dict[str, Any]:
        self.cluster.fs.pipe_file(path, b"before")
        stack = self.contexts[path] = contextlib.ExitStack()
        return {"token": stack.enter_context(self.cluster.fs.lock(path, timeout=10)).token}

    def write_file(self, path: str, value: str) -> dict[str, Any]:
        self.cluster.fs.pipe_file(path, value.encode())
        return {}

    def leave_file(self, path: str) -> dict[str, Any]:
        self.contexts.pop(path).close()
        return {}

    def loop(self, name: str, seconds: float) -> dict[str, Any]:
        """Takes and gives back the lock for `seconds`: how often, and for how long it held it."""
        lock = self.cluster.lock(name)
        count = held_ns = last = 0
        began = now_ns()
        while now_ns() < began + seconds * 1e9:
            with lock as grant:
                entered = now_ns()
                assert grant.token > last, (grant.token, last)
                last = grant.token
                held_ns += now_ns() - entered
            count += 1
        return {"count": count, "held": held_ns, "began": began, "ended": now_ns()}

    def commit_for_ever(self) -> dict[str, Any]:
        while True:
            self.cluster.kv["busy"] = b"%d" % now_ns()


def answers(player: Player, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        order = json.loads(line)
        method: Callable[..., dict[str, Any]] = getattr(player, order.pop("do"))
        try:
            yield method(**order)
        except Exception as error:
            yield {"error": type(error).__name__, "text": str(error)}


def main(url: str, session_ttl: str) -> None:
    with ringhold.open(url, create=False, session_ttl=float(session_ttl)) as cluster:
        print(json.dumps({"ready": True}), flush=True)
        for answer in answers(Player(cluster), iter(sys.stdin.readline, "")):
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
