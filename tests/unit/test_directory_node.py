"""Goal: a directory node acknowledges only what is durable, whatever its disk or its caller does.

Method: a disk that runs on the real file system call by call, counts and logs the calls, fails the
n-th one for every n, and lets a put be cancelled after every step of the event loop. After each
run: what was acknowledged verifies, what is visible was fsynced before, a failed fsync has marked
the directory for every process, no descriptor and no file in tmp/ is left.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ringhold.core import digest
from ringhold.env import Disk, RealDisk, RealEnv, finish, real_env
from ringhold.errors import Corrupt, NodeDown
from ringhold.nodes import identity as identity_file
from ringhold.nodes.base import ChunkId, ChunkState, Identity
from ringhold.nodes.chunk_file import HEADER_BYTES, encode_header, verify_part
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.mount import FAILED, Directory, chunk_path
from ringhold.nodes.reserve import RESERVE_BYTES_MIN, reserve_bytes

T = TypeVar("T")

IDENTITY = Identity(b"C" * 16, "n1", 1)
CHUNK = ChunkId(bytes(16), 0)
DATA = os.urandom(100_000)
DIGEST = digest(DATA)


class SteppedDisk(RealDisk):
    """Runs `together` call by call, as a simulation does."""

    async def together(self, steps: Callable[[Disk], Any]) -> Any:
        return await steps(self)


class SteppedEnv(RealEnv):
    """Every disk call takes a few steps of the loop and happens in the middle of them."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SteppedDisk(self)
        self.calls: list[str] = []
        self.fail_at = 0
        self.error = errno.EIO
        self.persistent = False

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        name = getattr(getattr(function, "func", function), "__name__", "?")
        self.calls.append(name)
        number = len(self.calls)
        await asyncio.sleep(0)
        if number == self.fail_at or (self.persistent and 0 < self.fail_at < number):
            if name == "close":
                function(*args)  # as the kernel does: the descriptor is gone all the same
            raise OSError(self.error, os.strerror(self.error))
        result = function(*args)
        await asyncio.sleep(0)
        return result

    async def reached(self, name: str) -> None:
        """Lets the loop run until a call `name` was submitted and has not happened yet."""
        for _ in range(10_000):
            if name in self.calls:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"no {name} among {self.calls}")

    async def blocking(
        self, function: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None
    ) -> T:
        return await finish(asyncio.ensure_future(self._call(function, *args)), undo)


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An adopted, empty node directory, for `adopted` to copy."""
    path = tmp_path_factory.mktemp("template") / "n"
    asyncio.run(DirectoryNode(str(path), "n1", real_env()).adopt(IDENTITY))
    TEMPLATE.append(path)


TEMPLATE: list[Path] = []


def adopted(path: Path) -> Path:
    shutil.copytree(TEMPLATE[-1], path)
    return path


def node_at(path: Path, env: RealEnv | None = None, unnamed_files: bool = True) -> DirectoryNode:
    return DirectoryNode(
        str(path), "n1", env or real_env(), expected=IDENTITY, unnamed_files=unnamed_files
    )


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def content_of(path: Path) -> bytes | None:
    """The chunk as a fresh process would find it, verified; None when it is not there."""
    node = node_at(path)
    try:
        return bytes(verify_part(await node.get(CHUNK), CHUNK, DIGEST, len(DATA)))
    except FileNotFoundError:
        return None
    finally:
        await node.close()


def prepare_damaged(path: Path) -> None:
    """An old, damaged file under the chunk's name, so that a put has to replace it."""
    file = path / chunk_path(CHUNK)
    file.write_bytes(b"damaged" * 1000)


KINDS = [
    pytest.param(True, False, id="unnamed"),
    pytest.param(False, False, id="tmp"),
    pytest.param(True, True, id="unnamed-replacing"),
    pytest.param(False, True, id="tmp-replacing"),
]


