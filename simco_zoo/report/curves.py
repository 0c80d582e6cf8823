"""The picture of a run's curves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from simco_zoo.files import atomic_write

PANELS = [
    ("loss", "loss"),
    ("knn_top1", "kNN top-1 (%)"),
    ("online_top1", "online linear probe top-1 (%)"),
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
        axes.set_xlabel("\n".join(["epoch", *([NOTES[column]] if column in NOTES else [])]))
        axes.set_title(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110)
