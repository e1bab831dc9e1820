"""Goal: a commit rings at those, and only at those, whose prefix it concerns, and a ring never
waits, fails or damages anything.

Method: several bells in one process on one folder, with FIFOs and files as others leave them;
what rang is counted by the callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from bells_fixture import names, readers

from ringhold.env import real_env
from ringhold.store import bell_files
from ringhold.store.sqlite.doorbell import NAMELESS_S, PREFIX_BYTES, Doorbell, Prefixes, tag
from ringhold.store.sqlite.opening import Opening


class Bell(Doorbell):
    """A bell that notes its rings."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rings: list[bytes | None] = []
        self._news = asyncio.Event()
        super().__init__(str(folder), Opening(str(folder / "store")), real_env(), self._note)

    def _note(self, tags: bytes | None) -> None:
        self.rings.append(tags)
        self._news.set()

    async def rung(self) -> bytes | None:
        """The next ring, waited for."""
        async with asyncio.timeout(5):
            while not self.rings:
                self._news.clear()
                await self._news.wait()
        return self.rings.pop(0)


def run(folder: Path, test: Callable[[Callable[[], Bell]], Awaitable[None]]) -> None:
    """Runs `test` with a maker of bells, which afterwards leave neither a name nor a reader."""

    async def main() -> None:
        bells: list[Bell] = []

        def make() -> Bell:
            bells.append(Bell(folder))
            return bells[-1]

        await test(make)
        for bell in bells:
            bell.take_down()
        assert not readers()

    asyncio.run(main())


async def silence() -> None:
    """Until everything that had been written when this was called was read."""
    for _ in range(3):
        await asyncio.sleep(0)


def in_child(function: Callable[[], int]) -> int:
    """The exit status of a forked child, which `function` returns."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(function())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_open(folder: Path) -> bool:
    """Whether this process has a file of `folder` open."""
    targets = [os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")]
    return any(target.startswith(f"{folder}/") for target in targets)


def test_prefixes_find_what_keys_start_with() -> None:
    draw = random.Random(5)
    for _ in range(200):
        words = {draw.randbytes(draw.randrange(4)) for _ in range(8)}
        keys = {bytes(b & 3 for b in draw.randbytes(draw.randrange(1, 6))) for _ in range(8)}
        words |= {key[: draw.randrange(len(key) + 1)] for key in keys if draw.random() < 0.3}
        prefixes = Prefixes(words)
        for word in [word for word in words if draw.random() < 0.2]:
            prefixes.remove(word)
            words.remove(word)
        expected = {word for word in words if any(key.startswith(word) for key in keys)}
        assert prefixes.of(keys) == expected


def test_a_ring_reaches_those_it_concerns_and_nobody_else(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, one, other, all_of_it = make(), make(), make(), make()
        one.announce(b"m/one/")
        other.announce(b"m/other/")
        other.announce(b"l/")
        all_of_it.announce(b"")
        ringer.ring({b"m/one/7"})
        assert await one.rung() == bytes([tag(b"m/one/")])
        assert await all_of_it.rung() == bytes([tag(b"")])
        # Two of its prefixes in one batch: one write.
        ringer.ring({b"l/x", b"m/other/1", b"m/other/2", b"z"})
        assert sorted(await other.rung() or b"") == sorted([tag(b"l/"), tag(b"m/other/")])
        ringer.ring({b"m/on"})
        ringer.ring(set())
        await silence()
        assert one.rings == other.rings == []

    run(tmp_path, test)


def test_long_prefixes_are_told_by_their_beginning(tmp_path: Path) -> None:
    long = bytes(range(200, 256)) + b"x" * 8000

    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(long[:PREFIX_BYTES])
        assert max(map(len, names(tmp_path))) <= 143
        ringer.ring({long + b"key"})
        assert await bell.rung() == bytes([tag(long[:PREFIX_BYTES])])

    run(tmp_path, test)


def test_a_prefix_announced_after_a_listing_is_never_overlooked(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"first")
        # Within one tick of the kernel's clock, which stamps the folder, many times over.
        for number in range(300):
            ringer.ring({b"other"})
            bell.announce(b"%d/" % number)
            ringer.ring({b"%d/x" % number})
            assert await bell.rung() == bytes([tag(b"%d/" % number)])
            bell.withdraw(b"%d/" % number)

    run(tmp_path, test)


def test_a_bell_rings_on_when_the_name_first_known_was_withdrawn(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        for gone, stays in ((b"a", b"b"), (b"b", b"a")):
            ringer, bell = make(), make()
            bell.announce(b"a")
            bell.announce(b"b")
            ringer.ring({b"nobody"})
            bell.withdraw(gone)
            ringer.ring({b"a", b"b"})
            assert tag(stays) in (await bell.rung() or b"")
            bell.withdraw(stays)

    run(tmp_path, test)


def test_a_withdrawn_prefix_leaves_no_name_and_the_last_one_no_reader(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        bell = make()
        bell.announce(b"a")
        bell.announce(b"b")
        assert len(names(tmp_path)) == 2
        assert len(readers()) == 1
        bell.withdraw(b"a")
        assert {name.split(".")[0] for name in names(tmp_path)} == {b"b".hex()}
        bell.withdraw(b"b")
        assert not names(tmp_path)
        assert not readers()
        # And again from the beginning, under another id.
        bell.announce(b"a")
        make().ring({b"a"})
        assert await bell.rung() == bytes([tag(b"a")])

    run(tmp_path, test)


def fill(path: str, byte: bytes) -> None:
    """Writes until not one more byte fits."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    for data in (byte * 100, byte):
        with contextlib.suppress(BlockingIOError):
            while os.write(fd, data) == len(data):
                pass
    with pytest.raises(BlockingIOError):
        os.write(fd, byte)
    os.close(fd)


