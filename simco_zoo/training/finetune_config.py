"""The settings of fine-tuning and of the linear probe by SGD."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

from simco_zoo.distributed import world_size
from simco_zoo.training.config import check_ranges, check_shared


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of ``finetune``.

    Attributes:
        epochs: Passes over the labeled images.
        batch_size: Images per step, of all processes together. If the images do not fill the default four times, it
            becomes a power of two that they do, with a higher base rate (see ``fitting_config``).
        lr: Base learning rate of the last layer, for a batch of 256; it is scaled by batch_size / 256.
        layer_decay: Factor of the learning rate from each layer to the one before it (timm's layers); 1 for none.
        freeze: Train the classifier only; the backbone stays as it is, batch norm's statistics included.
        opt: timm's name of the optimizer.
        opt_momentum: The optimizer's momentum, if it has one.
        weight_decay: Weight decay.
        filter_bias_and_norm: Leave biases and norm layers out of weight decay.
        warmup_epochs: Epochs of linear warm-up, at most a tenth of the run; a cosine to 0 follows.
        clip_grad: Upper bound on the gradient's norm, or None.
        label_fraction: Share of the labels that is used, class by class, in (0, 1].
        holdout: Share of the training images, class by class, that is held out to choose the best epoch, in [0, 1); 0
            takes the last epoch. The test images are measured once, at the end.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        mixup: Strength (Beta's parameter) of mixup, 0 for none.
        cutmix: Strength of cutmix, 0 for none.
        auto_augment: timm's description of an augmentation policy that is applied before the crop, e.g.
            "rand-m9-mstd0.5-inc1" for RandAugment, "augmix-m3-w3", or None.
        min_scale: Smallest share of the image's area that a training crop has, in (0, 1].
        ema: Decay per step of the averaged weights, which are measured and published; 0 for none.
        amp: "none", "bf16" or "fp16": autocast of the network.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"...
        channels_last: Use the channels-last memory format for images and weights.
        workers: Processes that decode images which do not fit in memory.
        seed: Seed of the subset, the order, the crops, mixup and the classifier's initial weights.
        checkpoint_every: Epochs between checkpoints.
        checkpoint_minutes: Minutes between checkpoints within an epoch; 0 writes none.
        keep_checkpoints: Number of checkpoints to keep.
        log_every: Number of steps between readings of the loss; each reading waits for the device.
        tensorboard: Also write the log for TensorBoard, if that is installed.

    Example:
        >>> FinetuneConfig(epochs=5, freeze=True).lr
        0.002
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 2e-3
    layer_decay: float = 0.75
    freeze: bool = False
    opt: str = "adamw"
    opt_momentum: float = 0.9
    weight_decay: float = 0.05
    filter_bias_and_norm: bool = True
    warmup_epochs: float = 3
    clip_grad: float | None = None
    label_fraction: float = 1.0
    holdout: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: str | None = None
    min_scale: float = 0.35
    ema: float = 0.99
    amp: str = "none"
    device: str = "auto"
    channels_last: bool = True
    workers: int = 0
    seed: int = 0
    checkpoint_every: int = 1
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 1
    log_every: int = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_ranges(
            self,
            epochs=(1, math.inf),
            batch_size=(2, math.inf),
            layer_decay=(1e-6, 1),
            label_fraction=(1e-12, 1),
            label_smoothing=(0, 0.999),
            mixup=(0, math.inf),
            cutmix=(0, math.inf),
            min_scale=(1e-3, 1),
            ema=(0, 0.999999),
        )
        check_shared(self)
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}, but has to be at least 0 and below 1.")
        if self.auto_augment is not None:
            build_auto_augment(self.auto_augment, (0.5, 0.5, 0.5), 32)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values."""
        return dataclasses.asdict(self)

    @property
    def images_per_step(self) -> int:
        """Images of one step of the optimizer, of all processes together."""
        return self.batch_size

    def total_steps(self, images: int) -> int:
        """Returns the steps of a run on a number of images."""
        return self.epochs * (images // self.images_per_step)

    @property
    def peak_lr(self) -> float:
        """The learning rate of the last layer after warm-up: lr * batch_size / 256."""
        return self.lr * self.batch_size / 256


def build_auto_augment(policy: str, mean: tuple[float, ...], size: int) -> Callable[[Any], Any]:
    """Returns timm's augmentation of PIL images that a policy describes.

    Raises:
        ValueError: If timm does not know the policy.
    """
    hparams = {"translate_const": int(size * 0.45), "img_mean": tuple(round(255 * value) for value in mean)}
    builders = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    try:
        builder = builders.get(policy.split("-")[0], auto_augment_transform)
        made: Callable[[Any], Any] = builder(policy, hparams)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"auto_augment is {policy!r}, which timm does not know; it has the form rand-m9-mstd0.5-inc1."
        ) from error
    return made