@pytest.mark.parametrize(("unnamed_files", "replacing"), KINDS)
def test_the_steps_of_a_put_come_in_order(
    tmp_path: Path, unnamed_files: bool, replacing: bool
) -> None:
    path = adopted(tmp_path / "n")
    if replacing:
        prepare_damaged(path)

    async def main() -> list[str]:
        env = SteppedEnv()
        node = node_at(path, env, unnamed_files)
        await node.has([CHUNK])
        env.calls.clear()
        await node.put(CHUNK, DATA, DIGEST)
        steps = [call for call in env.calls if call in ORDERED]
        await node.close()
        return steps

    ORDERED = ("_pwrite_all", "fdatasync", "link", "rename", "fsync")
    if not replacing:
        expected = ["_pwrite_all", "fdatasync", "link", "fsync"]
    else:
        name_in_tmp = ["link"] if unnamed_files else []
        expected = ["_pwrite_all", "fdatasync", "link", "fdatasync", "link", "fsync"]
        expected += [*name_in_tmp, "rename", "fsync"]
    assert asyncio.run(main()) == expected


@pytest.mark.parametrize(("unnamed_files", "replacing"), KINDS)
def test_any_disk_call_may_fail(tmp_path: Path, unnamed_files: bool, replacing: bool) -> None:
    async def attempt(path: Path, number: int) -> bool:
        """Whether the put had fewer calls than `number`."""
        env = SteppedEnv()
        node = node_at(path, env, unnamed_files)
        env.fail_at = number
        acknowledged, failure = False, None
        try:
            await node.put(CHUNK, DATA, DIGEST)
            acknowledged = True
        except OSError as error:
            failure = error
        reached = len(env.calls) >= number
        failed_call = env.calls[number - 1] if reached else ""
        env.fail_at = 0
        await node.close()
        marked = (path / FAILED).exists()
        if acknowledged:
            assert failure is None
            assert await content_of(path) == DATA
            assert not marked
        if failed_call in ("fsync", "fdatasync", "_pwrite_all", "link", "rename"):
            assert isinstance(failure, NodeDown), (failed_call, failure)
            assert marked
        fresh = node_at(path)
        if marked:
            with pytest.raises(NodeDown, match="failed before"):
                await fresh.put(CHUNK, DATA, DIGEST)
            with pytest.raises(NodeDown, match="failed before"):
                await fresh.delete([CHUNK])
            if failed_call == "fsync":
                await fresh.verify_all()
                assert not (path / FAILED).exists()
            else:
                (path / FAILED).unlink()
        await fresh.put(CHUNK, DATA, DIGEST)
        await fresh.close()
        assert await content_of(path) == DATA
        return not reached

    before = open_descriptors()
    path = adopted(tmp_path / "n")
    for number in range(1, 100):
        (path / chunk_path(CHUNK)).unlink(missing_ok=True)
        for leftover in (path / "tmp").iterdir():
            leftover.unlink()
        if replacing:
            prepare_damaged(path)
        if asyncio.run(attempt(path, number)):
            assert number > 12
            break
    else:
        pytest.fail("a put never ends")
    assert open_descriptors() <= before


@pytest.mark.parametrize(("unnamed_files", "replacing"), KINDS)
def test_a_put_may_be_cancelled_at_every_step(
    tmp_path: Path, unnamed_files: bool, replacing: bool
) -> None:
    async def attempt(path: Path, steps: int) -> bool:
        """Whether the put was done after `steps` steps of the loop."""
        env = SteppedEnv()
        node = node_at(path, env, unnamed_files)
        put = asyncio.ensure_future(node.put(CHUNK, DATA, DIGEST))
        for _ in range(steps):
            await asyncio.sleep(0)
        done = put.done()
        put.cancel()
        await asyncio.wait([put])
        calls = list(env.calls)
        await node.close()
        assert not os.listdir(path / "tmp")
        assert not (path / FAILED).exists()
        if put.cancelled():
            visible = calls.count("rename") if replacing else calls.count("link")
            if visible:
                # Once it was given its name, the directory was synced before the put ended.
                last = max(i for i, call in enumerate(calls) if call in ("link", "rename"))
                assert "fsync" in calls[last:]
                assert await content_of(path) == DATA
            elif not replacing:
                assert await content_of(path) is None
        else:
            assert await content_of(path) == DATA
        return done

    before = open_descriptors()
    path = adopted(tmp_path / "n")
    cancelled = 0
    for steps in range(400):
        if replacing:
            prepare_damaged(path)
        else:
            (path / chunk_path(CHUNK)).unlink(missing_ok=True)
        if asyncio.run(attempt(path, steps)):
            break
        cancelled += 1
    else:
        pytest.fail("a put never ends")
    assert cancelled > 30
    assert open_descriptors() <= before


