"""A cell: one training run of a study, and what is measured of it."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from simco_zoo.analysis.dictionary_model import DictionaryModel
from simco_zoo.data import ImageData, load_splits
from simco_zoo.evaluation import diagnose
from simco_zoo.models.factory import create_model
from simco_zoo.training import CollapseError, Interrupted, TrainingError, pretrain

CURVE = ("center_norm", "residual_norm", "off_diagonal_covariance", "strength_mean", "strength_cv")
MEASURED = (
    *("knn_top1", "knn_top5", "loss", "train_strength_mean", "train_strength_cv"),
    *CURVE,
    *("proj_std", "collapsed", "step", "seconds"),
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A training run of a study.

    Attributes:
        labels: What tells the cell from the others of its study, as numbers and texts.
        method: A registered method, or "dictionaries" for ``DictionaryModel``.
        arguments: Arguments of the method.
        training: Settings of ``TrainingConfig``; the seed is also that of the initial weights.
        backbone: timm's name of the backbone.
        start: Published weights that backbone and projector start from, e.g. "simco_r18_025"; None: random ones.
        source: Data set, as ``load_splits`` takes it.
        load: Further arguments of ``load_splits``.
        folder: Folder of the run.
    """

    labels: Row
    method: str
    arguments: Row
    training: Row
    backbone: str
    start: str | None
    source: str
    load: Row = field(default_factory=dict)
    folder: Path = Path()


def check_start(cells: Sequence[Cell]) -> None:
    """Raises ValueError if cells are to continue the weights of another method than theirs."""
    for start in {cell.start for cell in cells if cell.start is not None}:
        method = create_model(start, pretrained=True).method
        for cell in cells:
            if cell.method not in (method, DictionaryModel.method):
                raise ValueError(f"{start} are weights of {method}, but this cell trains {cell.method}.")


def run_cell(cell: Cell) -> tuple[Row, list[Row]]:
    """Trains a cell and measures it; a cell that was interrupted goes on from its checkpoint.

    Returns:
        Its row of the study's table, and a row for the untrained model and for each epoch.

    Raises:
        TrainingError: If the loss is not finite. A collapse is a result, not an error.
        Interrupted: After a signal, with a checkpoint.
    """
    images, test_images = _images(cell.source, tuple(sorted(cell.load.items())))
    seed = cell.training["seed"]
    torch.manual_seed(seed)  # the initial weights
    model = _build(cell)
    curve = [{"step": 0, **_diagnose(model, images, cell)}]
    collapsed = False
    try:
        pretrain(model, images, test_images=test_images, output=cell.folder, progress_bar=False, **cell.training)
    except CollapseError:
        collapsed = True
    log = read_table(cell.folder / "log.csv") if (cell.folder / "log.csv").is_file() else []
    curve += log
    if collapsed:  # its last epoch is in no log, but the model is as that epoch left it
        curve.append({**curve[-1], "knn_top1": None, "proj_std": 0.0, **_diagnose(model, images, cell)})
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    row = {**cell.labels, "seed": seed, **curve[-1], "collapsed": int(collapsed)}
    names = (*cell.labels, "seed", *MEASURED)
    points = [{**cell.labels, "seed": seed, **{n: p.get(n) for n in ("step", "knn_top1", *CURVE)}} for p in curve]
    return {name: row.get(name) for name in names}, points


def run_cells(
    cells: Sequence[Cell], processes: int, finished: Callable[[Cell, tuple[Row, list[Row]]], None]
) -> dict[str, str]:
    """Runs cells, several at once, each in a process of its own if ``processes`` is above 1.

    Args:
        cells: The cells, in the order in which they start.
        processes: Number of cells at once.
        finished: Called with each cell that is done and what ``run_cell`` returned.

    Returns:
        Why a cell's training failed, by the name of its folder; the others do not depend on it.
    """
    failed: dict[str, str] = {}
    if processes == 1:
        for cell in cells:
            try:
                finished(cell, run_cell(cell))
            except TrainingError as error:
                failed[cell.folder.name] = str(error)
        return failed
    threads = max(1, (os.cpu_count() or 1) // processes)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_start_process, initargs=(threads,))
    with _sigterm_raises(), pool:
        running = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            for future in as_completed(running):
                try:
                    finished(running[future], future.result())
                except TrainingError as error:
                    failed[running[future].folder.name] = str(error)
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()  # each writes a checkpoint
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def read_table(path: Path) -> list[Row]:
    """Returns the rows of a CSV file, numbers as numbers and empty fields as None."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM an exception, as Ctrl-C is; outside the main thread nothing is changed."""

    def end(number: int, frame: Any) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start_process(threads: int) -> None:
    """Prepares a process of the pool: the one that started it hears Ctrl-C, and passes it on once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)


@cache
def _images(source: str, load: tuple[tuple[str, Any], ...]) -> tuple[ImageData, ImageData]:
    """Loads the images once per process."""
    images, test_images = load_splits(source, require_labels=True, **dict(load))
    assert test_images is not None  # required
    return images, test_images


def _build(cell: Cell) -> Any:
    if cell.method == DictionaryModel.method:
        return _build_dictionary_model(cell)
    if cell.start is None:
        return create_model(cell.method, backbone=cell.backbone, **cell.arguments)
    return create_model(cell.start, pretrained=True, **cell.arguments)


def _build_dictionary_model(cell: Cell) -> DictionaryModel:
    if cell.start is None:
        return DictionaryModel(create_model("simmoco", backbone=cell.backbone).backbone, **cell.arguments)
    start = create_model(cell.start, pretrained=True)
    sizes = {name: start.method_config()[name] for name in ("proj_hidden_dim", "proj_dim")}
    model = DictionaryModel(start.backbone, **sizes, **cell.arguments)
    model.projector.load_state_dict(start.projector.state_dict())
    return model


def _diagnose(model: Any, images: ImageData, cell: Cell) -> Row:
    limit = max(2, min(cell.training["batch_size"], 512))
    found = diagnose(model, images, limit=limit, seed=cell.training["seed"])
    return {name: round(found[name], 4) for name in CURVE}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
