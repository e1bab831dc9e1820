"""Instructions per operation of the C core: a figure that no other load on the machine changes.

`python benchmarks/instructions.py` prints what was recorded in instructions.json beside what
callgrind counts now; with --record it writes the new counts. Needs valgrind, CMake and a C
compiler. Counts depend on the compiler, so they are compared only under the one recorded.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
RECORDED = HERE / "instructions.json"
TOLERANCE = 0.05
TIMES = 4096 * 8
"""Operations between the two runs whose difference is taken; whole batches of operations.c."""
OPERATIONS = (
    "ring_lookup",
    "ring_lookup_hash",
    "ring_lookup_keys",
    "ring_lookup_hashes",
    "ring_replicas",
    "lock_pair",
    "lock_pair_of_many_names",
    "checksum",
)


@dataclass(frozen=True, slots=True)
class Counts:
    compiler: str
    per_operation: dict[str, float]


def _output(*command: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{finished.stdout}{finished.stderr}")
    return finished.stdout + finished.stderr


def build(directory: Path, *options: str) -> Path:
    """The program that runs operations, built as a release is; its path."""
    source = HERE.parent / "csrc"
    configure = ("cmake", "-S", str(source), "-B", str(directory), "-DCMAKE_BUILD_TYPE=Release")
    _output(*configure, "-DRINGHOLD_BUILD_BENCHMARKS=ON", *options)
    _output("cmake", "--build", str(directory), "--target", "operations", "--parallel", "2")
    return directory / "benchmarks" / "operations"


def compiler_of(directory: Path) -> str:
    """The compiler that CMake used there, as it names itself."""
    cache = (directory / "CMakeCache.txt").read_text()
    found = re.search(r"^CMAKE_C_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    assert found is not None
    return _output(found[1], "--version").splitlines()[0]


def _collected(program: Path, operation: str, times: int) -> int:
    printed = _output(
        *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
        *(str(program), operation, str(times)),
    )
    found = re.search(r"Collected : (\d+)", printed)
    assert found is not None, printed
    return int(found[1])


def count(program: Path, operation: str) -> float:
    """Instructions of one operation; its first TIMES warm up what it works on."""
    twice, once = (_collected(program, operation, times) for times in (2 * TIMES, TIMES))
    return (twice - once) / TIMES


def counted(directory: Path, *options: str) -> Counts:
    program = build(directory, *options)
    return Counts(
        compiler_of(directory), {name: round(count(program, name), 1) for name in OPERATIONS}
    )


def recorded() -> Counts:
    return Counts(**json.loads(RECORDED.read_text()))


def regressions(now: Counts, before: Counts) -> list[str]:
    """What costs more than it did, by more than the tolerance, or was never recorded."""
    found = []
    for name, instructions in now.per_operation.items():
        known = before.per_operation.get(name)
        if known is None:
            found.append(f"{name}: not recorded")
        elif instructions > known * (1 + TOLERANCE):
            found.append(f"{name}: {instructions:.1f} instructions, recorded {known:.1f}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the counts down")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        now = counted(Path(directory))
    before = recorded() if RECORDED.exists() else Counts(now.compiler, {})
    print(now.compiler)
    for name, instructions in now.per_operation.items():
        print(f"{name}: {instructions:.1f} (recorded {before.per_operation.get(name)})")
    if options.record:
        RECORDED.write_text(json.dumps(asdict(now), indent=4) + "\n")
        return 0
    if now.compiler != before.compiler:
        print(f"not compared: recorded with {before.compiler}")
        return 0
    return int(bool(regressions(now, before)))


if __name__ == "__main__":
    raise SystemExit(main())
