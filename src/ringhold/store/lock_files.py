"""The file rules of the embedded store, in one place.

Guarantees:

- Nothing here ever opens the database, its -wal or its -shm: closing any descriptor of such a
  file would drop the POSIX locks SQLite holds on it for the whole process, and a commit that
  was acknowledged has been lost that way. They lie in a folder of their own.
- Locks are open-file-description locks (fcntl(2), F_OFD_SETLK) on files that hold nothing else:
  they exclude two openings within one process as well as two processes, and end with the
  process, however it ends. Files are opened with O_CLOEXEC and unlocked explicitly.
- In a forked child inherited descriptors are closed, never unlocked: an unlock would release
  the parent's lock, since both share the open file description.
- A lock is waited for in short polls, which a FIFO beside it cuts short when the lock is given
  back: nobody who stopped wanting it stays behind in a call that only its holder can end.
- A session's file is locked before its lease is registered in the store, so a registered lease
  whose file can be locked belongs to a process that is dead.
- Directories on NFS, 9p, SMB and FUSE (virtiofs included) are refused: their locks and shared
  memory are not those of one host.

Not guaranteed: that the lock of a killed process is free at once if a child that it spawned
without exec still holds the descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import stat
import struct
import threading
from collections.abc import Callable

from ringhold.errors import InvalidInput

_FLOCK = struct.Struct("hhqqi4x")
_HOLDER = struct.Struct("<QQ")

# struct statx: mask at 0, inode number at 32, birth time (i64 seconds, u32 nanoseconds) at 80.
_STATX = struct.Struct("=I28xQ40xqI")
_STATX_BYTES = 256
_STATX_INO = 0x100
_STATX_BTIME = 0x800
_AT_FDCWD = -100

POLL_MS = 5
"""How long a lock is waited for without looking whether it is free: what its holder's death costs
those who wait, since nobody rings then."""

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a device",
    "T": "stopped (T)",
    "t": "stopped by a debugger (t)",
    "Z": "dead",
    "X": "dead",
    "I": "idle",
}

REFUSED_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x01021997: "9p",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x65735546: "FUSE (or virtiofs)",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x5346414F: "AFS",
}

# Every open lock file, for a forked child to close. The guard is held across a fork, so that
# none is open and not yet listed, or listed and already closed.
_open_files: dict[LockFile, None] = {}
_guard = threading.Lock()


def _close_inherited() -> None:
    for file in _open_files:
        file.close_inherited()
    _open_files.clear()
    _guard.release()


os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_inherited
)


def _flock(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


_WRITE_LOCK = _flock(fcntl.F_WRLCK)
_READ_LOCK = _flock(fcntl.F_RDLCK)
_UNLOCK = _flock(fcntl.F_UNLCK)


def _is_taken(fd: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WRITE_LOCK)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK


class LockFile:
    """A file whose only purpose is its lock. One thread at a time; not to be used after a fork."""

    def __init__(self, path: str, *, exclusive_create: bool = False):
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | (os.O_EXCL if exclusive_create else 0)
        self.path = path
        with _guard:
            self._fd = os.open(path, flags, 0o600)
            _open_files[self] = None

    def try_acquire(self) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _WRITE_LOCK)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def try_share(self) -> bool:
        """Locks for reading, as any number may at once."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _READ_LOCK)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def is_taken(self) -> bool:
        """Whether another opening holds the lock; asked without taking it."""
        return _is_taken(self._fd)

    def release(self) -> None:
        """Unlocks; nothing when it was not locked."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _UNLOCK)

    def read(self, length: int) -> bytes:
        return os.pread(self._fd, length, 0)

    def write(self, data: bytes) -> None:
        os.pwrite(self._fd, data, 0)

    def close(self) -> None:
        """Unlocks and closes; nothing when closed already."""
        with _guard:
            if self in _open_files:
                del _open_files[self]
                try:
                    self.release()
                finally:
                    self.close_inherited()

    def close_inherited(self) -> None:
        """Closes without unlocking: the lock is the parent's."""
        fd, self._fd = self._fd, -1
        os.close(fd)


