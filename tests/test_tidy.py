"""Goal: the house rules hold for every file that is kept.

Method: the linters run as tests over the whole tree, then a few rules that no linter knows.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for path in sorted((ROOT / "src").rglob("*.py")) if "__pycache__" not in path.parts]
C_SOURCES = sorted([*(ROOT / "csrc").rglob("*.c"), *(ROOT / "csrc").rglob("*.h")])
LINES_MAX = 500
FUNCTION_LINES_MAX = 80

pytestmark = pytest.mark.timeout(300)


def run(*argv: str) -> None:
    executable = Path(sys.executable).with_name(argv[0])
    assert executable.exists() or shutil.which(argv[0]), f"{argv[0]} is not installed"
    command = [str(executable) if executable.exists() else argv[0], *argv[1:]]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "src", "tests", "benchmarks", "examples")


def test_formatting_is_ruffs() -> None:
    run("ruff", "format", "--check", "src", "tests", "benchmarks", "examples")


def test_types_are_strict() -> None:
    run("mypy")


def test_floors_import_only_downwards() -> None:
    run("lint-imports")


def test_c_is_formatted() -> None:
    run("clang-format", "--dry-run", "--Werror", *(str(path) for path in C_SOURCES))


def test_cython_is_clean() -> None:
    run("cython-lint", *(str(path) for path in sorted((ROOT / "src").rglob("*.pyx"))))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_one_concept(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES_MAX
    tree = ast.parse(text)
    if text.strip():
        assert ast.get_docstring(tree), "a module says what it guarantees"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|for now|not implemented", re.IGNORECASE)
    kept = [*SOURCES, *C_SOURCES, *sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "README.md"]
    found = [f"{path}: {m.group()}" for path in kept for m in words.finditer(path.read_text())]
    assert not found


def test_c_core_knows_no_python_and_no_machine() -> None:
    forbidden = re.compile(r"Python\.h|<stdio\.h>|<time\.h>|\brand\(|\bmalloc_hook|\bprintf\(")
    core = [path for path in C_SOURCES if not {"tests", "examples"} & set(path.parts)]
    assert core
    assert not [path for path in core if forbidden.search(path.read_text())]


def test_public_names_are_sorted_and_real() -> None:
    import ringhold

    assert list(ringhold.__all__) == sorted(ringhold.__all__)
    for name in ringhold.__all__:
        assert hasattr(ringhold, name), name
    assert not {"open", "create"} & set(ringhold.__all__)
