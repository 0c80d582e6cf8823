"""Labels of image files in metadata.csv, .jsonl and .parquet, as the imagefolder of ``datasets`` reads them."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable
from typing import Any

from simco_zoo.data.labels import LABEL_COLUMNS
from simco_zoo.data.subsets import shorten

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(
    name: str,
    files: list[str],
    images: set[str],
    read: Callable[[str], bytes],
    label_column: str | None,
    notes: list[str],
) -> dict[str, Any] | None:
    """Returns the label of each image by its path, as ``datasets``' imagefolder has it; None if there are none.

    Args:
        name: What the source is called.
        files: Paths of its files of metadata.
        images: Paths of its images.
        read: Reads a file.
        label_column: Column of the labels; None: a usual name; "none": no labels.
        notes: Gets a sentence about everything that is not used.

    Raises:
        ValueError: If a file is damaged, or has no such column.
    """
    if label_column == "none":
        return None
    labels: dict[str, Any] = {}
    for path in files:
        table = _read_table(name, path, read)
        columns = list(dict.fromkeys(column for row in table for column in row if column))
        column = label_column or next((column for column in LABEL_COLUMNS if column in columns), None)
        if "file_name" not in columns and label_column is None:
            notes.append(f"{path} of {name} is not used: it has no column 'file_name', only {shorten(columns)}.")
            continue
        if column is None:
            continue
        if column not in columns or "file_name" not in columns:
            wanted = column if column not in columns else "file_name"
            raise ValueError(f"{path} of {name} has no column {wanted!r}; its columns are {', '.join(columns)}.")
        values = [row.get(column) for row in table]
        if path.endswith(".csv"):
            values = _numbers(values)
        folder = path.rpartition("/")[0]
        for row, value in zip(table, values, strict=True):
            labels[posixpath.normpath(posixpath.join(folder, str(row.get("file_name") or "")))] = value
    missing = sorted(labels.keys() - images)
    if missing:
        plural = "s are" if len(missing) > 1 else " is"
        notes.append(f"{name}: {len(missing)} file{plural} named in its metadata, but not there: {shorten(missing)}.")
    if label_column is not None and not labels:
        raise ValueError(
            f"{name} has no metadata.csv, .jsonl or .parquet with a column {label_column!r}; its labels are its class "
            "folders."
        )
    return labels or None


def _read_table(name: str, path: str, read: Callable[[str], bytes]) -> list[dict[str, Any]]:
    """Reads the rows of a metadata file; raises ValueError if it is damaged."""
    try:
        if path.endswith(".parquet"):
            return _read_parquet(read(path))
        text = read(path).decode("utf-8-sig")
        if path.endswith(".csv"):
            return list(csv.DictReader(io.StringIO(text)))
        table = [json.loads(line) for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} of {name} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except (csv.Error, ValueError, OSError, RecursionError) as error:  # ValueError: of json and of pyarrow
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} of {name} cannot be read: {reason}.") from error
    if not all(isinstance(row, dict) for row in table):
        raise ValueError(f"{path} of {name} cannot be read: every line has to be a JSON object.")
    return table


def _read_parquet(data: bytes) -> list[dict[str, Any]]:
    """Reads a parquet file; numbers of a column of ``datasets``' ClassLabel become the classes' names."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    table = pq.read_table(pa.BufferReader(data))
    rows: list[dict[str, Any]] = table.to_pylist()
    if b"huggingface" in (table.schema.metadata or {}):
        for column, feature in Features.from_arrow_schema(table.schema).items():
            if isinstance(feature, ClassLabel):
                for row in rows:
                    number = row[column]
                    if number is not None and number >= len(feature.names):
                        raise ValueError(f"its column {column} holds {number}, but names {len(feature.names)} classes")
                    row[column] = None if number is None or number < 0 else feature.names[number]
    return rows


def _numbers(values: list[str | None]) -> list[Any]:
    """Returns the cells of a column of text as integers or floats if all are, empty ones as None."""
    for kind in (int, float):
        try:
            return [kind(value) if value else None for value in values]
        except ValueError:
            continue
    return [value or None for value in values]
