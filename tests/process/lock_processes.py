"""Players of lock tests as the test sees them, and where a process stands that was stopped."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

HERE = Path(__file__).parent
FLOCK = struct.Struct("hhqqi4x")
PID = struct.Struct("<Q")
Start = Callable[..., "subprocess.Popen[Any]"]


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Looks again and again, for what nobody announces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.002)


# Processes that stop


def pause(pid: int) -> None:
    """Stops the child `pid`, and returns when it stands."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def state(pid: int) -> str:
    """The process's letter in proc(5): T when it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_commit(pid: int, directory: Path) -> bool:
    """Whether `pid` holds the commit lock of the store: it stands inside a commit."""
    return _holds(pid, directory, "commit")


def _holds(pid: int, directory: Path, *names: str) -> bool:
    """Whether `pid` holds one of the store's locks of these names.

    Asked of the kernel, which lists with each descriptor the locks that it holds.
    """
    paths = {str((directory / "locks" / name).resolve()) for name in names}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link) not in paths:
                continue
            text = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
        except FileNotFoundError:
            # Closed between being listed and being looked at.
            continue
        if any(line.startswith("lock:") for line in text.splitlines()):
            return True
    return False


def committing(directory: Path) -> int:
    """The process that says it holds the commit lock just now; 0 when nobody does."""
    # Neither held nor a file of the database: opening and closing it harms nobody.
    fd = os.open(directory / "locks" / "commit", os.O_RDWR | os.O_CLOEXEC)
    try:
        probe = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, probe)
        signature = os.pread(fd, PID.size, 0)
    finally:
        os.close(fd)
    held = FLOCK.unpack(answer)[0] != fcntl.F_UNLCK
    return PID.unpack(signature)[0] if held and len(signature) == PID.size else 0


def pause_in_commit(pid: int, directory: Path, timeout_s: float = 30) -> None:
    """Stops the child `pid`, which commits all the time, inside a commit."""
    _pause_where(pid, lambda: in_commit(pid, directory), timeout_s)


def pause_outside_commit(pid: int, directory: Path, timeout_s: float = 30) -> None:
    """Stops the child `pid` where it holds no commit up, nor those who are to be next."""
    _pause_where(pid, lambda: not _holds(pid, directory, "commit", "turnstile"), timeout_s)


def _pause_where(pid: int, there: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        pause(pid)
        if there():
            return
        os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < deadline, "it never stood where it should be stopped"
        time.sleep(0.0003)


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Place:
    """Where a cluster is. `directory`: None for one in etcd, whose commits nobody holds up by
    standing still."""

    url: str
    directory: Path | None = None

    def in_commit(self, pid: int) -> bool:
        return self.directory is not None and in_commit(pid, self.directory)

    def committing(self) -> int:
        return 0 if self.directory is None else committing(self.directory)

    def pause_outside_commit(self, pid: int) -> None:
        if self.directory is None:
            pause(pid)
        else:
            pause_outside_commit(pid, self.directory)


def place_in(directory: Path) -> Place:
    return Place(str(directory), directory)


# Players


class Remote:
    """A player (`lock_player.py`) and its answers."""

    def __init__(self, url: str | Path, session_ttl: float, start: Start = subprocess.Popen):
        self.process = start(
            [sys.executable, str(HERE / "lock_player.py"), str(url), str(session_ttl)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def tell(self, do: str, /, **arguments: object) -> Self:
        assert self.process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        return self

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"player {self.pid} ended with {self.process.wait()}: see its errors")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, /, **arguments: object) -> dict[str, Any]:
        """What came of it; an error is one of the test."""
        answer = self.tell(do, **arguments).answer()
        assert "error" not in answer, (do, arguments, answer)
        return answer

    def refused(self, do: str, /, **arguments: object) -> str:
        """The name of the error that it raises; anything else is one of the test."""
        answer = self.tell(do, **arguments).answer()
        assert "error" in answer, f"{do} {arguments} was done: {answer}"
        return str(answer["error"])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                # What was buffered for a process that is dead is nobody's loss.
                try:
                    stream.close()
                except BrokenPipeError:
                    continue


@contextmanager
def players(place: str | Path, count: int, *, session_ttl: float = 10.0) -> Iterator[list[Remote]]:
    """place: the cluster's directory or URL"""
    started: list[Remote] = []
    try:
        started.extend(Remote(place, session_ttl) for _ in range(count))
        for player in started:
            assert player.answer() == {"ready": True}
        yield started
    finally:
        for player in started:
            player.end()
