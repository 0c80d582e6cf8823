"""Which labels there are: balanced parts of them, and classes too small to learn from."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from simco_zoo.data.datasets import ImageData


def balanced_subset(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Draws the same share of every class, at least one image of each (the field's 1 % and 10 % of the labels).

    Args:
        labels: Class numbers (N,).
        fraction: Share in (0, 1].
        seed: Of the draw.

    Returns:
        Row numbers in ascending order.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the share of the labels is {fraction}, but has to lie in (0, 1].")
    chosen = []
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).squeeze(1)
        # a generator per class: more images of one class change nothing of another
        entropy = int(np.random.SeedSequence([seed, label]).generate_state(1, np.uint32)[0])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(entropy))
        chosen.append(rows[order[: max(1, round(fraction * len(rows)))]])
    return torch.cat(chosen).sort().values


def warn_of_small_classes(images: ImageData) -> None:
    """Names the classes with a single image: whether it is learned or tested, the other part has none."""
    if images.labels is None:
        return
    classes, counts = images.labels.unique(return_counts=True)
    single = classes[counts == 1].tolist()
    if single:
        names = [images.class_names[i] if images.class_names else str(i) for i in single]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        plural = len(names) > 1
        warnings.warn(
            f"{'the classes' if plural else 'the class'} {shown} of {images.source} {'have' if plural else 'has'} "
            f"one image{' each' if plural else ''}: nothing general can be learned of {'them' if plural else 'it'}.",
            stacklevel=3,
        )
