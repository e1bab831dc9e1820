"""Goal: the tests of the C core leave hardly a branch out, and touch no memory
they should not.

Method: they run once with gcov counting the branches of csrc/src, and once under valgrind, which
also sees what sanitizers do not: reads of memory that was never written. Each check is first shown
a program with the fault that it is there to find.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from native import ROOT, build, run, run_tests, start

BRANCHES_MIN = 95.0
MEMCHECK = (
    "valgrind",
    "-q",
    "--error-exitcode=99",
    "--leak-check=full",
    "--show-leak-kinds=all",
    "--errors-for-leak-kinds=all",
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


def test_the_branches_of_the_core_are_taken(tmp_path: Path) -> None:
    built, summary = tmp_path / "build", tmp_path / "branches.json"
    # Atomic, since threads that count the same branch at once would lose counts.
    flags = "--coverage -fprofile-update=atomic -O0"
    build(ROOT / "csrc", built, "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_C_FLAGS={flags}")
    run_tests(built)
    run(
        *("gcovr", "--root", str(ROOT / "csrc"), "--filter", str(ROOT / "csrc" / "src")),
        *("--exclude-unreachable-branches", "--json", str(summary), str(built)),
    )
    taken, missed = 0, []
    for file in json.loads(summary.read_text())["files"]:
        for line in file["lines"]:
            for branch in line["branches"]:
                if branch["count"] > 0:
                    taken += 1
                else:
                    missed.append(f"{file['file']}:{line['line_number']}")
    share = 100 * taken / (taken + len(missed))
    told = f"{share:.1f} % of {taken + len(missed)} branches; never taken:\n" + "\n".join(missed)
    print(told)
    assert share >= BRANCHES_MIN, told


FAULT = """
#include <stdlib.h>
int main(void)
{
    char *text = malloc(8);
    int code = text[7] == 1 ? 1 : 0;
    free(text);
    return code;
}
"""


def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    faulty, program = tmp_path / "fault.c", str(tmp_path / "fault")
    faulty.write_text(FAULT)
    run(shutil.which("cc") or "gcc", "-g", "-O0", str(faulty), "-o", program)
    assert start(*MEMCHECK, program).returncode == 99

    build(ROOT / "csrc", tmp_path / "build", f"-DRINGHOLD_TEST_LAUNCHER={';'.join(MEMCHECK)}")
    run_tests(tmp_path / "build")
