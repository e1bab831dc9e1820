"""Goal: no operation of the C core comes to cost more instructions than were recorded for it.

Method: callgrind counts them in csrc/benchmarks/operations.c and the counts are held against
benchmarks/instructions.json. Another compiler makes other code, so under one that is not the
recorded one the counts are printed and not judged. After a change that is meant to cost more, or
costs less: `python benchmarks/instructions.py --record`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import instructions

    return instructions


def test_a_costlier_operation_is_noticed(instructions: Any) -> None:
    before = instructions.Counts("cc 1", {"lookup": 100.0, "pair": 50.0})
    within = instructions.Counts("cc 1", {"lookup": 104.0, "pair": 20.0})
    beyond = instructions.Counts("cc 1", {"lookup": 106.0, "pair": 50.0, "new": 1.0})
    assert instructions.regressions(within, before) == []
    assert instructions.regressions(beyond, before) == [
        "lookup: 106.0 instructions, recorded 100.0",
        "new: not recorded",
    ]


def test_every_operation_is_recorded(instructions: Any) -> None:
    assert set(instructions.recorded().per_operation) == set(instructions.OPERATIONS)


@pytest.mark.system
def test_operations_cost_what_was_recorded(instructions: Any, tmp_path: Path) -> None:
    now, before = instructions.counted(tmp_path), instructions.recorded()
    print(now)
    if now.compiler == before.compiler:
        assert instructions.regressions(now, before) == [], (
            "if that is meant to be: python benchmarks/instructions.py --record"
        )
