"""Files beside the plain tools of the machine: one large file beside ``dd conv=fsync``, and small
files beside a file system of the same disk that syncs each.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. Each
benchmark checks the work it timed. Only the ratios mean anything.
"""

import asyncio
import itertools
import os
import subprocess

import pytest

import ringhold

FULL = os.environ.get("RINGHOLD_BENCH") == "full"
LARGE = 256 << 20 if FULL else 1 << 20
SMALL_FILES = 4096 if FULL else 64
TASKS = 16


@pytest.fixture(scope="module")
def payload():
    return os.urandom(LARGE)


@pytest.fixture(scope="module")
def fs(tmp_path_factory):
    with ringhold.create(tmp_path_factory.mktemp("bench") / "c") as cluster:
        yield cluster.fs


@pytest.fixture(scope="module")
def source(tmp_path_factory, payload):
    path = tmp_path_factory.mktemp("source") / "data"
    path.write_bytes(payload)
    return path


def dd(source, target):
    command = ["dd", f"if={source}", f"of={target}", "bs=8M", "conv=fsync", "status=none"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("way", ["dd", "put", "pipe", "open"])
def test_write(benchmark, fs, source, payload, tmp_path, way):
    benchmark.group = f"write {LARGE >> 20} MiB"

    def by_open():
        with fs.open("/large", "wb") as file:
            for start in range(0, LARGE, 1 << 20):
                file.write(payload[start : start + (1 << 20)])

    ways = {
        "dd": lambda: dd(source, tmp_path / "copy"),
        "put": lambda: fs.put_file(str(source), "/large"),
        "pipe": lambda: fs.pipe_file("/large", payload),
        "open": by_open,
    }
    benchmark.pedantic(ways[way], setup=lambda: fs.gc(0) and None, rounds=5 if FULL else 1)
    written = (tmp_path / "copy").read_bytes() if way == "dd" else fs.cat_file("/large")
    assert written == payload


@pytest.mark.parametrize("way", ["dd", "get", "cat", "open"])
def test_read(benchmark, fs, source, payload, tmp_path, way):
    benchmark.group = f"read {LARGE >> 20} MiB"
    fs.pipe_file("/large", payload)
    target = tmp_path / "copy"

    def by_open():
        with fs.open("/large") as file:
            return b"".join(iter(lambda: file.read(1 << 20), b""))

    ways = {
        "dd": lambda: dd(source, target),
        "get": lambda: fs.get_file("/large", str(target)),
        "cat": lambda: fs.cat_file("/large"),
        "open": by_open,
    }
    result = benchmark.pedantic(ways[way], rounds=5 if FULL else 1)
    assert (target.read_bytes() if result is None else result) == payload


def write_synced(directory, names):
    for name in names:
        with open(directory / name, "wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


rounds = itertools.count()


@pytest.mark.parametrize("way", ["fsync", "ringhold"])
def test_small_files(benchmark, fs, tmp_path, way):
    """Each file durable before the next of its task begins; 16 tasks at a time."""
    benchmark.group = f"create {SMALL_FILES} small files"
    made = []

    async def create(directory, names):
        for name in names:
            await fs._pipe_file(f"{directory}/{name}", b"x")

    async def create_all(directory):
        each = SMALL_FILES // TASKS
        await asyncio.gather(
            *(create(directory, [f"{t}-{n}" for n in range(each)]) for t in range(TASKS))
        )

    def run():
        made.append(f"/small{next(rounds)}")
        if way == "fsync":
            directory = tmp_path / made[-1][1:]
            directory.mkdir()
            write_synced(directory, map(str, range(SMALL_FILES)))
        else:
            fs.run(create_all(made[-1]))

    benchmark.pedantic(run, rounds=5 if FULL else 1)
    for directory in made:
        found = fs.ls(directory) if way == "ringhold" else os.listdir(tmp_path / directory[1:])
        assert len(found) == SMALL_FILES
