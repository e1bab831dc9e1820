"""Runs the tools that build and check the C core, for the tests of this directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# CMake may be the one of the test extra, in a virtual environment that was not activated.
BESIDE_PYTHON = str(Path(sys.executable).parent)
ENVIRONMENT = os.environ | {"PATH": os.pathsep.join([BESIDE_PYTHON, os.environ["PATH"]])}


def start(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def run(*command: str) -> str:
    done = start(*command)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, directory: Path, *options: str) -> None:
    run("cmake", "-S", str(source), "-B", str(directory), "-DRINGHOLD_BUILD_TESTS=ON", *options)
    run("cmake", "--build", str(directory), "--parallel", "2")


def run_tests(directory: Path) -> None:
    """Every test of csrc, none of which may be missing from the build."""
    tests = ROOT / "csrc" / "tests"
    sources = [*tests.glob("test_*.c"), *tests.glob("test_*.cpp"), *tests.glob("fuzz/fuzz_*.c")]
    listed = run("ctest", "--test-dir", str(directory), "--show-only")
    found = re.search(r"Total Tests: (\d+)", listed)
    assert found is not None
    assert int(found[1]) == len(sources), listed
    run("ctest", "--test-dir", str(directory), "--output-on-failure", "--parallel", "2")
