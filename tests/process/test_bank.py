"""Goal: money is neither made nor lost, whoever dies in the middle of moving it.

Method: threads of several real processes move money between few accounts in transactions, while
processes are killed with SIGKILL; every transaction and an observer check the total they read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bank_worker import ACCOUNTS, TOTAL

import ringhold

HERE = Path(__file__).parent


def start(directory: Path, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "bank_worker.py"), str(directory), str(seed), "3"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def total(cluster: ringhold.Cluster) -> int:
    with cluster.transaction() as tx:
        return sum(int(entry.value) for _, entry in tx.kv.range("account/"))


def moved(worker: subprocess.Popen[bytes], times: int) -> None:
    assert worker.stdout is not None
    for _ in range(times):
        line = worker.stdout.readline()
        if line != b"moved\n":
            worker.kill()
            pytest.fail(f"wrote {line!r}; {worker.communicate()[1].decode()}")


def end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()


def test_the_total_stays_while_processes_are_killed(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    workers: list[subprocess.Popen[bytes]] = []
    with ringhold.create(str(directory)) as cluster:
        with cluster.transaction() as tx:
            for number in range(ACCOUNTS):
                tx.kv[f"account/{number}"] = b"%d" % (TOTAL // ACCOUNTS)
        try:
            workers = [start(directory, seed) for seed in range(3)]
            for kill in range(4):
                for worker in workers:
                    moved(worker, 5)
                    assert total(cluster) == TOTAL
                end(workers.pop(0))
                assert total(cluster) == TOTAL
                workers.append(start(directory, 10 + kill))
            balances = [int(entry.value) for _, entry in cluster.kv.range("account/")]
            # Something was moved at all, or the test would prove nothing.
            assert balances != [TOTAL // ACCOUNTS] * ACCOUNTS
            assert min(balances) >= 0
        finally:
            for worker in workers:
                end(worker)
        assert total(cluster) == TOTAL
