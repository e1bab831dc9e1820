"""Goal: every file of ``examples/`` runs and does what it says.

Method: each runs as a user would start it, with warnings as errors, and its output is compared.
The one that needs PostgreSQL runs in tests/process/test_postgresql_fence.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = {
    "locks.py": """\
added up to 100
somebody else writes the report
free again: True
3 readers at once
lost, and told so
leaving raises LockLost for job
""",
}
ELSEWHERE = {"locks_postgresql.py"}


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, "a thread failed"
    assert done.stdout == PRINTED[name]


def test_none_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTED, *ELSEWHERE}
