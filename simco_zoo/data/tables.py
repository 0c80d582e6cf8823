"""Data sets of the ``datasets`` library: of the Hub, in parquet files, saved to disk, or in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from simco_zoo.data.decoding import open_image
from simco_zoo.data.labels import LABEL_COLUMNS, encode_labels
from simco_zoo.data.rows import Rows, Source, canonical_split


@dataclass
class OpenEncoded:
    """Opens the image of a row that holds its bytes or its path."""

    table: Any
    column: str

    def __call__(self, index: int) -> Image.Image:
        entry = self.table[index][self.column]
        if entry is None or (entry["bytes"] is None and not entry["path"]):
            raise ValueError("the row has no image")
        return open_image(entry["bytes"] if entry["bytes"] is not None else entry["path"])


def tables_source(
    name: str,
    tables: dict[str, Any],
    image_column: str | None = None,
    label_column: str | None = None,
    *,
    divided: bool = True,
    in_memory: bool = False,
) -> Source:
    """Reads the splits of a data set.

    Args:
        name: What the source is called.
        tables: ``datasets.Dataset`` of each split.
        image_column: Name of the image column; None: the only one there is.
        label_column: Name of the label column; None: the usual names; "none": no labels.
        divided: Whether the splits are splits, and not one table.
        in_memory: Whether the tables were passed as objects.

    Raises:
        ValueError: If the column does not exist, or several columns qualify.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    opened: dict[str, OpenEncoded] = {}
    values: dict[str, list[Any] | None] = {}
    names = None
    notes = []
    for split, table in tables.items():
        table = table.with_format(None)
        column = pick_image_column(table.features, image_column, name)
        encoded = table.select_columns([column])
        encoded = encoded.cast_column(column, ImageFeature(decode=False))
        opened[split] = OpenEncoded(encoded, column)
        values[split] = None
        labels = pick_label_column(table.features, label_column, name)
        if labels is not None:
            feature = table.features[labels]
            names = list(feature.names) if isinstance(feature, ClassLabel) else names
            values[split] = (
                table.with_format("arrow").select_columns([labels])[:][labels].to_pylist() if len(table) else []
            )
        elif label_column is None:
            unusable = [column for column in LABEL_COLUMNS if column in table.features]
            notes += [f"{name}: the column {column!r} holds no classes; it is not used." for column in unusable]
    encoded_labels, class_names = encode_labels(values, name, names)
    if any(values.values()) and not any(labels is not None for labels in encoded_labels.values()):
        notes.append(f"{name}: all labels are hidden (-1) or missing.")
    rows = {
        split: Rows(_row_names(split, opened[split], len(table)), opened[split], encoded_labels[split])
        for split, table in tables.items()
    }
    notes = list(dict.fromkeys(notes))
    return Source(name, rows, class_names, divided=divided, in_memory=in_memory, notes=notes)


def _row_names(split: str, opened: OpenEncoded, count: int) -> list[str]:
    return [f"{split}/{i}" for i in range(count)]


def hub_source(
    source: str,
    image_column: str | None,
    label_column: str | None,
    dataset_config: str | None = None,
    revision: str | None = None,
) -> Source:
    """Reads a data set of the Hub, or a folder in its layout."""
    from datasets import load_dataset

    try:
        tables = load_dataset(source, dataset_config, revision=revision)
    except ValueError as error:  # datasets names the configurations
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"the data set {source!r} cannot be read ({reason.rstrip('.')}); name a configuration with dataset_config "
            "(on the command line --dataset-config), or a revision with --revision."
        ) from error
    except (OSError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the data set {source!r} is not a local folder and could not be loaded from the Hub ({reason}); "
            "check its name, or pass a folder, or --dataset photos, which is built in."
        ) from error
    return tables_source(source, dict(tables), image_column, label_column)


_PARQUET_SPLIT = re.compile(
    r"(?:^|[/_.\-])(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|dev|eval)(?=[/_.\-]|$)", re.I
)


def split_files(paths: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Sorts files into splits by the word train, test, validation... in their path; files without one are "train"."""
    splits: dict[str, list[Path]] = {}
    for path in paths:
        found = _PARQUET_SPLIT.search(path.relative_to(root).as_posix())
        splits.setdefault(canonical_split(found[1]) if found else "train", []).append(path)
    return splits


def parquet_source(
    name: str, files: Sequence[Path], root: Path, image_column: str | None, label_column: str | None
) -> Source:
    """Reads parquet files that hold images."""
    from datasets import load_dataset

    splits = split_files(files, root)
    tables = load_dataset("parquet", data_files={split: [str(p) for p in paths] for split, paths in splits.items()})
    return tables_source(
        name, dict(tables), image_column, label_column, divided=len(splits) > 1 or "train" not in splits
    )


def has_image_column(path: Path) -> bool:
    """Whether a parquet file has a column that can hold images, by its schema."""
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        features = Features.from_arrow_schema(pq.read_schema(path))
    except (OSError, ValueError):
        return False
    return bool(image_columns(features))


def saved_source(path: Path, image_column: str | None, label_column: str | None) -> Source:
    """Reads a folder that ``save_to_disk`` wrote."""
    from datasets import Dataset, load_from_disk

    tables = load_from_disk(str(path))
    if isinstance(tables, Dataset):
        return tables_source(str(path), {"train": tables}, image_column, label_column, divided=False)
    return tables_source(str(path), dict(tables), image_column, label_column)


def is_saved(path: Path) -> bool:
    """Whether ``datasets``' ``save_to_disk`` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def image_columns(features: Any) -> list[str]:
    """Returns the columns that hold images: typed as such, or bytes, or bytes and a path."""
    from datasets import Image as ImageFeature
    from datasets import Value

    typed = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if typed:
        return typed
    return [
        column
        for column, feature in features.items()
        if (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))
        or (isinstance(feature, dict) and "bytes" in feature)
    ]


def pick_image_column(features: Any, wanted: str | None, source: str) -> str:
    """Returns the wanted column of images, or the only one; raises ValueError if it is none or ambiguous."""
    images = image_columns(features)
    column = _pick_column("image", wanted, images, list(features), source)
    if column not in images:
        raise ValueError(f"the column {column!r} of {source} holds no images; image columns: {images or 'none'}.")
    return column


def pick_label_column(features: Any, wanted: str | None, source: str) -> str | None:
    """Returns the wanted column of labels, or the one with a usual name, or the only class column, or None."""
    from datasets import ClassLabel, Value

    if wanted == "none":
        return None
    if wanted is None:
        usual = [
            column
            for column in LABEL_COLUMNS
            if column in features and isinstance(features[column], Value | ClassLabel)
        ]
        candidates = [
            column
            for column, feature in features.items()
            if isinstance(feature, ClassLabel) or (column.endswith("label") and isinstance(feature, Value))
        ]
        if not usual and not candidates:
            return None
        wanted = usual[0] if usual else None
        return _pick_column("label", wanted, candidates, list(features), source)
    return _pick_column("label", wanted, [], list(features), source)


def _pick_column(kind: str, wanted: str | None, candidates: list[str], columns: list[str], source: str) -> str:
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"{source} has no column {wanted!r}; its columns are {', '.join(columns)}.")
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    found = f"several {kind} columns ({', '.join(candidates)})" if candidates else f"no {kind} column"
    raise ValueError(
        f"{source} has {found} among {', '.join(columns)}; name one with {kind}_column "
        f"(on the command line --{kind}-column)."
    )
