"""Publishes the model of a run as a folder in the run's folder, with the run's log and curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.models import ContrastiveModel
from simco_zoo.publishing import save_pretrained
from simco_zoo.training.log import hardware


def publish_run(
    folder: Path, name: str, model: ContrastiveModel, images: ImageData | StreamedImages, **what: Any
) -> None:
    """Writes the model as the published folder ``name`` of a run; ``what`` goes to ``save_pretrained``."""
    curves = folder / "curves.png"
    save_pretrained(
        model,
        folder / name,
        data=describe_data(images),
        log=folder / "log.csv",
        curves=curves if curves.is_file() else None,
        hardware=hardware(next(model.parameters()).device),
        **what,
    )


def describe_data(images: ImageData | StreamedImages) -> dict[str, Any]:
    """Returns what a published folder says of its training images."""
    return {
        # of a local folder only the name: its path says nothing to those who load the weights
        "name": Path(images.source).name if Path(images.source).exists() else images.source,
        "split": images.split,
        "images": len(images),
        "image_size": images.image_size,
    }
