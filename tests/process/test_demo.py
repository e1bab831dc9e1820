"""Goal: ``ringhold demo`` passes on real files, and fails when a promise is broken in the code.

Method: the demonstration runs on a small tree, as a process, as a user would run it. Then three
small patches are applied to a copy of the source, one at a time: repair copies nothing, checksums
are not compared, tokens are not compared. Each time the demonstration must exit 1 and say which
claim is not true.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringhold

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


def run_demo(source: Path, directory: Path, package_root: Path | None = None) -> tuple[int, dict]:
    environment = dict(os.environ)
    if package_root is not None:
        environment["PYTHONPATH"] = str(package_root)
    arguments = [str(source), "--directory", str(directory), "--json"]
    finished = subprocess.run(
        [sys.executable, "-m", "ringhold.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert finished.stdout, finished.stderr
    return finished.returncode, json.loads(finished.stdout)


def test_the_demo_passes_and_says_what_it_did(source: Path, tmp_path: Path) -> None:
    code, told = run_demo(source, tmp_path / "demo")
    assert (code, told["failure"]) == (0, None)
    assert {
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
    } <= told["table"].keys()


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
