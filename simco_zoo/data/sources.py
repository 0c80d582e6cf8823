"""Which kind of source something is, and its rows: one function per kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simco_zoo.data.archives import ARCHIVES, tar_source, zip_source
from simco_zoo.data.decoding import readable_formats
from simco_zoo.data.folders import OpenFile, folder_source, list_folder, printable, suffix
from simco_zoo.data.labels import encode_labels
from simco_zoo.data.rows import Rows, Source
from simco_zoo.data.tables import (
    has_image_column,
    hub_source,
    is_saved,
    parquet_source,
    saved_source,
    split_files,
    tables_source,
)


@dataclass(frozen=True)
class Options:
    """What a caller says about a source; each kind uses what applies to it."""

    image_column: str | None = None
    label_column: str | None = None
    dataset_config: str | None = None
    revision: str | None = None


def open_source(source: Any, options: Options) -> Source:
    """Opens any kind of source without decoding its images.

    Raises:
        ValueError: If the source does not exist or holds no images.
    """
    if isinstance(source, Tensor | np.ndarray):
        return array_source(source)
    if isinstance(source, str) and source == "photos":
        return photo_source()
    if isinstance(source, str | Path):
        return path_source(source, options)
    if hasattr(source, "column_names") and hasattr(source, "features"):
        _refuse_streams(source)
        tables = {"train": source}
        columns = options.image_column, options.label_column
        return tables_source("data set", tables, *columns, divided=False, in_memory=True)
    if isinstance(source, dict) and source and all(hasattr(table, "features") for table in source.values()):
        for table in source.values():
            _refuse_streams(table)
        return tables_source("data set", dict(source), options.image_column, options.label_column)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, dict):
        return sequence_source(source)
    raise ValueError(f"images cannot be read from a {type(source).__name__}; pass a folder or a data set.")


def _refuse_streams(table: Any) -> None:
    if not hasattr(table, "__len__"):
        raise ValueError(
            "an IterableDataset has no length and no places to jump to; load it without streaming=True, or pass its "
            "name to simco_zoo.data.stream_images (on the command line --streaming)."
        )


# In memory


def array_source(images: Tensor | np.ndarray) -> Source:
    """Reads uint8 images: a tensor (N, 3, H, W), or an array (N, H, W, 3), (N, H, W) or (N, 3, H, W)."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(
                f"the array is {images.dtype} {images.shape}, but has to be uint8 (N, H, W, 3) or (N, H, W)."
            )
        images = np.repeat(images[..., None], 3, axis=3) if images.ndim == 3 else images
        channels_last = images.shape[3] == 3 and images.shape[1] != 3
        images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2) if channels_last else images))
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images is {images.dtype} {tuple(images.shape)}, but has to be uint8 (N, 3, H, W).")
    return _pixels_source("tensor", {"train": images}, in_memory=True)


@dataclass
class _OpenPixels:
    images: Tensor

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index].permute(1, 2, 0).contiguous().numpy())


def _pixels_source(name: str, splits: dict[str, Tensor], in_memory: bool = False) -> Source:
    rows = {
        split: Rows([f"{split}/{i}" for i in range(len(images))], _OpenPixels(images), images=images)
        for split, images in splits.items()
    }
    return Source(name, rows, divided=not in_memory, in_memory=in_memory)


def photo_source() -> Source:
    """Cuts the built-in data set."""
    from simco_zoo.data.photos import PATCHES, photos

    splits, class_names = {}, None
    for split in PATCHES:
        images, labels, class_names = photos(split)
        names = [f"{class_names[label]}/{split}-{i}" for i, label in enumerate(labels.tolist())]
        splits[split] = Rows(names, _OpenPixels(images), labels, images)
    return Source("photos", splits, class_names)