class AwaitedLock(LockFile):
    """A lock that can be waited for, with a FIFO in which whoever gives it back rings.

    Waiting is done in short polls, never in F_OFD_SETLKW, which nothing but the lock's holder
    can end: the thread and the descriptor of somebody who no longer wants it would stay for as
    long as the holder is stopped. Without the ring, polls would cost a third of the throughput
    of processes that commit in a loop; with it they cost as much as the kernel's own queue.
    """

    _bell = -1

    def __init__(self, path: str):
        super().__init__(path)
        try:
            self._bell = _open_fifo(path + ".free")
        except BaseException:
            self.close()
            raise
        self._ringing = select.poll()
        self._ringing.register(self._bell, select.POLLIN)

    def acquire(self, wanted: Callable[[], bool] | None = None) -> bool:
        """Waits until nobody else holds the lock. False when it is no longer `wanted`."""
        while not self.try_acquire():
            if wanted is not None and not wanted():
                return False
            if self._ringing.poll(POLL_MS):
                try:
                    os.read(self._bell, 1 << 16)
                except BlockingIOError:
                    continue  # Another one who waits was faster.
        return True

    def release(self) -> None:
        super().release()
        if self._bell < 0:
            return
        try:
            os.write(self._bell, b"!")
        except BlockingIOError:
            return  # Full of rings that nobody waited for: it rings.

    def close_inherited(self) -> None:
        super().close_inherited()
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)


def _open_fifo(path: str) -> int:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            # Any other file is always ready to be read: those who wait would never sleep.
            raise FileExistsError(17, "not a FIFO", path) from None
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Openings(LockFile):
    """Held for reading by whoever has the store open, so that the last one to leave is known.

    He removes the FIFOs: many programs that copy directories stop at them, and a store that
    nobody has open should be copied like any other files. What a killed process leaves behind
    goes with the next last one. One that comes while they are removed, or cannot be counted,
    loses rings at most, not their effect: everything that is rung for is polled for as well.
    """

    def __init__(self, directory: str):
        super().__init__(os.path.join(directory, "open"))
        self._directory = directory
        self.try_share()

    def leave(self) -> None:
        # What cannot be removed, for whatever reason, harms nobody who has the store open.
        with contextlib.suppress(OSError):
            if self.try_acquire():
                self._remove_fifos()
        self.close()

    def _remove_fifos(self) -> None:
        for name in ("commit.free", "turnstile.free"):
            _remove_fifo(os.path.join(self._directory, name))
        bells = os.path.join(os.path.dirname(self._directory), "bells")
        for name in os.listdir(bells) if os.path.isdir(bells) else ():
            _remove_fifo(os.path.join(bells, name))


