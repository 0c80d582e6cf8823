"""Labels of every kind as class numbers, the same in all splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# columns that are taken for labels, in this order
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "targets", "class", "category")
# numbers up to here are taken as class numbers; larger ones (ids, codes) are classes named after their value
LARGEST_CLASS_NUMBER = 100_000


def encode_labels(
    columns: Mapping[str, Sequence[Any] | None], source: str, names: list[str] | None = None
) -> tuple[dict[str, Tensor | None], list[str] | None]:
    """Turns the labels of all splits into class numbers.

    Integers stay as they are; booleans and strings become classes in sorted order, with one list for all splits. None
    and -1 mean that a row has no label.

    Args:
        columns: The labels of each split: integers, booleans, strings or None.
        source: What the source is called, for errors.
        names: Names of the classes, if they are known.

    Returns:
        int64 labels (N,) of each split, -1 where there is none, None for a split without any; and the classes' names.

    Raises:
        ValueError: If labels are of another type, or of several.
    """
    splits = {split: [_plain(value) for value in values] for split, values in columns.items() if values is not None}
    kinds = {type(value) for values in splits.values() for value in values if value is not None}
    if kinds - {int, bool, str} or len(kinds) > 1:
        found = next(v for values in splits.values() for v in values if v is not None and type(v) is not int)
        raise ValueError(
            f"the labels of {source} hold {found!r}, a {type(found).__name__}; labels are integers, booleans or names, "
            "all of one kind. Name another column with label_column (--label-column), or 'none' to go without labels."
        )
    values = {value for rows in splits.values() for value in rows if value is not None}
    if kinds == {int}:
        values.discard(-1)
        if any(value < 0 for value in values):
            raise ValueError(
                f"the labels of {source} hold {min(values)}; class numbers start at 0, and -1 means no label."
            )
        if values and max(values) > LARGEST_CLASS_NUMBER:
            ordered = sorted(values)
            numbers, names = {value: i for i, value in enumerate(ordered)}, [str(value) for value in ordered]
        else:
            numbers = {value: value for value in values}
            if names is not None and values and max(values) >= len(names):
                raise ValueError(f"the labels of {source} go up to {max(values)}, but it names {len(names)} classes.")
    else:
        ordered = [False, True] if kinds == {bool} else sorted(values)
        numbers, names = {value: i for i, value in enumerate(ordered)}, [str(value) for value in ordered] or None
    encoded: dict[str, Tensor | None] = dict.fromkeys(columns)
    for split, rows in splits.items():
        labels = torch.tensor([numbers.get(value, -1) for value in rows], dtype=torch.long)
        encoded[split] = labels if (labels >= 0).any() else None
    return encoded, names


def _plain(value: Any) -> Any:
    """Returns numpy's and torch's scalars as Python's own; a float that is not a number means that there is none."""
    if isinstance(value, np.generic | Tensor) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item() if getattr(value, "size", 1) == 1 or isinstance(value, Tensor) else value
    return None if isinstance(value, float) and value != value else value


def align_labels(labels: Tensor, names: list[str], wanted: list[str]) -> tuple[Tensor, list[str]]:
    """Renumbers labels by the classes' names.

    Args:
        labels: Class numbers (N,), -1: no label.
        names: Their names.
        wanted: The names in the order wanted.

    Returns:
        The labels in the wanted numbering, and the classes that it lacks, which are numbered behind it.
    """
    numbers = {name: i for i, name in enumerate(wanted)}
    unknown = [name for i, name in enumerate(names) if name not in numbers and (labels == i).any()]
    numbers.update({name: len(wanted) + i for i, name in enumerate(unknown)})
    # the last entry is what -1 becomes
    return torch.tensor([numbers.get(name, -1) for name in names] + [-1], dtype=torch.long)[labels], unknown
