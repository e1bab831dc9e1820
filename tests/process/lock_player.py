"""A process that does with locks what it is told: ``lock_player.py DIRECTORY SESSION_TTL``.

Each line of its input is a JSON object ``{"do": WHAT, …}``, answered by one JSON line: what came
of it, or ``{"error": CLASS, "text": …}``. Times are nanoseconds of CLOCK_BOOTTIME, which all
processes of a host share. ``began`` is read before the call, ``ended`` after it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ringhold


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Player:
    def __init__(self, cluster: ringhold.Cluster):
        self.cluster = cluster
        self.grants: dict[str, Any] = {}
        self.contexts: dict[str, contextlib.ExitStack] = {}

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


def main(directory: str, session_ttl: str) -> None:
    with ringhold.open(directory, create=False, session_ttl=float(session_ttl)) as cluster:
        print(json.dumps({"ready": True}), flush=True)
        for answer in answers(Player(cluster), iter(sys.stdin.readline, "")):
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
