"""All that the operating system gives: clocks, randomness, disk, threads and processes.

Every class that touches the machine takes an `Env`; production uses `real_env()`, a simulation
brings its own. Nothing outside this module reads a clock, draws randomness or touches a disk;
the files of the embedded store, which only SQLite and the lock calls of the kernel may touch,
have a module of their own (`ringhold.store.lock_files`), and so have those by which its
processes wake one another (`ringhold.store.bell_files`).

Cancellation: an operation once submitted to a thread cannot be taken back. `finish` therefore
waits for it and only then raises CancelledError, so that a caller's buffers and descriptors are
never in use behind its back.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


async def finish(
    future: asyncio.Future[T],
    undo: Callable[[T], object] | None = None,
    on_cancel: Callable[[], object] | None = None,
) -> T:
    """The result of `future`, waited for even while the calling task is cancelled.

    When the task was cancelled meanwhile, CancelledError is raised after the future is done;
    `undo` is called with its result first, to give back what it opened. If the operation failed,
    its error is the cause of the CancelledError: a failed fsync must not go unnoticed.
    `on_cancel` is called at once when the task is cancelled.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if future.cancelled():
                raise
            cancelled = error
            if on_cancel is not None:
                on_cancel()
        except Exception:
            break
    if cancelled is not None:
        failure = future.exception()
        if failure is None and undo is not None:
            undo(future.result())
        raise cancelled from failure
    return future.result()


