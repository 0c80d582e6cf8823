"""Images that are read as they come: data sets of the Hub too large to download, or of shards on a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from simco_zoo.data.decoding import ImageReader, open_image, read_image
from simco_zoo.data.presets import IMAGENET_MEAN, IMAGENET_STD
from simco_zoo.data.rectangles import Rectangles
from simco_zoo.data.rows import Rows, Source
from simco_zoo.data.tables import pick_image_column
from simco_zoo.data.transforms import EvalTransform


@dataclass(frozen=True)
class StreamedImages:
    """Square RGB images without labels that pass by once per epoch; what is in memory is a shuffle buffer.

    Attributes:
        stream: A ``datasets.IterableDataset`` whose column ``image_column`` holds encoded images.
        image_column: Name of that column.
        length: Images per epoch.
        reader: Brings an encoded image to size.
        source: Where they come from.
        split: Which part.
        buffer: Images among which the next one is drawn, per process and worker.

    Example:
        >>> import simco_zoo
        >>> images = simco_zoo.data.stream_images("org/name", image_size=64)  # doctest: +SKIP
        >>> simco_zoo.training.pretrain(model, images, epochs=10)  # doctest: +SKIP
    """

    stream: Any
    image_column: str
    length: int
    reader: ImageReader
    source: str
    split: str
    buffer: int = 1000
    # what they have in common with ImageData
    images: None = None
    labels: None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.length

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.reader.size[0]

    def sample(self, count: int) -> Tensor:
        """Returns the first images, uint8 (count, 3, S, S), in the order in which they are stored."""
        return next(iter(DataLoader(_Decoded(self.stream, self.image_column, self.reader), batch_size=count)))

    def epoch(
        self, epoch: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1, num_workers: int = 0
    ) -> Iterator[Tensor | Rectangles]:
        """Yields uint8 batches (batch_size, 3, S, S) of this process's share, shuffled anew for each epoch.

        If the whole images were asked for, the batches are ``Rectangles`` of the uncropped images.

        Shards are shared out among the processes and then among their workers; of a set with too few shards each
        process takes every n-th image. A share that ends early begins again, so that no process waits for ever.
        """
        from datasets.distributed import split_dataset_by_node

        # a seed per epoch, not set_epoch: a stream that is shared out among processes forgets that
        shuffle_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        stream = self.stream.shuffle(seed=shuffle_seed, buffer_size=self.buffer)
        stream = split_dataset_by_node(stream, rank, world_size)
        whole = self.reader.whole_side is not None
        read = self.reader.whole if whole else self.reader
        decoded = _Decoded(stream, self.image_column, read, endless=True)
        workers = min(num_workers, stream.num_shards)
        collate = Rectangles.from_images if whole else None
        yield from DataLoader(decoded, batch_size=batch_size, num_workers=workers, drop_last=True, collate_fn=collate)


def stream_images(
    source: str | Path,
    split: str = "train",
    *,
    image_size: int,
    image_column: str | None = None,
    length: int | None = None,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
    buffer: int = 1000,
    dataset_config: str | None = None,
    revision: str | None = None,
    whole: bool | int = False,
) -> StreamedImages:
    """Opens a data set of the Hub, or a folder in its layout, without downloading or decoding it.

    Args:
        source: Id on the Hub, or a folder (of parquet files, or of images).
        split: "train", or what there is in its place.
        image_size: Side in pixels to which images are resized and centrally cropped.
        image_column: Name of the image column; None: the only one there is.
        length: Images per epoch; None: as many as the data set says it has.
        crop_pct: Share of the short side that the crop keeps.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
        buffer: Images among which the next one is drawn.
        dataset_config: Configuration of a Hub data set that has several.
        revision: Branch, tag or commit of a Hub data set.
        whole: Let ``epoch`` yield the images uncropped, for random crops: with their shorter side at that many pixels,
            or at ``image_size`` if it is True.

    Returns:
        The images; those that cannot be read are left out as they come.

    Raises:
        ValueError: If the source, split or column does not exist, or the length is unknown.

    Example:
        >>> images = stream_images("org/name", image_size=64, length=100_000)  # doctest: +SKIP
        >>> next(images.epoch(0, batch_size=256)).shape  # doctest: +SKIP
        torch.Size([256, 3, 64, 64])
    """
    from datasets import Image as ImageFeature
    from datasets import get_dataset_split_names, load_dataset

    source = str(source)
    try:
        names = get_dataset_split_names(source, dataset_config, revision=revision)
        chosen = Source(source, dict.fromkeys(names, Rows([], print))).find_split(split)  # type: ignore[arg-type]
        if chosen is None:
            raise ValueError(f"{source} has no split {split!r}; it has {', '.join(names)}.")
        stream = load_dataset(source, dataset_config, split=chosen, streaming=True, revision=revision)
    except (OSError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the data set {source!r} cannot be streamed ({reason}); check its name.") from error
    stream = stream if stream.features is not None else stream._resolve_features()
    column = pick_image_column(stream.features, image_column, source)
    if length is None:
        known = (stream.info.splits or {}).get(chosen)
        length = known.num_examples if known is not None else None
    if not length:
        raise ValueError(f"{source} does not say how many images it has; pass the images per epoch (--epoch-images).")
    stream = stream.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    transform = EvalTransform(
        (3, image_size, image_size), IMAGENET_MEAN, IMAGENET_STD, crop_pct, "center", interpolation
    )
    reader = ImageReader(transform, image_size if whole is True else int(whole) or None)
    return StreamedImages(stream, column, length, reader, source, split, buffer)


class _Decoded(IterableDataset):
    """The stream as torch's DataLoader wants it; datasets shares the shards out among its workers."""

    def __init__(self, stream: Any, column: str, reader: Callable[[Any], Tensor], endless: bool = False) -> None:
        self.stream, self.column, self.reader, self.endless = stream, column, reader, endless

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            found = 0
            for row in self.stream:
                entry = row[self.column]
                if entry is None:
                    continue
                encoded = entry["bytes"] if entry["bytes"] is not None else entry["path"]
                image = read_image(self.reader, partial(open_image, encoded))
                if isinstance(image, Tensor):
                    found += 1
                    yield image
            if not found:
                raise ValueError(f"no image in the column {self.column!r} can be read.")
            if not self.endless:
                return
