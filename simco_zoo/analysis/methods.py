"""The studies that compare methods: batch sizes, and what keeps a network from collapsing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

from simco_zoo.analysis.cells import Cell
from simco_zoo.analysis.figure import finish_axes
from simco_zoo.analysis.study import Rows, Settings, Study, mean, series, shown, values
from simco_zoo.report.drawing import RUN_COLORS

BATCHES = (16, 64, 256, 1024)
RATIOS = (1.0, 2.0, 10.0, math.inf)
# method, predictor of SimSiam; the last ones are broken on purpose
VARIANTS: dict[str, tuple[str, str | None]] = {
    "SimCo": ("simco", None),
    "MoCo v2": ("mocov2", None),
    "SimSiam": ("simsiam", "mlp"),
    "SimSiam, bias": ("simsiam", "bias"),
    "SimSiam, mirror": ("simsiam", "mirror"),
    "SimSiam, none": ("simsiam", "none"),
}
BROKEN = ("SimSiam, mirror", "SimSiam, none")


def _batch_cells(settings: Settings) -> Iterator[Cell]:
    sizes = [size for size in BATCHES if size <= 4 * settings.batch_size]
    for ratio, size in product((1.0, 10.0, math.inf, 2.0), sizes):
        yield from settings.cells("simco", {"dt_m": ratio}, {"batch": size, "dt_m": ratio}, batch_size=size)


def _find_batch(rows: Rows, epochs: Rows) -> str:
    texts, limits = [], []
    for size in values(rows, "batch"):
        plain, official, limit = (mean(rows, "knn_top1", batch=size, dt_m=ratio) for ratio in (1.0, 10.0, math.inf))
        texts.append(f"{shown(official - plain, '+')} at batch {size} ({shown(plain)} to {shown(official)})")
        limits.append(shown(limit - official, "+"))
    return (
        f"From dt_m = 1 (InfoNCE) to the official 10 kNN changes by {', '.join(texts)}; from 10 to an infinite dt_m "
        f"(DCL) by {', '.join(limits)}. All cells see the same number of images, and the learning rate is proportional "
        "to the batch."
    )


def _draw_batch(figure: Any, rows: Rows, epochs: Rows) -> None:
    accuracy, gain = figure.subplots(1, 2)
    for number, ratio in enumerate(RATIOS):
        label = {1.0: "dt_m 1 (InfoNCE)", math.inf: "dt_m infinite (DCL)"}.get(ratio, f"dt_m {ratio:g}")
        sizes, heights = series(rows, "batch", "knn_top1", dt_m=ratio)
        style = {"marker": "o", "color": RUN_COLORS[number], "label": label}
        accuracy.plot(sizes, heights, **style)
        plain = [mean(rows, "knn_top1", batch=size, dt_m=1.0) for size in sizes]
        gain.plot(sizes, [height - before for height, before in zip(heights, plain, strict=True)], **style)
    for axes in (accuracy, gain):
        axes.set_xscale("log", base=2)
        axes.legend(frameon=False, fontsize=8)
    finish_axes(accuracy, "SimCo, equal numbers of images", "batch size", "kNN top-1")
    finish_axes(gain, "difference from InfoNCE", "batch size", "points of kNN top-1")


BATCH = Study(
    "batch",
    "The paper expects: the second temperature helps InfoNCE at every batch size; our reading of the gradients is that "
    "it helps most where there are few negatives, and that 10 is as good as infinite.",
    ("batch", "dt_m"),
    _batch_cells,
    _find_batch,
    _draw_batch,
)


def _collapse_cells(settings: Settings) -> Iterator[Cell]:
    for name, (method, predictor) in VARIANTS.items():
        arguments: dict[str, Any] = {}
        if method == "mocov2":
            arguments["queue_size"] = settings.ages(16)[-1] * settings.batch_size
        if predictor is not None:
            # heads as wide as the others'; without the last batch norm, as in the paper
            widths = {"pred_hidden_dim": 64, "proj_hidden_dim": 128, "proj_dim": 128}
            arguments = {"predictor": predictor, "last_norm": False, **widths}
        yield from settings.cells(method, arguments, {"variant": name})


def _find_collapse(rows: Rows, epochs: Rows) -> str:
    texts = []
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        if own:
            center, residual, covariance = (mean(own, column) for column in _CURVES)
            knn = mean(own, "knn_top1")
            end = "collapsed" if math.isnan(knn) else f"kNN {knn:.2f}"
            texts.append(f"{name}: center {center:.2f}, residual {residual:.2f}, covariance {covariance:.2f}, {end}")
    return "; ".join(texts) + "."


_CURVES = {
    "center_norm": "length of the center",
    "residual_norm": "mean length of the residual",
    "off_diagonal_covariance": "off-diagonal covariance",
}


def _draw_collapse(figure: Any, rows: Rows, epochs: Rows) -> None:
    for axes, (column, title) in zip(figure.subplots(1, 3), _CURVES.items(), strict=True):
        for number, name in enumerate(VARIANTS):
            points = series(epochs, "step", column, variant=name)
            style = "--" if name in BROKEN else "-"
            axes.plot(*points, style, marker="o", markersize=3, color=RUN_COLORS[number], label=name)
        finish_axes(axes, title, "step", "")
        if column == "center_norm":
            axes.legend(frameon=False, fontsize=8)
        if column == "off_diagonal_covariance":
            axes.set_yscale("symlog", linthresh=1)


COLLAPSE = Study(
    "collapse",
    'The paper "How Does SimSiam Avoid Collapse" expects: in every method that works the center of the unit vectors '
    "goes to 0 and the residual to 1, and coordinates become uncorrelated; without a predictor, or with one on both "
    "sides, the center goes to 1.",
    ("variant",),
    _collapse_cells,
    _find_collapse,
    _draw_collapse,
)
