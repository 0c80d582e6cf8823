"""Timing two calls in turns, and the rows that come of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Row = dict[str, Any]
Call = Callable[[], Any]


def compare(what: str, ours: Call, baseline: Call, runs: int, aim: float, inverse: bool = False) -> Row:
    """Times both in turns. The ratio is ours / baseline in time, or with ``inverse`` in throughput."""
    times = in_turns(ours, baseline, runs)
    return judge(what, [b / a if inverse else a / b for a, b in times], aim, inverse)


def in_turns(ours: Call, baseline: Call, runs: int, device: torch.device | None = None) -> list[tuple[float, float]]:
    """Returns the seconds of both calls, pair by pair, after one unmeasured call of each.

    Every other pair begins with the baseline, so that neither always follows the other.
    """
    seconds_of(ours, device), seconds_of(baseline, device)
    pairs = []
    for run in range(runs):
        calls = (ours, baseline) if run % 2 == 0 else (baseline, ours)
        spent = [seconds_of(call, device) for call in calls]
        pairs.append((spent[run % 2], spent[1 - run % 2]))
    return pairs


def seconds_of(call: Call, device: torch.device | None = None) -> float:
    """Returns how long a call takes, until the device is done with it."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device | None) -> None:
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)


def repeated(call: Call, times: int) -> Call:
    """Returns a call that makes several."""

    def all_of_them() -> None:
        for _ in range(times):
            call()

    return all_of_them


def judge(what: str, ratios: list[float], aim: float, at_least: bool = False) -> Row:
    """Makes the row of a figure with an aim: an upper bound, or a lower one with ``at_least``."""
    row = report(what, ratios)
    ratio = statistics.median(ratios)
    row["aim"] = f"{'>=' if at_least else '<='} {aim}"
    row["met"] = ratio >= aim if at_least else ratio <= aim
    return row


def report(what: str, values: list[float]) -> Row:
    """Makes the row of a figure that has no aim."""
    low, high = min(values), max(values)
    figures = {"ratio": statistics.median(values), "lowest": low, "highest": high}
    return {"what": what, **{name: float(f"{value:.3g}") for name, value in figures.items()}, "aim": "-", "met": None}
