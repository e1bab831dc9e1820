"""Goal: nothing acknowledged is lost and the tree stays whole, whoever is killed when.

Method: four client processes work on five node processes in one cluster; every second one of the
nine is killed with SIGKILL and started again. The clients announce every operation and its
acknowledgement; afterwards ``ringhold fs fsck`` looks for broken invariants, and every
acknowledged file is read whole. Without kills, the same four must share the store fairly.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workload import content

import ringhold
from ringhold.types import NodeSpec

CLIENTS = 4
NODES = 5
HERE = Path(__file__).parent


class Child:
    """A process whose lines are read while it runs, so that a kill loses none of them."""

    def __init__(self, *argv: str):
        self.argv = argv
        self.lines: list[str] = []
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                if line.endswith("\n"):
                    self.lines.append(line)
                self._heard.notify_all()

    def first_line(self) -> str:
        with self._heard:
            assert self._heard.wait_for(lambda: self.lines, 30), self.argv
        return self.lines[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Site:
    """Five node daemons and four clients that can be killed and started again."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.url = str(directory / "cluster")
        self.nodes = {f"n{i}": self._node(f"n{i}", "127.0.0.1:0") for i in range(NODES)}
        self.addresses = {
            name: json.loads(child.first_line())["address"] for name, child in self.nodes.items()
        }
        specs = [NodeSpec(name, address=address) for name, address in self.addresses.items()]
        ringhold.create(self.url, nodes=specs, replicas=3, chunk_size=64 << 10).close()
        self.started = 0
        self.clients = [self._client() for _ in range(CLIENTS)]
        self.ended: list[Child] = []

    def _node(self, name: str, address: str) -> Child:
        data = self.directory / name
        data.mkdir(exist_ok=True)
        arguments = ("node", "--data", str(data), "--listen", address)
        return Child(sys.executable, "-m", "ringhold.cli", *arguments)

    def _client(self) -> Child:
        self.started += 1
        return Child(sys.executable, str(HERE / "workload.py"), self.url, f"/client{self.started}")

    def kill_one(self, victim: int) -> None:
        if victim < CLIENTS:
            child = self.clients[victim]
            child.kill()
            self.ended.append(child)
            self.clients[victim] = self._client()
        else:
            name = f"n{victim - CLIENTS}"
            self.nodes[name].kill()
            self.nodes[name] = self._node(name, self.addresses[name])

    def stop_clients(self) -> list[Child]:
        while self.clients:
            child = self.clients.pop()
            child.kill()
            self.ended.append(child)
        return self.ended

    def close(self) -> None:
        self.stop_clients()
        for child in self.nodes.values():
            child.kill()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path)) as site:
        yield site


def acknowledged(child: Child) -> tuple[dict[str, str], set[str]]:
    """The files a client knows to exist, by the name they were written under; and the paths
    that its last, unacknowledged operation may or may not have touched."""
    files: dict[str, str] = {}
    tried: list[str] = []
    for line in child.lines:
        word, *rest = json.loads(line)
        if word == "try":
            tried = rest
        elif word == "done":
            match tried:
                case ["write", path]:
                    files[path] = path
                case ["rename", source, target]:
                    files[target] = files.pop(source)
                case ["delete", path]:
                    del files[path]
            tried = []
        else:
            tried = []
    return files, set(tried[1:])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [15, pytest.param(30, marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost_while_processes_are_killed(site: Site, seconds: int) -> None:
    generator = random.Random(20)
    killed = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)
        victim = generator.randrange(CLIENTS + NODES)
        site.kill_one(victim)
        killed.append(victim)
    clients = site.stop_clients()
    assert any(victim < CLIENTS for victim in killed), "clients were killed"
    assert any(victim >= CLIENTS for victim in killed), "nodes were killed"

    for node in site.nodes.values():
        node.first_line()
    fsck = subprocess.run(
        [sys.executable, "-m", "ringhold.cli", "fs", "fsck", "--json", "-c", site.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert fsck.returncode == 0, fsck.stdout + fsck.stderr
    assert json.loads(fsck.stdout)["problems"] == []

    operations = files_read = 0
    with ringhold.open(site.url, create=False) as cluster:
        for client in clients:
            files, uncertain = acknowledged(client)
            operations += sum(json.loads(line)[0] == "done" for line in client.lines)
            for path, first_name in files.items():
                if path not in uncertain:
                    assert cluster.fs.cat_file(path) == content(first_name), path
                    files_read += 1
    assert operations > 3 * seconds
    assert files_read > seconds / 2
    print(f"{len(killed)} kills, {operations} acknowledged operations, {files_read} files read")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seconds", [10, pytest.param(20, marks=pytest.mark.long)])
def test_four_clients_share_the_store_fairly(site: Site, seconds: int) -> None:
    for client in site.clients:
        client.first_line()
    before = [len(client.lines) for client in site.clients]
    time.sleep(seconds)
    shares = [
        sum(json.loads(line)[0] == "done" for line in client.lines[start:])
        for client, start in zip(site.clients, before, strict=True)
    ]
    print(f"commits of the four clients in {seconds} s: {shares}")
    assert min(shares) > 0
    assert min(shares) * 5 >= max(shares), shares


def test_the_workload_notices_a_lost_file() -> None:
    """The check itself: an acknowledged write counts, an unacknowledged one is uncertain."""
    child = object.__new__(Child)
    child.lines = [
        '["try", "write", "/a"]\n',
        '["done"]\n',
        '["try", "write", "/b"]\n',
        '["undone"]\n',
        '["try", "rename", "/a", "/c"]\n',
    ]
    assert acknowledged(child) == ({"/a": "/a"}, {"/a", "/c"})


def test_contents_differ_in_size() -> None:
    sizes = {len(content(f"/x/{i}")) for i in range(100)}
    assert {0, 4096, 4097} <= sizes