def test_a_full_bell_delays_nobody_and_rings_for_everything(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"loud")
        bell.announce(b"quiet")
        (path, _) = (str(tmp_path / name) for name in names(tmp_path))
        fill(path, bytes([tag(b"loud")]))
        ringer.ring({b"quiet"})
        assert await bell.rung() is None

    run(tmp_path, test)


def test_thousands_of_rings_are_read_together(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"a")
        for _ in range(5000):
            ringer.ring({b"a"})
        await bell.rung()
        await silence()
        assert len(bell.rings) <= 1

    run(tmp_path, test)


def test_what_a_killed_process_left_is_removed_by_the_next_ring(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"a")
        left = [f"{prefix.hex()}.{'0f' * 16}" for prefix in (b"a", b"b", b"")]
        os.mkfifo(tmp_path / left[0])
        for name in left[1:]:
            os.link(tmp_path / left[0], tmp_path / name)
        bell_files.set_stamp(str(tmp_path / "changed"), 1)
        alive = names(tmp_path) - set(left)
        ringer.ring({b"a"})
        # All its names, although only one of them concerned the ring.
        assert names(tmp_path) == alive
        assert await bell.rung() == bytes([tag(b"a")])

    run(tmp_path, test)


def test_a_bell_that_never_got_its_name_is_removed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        nameless = "0f" * 16
        os.mkfifo(tmp_path / nameless)
        bell.announce(b"a")
        ringer.ring({b"a"})
        # It may be on its way to its name.
        assert nameless in names(tmp_path)
        clock = real_env().clock
        later = clock.wall() + NAMELESS_S + 1
        monkeypatch.setattr(clock, "wall", lambda: later)
        bell.announce(b"b")
        ringer.ring({b"a"})
        assert nameless not in names(tmp_path)

    run(tmp_path, test)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    content = b"not a bell"

    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"b")
        kinds = [f"61.{digit * 32}" for digit in "1234"]
        (tmp_path / kinds[0]).write_bytes(content)
        (tmp_path / kinds[1]).mkdir()
        (tmp_path / kinds[2]).symlink_to(tmp_path / kinds[0])
        listening = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(tmp_path)
        listening.bind(kinds[3])
        os.chdir(here)
        os.mkfifo(tmp_path / "61.somebody's")
        os.mkfifo(tmp_path / f"6.{'5' * 32}")
        foreign = {*kinds, "61.somebody's", f"6.{'5' * 32}"}
        bell.announce(b"a")
        ringer.ring({b"a"})
        assert await bell.rung() == bytes([tag(b"a")])
        assert foreign < names(tmp_path)
        assert (tmp_path / kinds[0]).read_bytes() == content
        listening.close()

    run(tmp_path, test)


def test_names_that_were_cleared_are_made_again_by_the_next_watch(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"a")
        shutil.rmtree(tmp_path / "bells")
        ringer.ring({b"a"})
        bell.announce(b"b")
        ringer.ring({b"a"})
        assert await bell.rung() == bytes([tag(b"a")])
        assert len(readers()) == 1

    run(tmp_path / "bells", test)


def test_several_threads_may_ring(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"always")
        stop = threading.Event()
        failed: list[BaseException] = []

        def ring() -> None:
            try:
                while not stop.is_set():
                    ringer.ring({b"always", b"now and then"})
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ring) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                bell.announce(b"now")
                await bell.rung()
                bell.withdraw(b"now")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failed
        assert not ringer._told

    run(tmp_path, test)


@pytest.mark.parametrize("call", ["mkfifo", "rename", "link"])
def test_a_folder_that_cannot_be_written_is_told_once(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ringhold")
    faults = 0

    def full(*_: object, **__: object) -> None:
        nonlocal faults
        faults += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            for prefix in (b"a", b"b", b"c"):
                bell.announce(prefix)
            assert faults >= 2
        assert len(names(tmp_path)) == (1 if call == "link" else 0)
        ringer.ring({b"a", b"b"})
        for prefix in (b"a", b"b", b"c"):
            bell.withdraw(prefix)
        assert not names(tmp_path)
        # What follows is not affected.
        bell.announce(b"a")
        bell.rings.clear()
        ringer.ring({b"a"})
        assert await bell.rung() == bytes([tag(b"a")])

    run(tmp_path, test)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert os.strerror(errno.ENOSPC) in record.getMessage()


def test_a_reader_that_dies_within_a_ring_kills_nobody(tmp_path: Path) -> None:
    """SIGPIPE ends a process that has restored its default action."""
    path = str(tmp_path / "fifo")

    os.mkfifo(path)

    def child(ring: Callable[[], object]) -> int:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        write = os.write

        def late(fd: int, data: bytes) -> int:
            os.close(reader)
            return write(fd, data)

        os.write = late
        ring()
        return 0

    def plain() -> None:
        os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), b"x")

    assert in_child(lambda: child(plain)) == -signal.SIGPIPE
    assert in_child(lambda: child(lambda: bell_files.write_to_fifo(path, b"x"))) == 0


def test_a_forked_child_reads_no_bell_and_removes_none(tmp_path: Path) -> None:
    async def test(make: Callable[[], Bell]) -> None:
        ringer, bell = make(), make()
        bell.announce(b"a")
        assert is_open(tmp_path)

        def child() -> int:
            inherited = is_open(tmp_path)
            bell.withdraw(b"a")
            return int(inherited)

        assert in_child(child) == 0
        assert len(names(tmp_path)) == 1
        ringer.ring({b"a"})
        assert await bell.rung() == bytes([tag(b"a")])

    run(tmp_path, test)
