"""The table of goals beside what this machine measures.

`python benchmarks/report.py` runs the suites at full size, prints the table and writes it as
Markdown and as a picture. With ``--system`` also beside peers that are Debian packages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from goals import GOALS, Goal
from pairs import Spread
from picture import svg

HERE = Path(__file__).parent
SUITES = (
    "bench_ring.py",
    "bench_layout.py",
    "bench_lock_table.py",
    "bench_locks.py",
    "bench_store.py",
    "bench_checksum.py",
)
PEERS = ("uhashring", "xxhash", "numpy", "filelock", "redis", "apsw")
BLOCK_BEGIN = "<!-- benchmarks: written by benchmarks/report.py -->"
BLOCK_END = "<!-- benchmarks: end -->"


@dataclass(frozen=True, slots=True)
class Row:
    goal: Goal
    value: Spread | None
    """None: the suites did not measure it."""

    @property
    def outcome(self) -> str:
        if self.value is None:
            return "not measured"
        return "reached" if self.goal.reached(self.value) else "**missed**"

    def figure(self) -> str:
        if self.value is None:
            return ""
        text = "{median:.3g} {kind} ({min:.3g} to {max:.3g})"
        return text.format(kind=self.goal.kind.value, **self.value).replace("  ", " ")


def measured(suites: Sequence[Path], *, quick: bool, system: bool = False) -> dict[str, Spread]:
    """Every figure that the suites note, by its label. A failing suite ends the report."""
    with tempfile.TemporaryDirectory() as directory:
        noted = Path(directory) / "noted.json"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0"),
            *("--benchmark-enable", f"--benchmark-json={noted}"),
            *(("-m", "not long") if system else ()),
            *(str(suite) for suite in suites),
        ]
        environment = os.environ | {"RINGHOLD_BENCH": "" if quick else "full"}
        finished = subprocess.run(
            command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True
        )
        if finished.returncode != 0:
            raise SystemExit(f"the benchmarks failed:\n{finished.stdout}")
        benchmarks = json.loads(noted.read_text())["benchmarks"]
    figures: dict[str, Spread] = {}
    for benchmark in benchmarks:
        figures |= benchmark["extra_info"]
    return figures


def judged(figures: dict[str, Spread], goals: Sequence[Goal], *, quick: bool = False) -> list[Row]:
    rows = []
    for goal in goals:
        noted = figures.get((quick and goal.tiny) or goal.label)
        rows.append(Row(goal, goal.value(noted) if noted else None))
    return rows


def processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def compiler() -> str:
    """What the extension modules were compiled with, as they say themselves."""
    import ringhold.core._ring as module

    text = Path(module.__file__).read_bytes()
    found = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", text)
    return found[0].decode() if found else "an unknown compiler"


def redis_server() -> list[str]:
    executable = shutil.which("redis-server")
    if executable is None:
        return []
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"v=([\d.]+)", told.stdout)
    return [f"redis-server {found[1]}"] if found else []


def surroundings() -> str:
    """The machine and every version that the figures depend on."""
    peers = [f"{peer} {metadata.version(peer)}" for peer in PEERS if _is_installed(peer)]
    return ", ".join(
        [
            f"{processor()} × {os.cpu_count()}",
            f"{platform.system()} {platform.release()}",
            f"{platform.python_implementation()} {platform.python_version()}",
            compiler(),
            *peers,
            *redis_server(),
        ]
    )


def _is_installed(distribution: str) -> bool:
    return any(True for _ in metadata.distributions(name=distribution))


def markdown(rows: Sequence[Row], caption: str) -> str:
    lines = ["| measure | median (min to max) | goal | |", "|---|---|---|---|"]
    section = ""
    for row in rows:
        if row.goal.section != section:
            section = row.goal.section
            lines.append(f"| **{section}** | | | |")
        lines.append(f"| {row.goal.measure} | {row.figure()} | {row.goal.text()} | {row.outcome} |")
    return "\n".join([*lines, "", f"Measured on {caption}.", ""])


def put_into_readme(readme: Path, table: str, picture: str) -> None:
    text = readme.read_text()
    if text.count(BLOCK_BEGIN) != 1 or text.count(BLOCK_END) != 1:
        raise SystemExit(f"{readme} has no block between {BLOCK_BEGIN} and {BLOCK_END}")
    before, rest = text.split(BLOCK_BEGIN)
    _, after = rest.split(BLOCK_END)
    block = f"{BLOCK_BEGIN}\n![Figures beside their goals]({picture})\n\n{table}{BLOCK_END}"
    readme.write_text(before + block + after)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: whether it works, not what is true"
    )
    parser.add_argument(
        "--system", action="store_true", help="also what needs a system package: redis-server"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.md", help="also as Markdown, the picture beside it"
    )
    parser.add_argument(
        "--readme", action="store_true", help="also into the README, with docs/benchmarks.svg"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """1 when a goal has no measurement: then a suite no longer measures what it should."""
    options = arguments(argv)
    suites = [HERE / suite for suite in SUITES]
    figures = measured(suites, quick=options.quick, system=options.system)
    goals = [goal for goal in GOALS if options.system or not goal.system]
    rows = judged(figures, goals, quick=options.quick)
    caption = surroundings()
    table = markdown(rows, caption)
    picture = svg([(row.goal, row.value) for row in rows if row.value is not None], caption)
    print(table)
    if options.output:
        options.output.write_text(table)
        options.output.with_suffix(".svg").write_text(picture)
    if options.readme:
        drawn = HERE.parent / "docs" / "benchmarks.svg"
        drawn.parent.mkdir(exist_ok=True)
        drawn.write_text(picture)
        put_into_readme(HERE.parent / "README.md", table, "docs/benchmarks.svg")
    return int(any(row.value is None for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
