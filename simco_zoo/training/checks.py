"""What pretraining and fine-tuning check before the first file is touched."""

from __future__ import annotations

import torch

from simco_zoo.distributed import world_size
from simco_zoo.evaluation.features import evaluating
from simco_zoo.models import ContrastiveModel


def check_batch_size(images: int, batch_size: int, accumulate: int) -> None:
    """Raises ValueError unless there are images for a step and the processes can share a batch equally."""
    if images < batch_size * accumulate:
        times = f" times accumulate {accumulate}" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size is {batch_size}{times}, but there are only {images} images; "
            f"pass a batch size of at most {images // accumulate}."
        )
    if batch_size % world_size() or batch_size // world_size() < 1:
        raise ValueError(
            f"batch_size is {batch_size}, but {world_size()} processes share it equally; "
            f"pass a multiple of {world_size()}."
        )


def check_image_size(model: ContrastiveModel, size: int) -> None:
    """Raises ValueError unless the backbone takes images of that side; one forward of two tells."""
    parameter = next(model.parameters())
    images = torch.zeros(2, 3, size, size, dtype=parameter.dtype, device=parameter.device)
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the backbone {model.architecture or type(model.backbone).__name__} cannot take images of {size} px "
            f"({reason}); use another image_size, or small_stem=True for small images."
        ) from error
