"""Goal: every command does what it says, speaks JSON when asked and tells trouble by exit code.

Method: the commands run as processes, as a shell would run them, against real clusters.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import Etcd, etcd

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        finished = subprocess.run(
            [sys.executable, "-m", "ringhold.cli", *arguments], cwd=tmp_path, capture_output=True
        )
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished

    return run


@pytest.fixture
def cluster(run: Run) -> str:
    run("init", "data", "--nodes", "3", "--replicas", "2")
    return "data"


def told(finished: subprocess.CompletedProcess[bytes]) -> Any:
    return json.loads(finished.stdout)


def test_init_tells_what_it_made_and_makes_it_once(run: Run) -> None:
    status = told(run("init", "c", "--nodes", "4", "--replicas", "3", "--zone", "a", "--json"))
    assert status["replicas"] == 3
    assert [node["name"] for node in status["nodes"]] == ["n1", "n2", "n3", "n4"]
    again = run("init", "c", code=1)
    assert b"c" in again.stderr


def test_init_takes_nodes_in_directories_with_zones(run: Run, tmp_path: Path) -> None:
    run("init", "c", "--node", f"x={tmp_path / 'dx'}@east", "--node", "y@west", "--replicas", "2")
    nodes = {node["name"]: node for node in told(run("status", "-c", "c", "--json"))["nodes"]}
    assert nodes["x"]["zone"] == "east"
    assert nodes["x"]["path"] == str(tmp_path / "dx")
    assert nodes["y"]["zone"] == "west"
    assert all(node["up"] and node["partitions"] == 4096 for node in nodes.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "c", "--chunk-size", "1000"),
        ("init", "c", "--node", "a", "--node", "a"),
        ("init", "c", "--nodes", "0"),
        ("init", "c", "--nodes", "three"),
        ("init", "c", "--nodes", "2", "--node", "a"),
        ("init", "etcd://h/c", "--nodes", "2"),
        ("init", "etcd://h/c", "--node", "a"),
        ("init", "etcd://h/c", "--node", "a=relative"),
        ("init", "etcd://h"),
        ("node", "--data", "d", "--listen", "nowhere"),
        ("node", "--data", "d", "--listen", "192.0.2.1:0"),
        ("node", "--data", "d", "--replace", "n1"),
        ("fs", "ls"),
        ("fs", "ls", "/a/../b", "-c", "data"),
        ("no-such-command",),
    ],
)
def test_wrong_arguments_exit_2(run: Run, arguments: tuple[str, ...]) -> None:
    if "data" in arguments:
        run("init", "data")
    finished = run(*arguments, code=2)
    assert finished.stderr
    assert b"Traceback" not in finished.stderr


def test_trouble_is_one_line_and_a_code(run: Run, cluster: str) -> None:
    for arguments, code in [
        (("status", "-c", "missing"), 1),
        (("fs", "cat", "/missing", "-c", cluster), 1),
        (("fs", "rm", "/missing", "-c", cluster), 1),
    ]:
        finished = run(*arguments, code=code)
        assert b"missing" in finished.stderr
        assert b"Traceback" not in finished.stderr


def test_files_go_in_and_out(run: Run, cluster: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "small").write_bytes(b"small")
    (source / "sub" / "large").write_bytes(bytes(range(256)) * 4000)
    run("fs", "put", "-r", "source/", "/in", "-c", cluster)
    assert run("fs", "ls", "/in", "-c", cluster).stdout == b"small\nsub/\n"
    long = run("fs", "ls", "-l", "/in", "-c", cluster).stdout
    assert b"5 B" in long
    run("fs", "cp", "/in/small", "/copied", "-c", cluster)
    run("fs", "mv", "/in/sub", "/moved", "-c", cluster)
    tree = run("fs", "tree", "-c", cluster).stdout.decode()
    assert [line.split()[0] for line in tree.splitlines()] == [
        "/",
        "copied",
        "in/",
        "small",
        "moved/",
        "large",
    ]
    cat = run("fs", "cat", "/moved/large", "/copied", "-c", cluster)
    assert cat.stdout == bytes(range(256)) * 4000 + b"small"
    run("fs", "get", "-r", "/moved", "out", "-c", cluster)
    assert (tmp_path / "out" / "large").read_bytes() == bytes(range(256)) * 4000
    run("fs", "rm", "/in", "-c", cluster, code=1)
    run("fs", "rm", "-r", "/in", "-c", cluster)
    assert [info["name"] for info in told(run("fs", "ls", "-c", cluster, "--json"))] == [
        "/copied",
        "/moved",
    ]


def test_fsck_exits_4_when_a_copy_is_gone(run: Run, cluster: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    run("fs", "put", "file", "/file", "-c", cluster)
    assert told(run("fs", "fsck", "--copies", "-c", cluster, "--json"))["problems"] == []
    copies = list((tmp_path / "data" / "nodes").glob("*/data/*/*"))
    assert len(copies) == 2
    for copy in copies:
        copy.unlink()
    found = run("fs", "fsck", "--copies", "-c", cluster, code=4)
    assert b"1 problems" in found.stdout
    run("fs", "cat", "/file", "-c", cluster, code=4)


def test_version(run: Run) -> None:
    assert run("--version").stdout.strip() == b"0.1.0"


# -- in etcd


@pytest.fixture(scope="module")
def guarded() -> Iterator[Etcd]:
    with etcd("distro") as server:
        server.enable_auth("app", "s3cret")
        yield server


@contextmanager
def node(directory: Path, *options: str) -> Iterator[str]:
    """The address of a daemon."""
    daemon = subprocess.Popen(
        [sys.executable, "-m", "ringhold.cli", "node", "--data", str(directory), *options],
        stdout=subprocess.PIPE,
    )
    try:
        assert daemon.stdout is not None
        yield json.loads(daemon.stdout.readline())["address"]
    finally:
        daemon.terminate()
        daemon.communicate()


def test_a_cluster_in_etcd_on_the_command_line(run: Run, guarded: Etcd, tmp_path: Path) -> None:
    url = guarded.url("cli", user="app", password="s3cret")
    shown: list[bytes] = []
    with ExitStack() as daemons:
        a, b = (daemons.enter_context(node(tmp_path / name)) for name in "ab")
        missing = run("status", "-c", url, code=1)
        assert b"ringhold init etcd://" in missing.stderr
        made = run("init", url, "--nodes", f"a={a}@x,b={b}@y", "--replicas", "2")
        (tmp_path / "file").write_bytes(bytes(100_000))
        run("fs", "put", "file", "/file", "-c", url)
        assert run("fs", "cat", "/file", "-c", url).stdout == bytes(100_000)
        status = run("status", "-c", url)
        shown += [missing.stderr, made.stdout, status.stdout]
        found = told(run("status", "-c", url, "--json"))
        assert [
            (node["name"], node["zone"], node["address"], node["up"]) for node in found["nodes"]
        ] == [("a", "x", a, True), ("b", "y", b, True)]
        shown.append(json.dumps(found).encode())
        assert run("lock", "l", "-c", url, "--", "echo", "held").stdout == b"held\n"
        new = daemons.enter_context(node(tmp_path / "c", "--replace", "a", "-c", url))
        nodes = told(run("status", "-c", url, "--json"))["nodes"]
        assert [(node["address"], node["incarnation"]) for node in nodes] == [(new, 2), (b, 1)]
        again = run("init", url, "--node", f"a={a}", code=1)
        shown.append(again.stderr)
    assert all(b"etcd://app@" in text for text in shown[1:])
    assert not [text for text in shown if b"s3cret" in text]


def test_a_cluster_without_nodes_says_so(run: Run, guarded: Etcd) -> None:
    url = guarded.url("bare", user="app", password="s3cret")
    made = run("init", url).stdout.split()
    assert made[-4:] == [b"0", b"nodes,", b"1", b"copy"]
    told = b" ".join(run("status", "-c", url).stdout.split())
    assert b": 1 copy of every chunk" in told
    assert told.endswith(b"It has no nodes, and keeps files of up to 4096 bytes.")


def test_an_etcd_that_is_not_there_exits_3(run: Run) -> None:
    finished = run("status", "-c", "etcd://127.0.0.1:1/c", code=3)
    assert b"127.0.0.1:1" in finished.stderr
    assert b"Traceback" not in finished.stderr
