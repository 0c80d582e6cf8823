"""Parts of the labels: balanced subsets, stratified hold-outs, and classes too small to learn from."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from simco_zoo.data.images import ImageData


def balanced_subset(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Draws the same share of every class, at least one image of each (the field's 1 % and 10 % of the labels).

    Args:
        labels: Class numbers (N,).
        fraction: Share in (0, 1].
        seed: Seed of the draw.

    Returns:
        Row numbers in ascending order.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the share of the labels is {fraction}, but has to lie in (0, 1].")
    chosen = [rows[: max(1, round(fraction * len(rows)))] for rows in _shuffled_classes(labels, seed)]
    return torch.cat(chosen).sort().values


def holdout(labels: Tensor | None, count: int, fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Divides rows into a part to train on and a held-out part with the same share of every class.

    A class with a single image stays in the first part. Rows without a label (-1) count as a class of their own.

    Args:
        labels: Class numbers (N,), or None: the rows are divided as one class.
        count: Number of rows N.
        fraction: Share in (0, 1) that is held out.
        seed: Seed of the draw.

    Returns:
        Row numbers of both parts, in ascending order.

    Raises:
        ValueError: If the share is out of range or leaves one of the parts empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction is {fraction}, but has to lie between 0 and 1.")
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    held_out: set[int] = set()
    for rows in _shuffled_classes(labels, seed):
        share = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held_out.update(rows[:share].tolist())
    if not held_out:
        raise ValueError("no class has two images, so none can be held out; use more images.")
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def _shuffled_classes(labels: Tensor, seed: int) -> list[Tensor]:
    """Returns the rows of each class in random order."""
    shuffled = []
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).squeeze(1)
        # a generator per class: more images of one class change nothing of another
        entropy = int(np.random.SeedSequence([seed, max(label, 0)]).generate_state(1, np.uint32)[0])
        shuffled.append(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(entropy))])
    return shuffled


def warn_of_small_classes(images: ImageData) -> None:
    """Names the classes with a single image: whether it is learned or tested, the other part has none."""
    if images.labels is None:
        return
    classes, counts = images.labels[images.labels >= 0].unique(return_counts=True)
    single = classes[counts == 1].tolist()
    if single:
        names = [images.class_names[i] if images.class_names else str(i) for i in single]
        plural = len(names) > 1
        warnings.warn(
            f"{'the classes' if plural else 'the class'} {shorten(names)} of {images.source} "
            f"{'have' if plural else 'has'} one image{' each' if plural else ''}: nothing general can be learned of "
            f"{'them' if plural else 'it'}.",
            stacklevel=3,
        )


def shorten(names: list[str], shown: int = 5) -> str:
    """Joins names for a message, the first few of many."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def split_holdout(images: ImageData, share: float, seed: int) -> tuple[ImageData, ImageData | None]:
    """Splits labeled images into those to train on and those that choose the epoch.

    Args:
        images: Labeled images.
        share: Share of each class that is held out, in [0, 1).
        seed: Seed of the choice.

    Returns:
        Both parts; the second is None if ``share`` is 0 or no class has two images.
    """
    assert images.labels is not None
    if not share or int(images.labels.bincount().max()) < 2:
        return images, None
    trained, held_out = holdout(images.labels, len(images), share, seed)
    return images.subset(trained), images.subset(held_out)
