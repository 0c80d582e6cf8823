"""The random views as settings: a preset, and what differs from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from simco_zoo.data.presets import PRESETS, ViewPreset

# setting -> field of ViewPreset, where the names differ
_FIELDS = {"crop_scale": "scale", "crop_ratio": "ratio"}
_LENGTHS = {"crop_scale": 2, "crop_ratio": 2, "blur_sigma": 2, "mean": 3, "std": 3}

Numbers = str | tuple[float, ...] | None


@dataclass(frozen=True)
class AugmentationSettings:
    """The random views of pretraining. A setting that is None has the preset's value.

    Attributes:
        views: Preset of the random views: cifar (the paper's) or imagenet (MoCo v2's); in Python a ``ViewPreset``, too.
        crop_scale: Range of the crop's share of the image's area, "LOW,HIGH"; default: the preset's.
        crop_ratio: Range of the crop's width / height, "LOW,HIGH"; default: the preset's.
        jitter: Probability of the color jitter; default: the preset's.
        brightness: Strength of the brightness jitter: factor from 1 - b to 1 + b; default: the preset's.
        contrast: Strength of the contrast jitter: factor from 1 - c to 1 + c; default: the preset's.
        saturation: Strength of the saturation jitter: factor from 1 - s to 1 + s; default: the preset's.
        hue: Strength of the hue jitter: shift from -h to h turns of the color circle; default: the preset's.
        grayscale: Probability of a gray view; default: the preset's.
        blur: Probability of a Gaussian blur; default: the preset's.
        blur_sigma: Range of the blur's deviation in pixels, "LOW,HIGH"; default: the preset's.
        solarize: Probability of solarization; default: the preset's.
        flip: Probability of a horizontal flip; default: the preset's.
        mean: Mean of each channel, of values in [0, 1], for normalization, "R,G,B"; default: the preset's.
        std: Standard deviation of each channel, for normalization, "R,G,B"; default: the preset's.
    """

    views: str | ViewPreset = "cifar"
    crop_scale: Numbers = None
    crop_ratio: Numbers = None
    jitter: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    grayscale: float | None = None
    blur: float | None = None
    blur_sigma: Numbers = None
    solarize: float | None = None
    flip: float | None = None
    mean: Numbers = None
    std: Numbers = None

    @property
    def preset_name(self) -> str:
        """Name of the preset, "custom" for one that was made in Python."""
        return self.views if isinstance(self.views, str) else "custom"

    @property
    def view_preset(self) -> ViewPreset:
        """The views with everything that was set.

        Raises:
            ValueError: If the preset is unknown, or a value is out of its range.
        """
        preset = self.views
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise ValueError(f"views is {preset!r}, but has to be one of {', '.join(PRESETS)}.")
            preset = PRESETS[preset]
        changed = replace(preset, **{_FIELDS.get(name, name): value for name, value in self._changes().items()})
        if not all(value > 0 for value in changed.std):
            raise ValueError(f"std is {changed.std}, but each channel's deviation has to be positive.")
        return changed

    def _changes(self) -> dict[str, Any]:
        """Returns the settings that differ from the preset's, as values of a ``ViewPreset``."""
        changes = {}
        for field in dataclasses.fields(AugmentationSettings):
            value = getattr(self, field.name)
            if field.name != "views" and value is not None:
                length = _LENGTHS.get(field.name)
                changes[field.name] = value if length is None else _numbers(field.name, value, length)
        return changes

    def describe_augmentations(self) -> dict[str, Any]:
        """Returns what config.json says of the views: the preset, in words what differs from it, and every value."""
        words = [f"{name.replace('_', ' ')} {_short(value)}" for name, value in self._changes().items()]
        return {
            "views": self.preset_name,
            "augmentations": ", ".join(words) or None,
            "view_preset": dataclasses.asdict(self.view_preset),
        }


AUGMENTATIONS = tuple(field.name for field in dataclasses.fields(AugmentationSettings) if field.name != "views")


def _numbers(name: str, value: str | tuple[float, ...], length: int) -> tuple[float, ...]:
    """Reads "LOW,HIGH" or "R,G,B"."""
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != length:
        form = "LOW,HIGH, e.g. 0.2,1" if length == 2 else "R,G,B, e.g. 0.5,0.5,0.5"
        raise ValueError(f"{name} is {value!r}, but has the form {form}.")
    return numbers


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:g}"
    return (" to " if len(value) == 2 else ", ").join(f"{v:g}" for v in value)
