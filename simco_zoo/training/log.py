"""What a run tells: rows of ``log.csv``, the curves' picture, the summary."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

COLUMNS = (
    "epoch",
    "step",
    "loss",
    "proj_std",
    "positive_similarity",
    "lr",
    "knn_top1",
    "knn_top5",
    "images_per_second",
    "seconds",
)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of a run, one per epoch, as csv; a value not measured stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="raise", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes what a finished run ends with, as JSON."""
    write_atomically(path, json.dumps(summary, indent=2) + "\n")


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draws loss, kNN accuracy and projection deviation over the epochs, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    # the figure classes, not pyplot: no global state and no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    panels = (("loss", "loss"), ("knn_top1", "kNN top-1 (%)"), ("proj_std", "deviation of projections (1 = uniform)"))
    for axes, (column, label) in zip(figure.subplots(1, 3), panels, strict=True):
        points = [(row["epoch"], row[column]) for row in rows if row.get(column) not in (None, "")]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_title(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_name("partial-" + path.name)
    figure.savefig(partial, dpi=110)
    os.replace(partial, path)


def hardware(device: torch.device) -> str:
    """Names the machine that a run used, for its card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'s' if threads > 1 else ''}"
