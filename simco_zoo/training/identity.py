"""The identity of a run: what must be the same for a run to be continued.

Starting weights, images, classes and the settings that decide the result, as a flat dict of plain values. It is written
when a run starts and compared when it is resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.signatures import method_arguments
from simco_zoo.training.augmentations import AugmentationSettings
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.state import preserved_rng

SAMPLE = 16  # images whose pixels are compared
SCHEDULE = {"epochs", "max_steps", "max_hours"}  # compared as the number of steps, which may grow
_IN_WORDS = {"augmentations", "view_preset"}  # the views' values are compared one by one
# what a difference in a hash means
_HASHES = {
    "model.weights": "other starting weights",
    "data.names": "other file names of the training images",
    "data.pixels": "other pixels in the training images",
    "data.labels": "other labels of the training images",
    "test.names": "other file names of the test images",
    "test.pixels": "other pixels in the test images",
    "test.labels": "other labels of the test images",
}


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to be continued.

    Attributes:
        values: Starting weights, images and settings, see ``identity.py``.
        defaults: Values of settings that an older version did not store.
        free: Keys that are not compared.
        schedule: Settings of the run's length, which may grow.
        total_steps: Steps of the whole run; None if they depend on the time that a step takes.
        branch_fixed: Keys that must agree even with a run that starts from another one's checkpoint.
    """

    values: dict[str, Any]
    defaults: dict[str, Any]
    free: Collection[str]
    schedule: dict[str, Any]
    total_steps: int | None
    branch_fixed: Collection[str] = ()


def run_identity(
    kind: str,
    model: ContrastiveModel,
    images: ImageData | StreamedImages,
    test_images: ImageData | None,
    config: TrainingConfig | FinetuneConfig,
    *,
    free: Collection[str],
    branch_fixed: Collection[str],
) -> Identity:
    """Returns the identity of a run.

    Args:
        kind: "pretraining" or "fine-tuning".
        model: The model with its starting weights.
        images: Training images.
        test_images: Images that accuracies are measured on, or None.
        config: Settings.
        free: Settings that are not compared.
        branch_fixed: See ``Identity``.
    """
    settings = config.to_dict()
    values = {
        "kind": kind,
        "processes": world_size(),
        **describe_settings(settings, free),
        **describe_model(model),
        **describe_images("data", images),
        **describe_images("test", test_images),
    }
    if isinstance(images, StreamedImages):
        values["data.workers"] = config.workers  # they share the stream out
    defaults = type(config)().to_dict()
    if isinstance(config, TrainingConfig):  # an older version had the presets alone
        defaults["view_preset"] = AugmentationSettings(config.views).describe_augmentations()["view_preset"]
    defaults = {"kind": kind, **describe_settings(defaults)}
    defaults.update({f"model.{name}": p.default for name, p in method_arguments(type(model)).items()})
    schedule = {key: settings[key] for key in SCHEDULE & settings.keys()}
    steps = None if settings.get("max_hours") else config.total_steps(len(images))
    return Identity(values, defaults, free, schedule, steps, branch_fixed)


def describe_settings(settings: dict[str, Any], free: Collection[str] = ()) -> dict[str, Any]:
    """Returns the settings of a config that decide the result; of the views every value by itself."""
    preset = settings.get("view_preset", {})
    described = {key: value for key, value in settings.items() if key not in {*free, *SCHEDULE, *_IN_WORDS}}
    return {**described, **{f"views.{key}": value for key, value in preset.items()}}


def describe_model(model: ContrastiveModel) -> dict[str, Any]:
    """Returns the method with its arguments, the architecture, and a hash of the weights."""
    return {
        "model.method": model.method,
        "model.architecture": model.architecture,
        "model.arguments": model.model_args,
        "model.weights": hash_tensors(model.state_dict().values()),
        **{f"model.{key}": value for key, value in model.method_config().items()},
    }


def describe_images(part: str, images: ImageData | StreamedImages | None) -> dict[str, Any]:
    """Returns number, size, classes, and hashes of names, labels and some of the pixels; not where the images lie.

    Args:
        part: Begins the names, "data" or "test".
        images: Images, or None.
    """
    if images is None:
        return {f"{part}.images": 0}
    described: dict[str, Any] = {
        f"{part}.images": len(images),
        f"{part}.split": images.split,
        f"{part}.image_size": images.image_size,
        f"{part}.pixels": _hash_pixels(images),
    }
    if isinstance(images, ImageData):
        if images.whole is not None:
            described[f"{part}.whole_side"] = images.whole.side
        labels = [] if images.labels is None else [images.labels]
        described[f"{part}.names"] = _hash_texts(images.names)
        described[f"{part}.labels"] = hash_tensors(labels)
        described[f"{part}.classes"] = images.class_names
    return described


def as_stored(identity: dict[str, Any]) -> dict[str, Any]:
    """Returns an identity as JSON gives it back."""
    stored: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return stored


def differences(
    then: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any], ignored: Iterable[str] = ()
) -> list[str]:
    """Lists in words what differs between the identity that a run was started with and the present one.

    Args:
        then: The stored identity.
        now: The present one.
        defaults: Values of settings that an older version did not store; what it did not store and has no default is
            not compared.
        ignored: Keys that are not compared.
    """
    then, now, defaults = as_stored(then), as_stored(now), as_stored(defaults)
    skipped = {*ignored, *SCHEDULE, *(key for key in now if key not in then and key not in defaults)}
    found = []
    for key in sorted({*then, *now} - skipped):
        before, after = then.get(key, defaults.get(key)), now.get(key, defaults.get(key))
        if before != after:
            found.append(_HASHES.get(key, f"{key}: {_short(before)} then, {_short(after)} now"))
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Returns a hash of the bytes of tensors, whatever their device and memory format."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        hashed.update(str((content.dtype, tuple(content.shape))).encode())
        hashed.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


def _hash_texts(texts: Iterable[str]) -> str:
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(text.encode(errors="surrogateescape") + b"\0")
    return hashed.hexdigest()[:16]


def _hash_pixels(images: ImageData | StreamedImages) -> str:
    """Returns a hash of some images, evenly spaced, of a stream the first."""
    with preserved_rng():  # a loader draws
        if isinstance(images, StreamedImages):
            return hash_tensors([images.sample(min(SAMPLE, len(images)))])
        rows = torch.linspace(0, len(images) - 1, min(SAMPLE, len(images))).round().long()
        return hash_tensors(images.batches([rows]))
