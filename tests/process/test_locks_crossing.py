"""Goal: processes that take locks in any order make progress, and those that keep an order are
never refused.

Method: real processes of several threads take two or three of a few locks, shared or alone, one
inside the other, for some seconds. In random order they deadlock all the time, and each deadlock
must be told to somebody soon, or nobody gets any further. In one order for all they cannot, and not
one may be told so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_OF_THREE, etcd_url

import ringhold
from ringhold.locks.deadlocks import PATIENCE_S

HERE = Path(__file__).parent
PROCESSES = 3
SECONDS = 5.0
LONGEST_S = 60.0


def play(url: str, order: str) -> list[dict[str, Any]]:
    """What each thread of each process tells, while all of them are still there."""
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                str(HERE / "lock_crossing_worker.py"),
                *(url, str(seed), str(SECONDS), order),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for seed in range(PROCESSES)
    ]
    try:
        tallies: list[dict[str, Any]] = []
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
        for worker in workers:
            assert worker.stdout is not None
            tallies += json.loads(worker.stdout.readline())
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
            assert worker.wait(20) == 0
        return tallies
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                assert stream is not None
                stream.close()


@pytest.mark.parametrize("engine", ["sqlite", *ETCD_OF_THREE])
@pytest.mark.parametrize("order", ["random", "canonical"])
def test_locks_taken_in_some_order(tmp_path: Path, order: str, engine: str) -> None:
    local = engine == "sqlite"
    url = str(tmp_path / "c") if local else etcd_url(engine, f"crossing-{order}")
    ringhold.create(url).close()
    tallies = play(url, order)
    deadlocks = sum(tally["deadlocks"] for tally in tallies)
    assert all(tally["rounds"] for tally in tallies), "somebody got nowhere"
    assert max(tally["longest_s"] for tally in tallies) < LONGEST_S
    if order == "canonical":
        assert deadlocks == 0
        return
    assert deadlocks >= 3
    # Those within one process are found at once.
    across = sorted(s for tally in tallies for s in tally["refused_s"] if s >= PATIENCE_S)
    assert across, "no deadlock across processes"
    # Who is told may have waited before the circle closed, but most close it themselves.
    assert across[0] < 1.0
    assert across[len(across) // 2] < 3.0
