"""Images with their labels, from a folder, a data set of the Hub, or built in.

Small sets are decoded once into one uint8 tensor; large ones are decoded in worker processes, batch by batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simco_zoo.data.transforms import fit, to_rgb

IN_MEMORY_BYTES = 2 * 1024**3
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_SPLIT_NAMES = {"test": ("test", "validation", "val", "valid"), "train": ("train", "training")}

Source = Any  # a Hub id, a path, "photos", a datasets.Dataset, a torch data set of (image, label), a uint8 tensor


@dataclass(frozen=True)
class ImageData:
    """Square RGB images of one size, in memory or decoded when they are asked for.

    Attributes:
        images: uint8 (N, 3, S, S), or None if they are decoded batch by batch.
        labels: int64 (N,), or None.
        names: File names, or "split/row".
        class_names: Names of the labels, or None.
        skipped: (name, reason) of each image that could not be read.
        source: Where they come from.
        split: Which part.
        image_size: S.
    """

    images: Tensor | None
    labels: Tensor | None
    names: list[str]
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    source: str = "images"
    split: str = "train"
    image_size: int = 0
    reader: Callable[[int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, index_batches: Iterable[Tensor], num_workers: int = 0) -> Iterator[Tensor]:
        """Yields uint8 batches (n, 3, S, S) on the CPU, in the order of the index batches.

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
        yield from DataLoader(_Decoded(self.reader, len(self)), batch_sampler=sampler, num_workers=num_workers)

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
            reader=None if reader is None else _Subset(reader, rows.tolist()),
        )


class _Decoded(Dataset):
    """The reader as torch's DataLoader wants it."""

    def __init__(self, reader: Callable[[int], Tensor], length: int) -> None:
        self.reader, self.length = reader, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.reader(index)


@dataclass
class _Subset:
    """Reads the i-th of some rows; a class, so that workers can have it."""

    reader: Callable[[int], Any]
    rows: list[int]

    def __call__(self, index: int) -> Any:
        return self.reader(self.rows[index])


@dataclass
class ImageReader:
    """Brings an image to size: uint8 (3, size, size); picklable, so that workers can have it."""

    size: int
    crop_pct: float
    interpolation: str

    def __call__(self, image: Image.Image) -> Tensor:
        fitted = fit(to_rgb(image), self.size, self.crop_pct, self.interpolation)
        # a copy: an array over PIL's memory is read-only
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


@dataclass
class _RowReader:
    """Opens row i of a source and brings it to size."""

    open_image: Callable[[int], Image.Image]
    fit: ImageReader

    def __call__(self, index: int) -> Tensor:
        return self.fit(self.open_image(index))


def load_images(
    source: Source,
    split: str = "train",
    *,
    image_size: int | None = None,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    in_memory: bool | None = None,
    name: str | None = None,
) -> ImageData:
    """Loads images and, if there are any, labels.

    Args:
        source: "photos" (built in); a data set's id on the Hub; a folder of class folders, of images, of parquet files
            or in the Hub's layout, with or without a folder per split; a ``datasets.Dataset``; a torch data set of
            (PIL image, label); or uint8 images (N, 3, S, S).
        split: "train", "test" (or what there is in its place: validation, val), or any name the source has.
        image_size: Side in pixels to which images are resized and centrally cropped; None: their own, if all are
            square and alike.
        crop_pct: Share of the short side that the crop keeps.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
        image_column: Name of the image column; None: the only one there is.
        label_column: Name of the label column; None: ``label``, else ``fine_label``, else the only one there is.
        limit: Take only so many images, evenly spaced, so that a source in the order of its classes keeps them all.
        in_memory: Decode everything at once; None: if it takes less than 2 GiB.
        name: Configuration of a Hub data set that has several.

    Returns:
        The images.

    Raises:
        ValueError: If there is no such source, split or column, images differ in size and no size is given, or none
            can be read.
    """
    if isinstance(source, ImageData):
        return source
    if isinstance(source, Tensor):
        rows = _tensor_rows(source, split)
    elif source == "photos":
        rows = _photo_rows(split)
    elif isinstance(source, str | Path):
        rows = _path_rows(source, split, image_column, label_column, name)
    elif hasattr(source, "column_names") and hasattr(source, "features"):
        rows = _table_rows(source, "data set", split, image_column, label_column)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        rows = _sequence_rows(source, split)
    else:
        raise ValueError(f"images cannot be read from a {type(source).__name__}; pass a folder or a data set.")

    if limit is not None:
        rows = rows.spaced(limit)
    count = len(rows.names)
    if count == 0:
        raise ValueError(f"{rows.source} has no images in its split {split!r}.")
    if rows.images is not None and image_size in (None, rows.images.shape[-1]):
        size = rows.images.shape[-1]
        return ImageData(
            rows.images,
            None if rows.labels is None else torch.as_tensor(rows.labels),
            rows.names,
            rows.class_names,
            source=rows.source,
            split=split,
            image_size=size,
        )
    size = image_size or _common_size(rows, count)
    reader = _RowReader(rows.open_image, ImageReader(size, crop_pct, interpolation))
    fits_memory = count * 3 * size * size <= IN_MEMORY_BYTES
    readable, skipped, images = _read_all(rows, reader, count, keep=fits_memory if in_memory is None else in_memory)
    if not readable:
        raise ValueError(f"none of the {count} images in {rows.source} can be read, e.g. {'; '.join(skipped[0])}.")
    labels = None if rows.labels is None else torch.tensor([rows.labels[i] for i in readable], dtype=torch.long)
    return ImageData(
        images,
        labels,
        [rows.names[i] for i in readable],
        rows.class_names,
        skipped,
        rows.source,
        split,
        size,
        None if images is not None else _Subset(reader, readable),
    )


