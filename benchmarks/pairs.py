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


def speed_ratio(seconds: Seconds, name: str, peer: str) -> dict[str, float]:
    """How many times as fast as `peer`: above 1 means faster."""
    found = [b / a for a, b in zip(seconds[name], seconds[peer], strict=True)]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def report(
    benchmark: Any, seconds: Seconds, pairs: list[tuple[str, str]], amount: float, unit: str
) -> None:
    """Notes the ratios in the benchmark and, at full size, in the report."""
    lines = []
    for name, found in seconds.items():
        rate = amount / statistics.median(found)
        benchmark.extra_info[name] = rate
        lines.append(f"{name}: {rate:.4g} {unit}/s")
    for name, peer in pairs:
        ratio = speed_ratio(seconds, name, peer)
        benchmark.extra_info[f"{name} / {peer}"] = ratio
        lines.append("{} / {}: {median:.2f} ({min:.2f} to {max:.2f})".format(name, peer, **ratio))
    if FULL:
        REPORT.extend(lines)
