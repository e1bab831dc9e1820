"""Goal: whoever commits to one store, threads, tasks and processes, gets a fair share of the commit
lock, and what is queued together costs one fsync.

Method: real processes (store_racer.py) over one directory, their syncs counted by a preloaded
library; the turnstile put to the test by overtaking.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from races import Syncs, compiled_counter, raced

from ringhold.store.lock_files import CommitLock


@pytest.fixture(scope="module")
def count_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_counter(tmp_path_factory.mktemp("preload"))


def test_syncs_are_counted(tmp_path: Path, count_sync: Path) -> None:
    syncs = Syncs(count_sync, tmp_path / "syncs")
    call = "import os; fd = os.open('.', os.O_RDONLY); os.fsync(fd); os.fdatasync(fd)"
    subprocess.run([sys.executable, "-c", call], env=syncs.environment, cwd=tmp_path, check=True)
    assert syncs.count() == 2


def check_mixed(tmp_path: Path, count_sync: Path, seconds: float) -> None:
    syncs = Syncs(count_sync, tmp_path / "syncs")
    processes = [["thread", "thread", "task", "task"], ["thread"], ["thread"], ["task"], ["task"]]
    done, syncs_per_commit = raced(tmp_path / "data", seconds, processes, syncs)
    shares = [count for counts in done for count in counts]
    assert len(shares) == 8
    assert min(shares) >= max(shares) / 5, done
    # Six openings take turns at the lock; in two of them two writers share one commit.
    assert 0 < syncs_per_commit < 1, (done, syncs_per_commit)


def test_writers_of_all_kinds_get_their_share(tmp_path: Path, count_sync: Path) -> None:
    check_mixed(tmp_path, count_sync, 3.0)


@pytest.mark.long
def test_writers_of_all_kinds_get_their_share_for_half_a_minute(
    tmp_path: Path, count_sync: Path
) -> None:
    check_mixed(tmp_path, count_sync, 30.0)


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_many_in_one_process_share_their_syncs(tmp_path: Path, count_sync: Path, kind: str) -> None:
    syncs = Syncs(count_sync, tmp_path / "syncs")
    done, syncs_per_commit = raced(tmp_path / "data", 1.5, [[kind] * 32], syncs)
    assert min(done[0]) >= max(done[0]) / 5, done
    assert 0 < syncs_per_commit <= 0.2, (done, syncs_per_commit)


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_four_processes_in_a_loop_share_the_lock(
    tmp_path: Path, count_sync: Path, kind: str
) -> None:
    syncs = Syncs(count_sync, tmp_path / "syncs")
    done, syncs_per_commit = raced(tmp_path / "data", 2.0, [[kind]] * 4, syncs)
    shares = [count for (count,) in done]
    assert min(shares) >= max(shares) / 5, done
    # Nothing could be shared: each commit is durable by a sync of its own.
    assert syncs_per_commit >= 1


def test_who_gives_the_lock_back_does_not_overtake_who_waits(tmp_path: Path) -> None:
    greedy, patient = CommitLock(str(tmp_path)), CommitLock(str(tmp_path))
    overtaken = []
    for turn in range(30):
        assert greedy.try_acquire()
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(patient.acquire)
            while not patient.waiting:
                pass
            # Long enough to be in front of the lock, not only on the way to it.
            time.sleep(0.002)
            greedy.release()
            if greedy.try_acquire():
                overtaken.append(turn)
                greedy.release()
            assert waiting.result(10)
        patient.release()
    greedy.close()
    patient.close()
    assert overtaken == []
