"""Files beside the plain tools of the machine: one large file beside ``dd conv=fsync``, and small
files beside a file system of the same disk that syncs each.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. Each
benchmark checks the work it timed. Only the ratios mean anything.
"""

import asyncio
import os
import subprocess

import pytest

import ringhold
from pairs import FULL, in_turns, report

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


def test_write(benchmark, fs, source, payload, tmp_path):
    def by_open(number):
        with fs.open("/open", "wb") as file:
            for start in range(0, LARGE, 1 << 20):
                file.write(payload[start : start + (1 << 20)])

    ways = {
        "dd conv=fsync": lambda number: dd(source, tmp_path / "copy"),
        "put_file": lambda number: fs.put_file(str(source), "/put"),
        "pipe_file": lambda number: fs.pipe_file("/pipe", payload),
        "open wb": by_open,
        # Not measured beside anything: frees what the round before it replaced.
        "gc": lambda number: fs.gc(0),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    assert (tmp_path / "copy").read_bytes() == payload
    for path in ("/put", "/pipe", "/open"):
        assert fs.cat_file(path) == payload
    pairs = [(way, "dd conv=fsync") for way in ("put_file", "pipe_file", "open wb")]
    report(benchmark, seconds, pairs, LARGE / 1e6, "MB")


def test_read(benchmark, fs, source, payload, tmp_path):
    fs.pipe_file("/large", payload)
    read = {}

    def by_open(number):
        with fs.open("/large") as file:
            read["open rb"] = b"".join(iter(lambda: file.read(1 << 20), b""))

    ways = {
        "dd conv=fsync": lambda number: dd(source, tmp_path / "dd"),
        "get_file": lambda number: fs.get_file("/large", str(tmp_path / "get")),
        "cat_file": lambda number: read.update(cat_file=fs.cat_file("/large")),
        "open rb": by_open,
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    assert (tmp_path / "get").read_bytes() == payload
    assert read["cat_file"] == read["open rb"] == payload
    pairs = [(way, "dd conv=fsync") for way in ("get_file", "cat_file", "open rb")]
    report(benchmark, seconds, pairs, LARGE / 1e6, "MB")


def write_synced(directory):
    directory.mkdir()
    for number in range(SMALL_FILES):
        with open(directory / str(number), "wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_small_files(benchmark, fs, tmp_path):
    """Each file durable before the next of its task begins; 16 tasks at a time."""

    async def create(directory, task):
        for number in range(SMALL_FILES // TASKS):
            await fs._pipe_file(f"{directory}/{task}-{number}", b"x")

    async def create_all(directory):
        await asyncio.gather(*(create(directory, task) for task in range(TASKS)))

    ways = {
        "fsync of each": lambda number: write_synced(tmp_path / f"{number}"),
        "pipe_file": lambda number: fs.run(create_all(f"/small{number}")),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    for number in range(len(seconds["pipe_file"]) + 1):
        assert len(fs.ls(f"/small{number}")) == SMALL_FILES
        assert len(os.listdir(tmp_path / f"{number}")) == SMALL_FILES
    report(benchmark, seconds, [("pipe_file", "fsync of each")], SMALL_FILES, "files")
