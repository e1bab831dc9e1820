"""Goal: a token in PostgreSQL's own WHERE clause refuses the write of a holder whose lock passed
on while it was stopped; without that clause the write gets through.

Method: a private PostgreSQL on a unix socket, and two processes of examples/locks_postgresql.py.
The first reads the balance under the lock and is stopped for longer than its lease; the second
takes the lock and writes; then the first goes on and sends its UPDATE.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import ringhold

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "locks_postgresql.py"
DEADLINE_S = 60.0


def binaries() -> Path:
    """The newest PostgreSQL that Debian installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    assert found, "Debian's package postgresql is not installed"
    return found[-1].parent


def as_user(directory: Path) -> list[str]:
    """What to put before a command, since PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    os.chown(directory, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    import psycopg

    # Not in pytest's own directory, where another user may not go.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, directory)
        before, bin_, data = as_user(directory), binaries(), directory / "data"
        subprocess.run(
            [*before, bin_ / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync"],
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        options = ["-k", str(directory), "-c", "listen_addresses="]
        log = undo.enter_context((directory / "log").open("wb"))
        server = undo.enter_context(
            subprocess.Popen(
                [*before, bin_ / "postgres", "-D", data, *options], cwd=directory, stderr=log
            )
        )
        undo.callback(server.send_signal, signal.SIGQUIT)
        address = f"host={directory} user=test dbname=postgres"
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                psycopg.connect(address).close()
                break
            except psycopg.OperationalError:
                assert server.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.05)
        yield address


@contextmanager
def holder(cluster: ringhold.Cluster, dsn: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(EXAMPLE), cluster.url, dsn, *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def token_and_balance(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    words = process.stdout.readline().replace(";", "").split()
    return int(words[1]), int(words[3])


def balance_of_ada(dsn: str) -> int:
    import psycopg

    with psycopg.connect(dsn) as database:
        row = database.execute("SELECT balance FROM account WHERE id = 'ada'").fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("fenced", [False, True], ids=["unfenced", "fenced"])
def test_a_stale_update_is_refused_by_its_token_alone(
    dsn: str, tmp_path: Path, fenced: bool
) -> None:
    options = () if fenced else ("--unfenced",)
    with (
        ringhold.create(str(tmp_path / "c")) as cluster,
        holder(cluster, dsn, *options) as stale,
    ):
        old_token, read = token_and_balance(stale)
        # Its commits are through, the next renewal is not due yet: it stops in none of them.
        cluster.kv.put("between", b"")
        stale.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stale.pid, os.WSTOPPED | os.WNOWAIT)
        for taken_over in (1, 2):
            with holder(cluster, dsn, *options) as newer:
                new_token, before = token_and_balance(newer)
                assert new_token > old_token
                assert before == read + taken_over - 1
                told, _ = newer.communicate("\n", timeout=DEADLINE_S)
                assert told == "written\n"
        assert balance_of_ada(dsn) == read + 2
        stale.send_signal(signal.SIGCONT)
        told, _ = stale.communicate("\n", timeout=DEADLINE_S)
        said, lost = told.splitlines()
        # Either way the holder learns of its loss, and too late.
        assert f"token {old_token}" in lost
        if fenced:
            assert said == "refused: the token is stale"
            assert balance_of_ada(dsn) == read + 2
        else:
            assert said == "written"
            assert balance_of_ada(dsn) == read + 1, "two deposits were overwritten"
