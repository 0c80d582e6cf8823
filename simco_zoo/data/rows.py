"""A source of images as rows: how to open each, its name, its label, and which split it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from simco_zoo.data.subsets import holdout

# what a split may be called; upper and lower case are the same
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "validation", "valid", "val", "dev"),
    "validation": ("validation", "valid", "val", "dev"),
}
_CANONICAL = {"training": "train", "testing": "test", "eval": "test", "valid": "validation", "val": "validation"}
_CANONICAL |= {"dev": "validation"} | {name: name for name in ("train", "test", "validation")}


def is_split_name(name: str) -> bool:
    """Whether a folder of this name is taken for a split."""
    return name.casefold() in _CANONICAL


def canonical_split(name: str) -> str:
    """Returns "train", "validation" or "test" for another name of it, and any other name as it is."""
    return _CANONICAL.get(name.casefold(), name)


@dataclass(frozen=True)
class Rows:
    """One split of a source.

    Attributes:
        names: Name of each image.
        open_image: Opens the image of a row without decoding it.
        labels: int64 (N,), -1 where a row has no label; None if none has.
        images: The pixels if they are in memory, uint8 (N, 3, H, W).
        skipped: (name, reason) of each image that was left out.
        splits: The split of each row, where several were put together.
    """

    names: list[str]
    open_image: Callable[[int], Image.Image]
    labels: Tensor | None = None
    images: Tensor | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    splits: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Sequence[int]) -> Rows:
        """Returns some of the rows, in the order given."""
        return replace(
            self,
            names=[self.names[i] for i in rows],
            open_image=Subset(self.open_image, rows),
            labels=None if self.labels is None else self.labels[torch.as_tensor(rows, dtype=torch.long)],
            images=None if self.images is None else self.images[torch.as_tensor(rows, dtype=torch.long)],
            splits=None if self.splits is None else [self.splits[i] for i in rows],
        )

    def spaced(self, limit: int) -> Rows:
        """Returns at most ``limit`` rows, evenly spaced, so that a source in the order of its classes keeps them."""
        if limit < 1:
            raise ValueError(f"limit is {limit}, but has to be at least 1 (or None for all images).")
        if limit >= len(self):
            return self
        return self.select([i * len(self) // limit for i in range(limit)])


@dataclass
class Subset:
    """Opens the i-th of some rows; a class, so that workers can have it."""

    open_row: Callable[[int], Any]
    rows: Sequence[int]

    def __call__(self, index: int) -> Any:
        return self.open_row(self.rows[index])


@dataclass
class _Concatenated:
    """Opens row i of several parts, one after the other."""

    parts: list[Callable[[int], Any]]
    ends: list[int]

    def __call__(self, index: int) -> Any:
        part = next(i for i, end in enumerate(self.ends) if index < end)
        return self.parts[part](index - (self.ends[part - 1] if part else 0))


@dataclass
class Source:
    """Everything a source holds: its splits and one list of classes for all of them.

    Attributes:
        name: What the source is called in messages and in the model's card.
        splits: The rows of each split, by the source's own name of it.
        class_names: Names of the labels, or None.
        divided: Whether the source has splits at all; if not, its rows stand under "train".
        in_memory: Whether it was passed as an object; such a source gives all its rows whatever split is asked for.
        notes: Sentences about what was left out or decided.
    """

    name: str
    splits: dict[str, Rows]
    class_names: list[str] | None = None
    divided: bool = True
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)

    def find_split(self, split: str) -> str | None:
        """Returns the source's own name of a split, or None; "test" is what there is in its place."""
        own = {name.casefold(): name for name in reversed(self.splits)}
        for candidate in (split.casefold(), *SPLIT_NAMES.get(split.casefold(), ())):
            if candidate in own:
                return own[candidate]
        return None

    def rows(self, split: str, val_fraction: float | None = None, seed: int = 0) -> Rows:
        """Returns the rows of a split.

        Args:
            split: "train", "test", any name that the source has, or "all".
            val_fraction: Share of each class that is held out as "test" if the source has no test split.
            seed: Seed of the hold-out.

        Raises:
            ValueError: If the split does not exist.
        """
        if split == "all":
            return self._all_rows()
        train, test, found = self.find_split("train"), self.find_split("test"), self.find_split(split)
        if train is not None and test is None and val_fraction is not None and split in ("train", "test"):
            rows = self.splits[train]
            kept, held_out = holdout(rows.labels, len(rows), val_fraction, seed)
            return rows.select(kept if split == "train" else held_out)
        if found is not None:
            return self.splits[found]
        if self.in_memory and not self.divided:
            return next(iter(self.splits.values()))
        if not self.divided:
            raise ValueError(
                f"{self.name} is not divided into splits, so it has no {split!r}; pass val_fraction=0.2 (on the "
                "command line --val-fraction 0.2) to hold out a part of it, or give it folders train/ and test/."
            )
        raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}.")

    def _all_rows(self) -> Rows:
        if len(self.splits) == 1:
            return next(iter(self.splits.values()))
        parts = list(self.splits.items())
        labels = None
        if any(rows.labels is not None for _, rows in parts):
            labels = torch.cat(
                [torch.full((len(rows),), -1) if rows.labels is None else rows.labels for _, rows in parts]
            )
        images = [rows.images for _, rows in parts if rows.images is not None]
        # tables name their rows "split/number" already
        names = [n if n.startswith(f"{split}/") else f"{split}/{n}" for split, rows in parts for n in rows.names]
        return Rows(
            names,
            _Concatenated([rows.open_image for _, rows in parts], list(accumulate(len(rows) for _, rows in parts))),
            labels,
            torch.cat(images) if len(images) == len(parts) else None,
            [entry for _, rows in parts for entry in rows.skipped],
            [split for split, rows in parts for _ in rows.names],
        )
