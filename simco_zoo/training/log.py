"""What a run tells: rows of ``log.csv``, the curves' picture, the summary."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from simco_zoo.files import replacing, write_text

COLUMNS = (
    "epoch",
    "step",
    "loss",
    "proj_std",
    "positive_similarity",
    "lr",
    "knn_top1",
    "knn_top5",
    "online_top1",
    "online_top5",
    "alignment",
    "uniformity",
    "effective_rank",
    "log_w_q05",
    "log_w_q25",
    "log_w_q50",
    "log_w_q75",
    "log_w_q95",
    "images_per_second",
    "seconds",
)


def write_log(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Writes the rows of a run, one per epoch, as csv; a value not measured stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="raise", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


PANELS = [
    ("loss", "loss"),
    ("knn_top1", "kNN top-1 (%)"),
    ("online_top1", "online linear probe top-1 (%)"),
    ("top1", "top-1 (%)"),
    ("top5", "top-5 (%)"),
    ("proj_std", "deviation of projections (1 = uniform)"),
    ("effective_rank", "effective rank of the features"),
    ("uniformity", "uniformity (lower: fuller)"),
    ("log_w_q50", "log w of the anchors: median, 5 to 95 %"),
]


DRAW_EVERY = 30.0  # seconds between two pictures of a run; the last one is always drawn


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes what a finished run ends with, as JSON."""
    write_text(path, json.dumps(summary, indent=2) + "\n")


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draws loss, kNN accuracy and diagnostics over the epochs, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    # the figure classes, not pyplot: no global state and no display
    from matplotlib.figure import Figure

    panels = [(column, label) for column, label in PANELS if any(column in row for row in rows)] or PANELS[:3]
    height = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 3.4 * height + 0.2), layout="constrained")
    figure.suptitle(title)
    for axes, (column, label) in zip(figure.subplots(height, 3, squeeze=False).flat, panels, strict=False):
        known = [row for row in rows if row.get(column) not in (None, "")]
        epochs = [row["epoch"] for row in known]
        if known:
            values = [row[column] for row in known]
            axes.plot(epochs, values, marker="o" if len(known) < 30 else None, markersize=4)
        if column == "log_w_q50":
            for low, high in (("log_w_q05", "log_w_q95"), ("log_w_q25", "log_w_q75")):
                ends = ([row[low] for row in known], [row[high] for row in known])
                axes.fill_between(epochs, *ends, color="C0", alpha=0.2, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_title(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def hardware(device: torch.device) -> str:
    """Names the machine that a run used, for its card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'s' if threads > 1 else ''}"


def peak_memory_mb(device: torch.device) -> float | None:
    """Returns the most memory in MB that the process has held: of a GPU what torch allocated there, else its own.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    if importlib.util.find_spec("resource") is None:  # Windows
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