def sequence_source(source: Sequence[Any]) -> Source:
    """Reads a torch data set of images or (image, label) pairs, a list of those, or a list of paths."""
    if len(source) == 0:
        raise ValueError(f"the {type(source).__name__} is empty; pass images.")
    first = source[0]
    if isinstance(first, str | Path):
        paths = [str(Path(path).expanduser()) for path in source]
        rows = Rows([printable(path) for path in paths], OpenFile("", paths))
        return Source("list of paths", {"train": rows}, divided=False, in_memory=True)
    labeled = isinstance(first, tuple | list) and len(first) > 1
    image = first[0] if isinstance(first, tuple | list) else first
    if not isinstance(image, Image.Image | np.ndarray):
        raise ValueError(
            f"the data set gives {type(image).__name__} where a PIL image is needed; leave out its transform."
        )
    name = type(source).__name__
    labels, class_names = encode_labels({"train": _targets(source) if labeled else None}, name, _classes(source))
    rows = Rows([f"train/{i}" for i in range(len(source))], _OpenItem(source), labels["train"])
    return Source(name, {"train": rows}, class_names, divided=False, in_memory=True)


@dataclass
class _OpenItem:
    source: Any

    def __call__(self, index: int) -> Image.Image:
        item = self.source[index]
        image = item[0] if isinstance(item, tuple | list) else item
        return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _targets(source: Any) -> list[Any]:
    """Returns a data set's labels as its items have them, without decoding images where it lists its targets."""
    if isinstance(source, torch.utils.data.Subset):
        inner = _targets(source.dataset)
        return [inner[i] for i in source.indices]
    targets = getattr(source, "targets", None)
    if targets is None or len(targets) != len(source):
        return [source[i][1] for i in range(len(source))]
    transform = getattr(source, "target_transform", None)
    return [value if transform is None else transform(value) for value in targets]


def _classes(source: Any) -> list[str] | None:
    """Returns the names of a data set's classes, unless its labels were changed by a transform."""
    if isinstance(source, torch.utils.data.Subset):
        return _classes(source.dataset)
    if getattr(source, "target_transform", None) is not None:
        return None
    return [str(name) for name in getattr(source, "classes", None) or []] or None


# On disk and on the Hub

_HUB_ID = re.compile(r"[\w.\-]+(/[\w.\-]+)?")


def path_source(source: str | Path, options: Options) -> Source:
    """Reads what a path or a data set's id names."""
    path = Path(source).expanduser()
    if not path.exists():
        looks_like_a_path = isinstance(source, Path) or str(source).startswith((".", "~", "/")) or path.is_absolute()
        if looks_like_a_path or not _HUB_ID.fullmatch(str(source)):
            raise ValueError(f"there is no folder {source}, and it is not the id of a data set on the Hub (org/name).")
        return hub_source(str(source), **vars(options))
    if path.is_file():
        return file_source(path, options)
    if is_saved(path):
        return saved_source(path, options.image_column, options.label_column)
    listing = list_folder(path)
    tables = [path / name for name in listing.others if suffix(name) == ".parquet"]
    tables = [table for table in tables if has_image_column(table)]
    if tables and len(listing.images) < _rows_of(tables):
        if (path / "README.md").is_file():  # the Hub's layout: the page names configurations and files
            return hub_source(str(path), **vars(options))
        return parquet_source(str(path), tables, path, options.image_column, options.label_column)
    shards = [path / name for name in listing.others if suffix(name) == ".tar"]
    if shards and not listing.images:
        return tar_source(str(path), split_files(shards, path), options.label_column)
    if not listing.images and (path / "README.md").is_file() and any(suffix(n) in _DATA for n in listing.others):
        return hub_source(str(path), **vars(options))
    return folder_source(path, listing, options.label_column)


_DATA = {".arrow", ".jsonl", ".json", ".zip", ".gz"}


def _rows_of(tables: list[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(table).num_rows for table in tables)


def file_source(path: Path, options: Options) -> Source:
    """Reads a single file: an image, an archive, or a table of images."""
    end = suffix(path.name)
    if end == ".zip":
        return zip_source(path, options.label_column)
    if end == ".tar":
        return tar_source(str(path), {"train": [path]}, options.label_column)
    if end == ".parquet":
        return parquet_source(str(path), [path], path.parent, options.image_column, options.label_column)
    if end in readable_formats()[1]:
        rows = Rows([printable(path.name)], OpenFile(str(path.parent), [path.name]))
        return Source(str(path), {"train": rows}, divided=False, in_memory=True)
    raise ValueError(
        f"{path} is a file that is neither an image nor one of {', '.join(sorted(ARCHIVES))}, .parquet; "
        "pass the folder that holds the images (a compressed archive has to be unpacked)."
    )
