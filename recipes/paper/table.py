"""The table of reproduce.py: its csv file, its summary next to the paper's figures, its picture."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.cells import BATCH_SIZES, METHODS, PAPER, is_full_length
from simco_zoo.files import atomic_write
from simco_zoo.training.log import write_log

COLUMNS = (
    "dataset", "backbone", "method", "batch_size", "seed", "epochs", "images", "stem_padding",
    "knn_last", "knn_best", "linear_last", "linear_best", "online_last", "online_best", "paper",
    "loss", "seconds", "images_per_second", "peak_memory_mb", "jobs", "amp", "compile", "hardware",
    "torch", "timm", "simco_zoo", "folder",
)  # fmt: skip
METRICS = {
    "online_last": "online linear classifier, last epoch",
    "online_best": "online linear classifier, best epoch",
    "linear_last": "linear probe, last epoch",
    "linear_best": "linear probe, epoch of the best kNN",
    "knn_last": "kNN, last epoch",
    "knn_best": "kNN, best epoch",
}
Row = dict[str, Any]
_GROUP = ("dataset", "backbone", "epochs", "images", "stem_padding", "amp")  # rows of a group may be averaged


def read_table(path: Path) -> list[Row]:
    """Reads the rows, values as text; none if there is no file.

    Raises:
        ValueError: If the file has other columns.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} does not have the columns of this recipe; move it away, or pass another --table.")
    return rows


def add_row(path: Path, row: Row) -> None:
    """Writes a row into the table, sorted, in the place of the one of the same folder if there is one."""
    rows = [old for old in read_table(path) if old["folder"] != row["folder"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_log(path, sorted([*rows, row], key=_order), COLUMNS)


def _order(row: Row) -> tuple[Any, ...]:
    names, numbers = ("dataset", "backbone"), ("batch_size", "seed", "epochs", "images", "stem_padding")
    method = list(METHODS).index(row["method"])
    return (*(row[key] for key in names), method, *(int(row[key]) for key in numbers), row["folder"])


def summarize(rows: list[Row], metrics: Sequence[str]) -> str:
    """Returns the summary in Markdown: full-length runs next to the paper's figures, all others in a part of their own.

    Args:
        rows: The table, as ``read_table`` gives it.
        metrics: Which of ``METRICS`` to show.
    """
    full = [row for row in rows if is_full_length(row)]
    parts = ["# The paper's table, measured again", _missing(full)]
    groups = _groups(full)
    if not any(group[0] == "cifar100" for group in groups):
        groups[("cifar100",)] = []  # the paper's figures stand there even if there is nothing to compare them with
    for group in sorted(groups):
        settings = f", {_settings(group[4:])}" if groups[group] else ""
        parts.append(f"## {group[0]}, ResNet-18, 200 epochs{settings}")
        shown = metrics if groups[group] else metrics[:1]
        parts += [_table(groups[group], metric, paper=group[0] == "cifar100") for metric in shown]

    others = _groups([row for row in rows if not is_full_length(row)])
    if others:
        parts.append("# Reduced runs\nOther backbones, epochs or images; not to be compared with the paper's figures.")
    for group in sorted(others):
        dataset, backbone, epochs, images, *settings = group
        parts.append(f"## {dataset}, {backbone}, {epochs} epochs, {images} images, {_settings(settings)}")
        parts += [_table(others[group], metric, paper=False) for metric in metrics]
    return "\n\n".join(parts) + "\n"


def _settings(values: Sequence[str]) -> str:
    padding, amp = values
    return f"stem padding {padding}, {'fp32' if amp == 'none' else amp}"


def _groups(rows: list[Row]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _GROUP), []).append(row)
    return groups


def _missing(full: list[Row]) -> str:
    counts = []
    controls = [method for method in METHODS if method not in PAPER]
    for dataset in ("cifar100", "cifar10"):
        for methods, name in ((list(PAPER), "the paper's methods"), (controls, "the controls")):
            cells = {(method, size) for method in methods for size in BATCH_SIZES}
            found = {(r["method"], int(r["batch_size"])) for r in full if r["dataset"] == dataset} & cells
            counts.append(f"- {dataset}, {name}: {len(found)} of {len(cells)}, {len(cells) - len(found)} missing")
    return (
        "Full-length cells (ResNet-18, 200 epochs, 50,000 images) with at least one seed:\n\n"
        + "\n".join(counts)
        + "\n\nWhich accuracy the paper's figures are is not known; each of ours stands next to them."
    )


def _table(rows: list[Row], metric: str, paper: bool) -> str:
    """Returns methods x batch sizes of one metric."""
    sizes = sorted({*BATCH_SIZES, *(int(row["batch_size"]) for row in rows)}) if paper else []
    sizes = sizes or sorted({int(row["batch_size"]) for row in rows})
    present = {row["method"] for row in rows}
    lines = [["method", *map(str, sizes)]]
    for method in METHODS:
        if method in present or (paper and method in PAPER):
            cells = (spread(rows, method, size, metric) for size in sizes)
            lines.append([method, *(_cell(found) for found in cells)])
        if paper and method in PAPER:
            figures = (PAPER[method].get(size) for size in sizes)
            lines.append(["(paper)", *("-" if figure is None else f"{figure:.2f}" for figure in figures)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    body = ("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
    return f"{METRICS[metric]} ({metric}), top-1 in percent, mean ± std over seeds (their number)\n\n" + "\n".join(body)


def _cell(found: tuple[float, float | None, int] | None) -> str:
    if found is None:
        return "-"
    mean, std, count = found
    return f"{mean:.2f} (1)" if std is None else f"{mean:.2f} ± {std:.2f} ({count})"


def spread(rows: list[Row], method: str, batch_size: int, metric: str) -> tuple[float, float | None, int] | None:
    """Returns mean, standard deviation (of a sample; None for one seed) and number of a cell's seeds; None if empty."""
    chosen = [r for r in rows if r["method"] == method and int(r["batch_size"]) == batch_size]
    values = [float(row[metric]) for row in chosen if row[metric] != ""]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def draw_table(path: Path, rows: list[Row], metrics: Sequence[str]) -> bool:
    """Draws the full-length runs on CIFAR-100 and the paper's points over the batch size; nothing if there are none.

    Returns:
        Whether there was anything to draw.
    """
    groups = _groups([row for row in rows if is_full_length(row) and row["dataset"] == "cifar100"])
    if not groups:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(metrics), 4.6), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    colors = {method: f"C{index}" for index, method in enumerate(METHODS)}
    for axes, metric in zip(panels, metrics, strict=True):
        for method, points in PAPER.items():
            style = {"color": colors[method], "linestyle": "--", "marker": "o", "markerfacecolor": "white"}
            axes.plot(list(points), list(points.values()), label=f"{method}, paper", alpha=0.7, **style)
        for group, marker in zip(sorted(groups), itertools.cycle("osD^v<>P")):
            for method in METHODS:
                sizes = sorted({int(r["batch_size"]) for r in groups[group] if r["method"] == method})
                found = {size: spread(groups[group], method, size, metric) for size in sizes}
                known = {size: point for size, point in found.items() if point is not None}
                if not known:
                    continue
                label = method if len(groups) == 1 else f"{method}, {_settings(group[4:])}"
                means, stds = [p[0] for p in known.values()], [p[1] or 0 for p in known.values()]
                axes.errorbar(
                    list(known), means, yerr=stds, label=label, color=colors[method], marker=marker, capsize=3
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
        axes.set_xlabel("batch size")
        axes.set_title(METRICS[metric], fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("top-1 on CIFAR-100 (%)")
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120)
    return True
