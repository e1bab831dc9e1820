"""Ratios beside a peer: both run in turns, round by round, so that a machine whose speed drifts
drifts under both. A figure is the median of the rounds' ratios with the smallest and largest."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

FULL = os.environ.get("RINGHOLD_BENCH") == "full"
ROUNDS = 9 if FULL else 2
REPORT: list[str] = []
"""Lines for the end of the run, at full size."""

Seconds = dict[str, list[float]]
Spread = dict[str, float]
"""median, min and max."""


def in_turns(ways: Mapping[str, Callable[[int], object]], rounds: int = ROUNDS) -> Seconds:
    """Seconds each way took in each round. A way is called with the round's number, from 0,
    which warms up and is not counted."""
    seconds: Seconds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(number)
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def spread_of(found: list[float]) -> Spread:
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def speed_ratio(seconds: Seconds, name: str, peer: str) -> Spread:
    """How many times as fast as `peer`: above 1 means faster."""
    return spread_of([b / a for a, b in zip(seconds[name], seconds[peer], strict=True)])


def report(
    benchmark: Any, seconds: Seconds, pairs: list[tuple[str, str]], amount: float, unit: str
) -> None:
    """Notes in the benchmark the seconds per unit of each way and the ratio of each pair, and at
    full size prints them at the end of the run."""
    lines = []
    for name, found in seconds.items():
        benchmark.extra_info[name] = spread_of([taken / amount for taken in found])
        rate = amount / statistics.median(found)
        lines.append(f"{name}: {rate:.4g} {unit}/s")
    for name, peer in pairs:
        ratio = speed_ratio(seconds, name, peer)
        benchmark.extra_info[f"{name} / {peer}"] = ratio
        lines.append("{} / {}: {median:.2f} ({min:.2f} to {max:.2f})".format(name, peer, **ratio))
    if FULL:
        REPORT.extend(lines)


def figure(benchmark: Any, name: str, values: list[float], unit: str) -> None:
    """Notes what no clock measured, a count or a share of counts, in the same way."""
    spread = benchmark.extra_info[name] = spread_of(values)
    if FULL:
        REPORT.append("{}: {median:.4g} {} ({min:.4g} to {max:.4g})".format(name, unit, **spread))
