"""The files of doorbells: FIFOs that wake processes, and the file that tells of new ones.

Guarantees:

- Nobody who reads or writes waits, and nobody who writes is killed by SIGPIPE.
- Who makes a FIFO reads it before giving it a name that others write to, so a FIFO of such a
  name that nobody reads belongs to a process that is dead, however it died.
- Files are opened with O_CLOEXEC, and a forked child closes what it inherited: through it a
  FIFO would outlive its reader. No symbolic link is followed.

Not guaranteed: that a FIFO dies with its reader where a child was forked past Python.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW

# Every FIFO that this process reads, for a forked child to close. The guard is held across a
# fork, so that no descriptor is open and not listed, and none while something is written.
_open_fifos: dict[Fifo, None] = {}
_guard = threading.Lock()


def _close_inherited() -> None:
    for fifo in _open_fifos:
        fifo.close_inherited()
    _open_fifos.clear()
    _guard.release()


os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_inherited
)


class Fifo:
    """The reading end of a new FIFO. One thread at a time; not to be used after a fork."""

    READ_BYTES = 4096

    def __init__(self, path: str):
        os.mkfifo(path, 0o600)
        try:
            with _guard:
                # Open for writing as well: else the end of its last writer would look like
                # something to read, for ever.
                self._fd = os.open(path, os.O_RDWR | _FLAGS)
                _open_fifos[self] = None
        except BaseException:
            remove_name(path)
            raise

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes:
        """What was written since, READ_BYTES at most."""
        try:
            return os.read(self._fd, self.READ_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Nothing when closed already."""
        with _guard:
            if self in _open_fifos:
                del _open_fifos[self]
                self.close_inherited()

    def close_inherited(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


def write_to_fifo(path: str, data: bytes) -> bool:
    """Writes `data`, or nothing where the FIFO is full; False when nobody reads from it."""
    with _guard:
        try:
            writing = os.open(path, os.O_WRONLY | _FLAGS)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        try:
            # With a reading end here, a reader that dies now causes no SIGPIPE: that ends
            # processes that have restored its default action.
            reading = os.open(path, os.O_RDONLY | _FLAGS)
            try:
                os.write(writing, data)
            except BlockingIOError:
                return True
            finally:
                os.close(reading)
        finally:
            os.close(writing)
    return True


def fifo_changed_s(path: str) -> float | None:
    """When the FIFO got or lost a name, in seconds since 1970; None for other kinds of files."""
    found = os.lstat(path)
    return found.st_ctime if stat.S_ISFIFO(found.st_mode) else None


def remove_name(path: str) -> None:
    """Unlinks `path`, which may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def stamp(path: str) -> int | None:
    """What `set_stamp` set; None when there is no such file."""
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:
        return None


def set_stamp(path: str, value: int) -> None:
    """Gives the empty file `path`, made if missing, the modification time `value`, in ns."""
    try:
        os.utime(path, ns=(value, value), follow_symlinks=False)
    except FileNotFoundError:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o600))
        os.utime(path, ns=(value, value), follow_symlinks=False)
