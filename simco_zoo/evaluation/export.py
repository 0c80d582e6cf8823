"""Writing features to a file that other tools read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simco_zoo.distributed import init_distributed, is_main, pick_device
from simco_zoo.evaluation.features import Features, extract_features
from simco_zoo.files import atomic_write


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
    with atomic_write(path) as partial:
        write(features, partial)
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


def extract_to_file(
    model_name: str,
    images: Any,
    output: str | Path,
    *,
    weights: str | None = None,
    split: str = "train",
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    **load: Any,
) -> dict[str, Any]:
    """Extracts the features of images with a published model and writes them to a file.

    Images that cannot be read are left out.

    Args:
        model_name: A name with weights, ``local-dir:PATH`` or ``hf-hub:org/name``.
        images: A folder, a data set of the Hub, or "photos".
        output: File that ends in .safetensors, .npz or .parquet.
        weights: A file or folder of weights instead of the published ones; "none" for an untrained network.
        split: Which part of the images.
        batch_size: Images per forward.
        num_workers: Processes that decode images which do not fit in memory.
        device: "auto", "cpu", "cuda"...
        **load: Further arguments of ``load_images``.

    Returns:
        ``count``, ``dim``, ``output`` (absolute path), and ``skipped``, the (name, reason) of each image left out.

    Raises:
        ValueError: If the output's suffix is unknown or no image can be read.
    """
    from simco_zoo.models import create_model

    writer_for(Path(output))
    target = init_distributed(pick_device(device))
    model = create_model(model_name, pretrained=weights != "none", weights=None if weights == "none" else weights)
    features = extract_features(
        model,
        images,
        batch_size,
        split=split,
        device=target,
        num_workers=num_workers,
        progress_bar=True,
        across_processes=True,
        **load,
    )
    path = Path(output).absolute()
    if is_main():
        write_features(features, path)
    dim = features.features.shape[1]
    return {"count": len(features), "dim": dim, "output": str(path), "skipped": features.skipped}