def test_a_failed_fsync_counts_even_when_its_put_was_cancelled(tmp_path: Path) -> None:
    async def attempt(path: Path, call: str) -> None:
        env = SteppedEnv()
        node = node_at(path, env)
        await node.has([CHUNK])
        put = asyncio.ensure_future(node.put(CHUNK, DATA, DIGEST))
        await env.reached(call)
        env.fail_at = len(env.calls)
        put.cancel()
        await asyncio.wait([put])
        assert put.cancelled()
        assert (path / FAILED).exists()
        with pytest.raises(NodeDown, match="failed before"):
            await node.put(CHUNK, DATA, DIGEST)
        await node.close()

    for call in ("fdatasync", "fsync"):
        asyncio.run(attempt(adopted(tmp_path / call), call))


def test_a_failure_that_cannot_be_marked_is_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        path = adopted(tmp_path / "n")
        env = SteppedEnv()
        node = node_at(path, env)
        await node.put(ChunkId(bytes(16), 1), DATA, DIGEST)
        env.calls.clear()
        env.fail_at, env.persistent = 6, True  # from the fdatasync on
        with pytest.raises(NodeDown):
            await node.put(CHUNK, DATA, DIGEST)
        env.fail_at = 0
        assert not (path / FAILED).exists()
        with pytest.raises(NodeDown, match="failed before"):
            await node.put(CHUNK, DATA, DIGEST)
        assert await node.verify_all() == []
        await node.put(CHUNK, DATA, DIGEST)
        await node.close()

    asyncio.run(main())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_failed_disk_unless_fsync_says_so(tmp_path: Path, code: int) -> None:
    async def main() -> None:
        path = adopted(tmp_path / "n")
        env = SteppedEnv()
        node = node_at(path, env)
        env.error = code
        await node.has([CHUNK])
        for call in ("_pwrite_all", "fdatasync"):
            env.calls.clear()
            put = asyncio.ensure_future(node.put(CHUNK, DATA, DIGEST))
            await env.reached(call)
            env.fail_at = len(env.calls)
            with pytest.raises(OSError, match=os.strerror(code)) as caught:
                await put
            env.fail_at = 0
            assert await content_of(path) is None
            if call == "fdatasync":
                assert isinstance(caught.value, NodeDown)
                assert (path / FAILED).exists()
            else:
                assert caught.value.errno == code
                assert not (path / FAILED).exists()
        await node.close()

    asyncio.run(main())


def test_puts_of_one_directory_share_its_fsyncs(tmp_path: Path) -> None:
    async def main() -> list[str]:
        env = SteppedEnv()
        node = node_at(adopted(tmp_path / "n"), env)
        await node.has([CHUNK])
        env.calls.clear()
        async with asyncio.TaskGroup() as puts:
            for number in range(16):
                puts.create_task(node.put(ChunkId(bytes(16), number), DATA, DIGEST))
        await node.close()
        return env.calls

    calls = asyncio.run(main())
    assert calls.count("link") == 16
    # The last link is followed by an fsync that started after it; most puts waited for another's.
    last = max(i for i, call in enumerate(calls) if call == "link")
    assert "fsync" in calls[last:]
    assert calls.count("fsync") <= 4


def test_who_comes_while_an_fsync_runs_waits_for_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        env = SteppedEnv()
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        directory = Directory(env.disk, fd)
        first = asyncio.ensure_future(directory.sync())
        await env.reached("fsync")
        late = [asyncio.ensure_future(directory.sync()) for _ in range(5)]
        await first
        assert env.calls.count("fsync") == 1
        assert not any(task.done() for task in late)
        await asyncio.gather(*late)
        assert env.calls.count("fsync") == 2
        os.close(fd)

    asyncio.run(main())


def test_nobody_is_acknowledged_by_a_shared_fsync_that_failed(tmp_path: Path) -> None:
    async def main() -> None:
        path = adopted(tmp_path / "n")
        env = SteppedEnv()
        node = node_at(path, env)
        await node.has([CHUNK])
        puts = [
            asyncio.ensure_future(node.put(ChunkId(bytes(16), number), DATA, DIGEST))
            for number in range(8)
        ]
        await env.reached("fsync")
        env.fail_at = env.calls.index("fsync") + 1
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(result, NodeDown) for result in results), results
        await node.close()

    asyncio.run(main())


