"""Curves over the epochs: all of one run, or one of several runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from simco_zoo.report.drawing import RUN_COLORS, new_figure, plain_text, save_figure

PANELS = [
    ("loss", "loss"),
    ("knn_top1", "kNN top-1 (%)"),
    ("online_top1", "online linear probe top-1 (%)"),
    ("val_top1", "top-1 on held-out images (%)"),
    ("val_top5", "top-5 on held-out images (%)"),
    ("top1", "top-1 (%)"),
    ("top5", "top-5 (%)"),
    ("proj_std", "deviation of projections (1 = uniform)"),
    ("effective_rank", "effective rank of the features"),
    ("uniformity", "uniformity (lower: fuller)"),
    ("center_norm", "mean projection: length (1 = collapse)"),
    ("strength_mean", "strength 1 - p of the anchors: mean"),
    ("strength_cv", "strength 1 - p: variation (0 = all alike)"),
    ("log_w_q50", "log w of the anchors: median, 5 to 95 %"),
]
NOTES = {
    "log_w_q50": "The wider the band of the factors w, the more\nunequally InfoNCE moves the anchors.",
}


_BANDS = {"log_w_q50": (("log_w_q05", "log_w_q95"), ("log_w_q25", "log_w_q75"))}
_SHORT = 30  # up to that many epochs each has a point


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draws loss, kNN accuracy and diagnostics over the epochs, if matplotlib is installed.

    Args:
        path: The file, ``.png``.
        rows: Rows of the run's ``log.csv``; a value not measured is None, "" or missing.
        title: Above all panels.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return
    panels = [(column, label) for column, label in PANELS if any(column in row for row in rows)] or PANELS[:3]
    height = -(-len(panels) // 3)
    figure = new_figure(12, 3.4 * height + 0.2)
    figure.suptitle(plain_text(title))
    for axes, (column, label) in zip(figure.subplots(height, 3, squeeze=False).flat, panels, strict=False):
        _draw_panel(axes, rows, column, color=RUN_COLORS[0], band_alpha=0.2)
        _finish_panel(axes, column, label)
    save_figure(figure, path, dpi=110)


def draw_runs(path: Path, logs: dict[str, list[dict[str, Any]]], column: str, *, title: str) -> None:
    """Draws one column of several runs' logs over the epochs, each run in its color of ``RUN_COLORS``.

    ``log_w_q50`` gets the bands from 5 to 95 % and from 25 to 75 %.

    Args:
        path: The file, ``.png``.
        logs: Rows of each run's ``log.csv``, by the run's name; a value not measured is None or missing.
        column: What to draw; a run without it is only in the legend's order of colors.
        title: Above the curves.
    """
    columns = 1 if max(map(len, logs)) > 22 else 2
    legend = 0.2 * -(-len(logs) // columns) if len(logs) > 1 else 0.0  # inches
    figure = new_figure(5, 3.4 + legend)
    axes = figure.subplots()
    for number, (name, rows) in enumerate(logs.items()):
        color, line = RUN_COLORS[number % len(RUN_COLORS)], ("-", "--", ":", "-.")[number // len(RUN_COLORS) % 4]
        _draw_panel(axes, rows, column, color=color, line=line, label=name, band_alpha=min(0.15, 0.5 / len(logs)))
    _finish_panel(axes, column, title)
    if legend:
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    save_figure(figure, path, dpi=150)


def _draw_panel(
    axes: Any,
    rows: list[dict[str, Any]],
    column: str,
    *,
    color: str,
    band_alpha: float,
    line: str = "-",
    label: str = "",
) -> None:
    """Draws a column over the epochs, with its bands; nothing if no row has it."""
    known = [row for row in rows if row.get(column) not in (None, "")]
    if not known:
        return
    epochs = [row["epoch"] for row in known]
    marker = "o" if rows[-1]["epoch"] <= _SHORT or len(known) < _SHORT else None
    values = [row[column] for row in known]
    axes.plot(epochs, values, line, color=color, marker=marker, markersize=3.5, label=plain_text(label, 44))
    for low, high in _BANDS.get(column, ()):
        ends = [row[low] for row in known], [row[high] for row in known]
        if len(known) == 1:  # of one epoch a band has no width
            axes.vlines(epochs, *ends, color=color, alpha=0.4, linewidth=2 if low == "log_w_q05" else 5)
        else:
            axes.fill_between(epochs, *ends, color=color, alpha=band_alpha, linewidth=0)


def _finish_panel(axes: Any, column: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(plain_text(title), fontsize=11)
    axes.set_xlabel("\n".join(["epoch", *([NOTES[column]] if column in NOTES else [])]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