# linear evaluation as MoCo has it (2020, section 4.1): SGD on crops of the images, no weight decay, nothing else
LINEAR_SGD = FinetuneConfig(
    epochs=100,
    batch_size=256,
    lr=30.0,
    layer_decay=1.0,
    freeze=True,
    opt="momentum",
    weight_decay=0.0,
    warmup_epochs=0,
    label_smoothing=0.0,
    min_scale=0.08,
    ema=0.0,
)

# see config.py
FREE_ON_RESUME = {"device", "workers", "keep_checkpoints", "checkpoint_every", "checkpoint_minutes", "log_every"}
FREE_ON_RESUME |= {"tensorboard"}
BRANCH_FIXED = {"kind", "processes", "batch_size", "opt", "filter_bias_and_norm", "layer_decay", "freeze", "seed"}
BRANCH_FIXED |= {"model.method", "model.architecture", "model.arguments", "label_fraction", "data.classes"}
BRANCH_FIXED |= {"data.images", "data.names", "data.pixels", "data.labels", "data.image_size"}


def fitting_config(config: FinetuneConfig, images: int, stored_batch_size: Any = None) -> FinetuneConfig:
    """Returns the settings with a batch that a small data set fills several times, unless another was chosen.

    The default batch size becomes a power of two that gives at least four steps per epoch (two steps below 32 images).
    With the default optimizer and rate, the base rate grows by the square root of the factor by which the batch
    shrinks. A batch size that was chosen and equals the default counts as the default.

    Args:
        config: The settings.
        images: Number of training images.
        stored_batch_size: That of the run that is continued, if any: earlier versions had another rule.

    Raises:
        ValueError: If a chosen batch size is larger than the data set, or the processes cannot share it.

    Example:
        >>> found = fitting_config(FinetuneConfig(), 40)
        >>> found.batch_size, found.lr
        (8, 0.008)
    """
    multiple = world_size() * 2 if config.mixup or config.cutmix else world_size()  # mixup wants pairs
    before = min(config.batch_size, images) // multiple * multiple
    if before >= 2 and stored_batch_size == before:
        return replace(config, batch_size=before)
    default = FinetuneConfig.batch_size
    if config.batch_size == default:
        most = min(default, max(images // 4, min(8, images // 2), 2))
        size = max(2 ** (most.bit_length() - 1) // multiple, 1) * multiple
        if size > images or size < 2:
            raise ValueError(f"{images} labeled images do not fill a batch of {max(multiple, 2)}; use a larger share.")
        usual = (config.lr, config.opt) == (FinetuneConfig.lr, FinetuneConfig.opt)
        return replace(config, batch_size=size, lr=config.lr * math.sqrt(default / size) if usual else config.lr)
    if config.batch_size > images:
        raise ValueError(
            f"batch_size is {config.batch_size}, but there are only {images} images to train on; pass one of at most "
            f"{images // 2}, or leave it out."
        )
    if config.batch_size % multiple:
        raise ValueError(
            f"batch_size is {config.batch_size}, but it has to be a multiple of {multiple}: the processes share it "
            "equally, and mixup pairs its images."
        )
    return config