@dataclass
class _Rows:
    """A source as rows: how to open each, its name and its label."""

    source: str
    names: list[str]
    open_image: Callable[[int], Image.Image]
    labels: Sequence[int] | Tensor | None = None
    class_names: list[str] | None = None
    images: Tensor | None = None

    def spaced(self, limit: int) -> _Rows:
        """Returns so many of the rows, evenly spaced; all if there are fewer."""
        if limit < 1:
            raise ValueError(f"limit is {limit}, but has to be at least 1 (or None for all images).")
        if limit >= len(self.names):
            return self
        chosen = [i * len(self.names) // limit for i in range(limit)]
        return replace(
            self,
            names=[self.names[i] for i in chosen],
            open_image=_Subset(self.open_image, chosen),
            labels=None if self.labels is None else [int(self.labels[i]) for i in chosen],
            images=None if self.images is None else self.images[chosen],
        )


def _read_all(
    rows: _Rows, reader: _RowReader, count: int, keep: bool
) -> tuple[list[int], list[tuple[str, str]], Tensor | None]:
    """Reads every image once, into a tensor if ``keep``; otherwise only to know which can be read."""

    def read(index: int) -> Tensor | str:
        try:
            if keep:
                return reader(index)
            rows.open_image(index)
            return ""
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{type(error).__name__}: {error}"

    readable: list[int] = []
    skipped: list[tuple[str, str]] = []
    images = torch.empty(count, 3, reader.fit.size, reader.fit.size, dtype=torch.uint8) if keep else None
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        for index, result in enumerate(pool.map(read, range(count), chunksize=256)):
            if isinstance(result, str) and result:
                skipped.append((rows.names[index], result))
                continue
            if images is not None and isinstance(result, Tensor):
                images[len(readable)] = result
            readable.append(index)
    return readable, skipped, None if images is None else images[: len(readable)]


def _common_size(rows: _Rows, count: int) -> int:
    """Returns the side of the images if all are square and alike."""
    sizes = set()
    for index in range(count):
        try:
            with rows.open_image(index) as image:
                sizes.add(image.size)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
            continue  # listed as skipped when the images are read
        if len(sizes) > 1 or any(width != height for width, height in sizes):
            shapes = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
            raise ValueError(
                f"the images of {rows.source} are not all square and alike ({shapes}...); "
                "pass image_size (on the command line --image-size), to which they are resized and cropped."
            )
    return sizes.pop()[0] if sizes else 32


# Sources


def _tensor_rows(images: Tensor, split: str) -> _Rows:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images is {images.dtype} {tuple(images.shape)}, but has to be uint8 (N, 3, S, S).")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images is {tuple(images.shape)}, but they have to be square; crop them first.")
    names = [f"{split}/{i}" for i in range(len(images))]
    return _Rows("tensor", names, lambda i: _to_pil(images[i]), images=images)


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _photo_rows(split: str) -> _Rows:
    from simco_zoo.data.photos import photos

    images, labels, class_names = photos(split)
    names = [f"{class_names[label]}/{split}-{i}" for i, label in enumerate(labels.tolist())]
    return _Rows("photos", names, lambda i: _to_pil(images[i]), labels, class_names, images)


def _path_rows(
    source: str | Path, split: str, image_column: str | None, label_column: str | None, name: str | None
) -> _Rows:
    path = Path(source)
    if not path.exists():
        return _hub_rows(str(source), split, image_column, label_column, name)
    if path.is_file():
        raise ValueError(f"{path} is a file; pass the folder that holds the images.")
    if any(path.rglob("*.parquet")):
        return _hub_rows(str(path), split, image_column, label_column, name)
    return _folder_rows(path, split)


def _hub_rows(source: str, split: str, image_column: str | None, label_column: str | None, name: str | None) -> _Rows:
    """A data set of the Hub, or a folder in its layout, through the datasets library."""
    from datasets import get_dataset_split_names, load_dataset

    if not Path(source).exists() and source.count("/") > 1:
        raise ValueError(f"there is no folder {source}, and it is no data set's id of the Hub (org/name).")
    try:
        splits = get_dataset_split_names(source, name)
        table = load_dataset(source, name, split=pick_split(source, split, splits))
    except (OSError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the data set {source!r} is no folder here and could not be had from the Hub ({reason}); "
            "check its name, or pass a folder, or --dataset photos, which is built in."
        ) from error
    return _table_rows(table, source, split, image_column, label_column)


