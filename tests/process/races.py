"""Processes that commit in loops to one store (store_racer.py), with their syncs counted by a
preloaded library. Used by tests and benchmarks."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ringhold

HERE = Path(__file__).parent
RACER = str(HERE / "store_racer.py")


def compiled_counter(directory: Path) -> Path:
    """The library to preload, made in `directory`."""
    library = directory / "count_sync.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    source = HERE / "count_sync.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Syncs:
    """The number of syncs that processes with this environment made."""

    def __init__(self, library: Path, path: Path):
        path.write_bytes(bytes(8))
        self._path = path
        self.environment = {**os.environ, "LD_PRELOAD": str(library), "COUNT_SYNC": str(path)}

    def count(self) -> int:
        return int(struct.unpack("<Q", self._path.read_bytes())[0])


@contextmanager
def racer(
    directory: Path, seconds: float, writers: list[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, RACER, str(directory), str(seconds), *writers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def raced(
    directory: Path, seconds: float, processes: list[list[str]], syncs: Syncs
) -> tuple[list[list[int]], float]:
    """The commits of each writer of each process, and the syncs for each commit."""
    ringhold.create(directory).close()
    with ExitStack() as stack:
        running = [
            stack.enter_context(racer(directory, seconds, writers, syncs.environment))
            for writers in processes
        ]
        before = syncs.count()
        for process in running:
            assert process.stdin is not None
            print("start", file=process.stdin, flush=True)
        done = [list(map(int, process.stdout.readline().split())) for process in running]  # type: ignore[union-attr]
        synced = syncs.count() - before
    return done, synced / sum(map(sum, done))
