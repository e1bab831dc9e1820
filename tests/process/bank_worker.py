"""A process that moves money at random for ever: ``bank_worker.py DIRECTORY SEED THREADS``."""

from __future__ import annotations

import random
import sys
import threading

import ringhold

ACCOUNTS = 5
TOTAL = 500


def transfer(cluster: ringhold.Cluster, chance: random.Random) -> None:
    source, target = chance.sample(range(ACCOUNTS), 2)
    amount = chance.randrange(1, 50)

    @cluster.transactional(retries=200)
    def move(tx: ringhold.Transaction) -> None:
        balances = {key: int(entry.value) for key, entry in tx.kv.range("account/")}
        assert sum(balances.values()) == TOTAL, balances
        left = balances[f"account/{source}"] - amount
        if left >= 0:
            tx.kv[f"account/{source}"] = b"%d" % left
            tx.kv[f"account/{target}"] = b"%d" % (balances[f"account/{target}"] + amount)

    move()


def work(directory: str, seed: int, threads: int) -> None:
    with ringhold.open(directory, create=False) as cluster:

        def forever(number: int) -> None:
            chance = random.Random(seed * 100 + number)
            while True:
                transfer(cluster, chance)
                # One write: print() would make two, and lines of threads would mix.
                sys.stdout.write("moved\n")
                sys.stdout.flush()

        for number in range(threads):
            threading.Thread(target=forever, args=(number,), daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