def pick_split(source: str, split: str, splits: list[str]) -> str:
    for candidate in _SPLIT_NAMES.get(split, (split,)):
        if candidate in splits:
            return candidate
    raise ValueError(f"{source} has no split {split!r}; it has {', '.join(splits)}.")


def _table_rows(table: Any, source: str, split: str, image_column: str | None, label_column: str | None) -> _Rows:
    """A datasets.Dataset with an image column and, perhaps, a label column."""
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    features = table.features
    image_column = pick_image_column(features, image_column, source)
    labels = [
        column
        for column, feature in features.items()
        if isinstance(feature, ClassLabel)
        or (column.endswith("label") and isinstance(feature, Value) and feature.dtype.startswith("int"))
    ]
    preferred = next((column for column in ("label", "fine_label") if column in labels), None)
    label_column = _pick_column("label", label_column or preferred, labels, list(features), source, optional=True)
    label_feature = features[label_column] if label_column else None
    encoded = table.cast_column(image_column, ImageFeature(decode=False))
    return _Rows(
        source,
        [f"{split}/{i}" for i in range(len(table))],
        _OpenEncoded(encoded.select_columns([image_column]), image_column),
        list(table.with_format(None)[label_column]) if label_column else None,
        list(label_feature.names) if isinstance(label_feature, ClassLabel) else None,
    )


@dataclass
class _OpenEncoded:
    table: Any
    column: str

    def __call__(self, index: int) -> Image.Image:
        entry = self.table[index][self.column]
        return _open(io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"])


def pick_image_column(features: Any, wanted: str | None, source: str) -> str:
    """Returns the wanted column of images, or the only one; raises ValueError if it is none or ambiguous."""
    from datasets import Image as ImageFeature

    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    column = _pick_column("image", wanted, images, list(features), source)
    assert column is not None
    if column not in images:
        raise ValueError(f"the column {column!r} of {source} holds no images; image columns: {images or 'none'}.")
    return column


def _pick_column(
    kind: str, wanted: str | None, candidates: list[str], columns: list[str], source: str, optional: bool = False
) -> str | None:
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"{source} has no column {wanted!r}; its columns are {', '.join(columns)}.")
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    if not candidates and optional:
        return None
    found = f"several {kind} columns ({', '.join(candidates)})" if candidates else f"no {kind} column"
    raise ValueError(
        f"{source} has {found} among {', '.join(columns)}; name one with {kind}_column "
        f"(on the command line --{kind}-column)."
    )


def _folder_rows(path: Path, split: str) -> _Rows:
    """A folder of class folders or of images, with a folder per split or without."""
    folders = {child.name: child for child in sorted(path.iterdir()) if child.is_dir()}
    known = [name for names in _SPLIT_NAMES.values() for name in names]
    if any(name in folders for name in known):
        path = folders[pick_split(str(path), split, list(folders))]
        folders = {child.name: child for child in sorted(path.iterdir()) if child.is_dir()}
    elif split not in ("train", "all"):
        raise ValueError(f"{path} has no folder {split!r}; images that are not split are the split 'train'.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    relative = [file.relative_to(path) for file in files]
    labels = class_names = None
    if all(len(name.parts) > 1 for name in relative):
        class_names = sorted({name.parts[0] for name in relative})
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = [numbers[name.parts[0]] for name in relative]
    return _Rows(str(path), [str(name) for name in relative], _OpenFile(files), labels, class_names)


@dataclass
class _OpenFile:
    files: list[Path]

    def __call__(self, index: int) -> Image.Image:
        return _open(self.files[index])


def _sequence_rows(source: Any, split: str) -> _Rows:
    """A torch data set of images or (image, label) pairs."""
    first = source[0]
    labeled = isinstance(first, tuple | list) and len(first) > 1
    image = first[0] if isinstance(first, tuple | list) else first
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"the data set gives {type(image).__name__} where a PIL image is needed; leave out its transform."
        )
    targets = getattr(source, "targets", None)
    if labeled and (targets is None or len(targets) != len(source)):
        targets = [source[i][1] for i in range(len(source))]
    return _Rows(
        type(source).__name__,
        [f"{split}/{i}" for i in range(len(source))],
        _OpenItem(source),
        [int(target) for target in targets] if labeled and targets is not None else None,
        list(getattr(source, "classes", None) or []) or None,
    )


@dataclass
class _OpenItem:
    source: Any

    def __call__(self, index: int) -> Image.Image:
        item = self.source[index]
        return item[0] if isinstance(item, tuple | list) else item


def _open(file: Any) -> Image.Image:
    image = Image.open(file)
    image.load()
    return image
