"""The log of a run: ``log.csv``, its curves, and the summary."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from simco_zoo.files import write_text
from simco_zoo.report.curves import draw_curves

DRAW_EVERY = 30.0  # seconds between two pictures of a run; the last one is always drawn
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
    "center_norm",
    "residual_norm",
    "off_diagonal_covariance",
    "strength_mean",
    "strength_cv",
    "log_w_q05",
    "log_w_q25",
    "log_w_q50",
    "log_w_q75",
    "log_w_q95",
    "images_per_second",
    "seconds",
)


def write_log(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Writes the rows of a run, one per epoch, as csv; a value not measured stays empty.

    Columns that are not among ``columns``, e.g. of a method of one's own, follow them.
    """
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class Log:
    """``log.csv`` and ``curves.png`` of a run.

    Args:
        folder: The run's folder.
        columns: The first columns.
    """

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self.folder, self.columns = folder, tuple(columns)
        self._drawn = -math.inf  # when the curves were drawn last

    def write(self, rows: list[dict[str, Any]], final: bool) -> None:
        """Writes the rows and, not more often than every ``DRAW_EVERY`` seconds unless ``final``, the curves."""
        write_log(self.folder / "log.csv", rows, self.columns)
        if final or time.monotonic() - self._drawn > DRAW_EVERY:  # a picture takes longer than a fast epoch
            draw_curves(self.folder / "curves.png", rows, self.folder.name)
            self._drawn = time.monotonic()


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes what a finished run ends with, as JSON."""
    write_text(path, json.dumps(summary, indent=2) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """Reads what ``write_summary`` wrote."""
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


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
