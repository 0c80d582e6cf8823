"""Which classes are taken for which: tables, and a picture."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from simco_zoo.evaluation.metrics import per_class_accuracy
from simco_zoo.files import write_text
from simco_zoo.report.charts import draw_confusion

FILES = ("per_class.csv", "confusion.csv", "confusion.png")  # what ``write_confusion`` writes


def write_confusion(folder: Path, confusion: Tensor, names: Sequence[str], *, title: str = "") -> None:
    """Writes ``per_class.csv``, ``confusion.csv`` and, if matplotlib is installed, ``confusion.png``.

    Args:
        folder: Where to write.
        confusion: Counts (C, C): row is the true class, column the predicted one.
        names: Names of the classes.
        title: Above the picture.
    """
    counts, shares = confusion.tolist(), per_class_accuracy(confusion).tolist()
    found = zip(names, map(sum, counts), shares, strict=True)
    accuracies = [(name, images, f"{share:.3f}" if images else "") for name, images, share in found]
    _write_table(folder / "per_class.csv", [("class", "images", "accuracy"), *accuracies])
    rows = [(name, *row) for name, row in zip(names, counts, strict=True)]
    _write_table(folder / "confusion.csv", [("true class", *names), *rows])
    if importlib.util.find_spec("matplotlib") is not None:
        draw_confusion(folder / "confusion.png", confusion, names, title=title)


def _write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
