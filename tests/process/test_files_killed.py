"""Goal: a writer that dies leaves every file it acknowledged, no half of another one, and nothing
on the nodes that `gc` does not find once its session is over.
Method: child processes write files, trees and file transactions into one directory cluster and say
so, line by line; each is killed with SIGKILL in the middle of it, after a number of lines.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ringhold
from ringhold.files.survey import holders_of, tables_now, take_inventory

CHUNK = 64 << 10

WRITER = """
import sys
import ringhold

url, name = sys.argv[1:]
with ringhold.open(url) as cluster:
    fs = cluster.fs
    for number in range(100_000):
        size = (number * 7919) % (5 * 65536)
        data = bytes([number % 256]) * size
        with fs.transaction:
            fs.pipe_file(f"/{name}/{number}/one", data)
            fs.pipe_file(f"/{name}/{number}/two", data)
        fs.mv(f"/{name}/{number}", f"/{name}/done{number}")
        if number % 3 == 0:
            fs.rm(f"/{name}/done{number}", recursive=True)
        print(number, flush=True)
"""


def listed(cluster: Any) -> list[Any]:
    core = cluster.fs.core

    async def look() -> list[Any]:
        tables = await tables_now(core.store)
        inventory = await take_inventory(core.placement, holders_of(tables))
        return [chunk for chunks in inventory.chunks.values() for chunk in chunks]

    found: list[Any] = cluster._bridge.run(look())
    return found


@pytest.mark.parametrize("lines", [1, 4, 9])
def test_killed_writers_leave_what_they_acknowledged_and_nothing_half(
    tmp_path: Path, lines: int
) -> None:
    url = str(tmp_path / "c")
    ringhold.create(url, nodes=3, replicas=2, chunk_size=CHUNK).close()
    last: dict[str, int] = {}
    writers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WRITER, url, name], stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    }
    for name, writer in writers.items():
        assert writer.stdout is not None
        for _ in range(lines):
            last[name] = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last[name] = max([last[name], *map(int, writer.stdout.read().split())])
        writer.stdout.close()
        assert writer.wait(30) == -signal.SIGKILL
    with ringhold.open(url) as cluster:
        fs = cluster.fs
        assert fs.fsck().ok
        fs.repair()
        assert fs.fsck(copies=True).ok
        for name, number in last.items():
            for done in range(number + 1):
                assert fs.exists(f"/{name}/done{done}") == bool(done % 3)
        for path in fs.find("/"):
            # Acknowledged or not: what is visible is visible in pairs, and whole.
            number = int(path.split("/")[2].removeprefix("done"))
            twin = path[:-3] + {"one": "two", "two": "one"}[path[-3:]]
            expected = bytes([number % 256]) * ((number * 7919) % (5 * CHUNK))
            assert fs.cat_file(path) == fs.cat_file(twin) == expected
        fs.rm("/", recursive=True)
        fs.gc(0)
        assert listed(cluster) == []
        assert fs.fsck().ok
