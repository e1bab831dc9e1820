"""Goal: what README.md shows is what happens.

Method: its Python blocks are run in an empty directory and their output compared with the block
below each; its commands are run one by one as written. The three terminals of "More than one
machine" are three shells, which are given other ports.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from etcd_servers import free_ports

from ringhold.cli.demo.etcd import find_etcd

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


EXAMPLES = [i for i, (kind, _) in enumerate(BLOCKS) if kind == "python"]


@pytest.mark.parametrize("index", EXAMPLES)
def test_an_example_prints_what_it_says(index: int, tmp_path: Path) -> None:
    code = BLOCKS[index][1]
    assert len(code.splitlines()) <= 18
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == BLOCKS[index + 1][1]


@pytest.mark.parametrize("first", ["ringhold init", "ringhold lock"])
def test_the_commands_run(tmp_path: Path, first: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_bytes(bytes(10_000))
    commands = next(text for _, text in BLOCKS if text.startswith(first)).splitlines()
    if first != "ringhold init":
        commands.insert(0, "ringhold init data")
    for line in commands:
        _, *arguments = shlex.split(line)
        finished = subprocess.run(
            [sys.executable, "-m", "ringhold.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, (line, finished.stdout + finished.stderr)


class Terminal:
    """A shell in which one command after the other is typed; all that it started ends with it."""

    def __init__(self, directory: Path, path: Path):
        directory.mkdir()
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.communicate()

    def type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()

    def line(self, wanted: Callable[[str], object] = bool) -> str:
        """The next line of output that is `wanted`."""
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            if wanted(line):
                return line
        raise AssertionError("the shell ended")

    def run(self, line: str) -> list[str]:
        """What the command prints; it must succeed. One in the background prints when it is
        ready."""
        self.type(line)
        if line.endswith("&"):
            return [self.line()]
        self.type("echo ended with $?")
        printed = [self.line()]
        while not printed[-1].startswith("ended with"):
            printed.append(self.line())
        assert printed.pop() == "ended with 0\n", (line, printed)
        return printed


def test_three_terminals_are_two_machines_and_etcd(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in (
        ("etcd", [find_etcd()]),
        ("ringhold", [sys.executable, "-m", "ringhold.cli"]),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (programs / name).chmod(0o755)
    chapter = README.partition("## More than one machine")[2].partition("\n## ")[0]
    for port, free in zip(("2379", "7001", "7002"), free_ports("127.0.0.1", 3), strict=True):
        assert port in chapter
        chapter = chapter.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
    blocks = [text.splitlines() for text in re.findall(r"```\n(.*?)```", chapter, re.DOTALL)]
    [start], first_of_a, [*first_of_b, work], then_of_a, [tunnel] = blocks[1:]
    assert tunnel.startswith("ssh ")
    etcd = re.findall(r"127.0.0.1:[0-9]+", first_of_b[1])[0]
    peer = f"127.0.0.1:{free_ports('127.0.0.1', 1)[0]}"
    start += f" --listen-client-urls http://{etcd} --advertise-client-urls http://{etcd}"
    start += f" --listen-peer-urls http://{peer} --initial-advertise-peer-urls http://{peer}"
    start += f" --initial-cluster default=http://{peer}"
    with ExitStack() as stack:
        terminals = [
            stack.enter_context(Terminal(tmp_path / name, programs)) for name in ("etcd", "a", "b")
        ]
        terminals[0].type(start)
        for line in first_of_a:
            terminals[1].run(line)
        for line in first_of_b:
            terminals[2].run(line)
        terminals[2].type(work)
        held, token = terminals[2].line().split()
        assert held == "b:"
        told = [terminals[1].run(line) for line in then_of_a]
    assert told[0][0].startswith("a:")
    assert int(told[0][0].split()[1]) > int(token)
    assert re.search("[0-9]{2}:[0-9]{2}:[0-9]{2}", told[0][1])
    assert [line.split()[0] for line in told[1][2:]] == ["a", "b"]
    assert all(" up " in line for line in told[1][2:])
