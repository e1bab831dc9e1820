"""A process that takes a lock, tells its token and keeps it: ``lock_holder.py DIRECTORY``."""

from __future__ import annotations

import sys

import ringhold


def main(directory: str) -> None:
    with ringhold.open(directory, create=False) as cluster, cluster.lock("held") as grant:
        print(grant.token, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
