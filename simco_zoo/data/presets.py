"""Presets of the two random views: every parameter of an augmentation in one place."""

from __future__ import annotations

from dataclasses import dataclass

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViewPreset:
    """How a view is made; the operations run in this order.

    Attributes:
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width / height, uniform in its logarithm.
        interpolation: "bicubic" or "bilinear", antialiased where the crop shrinks.
        jitter: Probability of the color jitter.
        brightness: Factor from 1 - b to 1 + b.
        contrast: Factor from 1 - c to 1 + c.
        saturation: Factor from 1 - s to 1 + s.
        hue: Shift from -h to h, in turns of the color circle.
        grayscale: Probability of becoming gray.
        blur: Probability of a Gaussian blur.
        blur_sigma: Range of its deviation in pixels.
        solarize: Probability of inverting what is brighter than one half.
        flip: Probability of a horizontal flip.
        size: Side of the view in pixels; None: that of the image.
        mean: Subtracted per channel, of values in [0, 1].
        std: Divided by per channel.

    Example:
        >>> from dataclasses import replace
        >>> from simco_zoo.data import TwoViews
        >>> views = TwoViews(replace(PRESETS["cifar"], grayscale=0.0, blur=0.5), size=16)
    """

    scale: tuple[float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    flip: float = 0.5
    size: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if a probability, a strength or a range is none."""
        for name in ("jitter", "grayscale", "blur", "solarize", "flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but has to be between 0 and 1.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}, but has to be between 0 and 0.5 turns.")
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}, but has to be a range above 0, the lower end first.")


PRESETS: dict[str, ViewPreset] = {
    # the paper's, for all its CIFAR runs: no blur, no solarization
    "cifar": ViewPreset(scale=(0.08, 1.0), mean=CIFAR_MEAN, std=CIFAR_STD),
    # MoCo v2's "aug plus"
    "imagenet": ViewPreset(
        scale=(0.2, 1.0), mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", blur=0.5, size=224
    ),
}
