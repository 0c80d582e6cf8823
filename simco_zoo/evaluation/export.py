"""Features in a file that other tools read: written whole, and read again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simco_zoo.evaluation.features import Features
from simco_zoo.files import atomic_write

_META = "simco_zoo"  # key of what the formats have no column for


def write_features(features: Features, path: str | Path) -> Path:
    """Writes features with names, labels and classes, under a temporary name first.

    - ``.safetensors``: tensors ``features`` and ``labels``; ``names``, ``splits``, ``class_names`` as JSON lists in the
      metadata.
    - ``.npz``: arrays ``features``, ``labels``, ``names``, ``splits``, ``class_names``.
    - ``.parquet``: columns ``name``, ``split``, ``label``, ``class``, ``features`` (a list per row).
    - ``.csv``: columns ``name``, ``split``, ``label``, ``class``, ``f0``, ``f1``...

    What is not known is left out. All but ``.csv`` also hold ``Features.info``, as JSON.

    Args:
        features: What ``extract_features`` returned.
        path: The file; its suffix chooses the format.

    Returns:
        The file's absolute path.

    Raises:
        ValueError: If the suffix is another.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_features(Features(torch.eye(2), names=["a.png", "b.png"]), f"{folder}/features.csv")
        ...     print(path.read_text())
        name,f0,f1
        a.png,1.0,0.0
        b.png,0.0,1.0
        <BLANKLINE>
    """
    path = Path(path).absolute()
    write = writer_for(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        write(features, partial)
    return path


def read_features(path: str | Path) -> Features:
    """Reads what ``write_features`` wrote.

    Args:
        path: A file of one of its formats.

    Raises:
        ValueError: If the file does not exist, has another suffix, or holds no features.

    Example:
        >>> import tempfile
        >>> path = write_features(Features(torch.eye(2)), Path(tempfile.mkdtemp()) / "features.npz")
        >>> read_features(path).features.shape
        torch.Size([2, 2])
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; write one with simco-zoo extract --output {path}.")
    if path.suffix not in _READERS:
        raise ValueError(f"{path} has to end in one of {', '.join(_READERS)}.")
    try:
        return _READERS[path.suffix](path)
    except (OSError, ValueError, KeyError, StopIteration, ImportError) as error:
        if isinstance(error, ImportError):
            raise
        raise ValueError(f"{path} holds no features, or is damaged ({type(error).__name__}: {error}).") from error


def writer_for(path: Path) -> Callable[[Features, Path], None]:
    """Returns the function that writes a format; called early, it spares a long extraction with a wrong name."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"the output {path.name!r} has to end in one of {', '.join(_WRITERS)}.")
    return _WRITERS[path.suffix]


def _classes(features: Features) -> list[str] | None:
    """Returns the class of each row by its name; empty for rows without a label."""
    if features.labels is None or not features.class_names:
        return None
    return [features.class_names[label] if label >= 0 else "" for label in features.labels.tolist()]


def _class_names(labels: list[int], classes: list[str]) -> list[str]:
    """Returns the names of the labels, as far as rows show them."""
    known = {label: name for label, name in zip(labels, classes, strict=True) if label >= 0}
    return [known.get(label, f"class {label}") for label in range(max(known, default=-1) + 1)]


def _write_safetensors(features: Features, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"features": features.features.contiguous()}
    if features.labels is not None:
        tensors["labels"] = features.labels
    metadata = {"format": "pt", "names": json.dumps(features.names or []), _META: json.dumps(features.info)}
    for key, values in (("class_names", features.class_names), ("splits", features.splits)):
        if values:
            metadata[key] = json.dumps(values)
    save_file(tensors, path, metadata=metadata)


def _read_safetensors(path: Path) -> Features:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata, keys = file.metadata() or {}, file.keys()
            features = file.get_tensor("features")
            labels = file.get_tensor("labels") if "labels" in keys else None
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    read = {key: json.loads(metadata.get(key, "null")) or None for key in ("names", "class_names", "splits", _META)}
    names, class_names, splits, info = read.values()
    return Features(features, labels, names, [], class_names, splits, info or {})


def _write_npz(features: Features, path: Path) -> None:
    arrays: dict[str, Any] = {"features": features.features.numpy()}
    if features.labels is not None:
        arrays["labels"] = features.labels.numpy()
    for key in ("names", "splits", "class_names"):
        values = getattr(features, key)
        if values or key == "names":
            arrays[key] = np.array(values or [], dtype=np.str_)
    np.savez(path, allow_pickle=False, **arrays, **{_META: np.array(json.dumps(features.info))})


def _read_npz(path: Path) -> Features:
    with np.load(path, allow_pickle=False) as file:
        texts = {k: file[k].tolist() or None if k in file else None for k in ("names", "class_names", "splits")}
        labels = torch.from_numpy(file["labels"]) if "labels" in file else None
        info = json.loads(str(file[_META])) if _META in file else {}
        return Features(torch.from_numpy(file["features"]), labels, skipped=[], info=info, **texts)


def _write_parquet(features: Features, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = features.features.numpy()
    columns: dict[str, Any] = {"name": features.names, "split": features.splits}
    columns["label"] = None if features.labels is None else features.labels.numpy()
    columns["class"] = _classes(features)
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    table = pa.table({key: column for key, column in columns.items() if column is not None})
    metadata = {"info": features.info, "class_names": features.class_names}
    pq.write_table(table.replace_schema_metadata({_META: json.dumps(metadata)}), path)


def _read_parquet(path: Path) -> Features:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    metadata = json.loads((table.schema.metadata or {}).get(_META.encode(), b"{}"))
    columns = {
        name: table[name].to_pylist() for name in ("name", "split", "label", "class") if name in table.column_names
    }
    flat = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    labels = torch.tensor(columns["label"]) if "label" in columns else None
    class_names = metadata.get("class_names")
    if class_names is None and labels is not None and "class" in columns:
        class_names = _class_names(columns["label"], columns["class"])
    features = torch.from_numpy(flat.copy()).view(table.num_rows, -1)
    return Features(
        features, labels, columns.get("name"), [], class_names, columns.get("split"), metadata.get("info") or {}
    )


def _write_csv(features: Features, path: Path) -> None:
    columns = {
        "name": features.names,
        "split": features.splits,
        "label": None if features.labels is None else features.labels.tolist(),
        "class": _classes(features),
    }
    known = {key: column for key, column in columns.items() if column is not None}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*known, *(f"f{i}" for i in range(features.features.shape[1]))])
        for row, values in enumerate(features.features.numpy()):
            # the shortest decimal that is read back as the same fp32 value
            writer.writerow([*(column[row] for column in known.values()), *(str(value) for value in values)])


def _read_csv(path: Path) -> Features:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader)
        rows = list(reader)
    first = header.index("f0")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header[:first])}
    values = np.array([row[first:] for row in rows], dtype=np.float32).reshape(len(rows), -1)
    numbers = [int(label) for label in columns["label"]] if "label" in columns else None
    class_names = _class_names(numbers, columns["class"]) if numbers is not None and "class" in columns else None
    labels = None if numbers is None else torch.tensor(numbers)
    return Features(torch.from_numpy(values), labels, columns.get("name"), [], class_names, columns.get("split"))


_WRITERS = {".safetensors": _write_safetensors, ".npz": _write_npz, ".parquet": _write_parquet, ".csv": _write_csv}
_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".parquet": _read_parquet, ".csv": _read_csv}
