"""A process that takes and gives back a lock for ever: ``lock_worker.py DIRECTORY LOG``.

Every entry and exit is one line, appended by one write, so that the order of lines in LOG is the
order in which things happened.
"""

from __future__ import annotations

import os
import sys

import ringhold


def main(directory: str, log: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with ringhold.open(directory, create=False) as cluster:
        print("ready", flush=True)
        while True:
            with cluster.lock("contended", timeout=60) as grant:
                os.write(fd, b"enter %d %d\n" % (grant.token, os.getpid()))
                os.write(fd, b"leave %d %d\n" % (grant.token, os.getpid()))


if __name__ == "__main__":
    main(*sys.argv[1:])
