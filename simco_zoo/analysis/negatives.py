"""The studies of negatives: which keys they are, how old, and the temperature of an anchor's strength."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

from simco_zoo.analysis.cells import Cell
from simco_zoo.analysis.figure import finish_axes
from simco_zoo.analysis.study import Rows, Settings, Study, mean, series, shown, values
from simco_zoo.report.drawing import RUN_COLORS

TAU_BETAS = (0.1, 1.0, math.inf, 0.2, 0.5, 0.05)
TAU_ALPHA = 0.1
QUEUE_AGE = 16  # batches in the queue of the study ``temperature``: 4,096 keys at the paper's batch of 256
MOMENTUMS = (0.0, 0.9, 0.999)
CONTROLS = {"own": "own\nstrength", "mean": "batch's mean\nstrength", "scaled": "loss / mean\nstrength"}


def _dictionary_cells(settings: Settings) -> Iterator[Cell]:
    sizes = [age * settings.batch_size for age in settings.ages()]
    few, many = sizes[0], sizes[-1]
    wanted = [(vector, scalar, "own") for vector, scalar in product((few, many), repeat=2)]
    wanted += [(few, scalar, control) for scalar in (few, many) for control in ("mean", "scaled")]
    wanted += [(vector, scalar, "own") for vector, scalar in product(sizes, sizes)]
    for vector, scalar, strength in dict.fromkeys(wanted):
        labels = {"vector": vector, "scalar": scalar, "strength": strength}
        yield from settings.cells(
            "dictionaries", {"vector_size": vector, "scalar_size": scalar, "strength": strength}, labels
        )


def _find_dictionaries(rows: Rows, epochs: Rows) -> str:
    own = [row for row in rows if row["strength"] == "own"]
    few, many = values(own, "vector")[0], values(own, "vector")[-1]
    at = {(v, s): shown(mean(own, "knn_top1", vector=v, scalar=s)) for v, s in product((few, many), repeat=2)}
    means, spreads = (
        [shown(mean(own, f"train_strength_{what}", vector=few, scalar=scalar)) for scalar in (few, many)]
        for what in ("mean", "cv")
    )
    controls = [shown(mean(rows, "knn_top1", vector=few, scalar=few, strength=name)) for name in CONTROLS]
    return (
        f"With {few} keys for both, kNN is {at[few, few]}; {many} keys for the strength alone give {at[few, many]}, "
        f"for the direction alone {at[many, few]}, for both {at[many, many]}. The larger dictionary of the strength "
        f"takes its mean from {means[0]} to {means[1]} and its variation from {spreads[0]} to {spreads[1]} (last "
        f"epoch). Controls with {few} keys: all anchors at the batch's mean strength {controls[1]}, the loss divided "
        f"by the mean strength {controls[2]}."
    )


def _draw_dictionaries(figure: Any, rows: Rows, epochs: Rows) -> None:
    heat, lines, bars = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    own = [row for row in rows if row["strength"] == "own"]
    _draw_sizes_crossed(heat, own)
    _draw_one_size(lines, own)
    _draw_controls(bars, rows)


def _draw_sizes_crossed(axes: Any, rows: Rows) -> None:
    sizes = values(rows, "vector")
    grid = [[mean(rows, "knn_top1", vector=vector, scalar=scalar) for scalar in sizes] for vector in sizes]
    image = axes.imshow(grid, origin="lower", cmap="viridis")
    for (i, line), j in product(enumerate(grid), range(len(sizes))):
        color = "white" if image.norm(line[j]) < 0.6 else "black"  # readable on dark and on light cells
        axes.text(j, i, shown(line[j]), ha="center", va="center", fontsize=9, color=color)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_title("kNN top-1", fontsize=11)
    axes.set_xlabel("keys for the strength")
    axes.set_ylabel("keys for the direction")


def _draw_one_size(axes: Any, rows: Rows) -> None:
    few = values(rows, "vector")[0]
    for what, varied, fixed, color in (
        ("strength", "scalar", "vector", RUN_COLORS[0]),
        ("direction", "vector", "scalar", RUN_COLORS[1]),
    ):
        points = series(rows, varied, "knn_top1", **{fixed: few})
        axes.plot(*points, marker="o", color=color, label=f"keys for the {what}")
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=8)
    finish_axes(axes, f"the other one at {few}", "keys", "kNN top-1")


def _draw_controls(axes: Any, rows: Rows) -> None:
    sizes = values(rows, "vector")
    few = sizes[0]
    for number, scalar in enumerate(dict.fromkeys((few, sizes[-1]))):
        heights = [mean(rows, "knn_top1", vector=few, scalar=scalar, strength=name) for name in CONTROLS]
        places = [i + 0.38 * number for i in range(len(CONTROLS))]
        drawn = axes.bar(places, heights, 0.36, color=RUN_COLORS[number], label=f"{scalar} keys for the strength")
        axes.bar_label(drawn, fmt="%.2f", fontsize=7)
    axes.set_xticks([i + 0.19 for i in range(len(CONTROLS))], list(CONTROLS.values()))
    axes.set_xlim(-0.4, len(CONTROLS) - 0.3)
    axes.tick_params(axis="x", labelsize=8)
    finish_axes(axes, f"controls, {few} keys for the direction", "", "kNN top-1")
    axes.legend(frameon=False, fontsize=8)
    _from_lowest(axes, [row["knn_top1"] for row in rows])


DICTIONARIES = Study(
    "dictionaries",
    "The paper expects: the size of the dictionary that gives each anchor's strength matters, that of the dictionary "
    "that gives the direction matters little.",
    ("vector", "scalar", "strength"),
    _dictionary_cells,
    _find_dictionaries,
    _draw_dictionaries,
)


def _temperature_cells(settings: Settings) -> Iterator[Cell]:
    queue = settings.ages(QUEUE_AGE)[-1] * settings.batch_size
    for tau_beta, (negatives, size) in product(TAU_BETAS, {"batch": 0, "queue": queue}.items()):
        arguments = {"vector_size": size, "temperature": TAU_ALPHA, "dt_m": tau_beta / TAU_ALPHA}
        labels = {"negatives": negatives, "keys": size or settings.batch_size - 1, "tau_beta": tau_beta}
        yield from settings.cells("dictionaries", arguments, labels)


def _find_temperature(rows: Rows, epochs: Rows) -> str:
    texts = []
    for negatives in values(rows, "negatives"):
        own = {"negatives": negatives}
        keys = next(row["keys"] for row in rows if row["negatives"] == negatives)
        taus, knn = series(rows, "tau_beta", "knn_top1", **own)
        best = max(range(len(taus)), key=lambda i: knn[i])
        plain = mean(rows, "knn_top1", tau_beta=TAU_ALPHA, **own)
        official = mean(rows, "knn_top1", tau_beta=1.0, **own)
        spread = [mean(rows, "train_strength_cv", tau_beta=tau, **own) for tau in (TAU_ALPHA, 1.0)]
        texts.append(
            f"With {keys} negatives from the {negatives}, kNN is {shown(plain)} at tau_beta = tau_alpha (InfoNCE), "
            f"{shown(official)} at the official 1, and highest, {shown(knn[best])}, at {_tau(taus[best])}; the "
            f"variation of the strength is {shown(spread[0])} at tau_alpha and {shown(spread[1])} at 1."
        )
    return " ".join(texts)


def _draw_temperature(figure: Any, rows: Rows, epochs: Rows) -> None:
    accuracy, spread = figure.subplots(1, 2)
    taus = values(rows, "tau_beta")
    for number, negatives in enumerate(values(rows, "negatives")):
        keys = next(row["keys"] for row in rows if row["negatives"] == negatives)
        style = {"marker": "o", "color": RUN_COLORS[number], "label": f"{keys} from the {negatives}"}
        for axes, column in ((accuracy, "knn_top1"), (spread, "train_strength_cv")):
            found, heights = series(rows, "tau_beta", column, negatives=negatives)
            axes.plot([taus.index(tau) for tau in found], heights, **style)
    for axes in (accuracy, spread):
        axes.set_xticks(range(len(taus)), [_tau(tau) for tau in taus])
        axes.legend(frameon=False, fontsize=8)
    finish_axes(accuracy, "kNN", "tau_beta (tau_alpha is 0.1)", "kNN top-1")
    finish_axes(spread, "how unequally the anchors are moved", "tau_beta", "strength: standard deviation / mean")


TEMPERATURE = Study(
    "temperature",
    "The paper expects: with few negatives accuracy rises with tau_beta and then stays, since the anchors are moved "
    "alike; with a large queue tau_beta changes little.",
    ("negatives", "keys", "tau_beta"),
    _temperature_cells,
    _find_temperature,
    _draw_temperature,
)


def _staleness_cells(settings: Settings) -> Iterator[Cell]:
    size = settings.batch_size
    common = {"dt_m": 10.0}
    yield from settings.cells("dictionaries", common, {"kind": "age", "value": 0.0})
    for age in settings.ages():
        arguments = {**common, "vector_size": size - 1, "skip": (age - 1) * size}
        yield from settings.cells("dictionaries", arguments, {"kind": "age", "value": float(age)})
    for momentum in MOMENTUMS:
        arguments = {**common, "negative_momentum": momentum}
        yield from settings.cells("dictionaries", arguments, {"kind": "momentum", "value": momentum})


def _find_staleness(rows: Rows, epochs: Rows) -> str:
    now = mean(rows, "knn_top1", kind="age", value=0.0)
    texts = []
    for kind, said in {"age": "{:g} steps old {}", "momentum": "momentum {:g} {}"}.items():
        points = zip(*series(rows, "value", "knn_top1", kind=kind), strict=True)
        texts.append(
            ", ".join(said.format(value, shown(knn)) for value, knn in points if (kind, value) != ("age", 0.0))
        )
    return (
        f"kNN with negatives from the same step and encoder as the positives is {shown(now)}; {texts[0] or '?'}; from "
        f"an encoder of their own: {texts[1] or '?'} (the positives have momentum 0.99)."
    )


def _draw_staleness(figure: Any, rows: Rows, epochs: Rows) -> None:
    by_age, by_momentum = figure.subplots(1, 2, sharey=True)
    _draw_kind(by_age, rows, "age", RUN_COLORS[0])
    finish_axes(by_age, "negatives from the queue", "age of the negatives in steps", "kNN top-1")
    _draw_kind(by_momentum, rows, "momentum", RUN_COLORS[1])
    finish_axes(by_momentum, "negatives from the batch", "momentum of the negatives' encoder", "kNN top-1")
    _from_lowest(by_age, [row["knn_top1"] for row in rows])


def _draw_kind(axes: Any, rows: Rows, kind: str, color: str) -> None:
    places, heights = series(rows, "value", "knn_top1", kind=kind)
    drawn = axes.bar([f"{place:g}" for place in places], heights, 0.6, color=color)
    axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    now = mean(rows, "knn_top1", kind="age", value=0.0)
    axes.axhline(now, color="black", linewidth=0.8, linestyle=":")


STALENESS = Study(
    "staleness",
    "The paper expects: accuracy falls when the negatives come from another state of the encoder than the positives, "
    "whether they are older keys or keys of another moving average.",
    ("kind", "value"),
    _staleness_cells,
    _find_staleness,
    _draw_staleness,
)


def _from_lowest(axes: Any, heights: list[float | None]) -> None:
    """Starts the axis of bars a little below the lowest one, which would all look alike from 0 on, and says so."""
    known = [height for height in heights if height is not None]
    room = max(max(known) - min(known), 0.5)
    axes.set_ylim(max(0.0, min(known) - 0.6 * room), max(known) + 0.35 * room)
    axes.set_ylabel("kNN top-1 (axis does not start at 0)")


def _tau(tau: float) -> str:
    return "infinity" if math.isinf(tau) else f"{tau:g}"
