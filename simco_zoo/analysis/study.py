"""What the studies that train have in common: cells, a table with a row per cell, a figure with a caption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import variance
from typing import Any

from simco_zoo.analysis.cells import Cell, Row, check_start, read_table, run_cells
from simco_zoo.analysis.figure import write_figure
from simco_zoo.files import write_text
from simco_zoo.training.log import write_log

Rows = list[Row]


@dataclass(frozen=True)
class Settings:
    """What the cells of a study have in common.

    Attributes:
        source: Data set, as ``load_splits`` takes it.
        backbone: timm's name of the backbone.
        start: Published weights that each cell starts from, by name or as "local-dir:FOLDER"; None: random ones.
        steps: Optimizer's steps of a cell.
        batch_size: Images per step.
        lr: Learning rate for 256 images per step.
        image_size: Side in pixels of images and views; None: the images' own.
        limit: Images of each split, at most; None for all.
        amp: "none", "bf16" or "fp16".
        device: As in ``TrainingConfig``.
        seeds: Seeds; each cell runs once with each.
        columns: Further arguments of ``load_splits``, e.g. ``label_column``.
    """

    source: str = "photos"
    backbone: str = "simco_r18_025"
    start: str | None = None
    steps: int = 2000
    batch_size: int = 256
    lr: float = 0.06
    image_size: int | None = None
    limit: int | None = None
    amp: str = "none"
    device: str = "auto"
    seeds: tuple[int, ...] = (0,)
    columns: Row = field(default_factory=dict)

    def cells(self, method: str, arguments: Row, labels: Row, batch_size: int | None = None) -> list[Cell]:
        """Returns a cell for each seed; with another batch size it sees as many images in all."""
        size = batch_size or self.batch_size
        steps = max(1, self.steps * self.batch_size // size)
        training = {
            "epochs": steps,  # an upper bound: max_steps ends the run
            "max_steps": steps,
            "batch_size": size,
            "lr": self.lr,
            "amp": self.amp,
            "device": self.device,
            "knn_every": 0,
            "linear": False,
            "tensorboard": False,
            "keep_checkpoints": 1,
        }
        load = {**self.columns, "image_size": self.image_size, "limit": self.limit}
        shared = (self.backbone, self.start, self.source, load)
        return [Cell(labels, method, arguments, {**training, "seed": seed}, *shared) for seed in self.seeds]

    def ages(self, most: int = 64) -> list[int]:
        """Returns 1, 4, 16, 64: numbers of batches that a queue holds after an eighth of the steps, at most."""
        return [age for age in (1, 4, 16, 64) if age <= min(most, max(1, self.steps // 8))]


@dataclass(frozen=True)
class Study:
    """A question that training runs answer.

    Attributes:
        name: What the command calls it.
        expected: What the paper expects, in one sentence.
        labels: Columns of the table that tell its cells apart.
        make_cells: Returns the cells, in the order in which they run.
        find: Says what the rows show, in a few sentences.
        draw: Draws the rows of the table and those of the epochs into a subfigure.
    """

    name: str
    expected: str
    labels: tuple[str, ...]
    make_cells: Callable[[Settings], Iterable[Cell]]
    find: Callable[[Rows, Rows], str]
    draw: Callable[[Any, Rows, Rows], None]


def run_study(
    study: Study,
    settings: Settings,
    output: Path,
    processes: int = 1,
    max_cells: int | None = None,
    say: Callable[[str], None] = print,
) -> tuple[str, dict[str, str]]:
    """Runs the cells of a study that have no row yet, and writes its tables and its figure.

    ``NAME.csv`` has a row per cell, ``NAME_epochs.csv`` one per cell and epoch, ``NAME.png`` the figure and
    ``NAME.txt`` its caption. A cell whose row is there is not run again.

    Args:
        study: The study.
        settings: What its cells have in common.
        output: Folder of the results.
        processes: Number of cells at once.
        max_cells: Run at most that many cells and leave the others for another call; 0 only draws, None runs all.
        say: Called with a line for each cell that is done.

    Returns:
        The caption, and the error of each cell that failed by its name.

    Raises:
        ValueError: If the folder holds results of other settings, the weights to start from are those of another method
            than a cell's, or no cell has been finished.
    """
    cells = {_name(study, cell.labels, cell.training["seed"]): cell for cell in study.make_cells(settings)}
    check_start(list(cells.values()))
    output.mkdir(parents=True, exist_ok=True)
    _check_settings(output / f"{study.name}_settings.json", settings)
    tables = [output / f"{study.name}.csv", output / f"{study.name}_epochs.csv"]
    rows, points = ([] if not path.is_file() else read_table(path) for path in tables)
    done = {_name(study, row, row["seed"]) for row in rows}
    waiting = [_placed(cell, output / "cells" / name) for name, cell in cells.items() if name not in done]
    say(f"{study.name}: {len(cells)} cells, {len(cells) - len(waiting)} of them done before")

    def finished(cell: Cell, found: tuple[Row, Rows]) -> None:
        rows.append(found[0])
        points.extend(found[1])
        write_log(tables[1], points, (*study.labels, "seed"))  # first: a row says that all of its cell is there
        write_log(tables[0], rows, (*study.labels, "seed"))
        knn = found[0]["knn_top1"]
        say(f"{cell.folder.name}: {'collapsed' if knn is None else f'kNN {knn:.2f} %'}")

    failed = run_cells(waiting[:max_cells], processes, finished)
    if not rows:
        raise ValueError(f"no cell of {study.name} was finished: {next(iter(failed.values()), 'there is none')}")
    described = _describe(settings, study.labels, rows, len(cells))
    caption = f"{described}\n{study.expected}\nFound: {study.find(rows, points)}"
    figure = output / f"{study.name}.png"
    write_figure(figure, lambda drawn: study.draw(drawn, rows, points), caption, width=10)
    return caption, failed


def mean(rows: Rows, column: str, **labels: Any) -> float:
    """Returns the mean of a column over the rows with these labels (the seeds); NaN if there is none."""
    values = [row[column] for row in rows if _matches(row, labels) and row.get(column) is not None]
    return sum(values) / len(values) if values else math.nan


def shown(value: float, sign: str = "") -> str:
    """Returns how a caption writes a mean; one whose cells have not been run is a question mark."""
    return "?" if math.isnan(value) else f"{value:{sign}.2f}"


def series(rows: Rows, x: str, y: str, **labels: Any) -> tuple[list[Any], list[float]]:
    """Returns the sorted values of a label, and the means of a column at each, of the rows with other labels given."""
    places = sorted({row[x] for row in rows if _matches(row, labels) and row.get(y) is not None})
    return places, [mean(rows, y, **{**labels, x: place}) for place in places]


def values(rows: Rows, label: str) -> list[Any]:
    """Returns the values of a label, sorted."""
    return sorted({row[label] for row in rows})


def _matches(row: Row, labels: Row) -> bool:
    return all(row.get(name) == value for name, value in labels.items())


def _name(study: Study, row: Row, seed: int) -> str:
    labels = {name: row[name] for name in study.labels} | {"seed": seed}
    texts = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in labels.items())
    return "-".join(texts)


def _placed(cell: Cell, folder: Path) -> Cell:
    return Cell(**{**cell.__dict__, "folder": folder})


def _check_settings(path: Path, settings: Settings) -> None:
    """Writes the settings into the results' folder, or raises ValueError if others are there."""
    now = json.loads(json.dumps({name: value for name, value in asdict(settings).items() if name != "seeds"}))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"{path.parent} holds results with another {', '.join(changed)}; pass the same settings, or another "
                "--output."
            )
    write_text(path, json.dumps(now, indent=2) + "\n")