def _remove_fifo(path: str) -> None:
    try:
        if stat.S_ISFIFO(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        return


class CommitLock:
    """The lock around every commit and checkpoint of one store, fair between processes.

    A turnstile goes before the lock itself: who releases the lock and wants it again meets, at
    the turnstile, whoever waits already. The kernel promises no order among those who wait
    for the lock alone, and lets a process that asks in a loop overtake them many times.

    The file says who holds the lock, for the message of those who wait in vain.
    """

    def __init__(self, directory: str, wanted: Callable[[], bool] | None = None):
        """`wanted` is asked again and again while the lock is waited for."""
        self._openings = Openings(directory)
        self._turnstile = AwaitedLock(os.path.join(directory, "turnstile"))
        self._lock = AwaitedLock(os.path.join(directory, "commit"))
        self._wanted = wanted
        self.waiting = False

    def acquire(self) -> bool:
        """Waits for the lock, without limit. False when it is no longer `wanted`."""
        self.waiting = True
        try:
            if not self._turnstile.acquire(self._wanted):
                return False
            try:
                return self._lock.acquire(self._wanted)
            finally:
                self._turnstile.release()
        finally:
            self.waiting = False

    def try_acquire(self) -> bool:
        """Takes the lock if it is free and nobody waits for it."""
        return not self._turnstile.is_taken() and self._lock.try_acquire()

    def sign(self, begun_ns: int = 0) -> None:
        """Notes that this process holds the lock, for a commit that judges leases by `begun_ns`;
        0 for none, or for one that failed."""
        self._lock.write(_HOLDER.pack(os.getpid(), begun_ns))

    def holder(self) -> int:
        """The process that signed last; 0 when that is not known, closed files included."""
        try:
            signature = self._lock.read(_HOLDER.size)
        except OSError:
            return 0
        return int(_HOLDER.unpack(signature)[0]) if len(signature) == _HOLDER.size else 0

    def blamed(self) -> str:
        """Who signed last and how that process is doing, for those who waited in vain."""
        pid = self.holder()
        if not pid:
            return "a process that is not known took it last"
        return f"the process {pid} took it last; it is {process_state(pid)}"

    def release(self) -> None:
        self._lock.release()

    def close(self) -> None:
        try:
            self._lock.close()
        finally:
            try:
                self._turnstile.close()
            finally:
                self._openings.leave()


def begun_ns(path: str) -> int:
    """By which moment the newest commit that was begun judges leases; 0 when there was none.

    `path` is the lock file's. The commit may be over, or its process dead.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        signature = os.read(fd, _HOLDER.size)
    finally:
        os.close(fd)
    return int(_HOLDER.unpack(signature)[1]) if len(signature) == _HOLDER.size else 0


def create_session_file(path: str) -> LockFile:
    """A new file, locked by this process. FileExistsError when the session exists."""
    file = LockFile(path, exclusive_create=True)
    if not file.try_acquire():
        # Nobody locks a session's file but who created it.
        file.close()
        raise FileExistsError(f"session file {path} is locked by somebody else")
    return file


def is_abandoned(path: str) -> bool:
    """Whether the session file exists and the process that locked it is dead.

    Asks without locking (F_OFD_GETLK), so that two who ask never see each other.
    """
    with _guard:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _is_taken(fd)
        finally:
            os.close(fd)


def remove_session_file(path: str) -> None:
    """To be called by whoever deleted the lease from the store, and nobody else."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def make_directory(path: str) -> None:
    """Creates `path` and missing parents, each durable in its parent; existing ones are fine."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_directory(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(20, "not a directory", path) from None
    fsync_directory(parent)


def fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def file_exists(path: str) -> bool:
    """As os.stat says: an error other than the absence of the file is raised."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def refuse_shared_file_system(path: str) -> None:
    """InvalidInput when `path` lies on a file system whose locks are not those of one host."""
    kind = file_system_type(path)
    if kind in REFUSED_FILE_SYSTEMS:
        raise InvalidInput(
            f"{path} lies on {REFUSED_FILE_SYSTEMS[kind]}, where file locks and shared memory "
            "do not work as on a local disk: put the cluster on a local file system"
        )


def file_system_type(path: str) -> int:
    """The magic number of statfs(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct statfs starts with f_type, a machine word, and is smaller than 256 bytes.
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def boot_id() -> bytes:
    """16 bytes that differ after every start of the machine: boot time is compared within one."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bytes.fromhex(os.read(fd, 64).decode("ascii").strip().replace("-", ""))
    finally:
        os.close(fd)


def file_identity(path: str) -> int:
    """A signed 64-bit number that tells the file at `path` from a copy put in its place.

    Its birth in nanoseconds: it stays when the file is moved, and nobody can set it. On file
    systems that do not know it (XFS of version 4, old tmpfs), the inode number, negative.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "statx"):
        return -os.stat(path).st_ino
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    wanted = ctypes.c_uint(_STATX_INO | _STATX_BTIME)
    if libc.statx(_AT_FDCWD, os.fsencode(path), 0, wanted, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    mask, inode, seconds, nanoseconds = _STATX.unpack_from(buffer.raw)
    return int(seconds * 10**9 + nanoseconds) if mask & _STATX_BTIME else -int(inode >> 1)


def inode_of(path: str) -> tuple[int, int]:
    """Device and inode number: what tells, cheaply, one file from another while it is open."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def time_namespace() -> str:
    """Identity of the namespace that shifts this process's CLOCK_BOOTTIME."""
    return os.readlink("/proc/self/ns/time")


def process_state(pid: int) -> str:
    """What the kernel says of a process: "running", "stopped (T)", "dead", …"""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return "dead"
    except OSError as error:
        return f"in a state that cannot be read ({error.strerror})"
    try:
        # The name of the program, in parentheses, may itself contain any of them.
        letter = os.read(fd, 4096).rpartition(b")")[2].split()[0].decode("ascii")
    except ProcessLookupError:
        return "dead"
    finally:
        os.close(fd)
    return _STATES.get(letter, f"in state {letter}")
