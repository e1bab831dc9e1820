"""A command that is run while something is held, and stopped when that is lost.

Guarantees: the process is forked when the object is made, before there are threads or open
files, and becomes the command when told to (`start`); it inherits what our own caller left open
for it and nothing of ours. It is killed when the thread that made it ends, however it ends
(prctl(2), PR_SET_PDEATHSIG). It leads a process group of its own, and signals and the stopping
are for that group, unless we are in the foreground of a terminal: then it shares our group, since
only the foreground group may read from the terminal, and the terminal's own signals reach both.

Not guaranteed: that descendants die with us too, or the command if it runs with other
privileges (setuid), for which the kernel drops the request.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128
"""Exit codes as shells give them; SIGNALLED is added to the number of a signal."""

_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_FORWARDED = (*_FROM_TERMINAL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_NOTICE = 0
_PR_SET_PDEATHSIG = 1
_TOKEN_BYTES_MAX = 64
_PAUSE_S_MAX = 60.0


class Interrupted(BaseException):
    """A signal that came before the command was started."""

    def __init__(self, number: int):
        super().__init__(signal.strsignal(number))
        self.number = number


class Inbox:
    """The signals of this process: first they interrupt it, after `collect` they wait here.

    A handler that raises could strike anywhere, also where the command is being started or the
    lock given back. Signals that were ignored when we were started (nohup) stay ignored.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._interrupting = True
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._arrived)
        signal.signal(signal.SIGCHLD, self._arrived)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._interrupting and number != signal.SIGCHLD:
            self._interrupting = False
            raise Interrupted(number)

    def collect(self) -> None:
        self._interrupting = False

    def notify(self) -> None:
        """Ends `wait` as a signal does; callable from any thread."""
        os.write(self._write, bytes([_NOTICE]))

    def wait(self, timeout_s: float | None) -> bytes:
        """The numbers of what arrived; nothing when nothing did in time."""
        ready, _, _ = select.select([self._read], [], [], timeout_s)
        return os.read(self._read, select.PIPE_BUF) if ready else b""


class Command:
    """`argv`, not running yet, to be run under the lock `name`. Ended by `wait` or `abandon`.

    `stopped` is whether `wait` ended it because the lock was lost, `received` the signals that
    arrived meanwhile.
    """

    def __init__(self, argv: list[str], name: str):
        self.stopped = False
        self.received: set[int] = set()
        self._started = False
        # Ignored by our caller it would take the exit code away from us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._shares_group = _in_foreground()
        parent = os.getpid()
        go, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._go)
            _become(argv, name, go, parent)
        os.close(go)
        if not self._shares_group:
            os.setpgid(self._pid, self._pid)

    def start(self, token: int) -> None:
        # If somebody killed it before it began, `wait` tells.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"%d" % token)
        os.close(self._go)
        self._started = True

    def abandon(self) -> None:
        """Ends the process if it was not started, without its ever becoming the command."""
        if not self._started:
            os.close(self._go)
            os.waitpid(self._pid, 0)

    def wait(self, inbox: Inbox, stop_s: float, on_stop: Callable[[], object]) -> int:
        """The command's exit code, as shells give it.

        Passes on the signals that arrive meanwhile. A notice of `inbox` stops the command:
        `on_stop` is called, SIGTERM sent, and SIGKILL if it still runs after `stop_s` seconds.
        """
        kill_at_s = math.inf
        while not self._ended():
            left_s = kill_at_s - time.monotonic()
            if not left_s > 0:
                self._signal(signal.SIGKILL)
                kill_at_s = left_s = math.inf
            for number in inbox.wait(min(left_s, _PAUSE_S_MAX)):
                if number == _NOTICE and not self.stopped:
                    self.stopped = True
                    on_stop()
                    kill_at_s = time.monotonic() + stop_s
                    self._signal(signal.SIGTERM)
                    # What is stopped would not see it.
                    self._signal(signal.SIGCONT)
                elif number in _FORWARDED:
                    self.received.add(number)
                    if not (self._shares_group and number in _FROM_TERMINAL):
                        self._signal(number)
        if self.stopped:
            # What it started. Its own process id is not free for others before the wait below.
            self._signal(signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else SIGNALLED - code

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: int) -> None:
        try:
            if self._shares_group:
                os.kill(self._pid, number)
            else:
                os.killpg(self._pid, number)
        except ProcessLookupError:
            # It left the group, nothing else is in that; itself it is there until `wait` ends.
            os.kill(self._pid, number)
        except PermissionError as error:
            # It runs with other privileges (sudo): the lock is kept, if it can be, to its end.
            print(f"ringhold: signal {number} for the command: {error.strerror}", file=sys.stderr)


def end_by(number: int) -> NoReturn:
    """Ends this process by a signal that it caught: a shell that got the same one looks whether
    what it started died of it, and only then ends its script, too."""
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(SIGNALLED + number)  # Where the signal is blocked.


def _in_foreground() -> bool:
    """Whether standard input is our terminal, and we may read from it."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _become(argv: list[str], name: str, go: int, parent: int) -> NoReturn:
    """In the forked process: waits for the token and becomes the command; never returns."""
    code = NOT_FOUND
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        token = os.read(go, _TOKEN_BYTES_MAX)
        # The parent may have died before the kernel was told.
        if not token or os.getppid() != parent:
            os._exit(0)
        os.environ["RINGHOLD_LOCK_NAME"] = name
        os.environ["RINGHOLD_LOCK_TOKEN"] = token.decode("ascii")
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores them for itself, and a command would inherit that.
            signal.signal(number, signal.SIG_DFL)
        os.execvp(argv[0], argv)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        print(f"ringhold: {argv[0]!r}: {reason}", file=sys.stderr, flush=True)
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            code = NOT_EXECUTABLE
    finally:
        os._exit(code)
