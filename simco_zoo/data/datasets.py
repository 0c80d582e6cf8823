"""Images with their labels, from every kind of source.

Small sets are decoded once into one uint8 tensor; large ones are decoded in worker processes, batch by batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from simco_zoo.data.decoding import ImageReader, describe_error, image_size, read_image
from simco_zoo.data.labels import align_labels
from simco_zoo.data.presets import IMAGENET_MEAN, IMAGENET_STD
from simco_zoo.data.rows import Rows, Source, Subset
from simco_zoo.data.sources import Options, open_source
from simco_zoo.data.subsets import holdout, shorten
from simco_zoo.data.transforms import EvalTransform
from simco_zoo.distributed import is_main

IN_MEMORY_BYTES = 2 * 1024**3
VAL_FRACTION = 0.2  # of each class, held out where a source has no test split
_log = logging.getLogger("simco_zoo.data")
_TRIES = 100  # images in a row that may be damaged

ImageSource = Any  # whatever open_source takes


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
        image_size: S.
        reader: Reads the image of a row, or says why it cannot be read; for images that are not in memory.
        splits: The split of each image where ``split`` is "all" and the source has several.
        notes: What was left out or decided when they were loaded, one sentence each.
    """

    images: Tensor | None
    labels: Tensor | None
    names: list[str]
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    source: str = "images"
    split: str = "train"
    image_size: int = 0
    reader: Callable[[int], Tensor | str] | None = None
    splits: list[str] | None = None
    notes: list[str] = field(default_factory=list)

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
        sampler = [batch.tolist() for batch in index_batches]
        decoded = _Decoded(self.reader, self.names)
        for batch, failures in DataLoader(decoded, batch_sampler=sampler, num_workers=num_workers, collate_fn=_collate):
            known = {name for name, _ in self.skipped} if failures else set()
            for name, reason in dict(failures).items():
                if name not in known:
                    self.skipped.append((name, reason))
                    _log.warning("%s: %s is left out (%s).", self.source, name, reason)
            yield batch

    def first(self, count: int) -> Tensor:
        """Returns the first images, uint8 (count, 3, S, S)."""
        return next(iter(self.batches([torch.arange(min(count, len(self)))])))

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
        )

    def labeled(self) -> ImageData:
        """Returns the images that have a label.

        Raises:
            ValueError: If none has.
        """
        if self.labels is None:
            raise ValueError(
                f"the images of {self.source} ({self.split}) have no labels; name their column, or use folders."
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


def _collate(items: list[tuple[Tensor, list[tuple[str, str]]]]) -> tuple[Tensor, list[tuple[str, str]]]:
    return torch.stack([image for image, _ in items]), [failure for _, failures in items for failure in failures]


@dataclass
class _RowReader:
    """Opens row i of a source and brings it to size."""

    open_image: Callable[[int], Any]
    fit: ImageReader

    def __call__(self, index: int) -> Tensor | str:
        return read_image(self.fit, lambda: self.open_image(index))


def from_tensor(
    images: Tensor, labels: Tensor | None = None, class_names: list[str] | None = None, name: str = "tensor"
) -> ImageData:
    """Makes a data set of images in memory.

    Args:
        images: uint8 (N, 3, S, S).
        labels: Class numbers (N,), or None.
        class_names: Names of the classes, or None.
        name: What the data set is called.

    Raises:
        ValueError: If the images are not uint8 of that shape or the labels are not as many.

    Example:
        >>> from simco_zoo.data import from_tensor
        >>> len(from_tensor(torch.zeros(10, 3, 32, 32, dtype=torch.uint8)))
        10
    """
    data = replace(load_images(images), source=name, class_names=class_names)
    if labels is not None and len(labels) != len(data):
        raise ValueError(f"there are {len(data)} images, but {len(labels)} labels.")
    return data if labels is None else replace(data, labels=labels.long())


def load_images(
    source: ImageSource,
    split: str = "train",
    *,
    image_size: int | None = None,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
    crop_mode: str = "center",
    mean: tuple[float, ...] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    in_memory: bool | None = None,
    dataset_config: str | None = None,
    revision: str | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> ImageData:
    """Loads images and, if there are any, labels.

    What is left out (files that cannot be read, images beside class folders, rows without a label) is listed in
    ``skipped`` and ``notes``, and logged once by the logger ``simco_zoo.data``.

    Args:
        source: One of

            - a folder of images or of class folders, with a folder per split (train, test, val...) or without, with
              ``metadata.csv`` or without; a .zip or .tar file of these; an image file; a list of paths;
            - a folder of parquet files, of WebDataset shards (.tar), or one that ``datasets``' ``save_to_disk`` wrote;
            - a data set's id on the Hub; a ``datasets.Dataset`` or ``DatasetDict``;
            - a torch data set, or a list, of PIL images or (PIL image, label) pairs;
            - uint8 images (N, 3, H, W), or a numpy array (N, H, W, 3);
            - "photos", which is built in.

        split: "train", "test" (or what there is in its place: validation, val), any name the source has, or "all".
        image_size: Side in pixels to which images are resized and centrally cropped; None: their own, if all are
            square and alike.
        crop_pct: Share of the resized image that the crop keeps.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
        crop_mode: "center", "squash" or "border", as timm has them.
        mean: Mean color in [0, 1], with which "border" pads.
        image_column: Name of the image column; None: the only one there is.
        label_column: Name of the label column; None: a usual name (``label``, ``fine_label``, ``labels``,
            ``target``...), else the only column of classes; "none": no labels.
        limit: Take at most ``limit`` images, evenly spaced, so that a source in the order of its classes keeps
            them all.
        in_memory: Decode everything at once; None: if it takes less than 2 GiB.
        dataset_config: Configuration of a Hub data set that has several.
        revision: Branch, tag or commit of a Hub data set.
        val_fraction: Share of each class that is held out as the split "test" of a source that has no test split.
        seed: Seed of the hold-out.

    Returns:
        The images. Class numbers are the same for every split of a source.

    Raises:
        ValueError: If there is no such source, split or column, labels are of no usable kind, images differ in size
            and no size is given, or none can be read.

    Example:
        >>> from simco_zoo.data import load_images
        >>> images = load_images("photos", split="test", limit=160)
        >>> len(images), images.image_size, images.class_names[:2]
        (160, 32, ['astronaut', 'brick'])
    """
    if isinstance(source, ImageData):
        return source
    spec = _Spec(image_size, crop_pct, interpolation, crop_mode, mean, limit, in_memory, val_fraction, seed)
    opened = open_source(source, Options(image_column, label_column, dataset_config, revision))
    data = _load(opened, split, spec)
    _say(data.notes)
    return data


def load_splits(
    source: ImageSource,
    test_source: ImageSource | None = None,
    *,
    train_split: str = "train",
    test_split: str | None = "test",
    require_labels: bool = False,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    **load: Any,
) -> tuple[ImageData, ImageData | None]:
    """Loads the images to train on and those to measure accuracy on, with one numbering of the classes.

    The second part is, in this order: ``test_source``; the source's test split, if its labels are not hidden; its
    validation split; a stratified part of the training images, held out by ``val_fraction`` and ``seed``.

    Args:
        source: Anything that ``load_images`` takes.
        test_source: The images to measure on, if they are another source; its test split if it has one, else all of it.
        train_split: Split of ``source`` to train on.
        test_split: Split to measure on; None or "none": go without.
        require_labels: Whether both parts need labels; images without one are then left out.
        val_fraction: Share of each class that is held out where there is no test split.
        seed: Seed of the hold-out.
        **load: Further arguments of ``load_images``.

    Returns:
        Both parts; the second is None if there are no labels to measure accuracy with, or none was wanted.

    Raises:
        ValueError: As ``load_images``; or labels are required and there are none.

    Example:
        >>> from simco_zoo.data import load_splits
        >>> images, test_images = load_splits("photos", limit=320)
        >>> len(images), len(test_images), images.class_names == test_images.class_names
        (320, 320, True)
    """
    names = ("image_column", "label_column", "dataset_config", "revision")
    options = Options(**{name: load.pop(name) for name in names if name in load})
    spec = _Spec(**load, seed=seed)
    wants_test = test_split not in (None, "none")
    if isinstance(source, ImageData):
        train, test = source, None
        if test_source is None and wants_test and source.labels is not None:
            kept, held_out = holdout(source.labels, len(source), val_fraction, seed)
            train, test = source.subset(kept), replace(source.subset(held_out), split="test")
            test.notes[:] = [*test.notes, _describe_holdout(train, test)]
    else:
        opened = open_source(source, options)
        train, test = _load_parts(opened, train_split, test_split if test_source is None else None, spec, val_fraction)
    if test_source is not None and wants_test:
        assert test_split is not None
        test = _load_test(test_source, test_split, options, spec)
    if require_labels:
        train = train.labeled()
        if test is None:
            raise ValueError(
                f"{train.source} has no labels to measure accuracy with; name their column, or use folders."
            )
        test = test.labeled()
    if test is not None:
        train, test = _share_classes(train, test)
    _say(list(dict.fromkeys(train.notes + (test.notes if test is not None else []))))
    return train, test


# What both share


@dataclass(frozen=True)
class _Spec:
    """How images are loaded, whatever they come from."""

    image_size: int | None = None
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: tuple[float, ...] | None = None
    limit: int | None = None
    in_memory: bool | None = None
    val_fraction: float | None = None
    seed: int = 0

    def reader(self, size: int) -> ImageReader:
        mean = self.mean or IMAGENET_MEAN
        geometry = (self.crop_pct, self.crop_mode, self.interpolation)
        return ImageReader(EvalTransform((3, size, size), mean, IMAGENET_STD, *geometry))


def _say(notes: list[str]) -> None:
    if is_main():
        for note in notes:
            _log.warning(note)


def _load(opened: Source, split: str, spec: _Spec) -> ImageData:
    rows = opened.rows(split, spec.val_fraction, spec.seed)
    if spec.limit is not None:
        rows = rows.spaced(spec.limit)
    if not len(rows):
        raise ValueError(f"{opened.name} has no images in its split {split!r}.")
    skipped = list(rows.skipped)
    images = rows.images
    reader = None
    if images is not None and (spec.image_size or images.shape[2]) == images.shape[2] == images.shape[3]:
        size = images.shape[3]
    else:
        size = spec.image_size or _common_size(opened.name, rows)
        read = _RowReader(rows.open_image, spec.reader(size))
        fits_memory = len(rows) * 3 * size * size <= IN_MEMORY_BYTES
        if fits_memory if spec.in_memory is None else spec.in_memory:
            images, kept, failed = _read_all(rows, read)
        else:
            images, (kept, failed) = None, _look_at_headers(rows)
            reader = Subset(read, kept)
        if not kept:
            reason = ": ".join(failed[0])
            raise ValueError(f"none of the {len(rows)} images in {opened.name} can be read, e.g. {reason}.")
        skipped += failed
        rows = rows.select(kept) if failed else rows
    return ImageData(
        images,
        rows.labels,
        rows.names,
        opened.class_names,
        skipped,
        opened.name,
        split,
        size,
        reader,
        rows.splits,
        opened.notes + _describe_left_out(opened, split, rows, skipped),
    )


def _describe_left_out(opened: Source, split: str, rows: Rows, skipped: list[tuple[str, str]]) -> list[str]:
    """Says which images and labels a split lacks."""
    notes = []
    if skipped:
        named = shorten([f"{name} ({reason})" for name, reason in skipped])
        notes.append(f"{opened.name}: {len(skipped)} image{'s are' if len(skipped) > 1 else ' is'} left out: {named}.")
    if rows.labels is not None and (rows.labels < 0).any():
        without = [name for name, label in zip(rows.names, rows.labels.tolist(), strict=True) if label < 0]
        notes.append(f"{opened.name}: {len(without)} of {len(rows)} images have no label: {shorten(without)}.")
    if rows.labels is None and any(other.labels is not None for other in opened.splits.values()):
        notes.append(f"{opened.name}: the split {split!r} has no labels, or all of them are hidden (-1).")
    return notes


def _progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """Shows a progress bar on stderr if that is a terminal and it takes more than two seconds."""
    return tqdm(items, total=total, desc=what, unit="image", delay=2, leave=False, disable=None if is_main() else True)


def _read_all(rows: Rows, read: _RowReader) -> tuple[Tensor, list[int], list[tuple[str, str]]]:
    """Decodes every image once; returns those that can be read, their rows, and (name, reason) of the others."""
    kept: list[int] = []
    failed: list[tuple[str, str]] = []
    images = torch.empty(len(rows), 3, *read.fit.size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        for index, result in enumerate(_progress(pool.map(read, range(len(rows))), len(rows), "reading images")):
            if isinstance(result, str):
                failed.append((rows.names[index], result))
            else:
                images[len(kept)] = result
                kept.append(index)
    return images[: len(kept)], kept, failed


def _header(rows: Rows, index: int) -> tuple[int, int] | str:
    """Returns width and height of an image, or the reason why it cannot be read; nothing is decoded."""
    try:
        return image_size(rows.open_image(index))
    except Exception as error:  # as in read_image
        return describe_error(error)


def _headers(rows: Rows) -> Iterable[tuple[int, int] | str]:
    with ThreadPoolExecutor() as pool:
        yield from _progress(pool.map(lambda i: _header(rows, i), range(len(rows))), len(rows), "looking at images")


def _look_at_headers(rows: Rows) -> tuple[list[int], list[tuple[str, str]]]:
    """Returns the rows whose header can be read, and (name, reason) of the others."""
    headers = list(_headers(rows))
    failed = [(rows.names[i], header) for i, header in enumerate(headers) if isinstance(header, str)]
    return [i for i, header in enumerate(headers) if not isinstance(header, str)], failed


def _common_size(name: str, rows: Rows) -> int:
    """Returns the side of the images if all are square and alike."""
    sizes: set[tuple[int, int]] = set()
    for header in _headers(rows):
        if isinstance(header, str):
            continue  # listed as skipped when the images are read
        sizes.add(header)
        if len(sizes) > 1 or header[0] != header[1]:
            shapes = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
            raise ValueError(
                f"the images of {name} are not all square and alike ({shapes}...); "
                "pass image_size (on the command line --image-size), to which they are resized and cropped."
            )
    return sizes.pop()[0] if sizes else 32


# Two parts


def _load_parts(
    opened: Source, train_split: str, test_split: str | None, spec: _Spec, val_fraction: float
) -> tuple[ImageData, ImageData | None]:
    """Loads the training images of a source and what accuracy is measured on."""
    train_rows = opened.rows(train_split)
    if test_split is None or test_split == "none":
        return _load(opened, train_split, spec), None
    own = opened.find_split(test_split)
    if own is not None and opened.splits[own].labels is None and train_rows.labels is not None:
        validation = opened.find_split("validation") if test_split == "test" else None
        if validation is not None and opened.splits[validation].labels is not None:
            opened.notes.append(f"{opened.name}: the labels of {own} are hidden, so {validation} is measured on.")
            own = validation
    if own is not None:
        return _load(opened, train_split, spec), _load(opened, own, spec)
    if test_split != "test" and opened.divided:
        opened.rows(test_split)  # raises the error that names the splits
    if train_rows.labels is None:
        return _load(opened, train_split, spec), None
    part = replace(spec, val_fraction=val_fraction)
    train, test = (_load(opened, split, part) for split in ("train", "test"))
    test.notes.append(_describe_holdout(train, test))
    return train, test


def _describe_holdout(train: ImageData, test: ImageData) -> str:
    return (
        f"{train.source} has no test split: {len(test)} of its {len(train) + len(test)} images, the same share of each "
        "class, are held out to measure accuracy."
    )


def _load_test(source: ImageSource, split: str, options: Options, spec: _Spec) -> ImageData:
    """Loads a source of test images: its test split, or all of it."""
    if isinstance(source, ImageData):
        return source
    opened = open_source(source, options)
    return _load(opened, split if opened.find_split(split) is not None or opened.divided else "all", spec)


def _share_classes(train: ImageData, test: ImageData) -> tuple[ImageData, ImageData]:
    """Numbers the classes of both parts alike, and names those that have no training image."""
    if train.labels is None or test.labels is None:
        return train, test
    names, labels = train.class_names, test.labels
    if test.class_names != names:
        names = names or _numbers_as_names(train.labels)
        other = test.class_names or _numbers_as_names(labels)
        if not set(names) & set(other):
            raise ValueError(
                f"the training images have the classes {shorten(names)}, the test images {shorten(other)}; they "
                "have none in common, so there is no accuracy to measure."
            )
        labels, unknown = align_labels(labels, other, names)
        names = names + unknown
        train, test = replace(train, class_names=names), replace(test, labels=labels, class_names=names)
    seen = set(train.labels.unique().tolist()) if train.labels is not None else set()
    missing = [label for label in labels.unique().tolist() if label >= 0 and label not in seen]
    if missing:
        shown = [names[label] if names else str(label) for label in missing]
        plural = len(shown) > 1
        test.notes.append(
            f"{test.source}: the class{'es' if plural else ''} {shorten(shown)} {'have' if plural else 'has'} no "
            "training image; the test images count as errors."
        )
    return train, test


def _numbers_as_names(labels: Tensor) -> list[str]:
    return [str(i) for i in range(int(labels.max()) + 1)]
