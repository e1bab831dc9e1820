"""A process that holds slots: ``slot_worker.py DIRECTORY semaphore LOG | hold | lead``.

``semaphore`` takes and gives back a slot of two for ever. Every entry and exit is one line,
appended by one write, so that the order of lines in LOG is the order in which things happened.
``hold`` and ``lead`` take a slot or the leadership, tell the token, and keep it.
"""

from __future__ import annotations

import os
import sys
import time

import ringhold

LIMIT = 2
HOLD_S = 0.02
SESSION_TTL_S = 120.0
"""Longer than any test waits: what is free before was freed by the death of its holder."""


def take_turns(cluster: ringhold.Cluster, log: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    print("ready", flush=True)
    while True:
        with cluster.semaphore("contended", LIMIT, timeout=60) as grant:
            os.write(fd, b"enter %d %d\n" % (grant.token, os.getpid()))
            # Long enough for others to enter and for a kill to strike meanwhile.
            time.sleep(HOLD_S)
            os.write(fd, b"leave %d %d\n" % (grant.token, os.getpid()))


def main(directory: str, what: str, log: str = "") -> None:
    with ringhold.open(directory, create=False, session_ttl=SESSION_TTL_S) as cluster:
        if what == "semaphore":
            take_turns(cluster, log)
        entering = (
            cluster.election("held", value=str(os.getpid()))
            if what == "lead"
            else cluster.semaphore("held", LIMIT)
        )
        with entering as grant:
            print(grant.token, flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
