"""Goal: the report says of every goal what was measured and whether it is reached.

Method: goals and figures of the test's own, and a small suite that notes figures as the real ones
do; the real suites are run once at tiny sizes, where only the presence of each row is a promise.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CAPTION = "a machine, <a compiler> & 2 peers"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/ is no package: its files import each other as neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import goals
    import picture
    import report

    class Modules:
        pass

    found: Any = Modules()
    found.goals, found.picture, found.report = goals, picture, report
    return found


def spread(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "min": low, "max": high}


def own_goals(modules: Any) -> list[Any]:
    kind, goal = modules.goals.Kind, modules.goals.Goal
    return [
        goal("One", "time reached", "a / b", kind.TIME, 3),
        goal("One", "time missed", "a / c", kind.TIME, 2),
        goal("One", "speed reached", "d / e", kind.SPEED, 20),
        goal("Two", "speed missed", "d / f", kind.SPEED, 20),
        goal("Two", "nanoseconds reached", "g", kind.NANOSECONDS, 60),
        goal("Two", "seconds missed", "h", kind.SECONDS, 1),
        goal("Two", "count reached", "i", kind.COUNT, 1),
        goal("Two", "nowhere", "no such figure", kind.SPEED, 1),
    ]


FIGURES = {
    "a / b": spread(0.5, 0.25, 1.0),
    "a / c": spread(0.4, 0.25, 0.5),
    "d / e": spread(20, 10, 30),
    "d / f": spread(19.9, 10, 30),
    "g": spread(59, 50, 70),
    "h": spread(1.01, 0.5, 2),
    "i": spread(1, 1, 1),
}


def test_reached_and_missed_are_told_apart(modules: Any) -> None:
    rows = modules.report.judged(FIGURES, own_goals(modules))
    for row in rows[:-1]:
        expected = "reached" if row.goal.measure.endswith("reached") else "**missed**"
        assert row.outcome == expected, row.goal.measure
    assert rows[-1].outcome == "not measured"


def test_a_goal_in_time_is_the_inverse_of_the_speed(modules: Any) -> None:
    row = modules.report.judged(FIGURES, own_goals(modules))[0]
    assert row.value == spread(2, 1, 4)
    assert row.figure() == "2 × the time (1 to 4)"
    assert row.goal.text() == "≤ 3 × the time"
    assert row.goal.margin(row.value) == spread(1.5, 0.75, 3)


def test_the_table_has_every_row(modules: Any) -> None:
    goals = own_goals(modules)
    table = modules.report.markdown(modules.report.judged(FIGURES, goals), CAPTION)
    for goal in goals:
        assert table.count(f"| {goal.measure} |") == 1
    assert table.count("| **One** |") == table.count("| **Two** |") == 1
    assert "| 59 ns (50 to 70) | ≤ 60 ns | reached |" in table
    assert CAPTION in table


def test_the_picture_is_xml_with_a_mark_for_each_measured_row(modules: Any) -> None:
    rows = modules.report.judged(FIGURES, own_goals(modules))
    measured = [(row.goal, row.value) for row in rows if row.value is not None]
    root = ElementTree.fromstring(modules.picture.svg(measured, CAPTION))
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    assert CAPTION in texts
    timed = [goal for goal, _ in measured if goal.kind is not modules.goals.Kind.COUNT]
    assert all(goal.measure in texts for goal in timed)
    marks = [element for element in root.iter() if element.tag.endswith(("circle", "path"))]
    assert [mark.attrib["class"] for mark in marks] == [
        "reached" if goal.measure.endswith("reached") else "missed" for goal in timed
    ]


def test_what_needs_a_system_package_is_shown_when_asked_for(
    modules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, goal = modules.goals.Kind, modules.goals.Goal
    goals = [
        goal("One", "plain", "a / b", kind.TIME, 3),
        goal("One", "beside a daemon", "d / e", kind.SPEED, 20, system=True),
    ]
    asked: list[bool] = []

    def measured(suites: object, *, quick: bool, system: bool) -> Any:
        asked.append(system)
        return FIGURES

    monkeypatch.setattr(modules.report, "GOALS", goals)
    monkeypatch.setattr(modules.report, "measured", measured)
    assert modules.report.main([]) == 0
    assert "beside a daemon" not in capsys.readouterr().out
    assert modules.report.main(["--system"]) == 0
    assert "| beside a daemon | 20 × as fast" in capsys.readouterr().out
    assert asked == [False, True]


def test_only_the_block_of_the_readme_changes(modules: Any, tmp_path: Path) -> None:
    report = modules.report
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BLOCK_BEGIN}\nold\n{report.BLOCK_END}\nafter\n")
    for table in ("new\n", "newer\n"):
        report.put_into_readme(readme, table, "docs/benchmarks.svg")
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BLOCK_BEGIN}\n")
    assert text.endswith(f"newer\n{report.BLOCK_END}\nafter\n")
    assert "old" not in text
    assert "docs/benchmarks.svg" in text
    readme.write_text("no block")
    with pytest.raises(SystemExit, match="has no block"):
        report.put_into_readme(readme, "new\n", "docs/benchmarks.svg")
    assert readme.read_text() == "no block"


SUITE = """
from pairs import figure, in_turns, report

def test_way(benchmark):
    seconds = benchmark.pedantic(in_turns, ({"a": print, "b": print},), rounds=1)
    report(benchmark, seconds, [("a", "b")], 1, "calls")
    figure(benchmark, "moved / necessary", [1.0, 1.0], "times")
    assert %s
"""


def test_figures_come_from_the_suites(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS), prepend=":")
    suite = tmp_path / "bench_own.py"
    suite.write_text(SUITE % True)
    figures = modules.report.measured([suite], quick=True)
    assert set(figures) == {"a", "b", "a / b", "moved / necessary"}
    assert figures["moved / necessary"] == spread(1, 1, 1)
    suite.write_text(SUITE % False)
    with pytest.raises(SystemExit, match="the benchmarks failed"):
        modules.report.measured([suite], quick=True)


def test_the_suites_measure_every_goal(tmp_path: Path) -> None:
    output = tmp_path / "benchmarks.md"
    finished = subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), "--quick", "--output", str(output)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert output.read_text().strip() == finished.stdout.strip()
    assert "not measured" not in finished.stdout
    ElementTree.parse(output.with_suffix(".svg"))