def test_verify_all_finds_what_rotted_and_keeps_it_for_people(tmp_path: Path) -> None:
    async def main() -> None:
        path = adopted(tmp_path / "n")
        node = node_at(path)
        chunks = [ChunkId(bytes([run]) * 16, 0) for run in range(20)]
        for chunk in chunks:
            await node.put(chunk, DATA, DIGEST)
        (path / FAILED).write_text("a test\n")
        file = path / chunk_path(chunks[3])
        content = bytearray(file.read_bytes())
        content[HEADER_BYTES + 5] ^= 1
        file.write_bytes(content)
        assert await node.verify_all() == [chunks[3]]
        assert [kept.read_bytes() for kept in (path / "quarantine").iterdir()] == [bytes(content)]
        assert await node.verify(chunks) == [
            ChunkState.MISSING if chunk == chunks[3] else ChunkState.GOOD for chunk in chunks
        ]
        await node.put(chunks[3], DATA, DIGEST)
        await node.close()

    asyncio.run(main())


def _replace(file: Path, what: str) -> None:
    """Puts something into the place of a chunk file."""
    file.unlink()
    if what == "fifo":
        os.mkfifo(file)
    elif what == "directory":
        file.mkdir()
        (file / "inside").write_text("something of somebody")
    elif what == "loop":
        file.symlink_to(file)
    elif what == "dangling":
        file.symlink_to("nowhere")
    else:
        # To another file system, and to a whole copy of the chunk: followed, it would be good.
        copy = _elsewhere()
        copy.write_bytes(encode_header(CHUNK, DATA, DIGEST) + DATA)
        file.symlink_to(copy)


def _elsewhere() -> Path:
    return Path(f"/dev/shm/ringhold-test-{os.getpid()}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", ["fifo", "directory", "loop", "dangling", "file elsewhere"])
