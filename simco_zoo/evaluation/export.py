"""Writing features to a file that other tools read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simco_zoo.evaluation.features import Features


def write_features(features: Features, path: str | Path) -> Path:
    """Writes features, labels (if any) and file names, under a temporary name first.

    ``.safetensors``: tensors ``features`` and ``labels``, names as a JSON list in the metadata; ``.npz``: arrays
    ``features``, ``labels``, ``names``; ``.parquet``: columns ``name``, ``label``, ``features`` (a list per row).

    Args:
        features: What ``extract_features`` returned.
        path: The file; its suffix chooses the format.

    Returns:
        The file's absolute path.

    Raises:
        ValueError: If the suffix is another.
    """
    path = Path(path).absolute()
    write = writer_for(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # numpy appends .npz to other names, so the suffix stays at the end
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(features, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def writer_for(path: Path) -> Callable[[Features, Path], None]:
    """Returns the function that writes a format; called early, it spares a long extraction with a wrong name."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"the output {path.name!r} has to end in one of {', '.join(_WRITERS)}.")
    return _WRITERS[path.suffix]


def _write_safetensors(features: Features, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"features": features.features}
    if features.labels is not None:
        tensors["labels"] = features.labels
    metadata = {"format": "pt", "names": json.dumps(features.names or [])}
    if features.class_names:
        metadata["class_names"] = json.dumps(features.class_names)
    save_file(tensors, path, metadata=metadata)


def _write_npz(features: Features, path: Path) -> None:
    arrays = {"features": features.features.numpy(), "names": np.array(features.names or [], dtype=np.str_)}
    if features.labels is not None:
        arrays["labels"] = features.labels.numpy()
    np.savez(path, allow_pickle=False, **arrays)


def _write_parquet(features: Features, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = features.features.numpy()
    columns: dict[str, pa.Array] = {}
    if features.names is not None:
        columns["name"] = pa.array(features.names)
    if features.labels is not None:
        columns["label"] = pa.array(features.labels.numpy())
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table(columns), path)


_WRITERS = {".safetensors": _write_safetensors, ".npz": _write_npz, ".parquet": _write_parquet}
