"""Goal: the file rules of the embedded store hold on this machine.

Method: real files and real locks, in this process, in forked children and in child processes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ringhold
from ringhold.errors import InvalidInput
from ringhold.store import lock_files
from ringhold.store.lock_files import CommitLock, LockFile


def in_child(function: object) -> int:
    """The exit status of a forked child that runs `function`: 0 for True, 1 for False."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if function() else 1)  # type: ignore[operator]
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_two_openings_exclude_each_other_within_one_process(tmp_path: Path) -> None:
    first, second = (LockFile(str(tmp_path / "lock")) for _ in range(2))
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    first.close()
    # Closing another descriptor of the file would have ended a POSIX lock.
    third = LockFile(str(tmp_path / "lock"))
    assert not third.try_acquire()
    second.close()
    assert third.try_acquire()
    third.close()
    third.close()


def test_files_are_not_inherited_by_other_programs(tmp_path: Path) -> None:
    file = LockFile(str(tmp_path / "lock"))
    assert file.try_acquire()
    listing = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; print(*map(os.path.realpath, "
            "[f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd')]))",
        ],
        capture_output=True,
        text=True,
        check=True,
        close_fds=False,
    ).stdout
    assert str(tmp_path) not in listing
    file.close()


def test_a_forked_child_closes_what_it_inherited_and_unlocks_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    file = LockFile(path)
    assert file.try_acquire()

    def child() -> bool:
        targets = {
            os.readlink(f"/proc/self/fd/{n}")
            for n in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{n}")
        }
        return path not in targets and not LockFile(path).try_acquire()

    assert in_child(child) == 0
    other = LockFile(path)
    assert not other.try_acquire()
    file.close()
    # Had the child kept the descriptor, the lock would still be held through it.
    assert other.try_acquire()
    other.close()


def test_closing_an_inherited_lock_file_in_the_child_harms_nobody(tmp_path: Path) -> None:
    file = LockFile(str(tmp_path / "lock"))
    assert file.try_acquire()

    def child() -> bool:
        reused = os.open(os.devnull, os.O_RDONLY)
        file.close()
        os.fstat(reused)
        return True

    assert in_child(child) == 0
    file.close()


def test_the_commit_lock_serialises_and_names_its_holder(tmp_path: Path) -> None:
    first, second = CommitLock(str(tmp_path)), CommitLock(str(tmp_path))
    assert first.holder() == 0
    first.acquire()
    first.sign()
    assert second.holder() == os.getpid()
    got_it = threading.Event()

    def wait() -> None:
        second.acquire()
        got_it.set()
        second.release()

    thread = threading.Thread(target=wait)
    thread.start()
    while not second.waiting:
        pass
    assert not got_it.wait(0.05)
    first.release()
    assert got_it.wait(5)
    thread.join()
    first.close()
    second.close()
    assert first.holder() == 0


def test_trying_the_commit_lock_waits_for_nobody_and_stands_in_nobody_s_way(
    tmp_path: Path,
) -> None:
    first, second = CommitLock(str(tmp_path)), CommitLock(str(tmp_path))
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.close()
    first.acquire()
    first.close()


def test_a_commit_lock_that_cannot_be_waited_for_is_not_waited_for(tmp_path: Path) -> None:
    lock = CommitLock(str(tmp_path))
    lock.close()
    with pytest.raises(ValueError, match="file descriptor"):
        lock.acquire()
    assert not lock.waiting


def test_lock_files_are_closed_even_where_they_cannot_be_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, other = CommitLock(str(tmp_path)), CommitLock(str(tmp_path))
    lock.acquire()

    def refuse(file: LockFile) -> None:
        raise OSError(37, "planned")

    with monkeypatch.context() as patch:
        patch.setattr(LockFile, "release", refuse)
        with pytest.raises(OSError, match="planned"):
            lock.close()
    assert other.try_acquire()
    other.close()


def test_a_session_file_is_abandoned_when_nobody_locks_it(tmp_path: Path) -> None:
    path = str(tmp_path / "session")
    assert not lock_files.is_abandoned(path)
    file = lock_files.create_session_file(path)
    assert not lock_files.is_abandoned(path)
    with pytest.raises(FileExistsError):
        lock_files.create_session_file(path)
    file.close()
    assert lock_files.is_abandoned(path)
    assert os.path.exists(path)
    lock_files.remove_session_file(path)
    lock_files.remove_session_file(path)
    assert not lock_files.is_abandoned(path)


def test_asking_whether_a_session_is_abandoned_never_locks_it(tmp_path: Path) -> None:
    path = str(tmp_path / "session")
    file = lock_files.create_session_file(path)
    file.release()
    probe = os.open(path, os.O_RDWR)
    assert lock_files.is_abandoned(path)
    fcntl.fcntl(probe, fcntl.F_OFD_SETLK, lock_files._flock(fcntl.F_WRLCK))
    os.close(probe)
    file.close()


def test_a_directory_is_made_with_its_parents_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    lock_files.make_directory(str(path))
    lock_files.make_directory(str(path))
    assert path.is_dir()
    (tmp_path / "file").write_bytes(b"")
    for below in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(OSError, match="file"):
            lock_files.make_directory(str(below))


def test_a_shared_file_system_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_files.refuse_shared_file_system(str(tmp_path))
    kind = lock_files.file_system_type(str(tmp_path))
    monkeypatch.setitem(lock_files.REFUSED_FILE_SYSTEMS, kind, "NFS")
    with pytest.raises(InvalidInput, match=f"{tmp_path} lies on NFS"):
        lock_files.refuse_shared_file_system(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        lock_files.file_system_type(str(tmp_path / "missing"))


def test_the_type_of_a_known_file_system_is_read_right() -> None:
    assert lock_files.file_system_type("/proc") == 0x9FA0


def test_the_machine_tells_its_boot_and_time_namespace() -> None:
    assert len(lock_files.boot_id()) == 16
    assert lock_files.boot_id() == lock_files.boot_id()
    assert lock_files.time_namespace().startswith("time:[")


def test_a_store_that_nobody_has_open_holds_nothing_but_files(tmp_path: Path) -> None:
    """Programs that copy directories stop at FIFOs; the rings are for those who are there."""

    def fifos() -> list[Path]:
        return [path for path in tmp_path.rglob("*") if path.is_fifo()]

    first = ringhold.create(str(tmp_path / "c"))
    second = ringhold.open(str(tmp_path / "c"))
    for cluster in (first, second):
        with cluster.lock("x", timeout=5):
            cluster.kv["a"] = b"1"
    assert fifos()
    first.close()
    assert fifos()
    with second.lock("x", timeout=5):
        second.kv["a"] = b"2"
    second.close()
    assert not fifos()
    shutil.copytree(tmp_path / "c", tmp_path / "copy")
    with ringhold.open(str(tmp_path / "copy"), create=False) as cluster:
        assert cluster.kv["a"] == b"2"
