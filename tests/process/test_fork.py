"""Goal: a forked child owns nothing of its parent's, and harms nothing of it.

Method: a process with an open cluster, a held lock and a transaction forks; the child tries
everything and reports; afterwards the parent works on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys, traceback
import ringhold

cluster = ringhold.create(sys.argv[1])
cluster.kv["a"] = b"1"
cluster.fs.pipe_file("/f", b"x" * 100_000)
lock = cluster.lock("x")
grant = lock.acquire()
tx = cluster.begin()
tx.kv["a"] = b"2"
parent = os.getpid()

def child():
    uses = {
        "kv get": lambda: cluster.kv["a"],
        "kv put": lambda: cluster.kv.put("a", b"9"),
        "lock": lambda: cluster.lock("y"),
        "acquire": lambda: lock.acquire(),
        "owned": lambda: lock.owned(),
        "release": lambda: grant.release(),
        "check": lambda: grant.check(),
        "holders": lambda: cluster.locks.holders("x"),
        "begin": lambda: cluster.begin(),
        "tx get": lambda: tx.kv["a"],
        "commit": lambda: tx.commit(),
        "status": lambda: cluster.status(),
        "ls": lambda: cluster.fs.ls("/"),
        "write": lambda: cluster.fs.pipe_file("/g", b"1"),
    }
    for name, use in uses.items():
        try:
            use()
        except ringhold.Closed as error:
            assert error.pid == parent, (name, error.pid)
            assert str(parent) in str(error), name
        else:
            raise AssertionError(f"{name} worked in the child")
    cluster.close()
    # A cluster of its own, in a process of its own: the parent's lock is still held.
    with ringhold.open(sys.argv[1]) as own:
        assert own.kv["a"] == b"1"
        assert own.lock("x").try_acquire() is None
        assert [party.pid for party in own.locks.holders("x")] == [parent]
        assert own.fs.cat_file("/f") == b"x" * 100_000
        own.kv["child"] = b"was here"

pid = os.fork()
if pid == 0:
    try:
        child()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, "the child failed"
assert cluster.kv["child"] == b"was here"
grant.check()
tx.commit()
assert cluster.kv["a"] == b"2"
grant.release()
with cluster.lock("x", timeout=0):
    pass
cluster.close()
print("done")
"""


def test_a_forked_child_owns_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_multiprocessing_with_fork_ends_cleanly(tmp_path: Path) -> None:
    """The exit of a forked worker runs what the parent registered; none of it may hang or harm."""
    script = (
        "import multiprocessing, sys, ringhold\n"
        "def work(url):\n"
        "    with ringhold.open(url) as own:\n"
        "        own.kv['w'] = b'1'\n"
        "cluster = ringhold.create(sys.argv[1])\n"
        "cluster.kv['a'] = b'1'\n"
        "with cluster.lock('x') as grant:\n"
        "    fork = multiprocessing.get_context('fork')\n"
        "    process = fork.Process(target=work, args=sys.argv[1:])\n"
        "    process.start()\n"
        "    process.join(30)\n"
        "    assert process.exitcode == 0, process.exitcode\n"
        "    assert cluster.kv['w'] == b'1'\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    # Nothing is closed at exit by leaving it to the interpreter: no complaints either.
    assert "Traceback" not in done.stderr
    assert "ResourceWarning" not in done.stderr