class Clock(Protocol):
    def monotonic_ns(self) -> int:
        """Stands still while the machine sleeps."""

    def boottime_ns(self) -> int:
        """Runs on while the machine sleeps; the only clock leases are judged by."""

    def wall(self) -> float:
        """Seconds since 1970, for people and for time stamps; may jump."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """What `Disk.stat` tells of a file: `size` in bytes, `device` and `inode` its identity."""

    size: int
    device: int
    inode: int
    is_dir: bool
    is_regular: bool


class Disk(Protocol):
    """File operations on descriptors; names are relative to a directory descriptor if given.

    Every call runs to its end once submitted (see `finish`). Errors are OSError.
    """

    async def open(
        self, path: str, flags: int, *, mode: int = 0o600, dir_fd: int | None = None
    ) -> int: ...

    async def close(self, fd: int) -> None: ...

    async def pread(self, fd: int, length: int, offset: int) -> bytes:
        """`length` bytes, fewer only at the end of the file."""

    async def pwrite(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes all of `buffers` one after the other; a short write is continued."""

    async def fdatasync(self, fd: int) -> None: ...

    async def fsync_dir(self, fd: int) -> None: ...

    async def drop_cached(self, fd: int) -> None:
        """Forgets the cached pages of the file, so that what is read next comes from the disk."""

    async def link_open_file(self, fd: int, name: str, *, dir_fd: int) -> None:
        """Gives the unnamed file `fd` (O_TMPFILE) its name; FileExistsError if it is taken."""

    async def link(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        """A second name for `source` itself: a symbolic link is not followed."""

    async def rename(
        self, source: str, target: str, *, source_fd: int | None, target_fd: int | None
    ) -> None: ...

    async def unlink(self, name: str, *, dir_fd: int | None = None) -> None: ...

    async def mkdir(self, path: str, *, dir_fd: int | None = None, mode: int = 0o700) -> None: ...

    async def listdir(self, path: str | int) -> list[str]:
        """The names in a directory, sorted."""

    async def stat(self, path: str, *, dir_fd: int | None = None) -> FileStat: ...

    async def lstat(self, path: str, *, dir_fd: int | None = None) -> FileStat:
        """As `stat`, of a symbolic link itself."""

    async def fstat(self, fd: int) -> FileStat: ...

    async def free_bytes(self, fd: int) -> tuple[int, int]:
        """(free, total) of the file system of `fd`; free is what this process may use."""

    async def together(self, steps: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        """Runs `steps` with a disk whose calls do not suspend: one hand-over to a thread for all.

        `steps` awaits methods of that disk and nothing else. It must be written as if it could be
        cancelled at each of them, as it is where a disk runs it call by call (a simulation, a
        test that injects faults).
        """


class Env(Protocol):
    @property
    def clock(self) -> Clock: ...

    @property
    def disk(self) -> Disk: ...

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes: identities are drawn from them and never repeat."""

    async def sleep(self, seconds: float) -> None: ...

    async def blocking(
        self, function: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None
    ) -> T:
        """Runs `function` in a thread and waits for its end, as `finish` does."""

    async def spawn(self, *argv: str) -> asyncio.subprocess.Process:
        """Starts a process with a pipe for its standard output."""


class RealClock:
    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    # Without a Python function around it: locks at hand read this clock at every turn.
    boottime_ns = staticmethod(functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))

    def wall(self) -> float:
        return time.time()


def _pread_all(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length:
        data = os.pread(fd, length - done, offset + done)
        if not data:
            break
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _pwrite_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while pending:
        written = os.pwritev(fd, pending, offset)
        offset += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if written:
            pending[0] = pending[0][written:]


def _file_stat(result: os.stat_result) -> FileStat:
    return FileStat(
        size=result.st_size,
        device=result.st_dev,
        inode=result.st_ino,
        is_dir=stat.S_ISDIR(result.st_mode),
        is_regular=stat.S_ISREG(result.st_mode),
    )


class _CallingThread:
    """Stands in for a RealEnv where the caller is in a thread already."""

    async def blocking(
        self, function: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None
    ) -> T:
        return function(*args)


def _run_inline(steps: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
    coroutine = steps(RealDisk(_CallingThread()))
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("steps run together awaited something other than their disk")


class RealDisk:
    def __init__(self, env: RealEnv | _CallingThread):
        self._blocking = env.blocking

    async def open(
        self, path: str, flags: int, *, mode: int = 0o600, dir_fd: int | None = None
    ) -> int:
        call = functools.partial(os.open, path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
        return await self._blocking(call, undo=os.close)

    async def close(self, fd: int) -> None:
        await self._blocking(os.close, fd)

    async def pread(self, fd: int, length: int, offset: int) -> bytes:
        return await self._blocking(_pread_all, fd, length, offset)

    async def pwrite(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        await self._blocking(_pwrite_all, fd, buffers, offset)

    async def fdatasync(self, fd: int) -> None:
        await self._blocking(os.fdatasync, fd)

    async def fsync_dir(self, fd: int) -> None:
        await self._blocking(os.fsync, fd)

    async def drop_cached(self, fd: int) -> None:
        await self._blocking(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)

    async def link_open_file(self, fd: int, name: str, *, dir_fd: int) -> None:
        # With a directory descriptor os.link follows the link of /proc (linkat with
        # AT_SYMLINK_FOLLOW); without one it would link the /proc entry itself: EXDEV.
        source = f"/proc/self/fd/{fd}"
        await self._blocking(functools.partial(os.link, source, name, dst_dir_fd=dir_fd))

    async def link(self, source: str, target: str, *, source_fd: int, target_fd: int) -> None:
        call = functools.partial(
            os.link,
            source,
            target,
            src_dir_fd=source_fd,
            dst_dir_fd=target_fd,
            follow_symlinks=False,
        )
        await self._blocking(call)

    async def rename(
        self, source: str, target: str, *, source_fd: int | None, target_fd: int | None
    ) -> None:
        call = functools.partial(
            os.rename, source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd
        )
        await self._blocking(call)

    async def unlink(self, name: str, *, dir_fd: int | None = None) -> None:
        await self._blocking(functools.partial(os.unlink, name, dir_fd=dir_fd))

    async def mkdir(self, path: str, *, dir_fd: int | None = None, mode: int = 0o700) -> None:
        await self._blocking(functools.partial(os.mkdir, path, mode, dir_fd=dir_fd))

    async def listdir(self, path: str | int) -> list[str]:
        return sorted(await self._blocking(os.listdir, path))

    async def stat(self, path: str, *, dir_fd: int | None = None) -> FileStat:
        return _file_stat(await self._blocking(functools.partial(os.stat, path, dir_fd=dir_fd)))

    async def lstat(self, path: str, *, dir_fd: int | None = None) -> FileStat:
        return _file_stat(await self._blocking(functools.partial(os.lstat, path, dir_fd=dir_fd)))

    async def fstat(self, fd: int) -> FileStat:
        return _file_stat(await self._blocking(os.fstat, fd))

    async def free_bytes(self, fd: int) -> tuple[int, int]:
        found = await self._blocking(os.fstatvfs, fd)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    async def together(self, steps: Callable[[Disk], Coroutine[Any, Any, T]]) -> T:
        return await self._blocking(_run_inline, steps)


class RealEnv:
    """The machine itself. Threads start on first use and are shared by all users of the object."""

    THREADS_MAX = 16

    def __init__(self) -> None:
        self.clock = RealClock()
        self.disk = RealDisk(self)
        self._threads = ThreadPoolExecutor(self.THREADS_MAX, thread_name_prefix="ringhold")

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def blocking(
        self, function: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None
    ) -> T:
        loop = asyncio.get_running_loop()
        return await finish(loop.run_in_executor(self._threads, function, *args), undo)

    async def spawn(self, *argv: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)


class ThreadEnv(RealEnv):
    """The environment of code that runs to its end on the calling thread, without a loop.

    Coroutines of it never suspend: sleeping and blocking calls block the thread.
    """

    def __init__(self, env: Env):
        self.clock = env.clock  # type: ignore[assignment]
        self.disk = RealDisk(_CallingThread())
        self.random_bytes = env.random_bytes  # type: ignore[method-assign]

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - there is no loop to be held up

    async def blocking(
        self, function: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None
    ) -> T:
        return function(*args)


@functools.cache
def _env_of_process(pid: int) -> RealEnv:
    return RealEnv()


def real_env() -> RealEnv:
    """The environment of this process; a forked child gets one of its own, with new threads."""
    return _env_of_process(os.getpid())


def process_id() -> int:
    return os.getpid()


class Forks:
    """How many forks lie between the first process and this one: tells what was inherited, at
    the cost of comparing two integers."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0

    def count(self) -> None:
        self.generation += 1


forks = Forks()
os.register_at_fork(after_in_child=forks.count)


Peer = tuple[str, int]


def resolved(host: str, port: int) -> set[Peer]:
    """The addresses of `host`, none when it has none now. Blocks."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(str(address[0]), port) for *_, address in found}


def let_go_of_sockets(peers: Collection[Peer]) -> None:
    """In a forked child: what it has of its parent's connections to `peers` leads nowhere any more,
    so that nothing in this process, destructors and timers included, acts on them."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    # With one, merely to look at a socket would make it non-blocking, for the parent as well.
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        for name in os.listdir("/proc/self/fd"):
            if _peer_of(int(name)) in peers:
                os.dup2(nowhere, int(name), inheritable=False)
    finally:
        socket.setdefaulttimeout(timeout_s)
        os.close(nowhere)


def _peer_of(fd: int) -> Peer | None:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        connection = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        peer = connection.getpeername()
    except OSError:
        return None
    finally:
        # The descriptor itself must not be closed with the object.
        connection.detach()
    return str(peer[0]).removeprefix("::ffff:"), int(peer[1])


def copy_in_memory(path: str) -> int:
    """A descriptor of an unnamed file in memory with the contents of the file `path`."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC)
        try:
            while os.sendfile(copy, source, None, 1 << 30):
                pass
        except BaseException:
            os.close(copy)
            raise
    finally:
        os.close(source)
    return copy


def is_read_only_error(error: OSError) -> bool:
    """Whether a directory refuses writing: not a fault of its disk, but of how it is mounted."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
