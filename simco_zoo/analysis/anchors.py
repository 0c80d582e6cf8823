"""The study ``strength``: how unequally InfoNCE moves the anchors of one model, without training."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from simco_zoo.analysis.figure import finish_axes, write_figure
from simco_zoo.evaluation.strength import BATCHES, RATIOS, SIZES, TEMPERATURES, gradient_cosines, strengths
from simco_zoo.report.drawing import RUN_COLORS
from simco_zoo.training.log import write_log

EXPECTED = (
    "The paper expects: with few negatives InfoNCE moves its anchors unequally, and a larger dictionary or a higher "
    "temperature makes them equal."
)
STRENGTH_COLUMNS = ("network", "negatives", "temperature", "anchors", "strength_mean", "strength_cv")
GRADIENT_COLUMNS = ("network", "batch_size", "dt_m", "batches", "cosine")

Rows = list[dict[str, Any]]


def measure(z1: Tensor, z2: Tensor, untrained: tuple[Tensor, Tensor] | None = None) -> tuple[Rows, Rows]:
    """Measures strengths and gradient cosines of two views' projections (N, D), and of an untrained network's."""
    found: tuple[Rows, Rows] = [], []
    for network, views in {"trained": (z1, z2), "untrained": untrained}.items():
        if views is not None:
            found[0].extend({"network": network, **row} for row in strengths(*views, SIZES, TEMPERATURES))
            found[1].extend({"network": network, **row} for row in gradient_cosines(*views, BATCHES, RATIOS))
    return found


def as_text(strength_rows: Rows, gradient_rows: Rows) -> str:
    """Returns both tables as Markdown: coefficient of variation (mean) of 1 - p, and cosines."""
    temperatures = sorted({row["temperature"] for row in strength_rows})
    ratios = sorted({row["dt_m"] for row in gradient_rows})
    lines = ["coefficient of variation over the anchors of the strength 1 - p (mean strength)"]
    lines += _header(["negatives", *(f"tau {t:g}" for t in temperatures)])
    for (network, size), rows in groupby(strength_rows, lambda row: (row["network"], row["negatives"])):
        cells = [f"{row['strength_cv']:.2f} ({row['strength_mean']:.2f})" for row in rows]
        lines.append(f"| {size}{_mark(network)} | {' | '.join(cells)} |")
    lines += ["", "cosine between the gradients of dt_m and of dt_m = inf (DCL), tau 0.1"]
    lines += _header(["batch", *(f"dt_m {r:g}" for r in ratios)])
    for (network, size), rows in groupby(gradient_rows, lambda row: (row["network"], row["batch_size"])):
        lines.append(f"| {size}{_mark(network)} | {' | '.join(_cosine(row['cosine']) for row in rows)} |")
    return "\n".join(lines)


def caption(strength_rows: Rows, gradient_rows: Rows, model: str, dataset: str) -> str:
    """Returns what was measured, what the paper expects, and what was found."""
    cv = {(r["network"], r["negatives"], r["temperature"]): r["strength_cv"] for r in strength_rows}
    sizes = sorted({size for network, size, _ in cv if network == "trained"})
    few, many = sizes[0], sizes[-1]
    low, high = min(TEMPERATURES), max(TEMPERATURES)
    found = (
        f"At temperature 0.1 the variation falls from {cv['trained', few, 0.1]:.2f} with {few} negatives to "
        f"{cv['trained', many, 0.1]:.2f} with {many}; with {few} negatives it falls from "
        f"{cv['trained', few, low]:.2f} at temperature {low:g} to {cv['trained', few, high]:.2f} at {high:g}."
    )
    untrained = [value for (network, _, t), value in cv.items() if network == "untrained" and t == 0.1]
    if untrained:
        found += f" In the untrained network it is at most {max(untrained):.2f} at temperature 0.1."
    official = [r["cosine"] for r in gradient_rows if r["network"] == "trained" and r["dt_m"] == 10]
    plain = [r for r in gradient_rows if r["network"] == "trained" and r["dt_m"] == 1]
    if official and plain:
        smallest = min(plain, key=lambda row: row["batch_size"])
        found += (
            f" The gradient of the official dt_m = 10 has a cosine of at least {_cosine(min(official))} with that of "
            f"dt_m = inf, which is DCL; InfoNCE's has {_cosine(smallest['cosine'])} at batch {smallest['batch_size']}."
        )
    anchors = max(row["anchors"] for row in strength_rows)
    return f"{model} on {dataset}, two random views of {anchors} images.\n{EXPECTED}\nFound: {found}"


def report(folder: Path, strength_rows: Rows, gradient_rows: Rows, model: str, dataset: str) -> str:
    """Writes ``strength.csv``, ``gradients.csv`` and ``strength.png`` into a folder; returns the caption."""
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder / "strength.csv", strength_rows, STRENGTH_COLUMNS)
    write_log(folder / "gradients.csv", gradient_rows, GRADIENT_COLUMNS)
    text = caption(strength_rows, gradient_rows, model, dataset)
    write_figure(folder / "strength.png", lambda figure: _draw(figure, strength_rows, gradient_rows), text, width=11)
    return text


def _draw(figure: Any, strength_rows: Rows, gradient_rows: Rows) -> None:
    by_size, by_temperature, cosines = figure.subplots(1, 3)
    for network, style in (("trained", "-"), ("untrained", ":")):
        own = [row for row in strength_rows if row["network"] == network]
        for number, temperature in enumerate(TEMPERATURES[:-1]):
            rows = [row for row in own if row["temperature"] == temperature]
            label = f"tau {temperature:g}" if network == "trained" else None
            _line(by_size, rows, "negatives", "strength_cv", style, number, label)
        for number, size in enumerate(SIZES):
            rows = [row for row in own if row["negatives"] == size]
            label = f"{size} negatives" if network == "trained" and rows else None
            _line(by_temperature, rows, "temperature", "strength_mean", style, number, label)
        for number, size in enumerate(BATCHES):
            rows = [row for row in gradient_rows if row["network"] == network and row["batch_size"] == size]
            label = f"batch {size}" if network == "trained" and rows else None
            _line(cosines, rows, "dt_m", "cosine", style, number, label)
    finish_axes(by_size, "variation of 1 - p over anchors", "negatives", "standard deviation / mean")
    finish_axes(by_temperature, "mean strength 1 - p", "temperature", "mean over anchors")
    finish_axes(cosines, "gradient against DCL's", "dt_m (1 = InfoNCE)", "cosine")
    by_size.set_xscale("log", base=2)
    by_temperature.set_xscale("log")
    cosines.set_xticks(RATIOS)
    for axes in (by_size, by_temperature, cosines):
        axes.legend(frameon=False, fontsize=8)
    if any(row["network"] == "untrained" for row in strength_rows):
        by_size.text(0.98, 0.55, "dotted: untrained", transform=by_size.transAxes, fontsize=8, ha="right")


def _line(axes: Any, rows: Rows, x: str, y: str, style: str, number: int, label: str | None) -> None:
    if rows:
        points = [row[x] for row in rows], [row[y] for row in rows]
        axes.plot(*points, style, color=RUN_COLORS[number], marker="o", markersize=3.5, label=label)


def _header(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def _mark(network: str) -> str:
    return "" if network == "trained" else " (untrained)"


def _cosine(value: float) -> str:
    """Four digits, rounded down: 0.99996 is not 1."""
    return f"{math.floor(value * 1e4) / 1e4:.4f}"
