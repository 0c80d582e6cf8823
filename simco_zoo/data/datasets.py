"""Images with their labels, from every kind of source: ``load_images`` for one part, ``load_splits`` for two.

``sources.py`` tells the kinds of sources apart, ``reading.py`` decodes their images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from simco_zoo.data.images import ImageData
from simco_zoo.data.labels import align_labels
from simco_zoo.data.reading import ImageSpec, load_split, log_notes
from simco_zoo.data.rows import Source
from simco_zoo.data.sources import Options, open_source
from simco_zoo.data.subsets import holdout, shorten
from simco_zoo.data.transforms import Size

__all__ = ["VAL_FRACTION", "ImageData", "ImageSource", "from_tensor", "load_images", "load_splits"]

VAL_FRACTION = 0.2  # of each class, held out where a source has no test split

ImageSource = Any  # whatever open_source takes


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
        >>> import torch
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
    image_size: Size | None = None,
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
    whole: bool | int = False,
) -> ImageData:
    """Loads images and, if there are any, labels.

    What is left out (files that cannot be read, images next to class folders, rows without a label) is listed in
    ``skipped`` and ``notes``, and logged once by the logger ``simco_zoo.data``.

    Args:
        source: One of

            - a folder of images or of class folders, with a folder per split (train, test, val...) or without, with
              ``metadata.csv``, ``.jsonl`` or ``.parquet`` or without; a .zip or .tar file of these; an image file; a
              list of paths;
            - a folder of parquet files, of WebDataset shards (.tar), or one that ``datasets``' ``save_to_disk`` wrote;
            - a data set's id on the Hub; a ``datasets.Dataset`` or ``DatasetDict``;
            - a torch data set, or a list, of PIL images or (PIL image, label) pairs;
            - uint8 images (N, 3, H, W), or a numpy array (N, H, W, 3);
            - "photos", which is built in.

        split: "train", "test" (or what there is in its place: validation, val), any name the source has, or "all".
        image_size: Side in pixels, or (height, width), to which images are resized and centrally cropped; None: their
            own, if all are square and alike.
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
        whole: Also keep the images uncropped, for random crops: with their shorter side at that many pixels, or at
            ``image_size`` if it is True.

    Returns:
        The images. Class numbers are the same for every split of a source.

    Raises:
        ValueError: If the source, split or column does not exist, labels are of no usable kind, images differ in size
            and no size is given, or none can be read.

    Example:
        >>> from simco_zoo.data import load_images
        >>> images = load_images("photos", split="test", limit=160)
        >>> len(images), images.image_size, images.class_names[:2]
        (160, 32, ['astronaut', 'brick'])
    """
    if isinstance(source, ImageData):
        return source
    spec = ImageSpec(image_size, crop_pct, interpolation, crop_mode, mean, limit, in_memory, val_fraction, seed, whole)
    opened = open_source(source, Options(image_column, label_column, dataset_config, revision))
    data = load_split(opened, split, spec)
    log_notes(data.notes)
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
        **load: Further arguments of ``load_images``; ``whole`` concerns the first part alone. ``default_size`` is the
            side of images that are not all square and alike, if no ``image_size`` is given.

    Returns:
        Both parts; the second is None if there are no labels to measure accuracy with, or none was wanted.

    Raises:
        ValueError: For the same reasons as ``load_images``, or if labels are required and there are none.

    Example:
        >>> from simco_zoo.data import load_splits
        >>> images, test_images = load_splits("photos", limit=320)
        >>> len(images), len(test_images), images.class_names == test_images.class_names
        (320, 320, True)
    """
    names = ("image_column", "label_column", "dataset_config", "revision")
    options = Options(**{name: load.pop(name) for name in names if name in load})
    spec = ImageSpec(**load, seed=seed)
    wants_test = test_split not in (None, "none")
    if isinstance(source, ImageData):
        train, test = source, None
        if test_source is None and wants_test and source.labels is not None:
            kept, held_out = holdout(source.labels, len(source), val_fraction, seed)
            train, test = source.subset(kept), replace(source.subset(held_out), split="test")
            # what was said when they were loaded is not said again
            train, test = replace(train, notes=[]), replace(test, notes=[_describe_holdout(train, test)])
        else:
            train = replace(train, notes=[])
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
                f"{train.source} has no labels to measure accuracy with; give each class a folder of its own "
                "(cat/1.jpg, dog/2.jpg), or name the column of labels with label_column (--label-column)."
            )
        test = test.labeled()
    if test is not None:
        train, test = _share_classes(train, test)
    log_notes(list(dict.fromkeys(train.notes + (test.notes if test is not None else []))))
    return train, test


def _load_parts(
    opened: Source, train_split: str, test_split: str | None, spec: ImageSpec, val_fraction: float
) -> tuple[ImageData, ImageData | None]:
    """Loads the training images of a source and what accuracy is measured on."""
    train_rows = opened.rows(train_split)
    if test_split is None or test_split == "none":
        return load_split(opened, train_split, spec), None
    own = opened.find_split(test_split)
    if own is not None and opened.splits[own].labels is None and train_rows.labels is not None:
        validation = opened.find_split("validation") if test_split == "test" else None
        if validation is not None and opened.splits[validation].labels is not None:
            opened.notes.append(f"{opened.name}: the labels of {own} are hidden, so {validation} is measured on.")
            own = validation
    if own is not None:
        return load_split(opened, train_split, spec), load_split(opened, own, replace(spec, whole=False))
    if test_split != "test" and opened.divided:
        opened.rows(test_split)  # raises the error that names the splits
    if train_rows.labels is None:
        return load_split(opened, train_split, spec), None
    part = replace(spec, val_fraction=val_fraction)
    train, test = load_split(opened, "train", part), load_split(opened, "test", replace(part, whole=False))
    test.notes.append(_describe_holdout(train, test))
    return train, test


def _describe_holdout(train: ImageData, test: ImageData) -> str:
    return (
        f"{train.source} has no test split: {len(test)} of its {len(train) + len(test)} images, the same share of each "
        "class, are held out to measure accuracy."
    )


def _load_test(source: ImageSource, split: str, options: Options, spec: ImageSpec) -> ImageData:
    """Loads a source of test images: its test split, or all of it."""
    if isinstance(source, ImageData):
        return replace(source, notes=[])
    opened = open_source(source, options)
    part = replace(spec, whole=False)
    return load_split(opened, split if opened.find_split(split) is not None or opened.divided else "all", part)


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
