"""The processes that the demonstration starts and kills: ``python -m ringhold.cli.demo.workers``.

Each opens the cluster by itself and speaks in JSON lines on standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import ringhold
from ringhold.env import real_env
from ringhold.errors import StaleToken, TransactionAborted

ACCOUNTS = 8
OPENING_BALANCE = 1000


def account(number: int) -> str:
    return f"account/{number}"


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def hold(url: str, name: str) -> None:
    """Takes the lock, tells its token, and keeps it until the process ends."""
    with ringhold.open(url, create=False) as cluster:
        say(ready=True)
        grant = cluster.lock(name, timeout=60).acquire()
        if grant is None:
            say(error="not granted")
            return
        say(token=grant.token)
        sys.stdin.read()
        grant.release()


def write_with_token(url: str, name: str, token: str, value: str) -> None:
    """Writes `value` on condition that `token` still is the lock's."""
    with ringhold.open(url, create=False) as cluster:
        try:
            with cluster.transaction() as tx:
                tx.guard(name, int(token))
                tx.kv[f"written-under/{name}"] = value.encode()
        except StaleToken as error:
            say(accepted=False, error=type(error).__name__)
        else:
            say(accepted=True)


def transfer(url: str, worker: str) -> None:
    """Moves money at random for ever; tells every transfer after its commit returned."""
    random_bytes = real_env().random_bytes
    with ringhold.open(url, create=False) as cluster:
        number = 0
        while True:
            source, offset, amount = random_bytes(3)
            source %= ACCOUNTS
            target = (source + 1 + offset % (ACCOUNTS - 1)) % ACCOUNTS
            entry = f"ledger/{worker}/{number}"
            try:
                with cluster.transaction() as tx:
                    left = int(tx.kv[account(source)]) - amount
                    if left < 0:
                        continue
                    tx.kv[account(source)] = b"%d" % left
                    tx.kv[account(target)] = b"%d" % (int(tx.kv[account(target)]) + amount)
                    tx.kv[entry] = b"%d" % amount
            except TransactionAborted as error:
                if not error.retryable:
                    raise
                continue
            say(committed=entry)
            number += 1


if __name__ == "__main__":
    run: dict[str, Callable[..., None]] = {
        "hold": hold,
        "write": write_with_token,
        "transfer": transfer,
    }
    run[sys.argv[1]](*sys.argv[2:])
