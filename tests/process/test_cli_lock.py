"""Goal: ``ringhold lock NAME -- CMD`` runs its command under the lock or not at all, is
transparent to it (exit code, signals, terminal, descriptors), and stops it when the lock is lost.

Method: real commands under real wrappers that are interrupted, stopped, killed and robbed of the
lock by this process, which looks at the lock through a cluster of its own. What a wrapper
prevents is first shown to happen without it.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lock_processes import pause_outside_commit

import ringhold

pytestmark = pytest.mark.timeout(60)

WRAPPER = [sys.executable, "-m", "ringhold.cli", "lock"]
LOST = 124
SOON_S = 20.0
LIVES = "echo $$; exec sleep 60"
"""A command that tells its process and runs until somebody ends it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ringhold.Cluster]:
    with ringhold.create(str(tmp_path_factory.mktemp("lock") / "c")) as opened:
        yield opened


@pytest.fixture
def run(
    cluster: ringhold.Cluster, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    monkeypatch.setenv("RINGHOLD_CLUSTER", cluster.url)

    def run(*arguments: str | bytes, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([*WRAPPER, *arguments], capture_output=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        return done

    return run


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A wrapper whose command has begun; killed in the end."""
    with subprocess.Popen(
        [*WRAPPER, *arguments], stdin=subprocess.DEVNULL, stdout=-1, stderr=-1
    ) as wrapper:
        try:
            yield wrapper
        finally:
            wrapper.kill()


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# -- what it passes on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_the_commands(run: Run, script: str, code: int) -> None:
    run("code", "--", "sh", "-c", script, code=code)


def test_a_command_that_cannot_be_run_is_told_as_shells_do(run: Run, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert b"no-such" in run("code", "no-such", code=127).stderr
    assert b"plain" in run("code", str(plain), code=126).stderr
    run("code", str(tmp_path), code=126)
    run("code", "", code=127)


@pytest.mark.parametrize(
    "before",
    [
        ["args", "--"],
        ["args"],
        ["-w", "5", "args"],
        ["args", "-w", "5", "--"],
        ["-qw5", "args"],
        ["--timeout=5", "args"],
        ["-w", "5", "--", "-args"],
        ["-q", "--", "-args", "--"],
        ["-", "--"],
        ["-"],
    ],
)
def test_options_of_the_command_are_its_own(run: Run, before: list[str]) -> None:
    # -c is an option of ours too, and so is -n.
    told = run(*before, "sh", "-c", 'printf "%s " "$@"', "-", "-n", "--", "--json", "-c", "x")
    assert told.stdout == b"-n -- --json -c x "


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["name"],
        ["name", "--"],
        ["--no-such-option", "name", "true"],
        ["-n", "-w", "1", "name", "true"],
        ["-w", "-1", "name", "true"],
        ["-w", "nan", "name", "true"],
        ["-E", "256", "name", "true"],
        ["--session-ttl", "0.1", "name", "true"],
        ["", "true"],
        ["n" * 5000, "true"],
    ],
)
def test_wrong_usage_exits_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments, code=2).stderr


def test_a_missing_cluster_is_never_made(run: Run, tmp_path: Path) -> None:
    run("-c", str(tmp_path / "missing"), "name", "true", code=1)
    assert not (tmp_path / "missing").exists()


def test_the_token_grows_and_the_name_is_told_byte_for_byte(
    run: Run, cluster: ringhold.Cluster
) -> None:
    name = b" od'd\xff\xfe\n\xc3\xa9$(x)"
    tokens = []
    for _ in range(3):
        told = run(
            name, "--", "sh", "-c", 'echo $RINGHOLD_LOCK_TOKEN; printf %s "$RINGHOLD_LOCK_NAME"'
        )
        token, _, told_name = told.stdout.partition(b"\n")
        assert told_name == name
        tokens.append(int(token))
    assert tokens == sorted(set(tokens))
    with cluster.lock(name) as grant:
        assert grant.token > tokens[-1]
        run("-n", name, "true", code=1)


def test_it_starts_without_what_it_does_not_need() -> None:
    code = "import sys; sys.argv[1:] = ['lock', '--help']\nfrom ringhold.cli import main\n"
    code += "try: main()\nexcept SystemExit: import ringhold.cluster\nprint(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert b"'ringhold.cluster'" in loaded
    for heavy in (b"'fsspec'", b"'rich'", b"'typer'"):
        assert heavy not in loaded


# -- who gets the lock ------------------------------------------------------------------------


def test_commands_do_not_overlap(cluster: ringhold.Cluster, run: Run, tmp_path: Path) -> None:
    def overlaps(log: Path, *wrapper: str) -> bool:
        script = f"echo enter >>{log}; sleep 0.3; echo leave >>{log}"
        runs = [subprocess.Popen([*wrapper, "sh", "-c", script]) for _ in range(4)]
        assert [one.wait(60) for one in runs] == [0] * 4
        return log.read_text().split() != ["enter", "leave"] * 4

    assert overlaps(tmp_path / "without")
    assert not overlaps(tmp_path / "with", *WRAPPER, "overlap", "--")


def test_who_does_not_get_it_in_time_runs_nothing(
    cluster: ringhold.Cluster, run: Run, tmp_path: Path
) -> None:
    touch = ["touch", str(tmp_path / "ran")]
    with cluster.lock("taken"):
        assert b"'taken'" in run("-n", "taken", *touch, code=1).stderr
        assert run("-nq", "-E", "9", "taken", *touch, code=9).stderr == b""
        report = run("-w", "0.2", "-E8", "-q", "--json", "taken", *touch, code=8).stderr
        expected = {"name": "taken", "mode": "exclusive", "token": None, "code": 8}
        assert json.loads(report) == expected
        assert not (tmp_path / "ran").exists()
    run("-n", "fresh", "true")
    run("-w", "30", "taken", *touch)
    assert (tmp_path / "ran").exists()


def test_shared_ones_run_together_and_no_exclusive_one_with_them(run: Run) -> None:
    with started("-s", "both", "--", "sh", "-c", LIVES) as reader:
        line(reader)
        run("-n", "--shared", "both", "true")
        run("-n", "both", "true", code=1)


def test_json_tells_the_token(run: Run) -> None:
    told = run("--json", "json", "--", "sh", "-c", "echo $RINGHOLD_LOCK_TOKEN; exit 5", code=5)
    report = json.loads(told.stderr)
    assert report == {
        "name": "json",
        "mode": "exclusive",
        "token": int(told.stdout),
        "code": 5,
    }


# -- signals ----------------------------------------------------------------------------------

TRAPS = 'trap "echo got; exit 5" INT TERM HUP; echo ready; while :; do sleep 0.05; done'


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals as a program finds them, also where the tests run under nohup(1)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_to_the_command_whose_end_is_awaited(
    cluster: ringhold.Cluster, run: Run, number: int
) -> None:
    with started("signal", "--", "sh", "-c", TRAPS) as wrapper:
        assert line(wrapper) == b"ready"
        wrapper.send_signal(number)
        assert line(wrapper) == b"got"
        assert wrapper.wait(SOON_S) == 5
    with started("signal", "--", "sh", "-c", LIVES) as wrapper:
        line(wrapper)
        wrapper.send_signal(number)
        assert wrapper.wait(SOON_S) == -number
    with cluster.lock("signal", timeout=0):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(
    cluster: ringhold.Cluster, run: Run, number: int, tmp_path: Path
) -> None:
    with cluster.lock("queue"), started("queue", "touch", str(tmp_path / "ran")) as wrapper:
        until(lambda: bool(cluster.locks.waiters("queue")), "it never waited")
        wrapper.send_signal(number)
        assert wrapper.wait(SOON_S) == -number
        assert cluster.locks.waiters("queue") == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("heard")
def test_ctrl_c_ends_the_loop_of_a_shell_around_it(cluster: ringhold.Cluster, run: Run) -> None:
    words = shlex.join([*WRAPPER, "loop", "sh", "-c", "echo began; exec sleep 20"])
    script = f"for i in 1 2 3; do {words}; done; echo went on"
    with subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"began\n"
        # As a terminal does it: to everybody in the group.
        os.killpg(shell.pid, signal.SIGINT)
        assert shell.stdout.read() == b""
        assert shell.wait(SOON_S) == -signal.SIGINT


def test_who_waited_in_vain_is_told_who_holds_the_lock(cluster: ringhold.Cluster, run: Run) -> None:
    with cluster.lock("busy"):
        told = run("-n", "busy", "true", code=1)
    assert b"held by process %d on " % os.getpid() in told.stderr


def test_ignored_signals_stay_ignored(cluster: ringhold.Cluster, run: Run) -> None:
    command = ["sh", "-c", "trap '' HUP; exec \"$@\"", "-", *WRAPPER, "nohup", "sh", "-c", LIVES]
    with (
        cluster.lock("nohup") as grant,
        subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as wrapper,
    ):
        until(lambda: bool(cluster.locks.waiters("nohup")), "it never waited")
        wrapper.send_signal(signal.SIGHUP)
        grant.release()
        pid = int(line(wrapper))
        wrapper.send_signal(signal.SIGHUP)
        os.kill(pid, signal.SIGHUP)
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.wait(SOON_S) == -signal.SIGTERM


def test_on_a_terminal_the_command_reads_it_and_ctrl_c_is_its_own(run: Run, tmp_path: Path) -> None:
    end = tmp_path / "end"
    # sh would count two that come at once as one.
    script = (
        "import os, signal, sys, time\n"
        "print('read', input())\n"
        "signal.signal(signal.SIGINT, lambda *_: print('got', flush=True))\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
        "sys.exit(5)\n"
    )
    take = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [*WRAPPER, "tty", sys.executable, "-c", script, str(end)]
    terminal, theirs = pty.openpty()
    seen = b""

    def see(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(terminal, 4096)

    with open(terminal, "wb", buffering=0), open(theirs, "wb", buffering=0) as their_end:
        wrapper = subprocess.Popen(
            [sys.executable, "-c", take, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        their_end.close()
        try:
            os.write(terminal, b"hello\n")
            see(b"read hello")
            see(b"ready")
            os.write(terminal, b"\x03")
            see(b"got")
            # Time for a second one to come, if what the terminal sent to both were passed on.
            time.sleep(0.3)
            end.touch()
            assert wrapper.wait(SOON_S) == 5
            with pytest.raises(OSError, match="Input/output error"):
                see(b"\0")
            assert seen.count(b"got") == 1
        finally:
            wrapper.kill()
            wrapper.wait()


# -- loss -------------------------------------------------------------------------------------


def test_a_lost_lock_stops_the_command_and_what_it_started(
    cluster: ringhold.Cluster, run: Run
) -> None:
    # A command that makes light of being stopped, it ends with 0, and a deaf child of it.
    script = "(trap '' TERM; exec sleep 60) & trap 'exit 0' TERM; echo $!; wait"
    with started("lost", "--", "sh", "-c", script) as wrapper:
        child = int(line(wrapper))
        assert alive(child)
        assert cluster.locks.break_("lost")
        _, told = wrapper.communicate(timeout=SOON_S)
        assert wrapper.returncode == LOST
        assert told.count(b"ringhold: lock 'lost'") == 1
        until(lambda: not alive(child), "what the command started lives on")


def test_a_command_deaf_to_sigterm_is_killed(cluster: ringhold.Cluster, run: Run) -> None:
    script = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    with started("deaf", "--kill-after", "0.3", "--", "sh", "-c", script) as wrapper:
        pid = int(line(wrapper))
        # The fault: it is not SIGTERM that ends it.
        os.kill(pid, signal.SIGTERM)
        assert cluster.locks.break_("deaf")
        assert wrapper.wait(SOON_S) == LOST
        assert not alive(pid)


def test_a_loss_seen_only_at_the_end_is_told_too(
    cluster: ringhold.Cluster, run: Run, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"echo ready; read word <{fifo}; exit 0"
    # Open for reading too: writing then never waits for the command, which may be gone already.
    with (
        started("late", "--session-ttl", "1", "--", "sh", "-c", script) as wrapper,
        open(os.open(fifo, os.O_RDWR), "wb", buffering=0) as end,
    ):
        line(wrapper)
        pause_outside_commit(wrapper.pid, Path(cluster.url))
        with cluster.lock("late", timeout=SOON_S):
            # The command ends while nobody looks after it.
            end.write(b"end\n")
            wrapper.send_signal(signal.SIGCONT)
            assert wrapper.wait(SOON_S) == LOST


def test_a_wrapper_stopped_for_too_long_loses_the_lock(cluster: ringhold.Cluster, run: Run) -> None:
    script = "echo $RINGHOLD_LOCK_TOKEN; exec sleep 60"
    with started("stopped", "--session-ttl", "1", "--", "sh", "-c", script) as wrapper:
        token = int(line(wrapper))
        pause_outside_commit(wrapper.pid, Path(cluster.url))
        with cluster.lock("stopped", timeout=SOON_S) as grant:
            assert grant.token > token
            wrapper.send_signal(signal.SIGCONT)
            assert wrapper.wait(SOON_S) == LOST


# -- death ------------------------------------------------------------------------------------


def test_the_command_dies_with_a_killed_wrapper_and_the_lock_passes_on(
    cluster: ringhold.Cluster, run: Run
) -> None:
    script = "sleep 60 >&- 2>&- & echo $! $$ $RINGHOLD_LOCK_TOKEN; wait"
    with started("killed", "--session-ttl", "60", "--", "sh", "-c", script) as wrapper:
        left, pid, token = (int(word) for word in line(wrapper).split())
        assert cluster.lock("killed").try_acquire() is None
        try:
            wrapper.kill()
            # The lease has nearly a minute left.
            with cluster.lock("killed", timeout=SOON_S) as grant:
                assert grant.token > token
            until(lambda: not alive(pid), "the command outlived its wrapper")
            # What is not promised, and why the token is there.
            assert alive(left)
        finally:
            os.kill(left, signal.SIGKILL)


def test_a_command_still_waiting_dies_with_a_killed_wrapper(
    cluster: ringhold.Cluster, run: Run, tmp_path: Path
) -> None:
    with cluster.lock("early"), started("early", "touch", str(tmp_path / "ran")) as wrapper:
        until(lambda: bool(cluster.locks.waiters("early")), "it never waited")
        (forked,) = Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children").read_text().split()
        wrapper.kill()
        until(lambda: not alive(int(forked)), "it waits for ever")
    with cluster.lock("early", timeout=SOON_S):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_daemon_keeps_neither_the_lock_nor_files_of_ours(
    cluster: ringhold.Cluster, run: Run
) -> None:
    script = "setsid sleep 60 >/dev/null 2>&1 </dev/null & echo $!"
    daemon = int(run("daemon", "--session-ttl", "60", "--", "sh", "-c", script).stdout)
    try:
        until(lambda: Path(f"/proc/{daemon}/comm").read_text() == "sleep\n", "it never began")
        with cluster.lock("daemon", timeout=SOON_S):
            pass
        descriptors = [os.readlink(path) for path in Path(f"/proc/{daemon}/fd").iterdir()]
        assert descriptors == ["/dev/null"] * 3
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_descriptors_of_the_caller_reach_the_command(run: Run, tmp_path: Path) -> None:
    with open(tmp_path / "inherited", "wb") as file:
        # sh knows descriptors of one digit only.
        write = f"import os; os.write({file.fileno()}, b'hello')"
        command = [*WRAPPER, "fd", sys.executable, "-c", write]
        assert subprocess.run(command, pass_fds=[file.fileno()]).returncode == 0
    assert (tmp_path / "inherited").read_bytes() == b"hello"
