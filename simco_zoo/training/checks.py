"""What pretraining and fine-tuning check before the first file is touched."""

from __future__ import annotations

import warnings

import torch

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.data.transforms import Size
from simco_zoo.distributed import world_size
from simco_zoo.evaluation.forward import evaluating
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.contrastive import known_options, takes_more_views
from simco_zoo.models.moco import MoCo
from simco_zoo.training.config import TrainingConfig, parse_sizes


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


def check_image_size(model: ContrastiveModel, size: Size) -> None:
    """Raises ValueError unless the backbone takes color images of that side; one forward of two tells."""
    if not isinstance(size, int):
        raise ValueError(f"the images are {' x '.join(map(str, size))} px, but training crops squares; pass one side.")
    if model.in_chans not in (None, 3):
        raise ValueError(
            f"the model takes {model.in_chans} channel{'s' * (model.in_chans > 1)}, but training reads images as RGB; "
            "leave in_chans out (gray images become RGB)."
        )
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


def check_pretraining(
    model: ContrastiveModel,
    images: ImageData | StreamedImages,
    test_images: ImageData | None,
    config: TrainingConfig,
    device: torch.device,
) -> None:
    """Checks that settings, model, images and device fit each other, before any file is touched.

    Raises:
        ValueError: If they do not, with the remedy.
    """
    check_batch_size(len(images), config.batch_size, config.accumulate)
    if config.sync_bn and device.type != "cuda":
        raise ValueError(
            f"sync_bn needs GPUs, as torch's SyncBatchNorm does, but the device is {device}; "
            "leave it out, or use a backbone without batch norm."
        )
    if config.sync_bn and getattr(model, "bn_splits", 1) > 1:
        raise ValueError("sync_bn joins what bn_splits parts; choose one of them.")
    if config.online_linear and (images.labels is None or test_images is None or test_images.labels is None):
        raise ValueError("online_linear needs labels of the training and of the test images; leave it out.")
    if config.online_linear and not known_options(model, {"report_features": True}):
        raise ValueError(f"online_linear needs features, but contrast of {model.method} takes no report_features.")
    if config.views_per_image > 2 and not takes_more_views(model):
        raise ValueError(
            f"views_per_image is {config.views_per_image}, but contrast of {model.method} takes two views."
        )
    if config.freeze_patch_embed and getattr(model.backbone, "patch_embed", None) is None:
        raise ValueError(f"{model.architecture} has no patch embedding; leave freeze_patch_embed out.")
    for side in {images.image_size, *(side for side, _ in parse_sizes(config.sizes or f"{images.image_size}:1"))}:
        check_image_size(model, side)
    if isinstance(model, MoCo) and model.queue_size >= len(images):
        warnings.warn(
            f"the queue of {model.queue_size} keys is as long as the data set of {len(images)} images or longer: "
            "it holds older keys of the query's own image as negatives; a tenth of the images serves better.",
            stacklevel=3,
        )