def _describe(settings: Settings, labels: tuple[str, ...], rows: Rows, total: int) -> str:
    start = settings.backbone if settings.start is None else f"from the weights of {Path(settings.start).name}"
    side = f" at {settings.image_size} px" if settings.image_size else ""
    seeds = len(values(rows, "seed"))
    state = "" if len(rows) >= total else f" {len(rows)} of {total} cells are finished."
    return (
        f"{start} on {Path(settings.source).name}{side}, {settings.steps} steps of {settings.batch_size} images per "
        f"cell, {f'{seeds} seeds' if seeds > 1 else 'one seed'}; kNN top-1 in percent.{_noise(labels, rows)}{state}"
    )


def _noise(labels: tuple[str, ...], rows: Rows) -> str:
    """Says how far the seeds of a cell differ: the standard deviation, pooled over the cells with several seeds."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["knn_top1"] is not None:
            cells.setdefault(tuple(row[label] for label in labels), []).append(row["knn_top1"])
    repeated = [found for found in cells.values() if len(found) > 1]
    if not repeated:
        return ""
    squares = sum(variance(found) * (len(found) - 1) for found in repeated)
    deviation = math.sqrt(squares / sum(len(found) - 1 for found in repeated))
    return f" The seeds of a cell differ by a standard deviation of {deviation:.2f} ({len(repeated)} cells)."
