"""The identity of a run: what must be the same for a run to be continued.

Starting weights, images, classes and the settings that decide the result, as a flat dict of plain values. It is written
when a run starts and compared when it is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from simco_zoo.data import ImageData
from simco_zoo.data.fingerprint import describe_images, hash_tensors
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.signatures import method_arguments
from simco_zoo.training.augmentations import AugmentationSettings
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig

SCHEDULE = {"epochs", "max_steps", "max_hours"}  # compared as the number of steps, which may grow
_IN_WORDS = {"augmentations", "view_preset"}  # the views' values are compared one by one
# what a difference in a hash means
_HASHES = {
    "model.weights": "other starting weights",
    "data.names": "other file names of the training images",
    "data.pixels": "other pixels in the training images",
    "data.all_pixels": "other pixels in the training images",
    "data.file_sizes": "other sizes of the training images' files",
    "data.labels": "other labels of the training images",
    "test.names": "other file names of the test images",
    "test.pixels": "other pixels in the test images",
    "test.all_pixels": "other pixels in the test images",
    "test.file_sizes": "other sizes of the test images' files",
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
        published: Names of the published folders that the finished run has.
    """

    values: dict[str, Any]
    defaults: dict[str, Any]
    free: Collection[str]
    schedule: dict[str, Any]
    total_steps: int | None
    branch_fixed: Collection[str] = ()
    published: Collection[str] = ()


def run_identity(
    kind: str,
    model: ContrastiveModel,
    images: ImageData | StreamedImages,
    test_images: ImageData | None,
    config: TrainingConfig | FinetuneConfig,
    *,
    free: Collection[str],
    branch_fixed: Collection[str],
    published: Collection[str],
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
        published: See ``Identity``.
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
    return Identity(values, defaults, free, schedule, steps, branch_fixed, published)


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
    unknown = {key for key in now if key not in then and key not in defaults}
    # images may be decoded on the way in one run and before it in the other
    unknown |= {key for key in then if key not in now and key.endswith((".all_pixels", ".file_sizes"))}
    skipped = {*ignored, *SCHEDULE, *unknown}
    found = []
    for key in sorted({*then, *now} - skipped):
        before, after = then.get(key, defaults.get(key)), now.get(key, defaults.get(key))
        if before != after:
            found.append(_HASHES.get(key, f"{key}: {_short(before)} then, {_short(after)} now"))
    return list(dict.fromkeys(found))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
