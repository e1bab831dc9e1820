"""Goal: what README.md shows is what happens.

Method: its Python blocks are run in an empty directory and their output compared with the block
below each; its commands are run one by one as written.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
