"""The lock table beside ``with threading.Lock()``, which knows neither names nor owners, and its
C core alone, in nanoseconds per acquire and release, beside a ``pthread_mutex_t``.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. Every way
checks that it acquired and released what it was timed for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pairs import FULL, ROUNDS, figure, in_turns, report
from ringhold import LockTable

CSRC = Path(__file__).parent.parent / "csrc"
PAIRS = 200_000 if FULL else 100
BATCH = 1000
NAMES, HOT_PAIRS = (1_000_000, 5_000_000) if FULL else (1000, 1000)


def test_a_pair_beside_a_lock_without_a_name(benchmark: Any) -> None:
    table = LockTable()
    lock = threading.Lock()

    def pairs(_: int) -> None:
        acquire, release = table.try_acquire, table.release
        last = 0
        for _ in range(PAIRS):
            last = acquire("order/7", 1)
            release("order/7", 1)
        assert last % PAIRS == 0
        assert len(table) == 0

    def plain(_: int) -> None:
        for _ in range(PAIRS):
            with lock:
                pass
        assert not lock.locked()

    label = "try_acquire and release"
    ways = {label: pairs, "with threading.Lock()": plain}
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    report(benchmark, seconds, [(label, "with threading.Lock()")], PAIRS, "pairs")


def test_a_batch_beside_single_calls(benchmark: Any) -> None:
    table = LockTable()
    names = [f"order/{i}" for i in range(BATCH)]
    batches = max(1, PAIRS // BATCH)

    def batch(_: int) -> None:
        for _ in range(batches):
            tokens = table.acquire_many(names, 1)
            assert tokens is not None
            assert len(table) == BATCH
            table.release_owner(1)
        assert len(table) == 0

    def single(_: int) -> None:
        for _ in range(batches):
            for name in names:
                table.try_acquire(name, 1)
            assert len(table) == BATCH
            for name in names:
                table.release(name, 1)
        assert len(table) == 0

    label = f"acquire_many of {BATCH} and release_owner"
    seconds = benchmark.pedantic(in_turns, ({label: batch, "one by one": single},), rounds=1)
    report(benchmark, seconds, [(label, "one by one")], batches * BATCH, "pairs")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, built without Python as any user of the C core would."""
    build = tmp_path_factory.mktemp("core")
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert cmake is not None, "cmake is not installed"
    configure = [cmake, "-S", str(CSRC), "-B", str(build), "-DRINGHOLD_BUILD_TESTS=ON"]
    for command in (
        configure,
        [cmake, "--build", str(build), "--parallel", "2", "--target", "bench_lock_table"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "tests" / "bench_lock_table"


def test_the_core_alone(benchmark: Any, program: Path) -> None:
    found: dict[str, list[float]] = {}

    def run() -> None:
        argv = [str(program), str(NAMES), str(HOT_PAIRS)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            what, nanoseconds = line.split()
            found.setdefault(what, []).append(float(nanoseconds))

    benchmark.pedantic(run, rounds=ROUNDS, iterations=1)
    assert list(found) == ["mutex", "hot", "cold", "beside", "all"]
    for what, figures in found.items():
        figure(benchmark, f"C lock table, {what}", figures, "ns")
