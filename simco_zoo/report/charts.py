"""Charts of accuracies: bars of a model next to its baselines, and a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from simco_zoo.report.drawing import RUN_COLORS, new_figure, plain_text, save_figure

_BASELINE = "#b8bfc6"
_FEW = 30  # classes whose names fit next to a matrix
_COUNTED = 16  # classes whose numbers fit into it


def draw_bars(path: Path, values: Mapping[str, float], *, highlight: Sequence[str] = (), title: str = "") -> None:
    """Draws accuracies as horizontal bars with their values.

    Args:
        path: The file, ``.png``.
        values: Accuracies in percent, by what has them; the first is on top.
        highlight: Those that are not baselines, in color.
        title: Above the bars.
    """
    names = list(values)
    figure = new_figure(7, 0.9 + 0.42 * len(names))
    axes = figure.subplots()
    colors = [RUN_COLORS[0] if name in highlight else _BASELINE for name in names]
    bars = axes.barh([plain_text(name, 60) for name in names], list(values.values()), color=colors, height=0.68)
    axes.bar_label(bars, fmt=" %.1f", fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, *values.values()) * 1.12)
    axes.set_title(plain_text(title), fontsize=11)
    axes.set_xlabel("top-1 accuracy (%)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    save_figure(figure, path)


def draw_confusion(path: Path, confusion: Tensor, names: Sequence[str], *, title: str = "") -> None:
    """Draws a confusion matrix; each row is a true class, in shares of its images.

    Args:
        path: The file, ``.png``.
        confusion: Counts (C, C): row is the true class, column the predicted one.
        names: Names of the classes; up to 30 are written next to the matrix.
        title: Above the matrix.
    """
    count = len(confusion)
    shares = 100 * confusion.double() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(12.0, max(4.0, 0.42 * count)) if count <= _FEW else 9.0
    figure = new_figure(side + 1.6, side + 1.0)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class (%)")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(plain_text(title), fontsize=11)
    if count <= _FEW:
        texts = [plain_text(str(name), 18) for name in names]
        axes.set_xticks(range(count), texts, rotation=90, fontsize=9)
        axes.set_yticks(range(count), texts, fontsize=9)
    if count <= _COUNTED:
        for row, column in torch.nonzero(confusion).tolist():
            color = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, int(confusion[row, column]), ha="center", va="center", fontsize=8, color=color)
    save_figure(figure, path)
