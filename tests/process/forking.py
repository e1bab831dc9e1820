"""Scripts that fork: what they have in common, and how a test runs one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = """
import gc, multiprocessing, os, signal, sys, threading, time, traceback
import ringhold
from ringhold import Closed

url, *place = sys.argv[1:]
where = {"path": place[0]} if place else {}  # Of the node of a cluster in etcd.
parent = os.getpid()


def fork(work, *args, leave=os._exit):
    '''Runs `work` in a child; gives its pid.'''
    pid = os.fork()
    if pid:
        return pid
    # Nothing in here takes long, however busy the machine is.
    signal.alarm(60)
    try:
        work(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    leave(0)


def joined(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child ended with {status}"


def closed(use, pid=parent):
    try:
        use()
    except Closed as error:
        assert error.pid == pid, error
        assert str(pid) in str(error), error
    else:
        raise AssertionError("what is the parent's worked in the child")
"""

COMPLAINTS = ("-W", "always::ResourceWarning", "-W", "always::RuntimeWarning")


def run(tmp_path: Path, script: str, *options: str, etcd_url: str | None = None) -> str:
    """What the script printed to stderr; it must end with "done"."""
    where = [str(tmp_path / "c")] if etcd_url is None else [etcd_url, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script), *where],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    return done.stderr
