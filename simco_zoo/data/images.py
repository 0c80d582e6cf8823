"""The one kind of data set: square images of one size with their labels, in memory or decoded batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simco_zoo.data.rectangles import Rectangles, WholeImages
from simco_zoo.data.rows import Subset

_log = logging.getLogger("simco_zoo.data")
_TRIES = 100  # images in a row that may be damaged


@dataclass(frozen=True)
class ImageData:
    """Square RGB images of one size, in memory or decoded when they are asked for.

    Attributes:
        images: uint8 (N, 3, S, S), or None if they are decoded batch by batch.
        labels: int64 (N,), -1 where an image has no label; None if none has.
        names: File names, or "split/row".
        class_names: Names of the labels, or None.
        skipped: (name, reason) of each image that was left out.
        source: Where they come from.
        split: Which part.
        image_size: S, or (height, width) of images that are not square.
        reader: Reads the image of a row, or says why it cannot be read; for images that are not in memory.
        splits: The split of each image where ``split`` is "all" and the source has several.
        notes: What was left out or decided when they were loaded, one sentence each.
        whole: The same images before they are cropped, if they were asked for and are not square.

    Example:
        >>> from simco_zoo.data import from_tensor
        >>> images = from_tensor(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> images.subset([1, 3]).labels.tolist(), images.sample(2).shape
        ([1, 1], torch.Size([2, 3, 8, 8]))
    """

    images: Tensor | None
    labels: Tensor | None
    names: list[str]
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    source: str = "images"
    split: str = "train"
    image_size: Any = 0  # int, or (height, width): what trains and makes views checks that it is an int
    reader: Callable[[int], Tensor | str] | None = None
    splits: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    whole: WholeImages | None = None

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, index_batches: Iterable[Tensor], num_workers: int = 0) -> Iterator[Tensor]:
        """Yields uint8 batches (n, 3, S, S) on the CPU, in the order of the index batches.

        An image that turns out to be damaged when it is decoded is added to ``skipped``, and the next one that can be
        read takes its place.

        Args:
            index_batches: Row numbers of each batch.
            num_workers: Processes that decode; only for images that are not in memory.
        """
        if self.images is not None:
            for indices in index_batches:
                yield self.images[indices]
            return
        assert self.reader is not None
        for images in self._decode(self.reader, index_batches, num_workers):
            yield torch.stack(images)

    def whole_batches(self, index_batches: Iterable[Tensor], num_workers: int = 0) -> Iterator[Rectangles]:
        """Yields batches of the images before they are cropped, as ``batches`` does.

        Raises:
            ValueError: If they were not asked for when the images were loaded, or are square.
        """
        if self.whole is None:
            raise ValueError(f"the images of {self.source} were loaded cropped; pass whole=True, or they are square.")
        workers = 0 if self.whole.in_memory else num_workers
        for images in self._decode(self.whole.reader, index_batches, workers):
            yield Rectangles.from_images(images)

    def _decode(
        self, reader: Callable[[int], Tensor | str], index_batches: Iterable[Tensor], num_workers: int
    ) -> Iterator[list[Tensor]]:
        """Yields the images that a reader returns; those that cannot be read are replaced and named."""
        sampler = [batch.tolist() for batch in index_batches]
        decoded = _Decoded(reader, self.names)
        for batch, failures in DataLoader(decoded, batch_sampler=sampler, num_workers=num_workers, collate_fn=_collate):
            known = {name for name, _ in self.skipped} if failures else set()
            for name, reason in dict(failures).items():
                if name not in known:
                    self.skipped.append((name, reason))
                    _log.warning("%s: %s is left out (%s).", self.source, name, reason)
            yield batch

    def sample(self, count: int) -> Tensor:
        """Returns ``count`` images, uint8 (count, 3, S, S), evenly spaced: a folder lists them class by class."""
        rows = torch.arange(min(count, len(self))) * len(self) // min(count, len(self))
        return next(iter(self.batches([rows])))

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """Returns some of the images, in the order given."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        reader = self.reader
        return replace(
            self,
            images=None if self.images is None else self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            names=[self.names[i] for i in rows.tolist()],
            reader=None if reader is None else Subset(reader, rows.tolist()),
            splits=None if self.splits is None else [self.splits[i] for i in rows.tolist()],
            whole=None if self.whole is None else self.whole.subset(rows.tolist()),
        )

    def labeled(self) -> ImageData:
        """Returns the images that have a label.

        Raises:
            ValueError: If none has.
        """
        if self.labels is None:
            raise ValueError(
                f"the images of {self.source} ({self.split}) have no labels; give each class a folder of its own "
                "(cat/1.jpg, dog/2.jpg), or name the column of labels with label_column (--label-column)."
            )
        known = self.labels >= 0
        return self if known.all() else self.subset(torch.nonzero(known).squeeze(1))


class _Decoded(Dataset):
    """The reader as torch's DataLoader wants it: an image, and what could not be read before one was found."""

    def __init__(self, reader: Callable[[int], Tensor | str], names: list[str]) -> None:
        self.reader, self.names = reader, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, list[tuple[str, str]]]:
        failures: list[tuple[str, str]] = []
        for step in range(min(_TRIES, len(self))):
            row = (index + step) % len(self)
            image = self.reader(row)
            if isinstance(image, Tensor):
                return image, failures
            failures.append((self.names[row], image))
        raise ValueError(f"{len(failures)} images in a row cannot be read, from {': '.join(failures[0])}.")


def _collate(items: list[tuple[Tensor, list[tuple[str, str]]]]) -> tuple[list[Tensor], list[tuple[str, str]]]:
    return [image for image, _ in items], [failure for _, failures in items for failure in failures]