def test_what_is_no_regular_file_is_a_damaged_chunk_and_is_mended(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = adopted(tmp_path / "n")
    file = path / chunk_path(CHUNK)
    kept = path / "quarantine"

    async def main() -> None:
        node = node_at(path)
        await node.put(CHUNK, DATA, DIGEST)
        _replace(file, what)
        with pytest.raises(Corrupt):
            await node.get(CHUNK)
        assert await node.verify([CHUNK]) == [ChunkState.DAMAGED]
        assert await node.has([CHUNK]) == [False]
        await node.put(CHUNK, DATA, DIGEST)
        assert await content_of(path) == DATA
        assert len(list(kept.iterdir())) == 1
        caplog.clear()
        await node.put(CHUNK, DATA, DIGEST)
        assert not caplog.records
        _replace(file, what)
        assert await node.verify_all() == [CHUNK]
        assert await node.verify([CHUNK]) == [ChunkState.MISSING]
        await node.put(CHUNK, DATA, DIGEST)
        _replace(file, what)
        await node.delete([CHUNK])
        assert not (path / FAILED).exists()
        await node.close()

    before = open_descriptors()
    try:
        asyncio.run(main())
    finally:
        _elsewhere().unlink(missing_ok=True)
    assert open_descriptors() <= before
    assert not os.path.lexists(file)
    if what == "directory":
        inside = [(entry / "inside").read_text() for entry in kept.iterdir()]
        assert inside == ["something of somebody"] * 3


@pytest.mark.timeout(20)
def test_an_identity_that_is_a_fifo_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = adopted(tmp_path / "n")
    _replace(path / "identity", "fifo")

    async def main() -> None:
        node = node_at(path)
        with pytest.raises(NodeDown, match="no regular file"):
            await node.get(CHUNK)
        await node.close()

    asyncio.run(main())


def test_the_reserve_of_a_file_system() -> None:
    assert reserve_bytes(0) == 4 << 20
    assert reserve_bytes(400 << 20) == 4 << 20
    assert reserve_bytes(50 << 30) == (50 << 30) // 100
    assert reserve_bytes(16 << 40) == 1 << 30


class SmallDisk(SteppedDisk):
    """Room for three chunks above the reserve, and none of those written is seen to take any."""

    free = RESERVE_BYTES_MIN + 3 * (HEADER_BYTES + len(DATA))

    async def free_bytes(self, fd: int) -> tuple[int, int]:
        return self.free, 100 << 20


def test_puts_at_the_same_time_leave_the_reserve_together(tmp_path: Path) -> None:
    async def main() -> None:
        path = adopted(tmp_path / "n")
        env = SteppedEnv()
        env.disk = disk = SmallDisk(env)
        node = node_at(path, env)
        await node.has([CHUNK])
        chunks = [ChunkId(bytes(16), number) for number in range(8)]
        puts = [node.put(chunk, DATA, DIGEST) for chunk in chunks]
        results = await asyncio.gather(*puts, return_exceptions=True)
        stored = [chunk for chunk, result in zip(chunks, results, strict=True) if result is None]
        assert await node.list_chunks() == stored
        assert len(stored) <= 3
        for result in results:
            if result is not None:
                assert isinstance(result, OSError)
                assert result.errno == errno.ENOSPC
                assert "node n1 is full" in str(result)
                assert str(RESERVE_BYTES_MIN) in str(result)
        await node.put(CHUNK, DATA, DIGEST)
        disk.free = 0
        with pytest.raises(OSError, match="is full"):
            await node.put(ChunkId(bytes(16), 9), DATA, DIGEST)
        assert await content_of(path) == DATA
        await node.delete(chunks)
        assert await node.list_chunks() == []
        assert not (path / FAILED).exists()
        await node.close()

    asyncio.run(main())


@pytest.mark.parametrize("way", ["unmounted", "wiped", "identity gone", "other identity"])
def test_only_the_directory_that_was_adopted_is_written_to(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        path = adopted(tmp_path / "n")
        node = node_at(path)
        await node.put(CHUNK, DATA, DIGEST)
        if way == "unmounted":
            path.rename(tmp_path / "elsewhere")
            path.mkdir()
        elif way == "wiped":
            shutil.rmtree(path)
        elif way == "identity gone":
            (path / "identity").unlink()
        else:
            replaced = path / "identity.new"
            replaced.write_bytes(identity_file.encode(Identity(b"D" * 16, "n1", 1)))
            replaced.rename(path / "identity")
        other = ChunkId(bytes(16), 1)
        for _ in range(2):
            for ask in (node.put(other, DATA, DIGEST), node.has([other]), node.delete([CHUNK])):
                with pytest.raises(NodeDown):
                    await ask
            with pytest.raises(NodeDown):
                await node.get(other)
        left = [file for file in path.rglob("*") if file.is_file()] if path.exists() else []
        assert all(file.name in ("identity", str(CHUNK)) for file in left)
        if way == "unmounted":
            path.rmdir()
            (tmp_path / "elsewhere").rename(path)
            await node.put(other, DATA, DIGEST)
            assert await node.has([CHUNK, other]) == [True, True]
        await node.close()

    before = open_descriptors()
    asyncio.run(main())
    assert open_descriptors() <= before


def test_a_damaged_or_newer_identity_is_refused(tmp_path: Path) -> None:
    path = adopted(tmp_path / "n")
    whole = (path / "identity").read_bytes()
    newer = whole.partition(b"\n")[0].replace(b'"format":1', b'"format":2')
    damages = [whole[:-1], whole[1:], b"", whole.replace(b'"n1"', b'"n2"')]

    async def refused(content: bytes, match: str) -> None:
        (path / "identity").write_bytes(content)
        node = node_at(path)
        for ask in (node.identity(), node.put(CHUNK, DATA, DIGEST), node.get(CHUNK)):
            with pytest.raises(NodeDown, match=match):
                await ask
        await node.close()

    for content in damages:
        asyncio.run(refused(content, "does not match its checksum"))
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Exception, match="identity file"):
            identity_file.decode(bytes(damaged), "identity file")
    line = newer + b"\n" + identity_file._checksum_line(newer)
    asyncio.run(refused(line, "format 2, this version reads 1"))


def test_an_adoption_may_be_cancelled_and_taken_up_again(tmp_path: Path) -> None:
    async def attempt(path: Path, steps: int) -> bool:
        node = node_at(path, SteppedEnv())
        adoption = asyncio.ensure_future(node.adopt(IDENTITY))
        for _ in range(steps):
            await asyncio.sleep(0)
        done = adoption.done()
        adoption.cancel()
        await asyncio.wait([adoption])
        fresh = node_at(path)
        await fresh.adopt(IDENTITY)
        await fresh.put(CHUNK, DATA, DIGEST)
        await fresh.close()
        await node.close()
        return done

    before = open_descriptors()
    steps = 0
    while not asyncio.run(attempt(tmp_path / f"n{steps}", steps)):
        shutil.rmtree(tmp_path / f"n{steps}")
        steps += 1 if steps < 12 else 97
    assert open_descriptors() <= before


def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    path = adopted(tmp_path / "n")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    namespace = f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    child = subprocess.Popen(["true"])
    child.wait()
    dead = [f"{boot}-{namespace}-{child.pid}-aa", f"{'0' * 32}-{namespace}-{os.getpid()}-bb"]
    alive = [
        f"{boot}-{namespace}-{os.getpid()}-cc",
        f"{boot}-{'f' * 8}-{child.pid}-dd",
        "notes.txt",
    ]
    for name in dead + alive:
        (path / "tmp" / name).write_bytes(b"x")

    async def main() -> None:
        node = node_at(path, unnamed_files=False)
        await node.put(CHUNK, DATA, DIGEST)
        await node.close()

    asyncio.run(main())
    assert sorted(os.listdir(path / "tmp")) == sorted(alive)


def test_more_directories_than_stay_open(tmp_path: Path) -> None:
    before = open_descriptors()

    async def main() -> None:
        node = node_at(adopted(tmp_path / "n"))
        chunks = [ChunkId(run.to_bytes(16, "big"), 0) for run in range(400)]
        async with asyncio.TaskGroup() as puts:
            for chunk in chunks:
                puts.create_task(node.put(chunk, b"x", digest(b"x")))
        assert open_descriptors() < before + 100
        assert await node.has(chunks) == [True] * 400
        await node.close()

    asyncio.run(main())
    assert open_descriptors() <= before


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.parametrize("unnamed_files", [True, False])
def test_a_write_that_stops_halfway(tmp_path: Path, unnamed_files: bool) -> None:
    path = adopted(tmp_path / "n")

    async def main() -> None:
        node = node_at(path, unnamed_files=unnamed_files)
        with file_size_limit(50_000), pytest.raises(OSError, match="too large") as caught:
            await node.put(CHUNK, DATA, DIGEST)
        assert caught.value.errno == errno.EFBIG
        assert not os.listdir(path / "tmp")
        assert await content_of(path) is None
        await node.put(CHUNK, DATA, DIGEST)
        await node.close()

    asyncio.run(main())
    assert asyncio.run(content_of(path)) == DATA


@pytest.mark.system
@pytest.mark.parametrize("unnamed_files", [True, False])
def test_a_full_file_system(tmp_path: Path, unnamed_files: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        path = adopted(disk / "n")

        async def main() -> None:
            node = node_at(path, unnamed_files=unnamed_files)
            kept: list[ChunkId] = []
            refused: OSError | None = None
            while refused is None:
                chunk = ChunkId(bytes(16), len(kept))
                try:
                    await node.put(chunk, DATA, DIGEST)
                    kept.append(chunk)
                except OSError as error:
                    refused = error
            assert refused.errno == errno.ENOSPC
            # What is left serves the store, so that something can be deleted at all.
            of_the_store = disk / "store"
            of_the_store.write_bytes(bytes(RESERVE_BYTES_MIN - (64 << 10)))
            of_the_store.unlink()
            assert len(kept) > 5
            assert await node.list_chunks() == kept
            assert await node.verify(kept) == [ChunkState.GOOD] * len(kept)
            assert not os.listdir(path / "tmp")
            await node.delete(kept[:1])
            await node.put(kept[0], DATA, DIGEST)
            await node.close()

        asyncio.run(main())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.system
def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    try:
        path = adopted(disk / "n")

        async def main() -> None:
            node = node_at(path)
            await node.put(CHUNK, DATA, DIGEST)
            await node.close()
            remount = ("mount", "-o", "remount,ro", str(disk))
            assert await (await asyncio.create_subprocess_exec(*remount)).wait() == 0
            node = node_at(path)
            with pytest.raises(NodeDown, match="cannot be written to"):
                await node.put(ChunkId(bytes(16), 1), DATA, DIGEST)
            with pytest.raises(NodeDown, match="cannot be written to"):
                await node.delete([CHUNK])
            await node.close()
            assert await content_of(path) == DATA

        asyncio.run(main())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
