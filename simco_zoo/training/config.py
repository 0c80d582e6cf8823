"""The settings of a training run, with the paper's values as defaults."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from simco_zoo.training.augmentations import AUGMENTATIONS, AugmentationSettings


@dataclass(frozen=True)
class TrainingConfig(AugmentationSettings):
    """Settings of ``pretrain``. Defaults are those of the paper's CIFAR runs (official code, ``bash_files``).

    The settings of the random views, e.g. ``crop_scale``, are those of ``AugmentationSettings``.

    Attributes:
        epochs: Passes over the images.
        max_steps: Upper bound on the optimizer's steps; the schedule spans the steps that will really be run.
        max_hours: Hours of training. The schedule is planned for the steps that fit, by the time that the first ones
            and the measurements take, and ends with the learning rate at 0; at most ``epochs`` and ``max_steps``.
        batch_size: Images per forward, of all processes together; the last, incomplete batch of an epoch is dropped. If
            there are fewer images than the default, it becomes the largest power of two that gives two batches.
        accumulate: Batches whose gradients are averaged for one step of the optimizer. The negatives are those of
            each batch, not of all of them: more memory or more processes are what gives more negatives.
        negatives: "global" contrasts a query with the keys of all processes, "local" with its own process's. MoCo's
            queue takes those of all processes either way.
        sync_bn: Compute batch norm over the images of all processes (GPUs only).
        lr: Base learning rate, for 256 images per step; it is scaled by batch_size * accumulate / 256.
        opt: timm's name of the optimizer; "momentum" is SGD with momentum, not Nesterov's.
        opt_momentum: The optimizer's momentum.
        weight_decay: Weight decay, on every parameter unless ``filter_bias_and_norm``.
        filter_bias_and_norm: Leave biases and norm layers out of weight decay.
        warmup_epochs: Epochs of linear warm-up, at most a tenth of the run.
        decay_share: Share of the steps, the last ones, over which a cosine takes the learning rate to 0; before that
            it is constant. 1 decays from the end of the warm-up on, as the paper does.
        clip_grad: Upper bound on the gradient's norm, or None.
        views_per_image: Number of views of each image in a step, at least 2. The loss is the mean over all ordered
            pairs of views (over the pairs whose query is view 1 if the method is not symmetric).
        sizes: Resolution ramp "SIDE:SHARE,SIDE:SHARE,...", e.g. "16:0.5,24:0.25,32:0.25": the views are made at 16 px
            for the first half of the steps, and so on. Views are always cut from the full-size images, and the model
            is evaluated and published at the images' own size. None: that size for all steps.
        amp: "none", "bf16" or "fp16": autocast of the encoder; the loss is always computed in fp32.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"...; auto takes an accelerator if there is one.
        channels_last: Use the channels-last memory format for images and weights.
        compile: Compile the method's forward, and on an accelerator the views, with torch.compile.
        compile_mode: Mode of torch.compile, e.g. "reduce-overhead" for CUDA graphs.
        freeze_patch_embed: Keep a ViT's patch embedding at its random initial values (MoCo v3, section 4.2).
        workers: Processes that decode images which do not fit in memory.
        seed: Seed of the order of the images and of the views; the command also seeds the initial weights with it.
        knn_every: Epochs between measurements of the kNN accuracy; 0 never. The last epoch is always measured.
        knn_k: Number of neighbors of that kNN.
        linear: Measure a linear probe at the end.
        online_linear: Train a linear classifier alongside on the views' features, without gradient to the model,
            as the official code does, and measure it with the kNN.
        tensorboard: Also write the log for TensorBoard, if that is installed.
        checkpoint_every: Epochs between checkpoints.
        checkpoint_minutes: Minutes between checkpoints within an epoch; 0 writes none.
        keep_checkpoints: Number of checkpoints to keep.
        log_every: Number of steps between readings of the loss; each reading waits for the device.

    Example:
        >>> TrainingConfig(epochs=20, batch_size=128).lr
        0.03
    """

    epochs: int = 200
    max_steps: int | None = None
    max_hours: float | None = None
    batch_size: int = 256
    accumulate: int = 1
    negatives: str = "global"
    sync_bn: bool = False
    lr: float = 0.03
    opt: str = "momentum"
    opt_momentum: float = 0.9
    weight_decay: float = 5e-4
    filter_bias_and_norm: bool = False
    warmup_epochs: float = 10
    decay_share: float = 1.0
    clip_grad: float | None = None
    views_per_image: int = 2
    sizes: str | None = None
    amp: str = "none"
    device: str = "auto"
    channels_last: bool = True
    compile: bool = False
    compile_mode: str = "default"
    freeze_patch_embed: bool = False
    workers: int = 0
    seed: int = 0
    knn_every: int = 5
    knn_k: int = 200
    linear: bool = True
    online_linear: bool = False
    tensorboard: bool = True
    checkpoint_every: int = 1
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        check_ranges(
            self,
            epochs=(1, math.inf),
            batch_size=(1, math.inf),
            accumulate=(1, math.inf),
            views_per_image=(2, math.inf),
            knn_every=(0, math.inf),
            knn_k=(1, math.inf),
        )
        check_shared(self)
        self.view_preset  # noqa: B018 - raises if a setting of the views is out of range
        check_choices(self, compile_mode=COMPILE_MODES, negatives=("global", "local"))
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, but has to be at least 1 (or None for no bound).")
        if self.max_hours is not None and not 0 < self.max_hours < math.inf:
            raise ValueError(f"max_hours is {self.max_hours}, but has to be positive (or None for no bound).")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}, but has to be above 0 and at most 1.")
        if self.sizes is not None:
            parse_sizes(self.sizes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values, and of the views every value that is used."""
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in AUGMENTATIONS}
        return {**settings, **self.describe_augmentations()}

    @property
    def images_per_step(self) -> int:
        """Images of one step of the optimizer, of all processes together."""
        return self.batch_size * self.accumulate

    def total_steps(self, images: int) -> int:
        """Returns the steps of a run on a number of images, whatever ``max_hours`` says."""
        steps = self.epochs * (images // self.images_per_step)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def fitting(self, images: int) -> TrainingConfig:
        """Returns the settings with a batch that a small data set fills, unless another than the default was chosen.

        Args:
            images: Number of training images.

        Example:
            >>> TrainingConfig().fitting(240).batch_size, TrainingConfig().fitting(300).batch_size
            (64, 256)
        """
        if self.batch_size != TrainingConfig.batch_size or images >= self.images_per_step:
            return self
        halves = images // (2 * self.accumulate)
        return dataclasses.replace(self, batch_size=2 ** max(1, halves.bit_length() - 1))

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up: lr * batch_size * accumulate / 256."""
        return self.lr * self.images_per_step / 256


def check_shared(config: Any) -> None:
    """Checks the settings that pretraining and fine-tuning have in common.

    Raises:
        ValueError: If one is out of its range.
    """
    check_ranges(
        config,
        warmup_epochs=(0, math.inf),
        weight_decay=(0, math.inf),
        opt_momentum=(0, 1),
        checkpoint_every=(1, math.inf),
        checkpoint_minutes=(0, math.inf),
        keep_checkpoints=(1, math.inf),
        log_every=(1, math.inf),
        workers=(0, math.inf),
        seed=(0, math.inf),
    )
    check_choices(config, amp=AMP_DTYPES)
    if not 0 < config.lr < math.inf:
        raise ValueError(f"lr is {config.lr}, but has to be positive.")
    if config.clip_grad is not None and not 0 < config.clip_grad < math.inf:
        raise ValueError(f"clip_grad is {config.clip_grad}, but has to be positive (or None for no bound).")


def check_ranges(config: Any, **ranges: tuple[float, float]) -> None:
    """Raises ValueError unless each named setting lies within its range, both ends included."""
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) <= high:
            bound = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
            raise ValueError(f"{name} is {getattr(config, name)}, but has to be {bound}.")


def check_choices(config: Any, **choices: Iterable[str]) -> None:
    """Raises ValueError unless each named setting is one of its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} is {getattr(config, name)!r}, but has to be one of {', '.join(known)}.")


def parse_sizes(sizes: str) -> list[tuple[int, float]]:
    """Reads a resolution ramp.

    Args:
        sizes: "SIDE:SHARE,SIDE:SHARE,...": sides in pixels in the order in which they are used, and shares of the steps
            that sum to 1.

    Returns:
        Pairs of a side and the share of the steps after which it ends, e.g. [(16, 0.5), (32, 1.0)].

    Raises:
        ValueError: If the text is not of that form, a side is below 1 px, or the shares do not sum to 1.
    """
    sides, shares = [], []
    for part in sizes.split(","):
        side, _, share = part.partition(":")
        try:
            sides.append(int(side))
            shares.append(float(share))
        except ValueError as error:
            raise ValueError(
                f"sizes has {part.strip()!r}, but each part is SIDE:SHARE, e.g. 16:0.5,24:0.25,32:0.25."
            ) from error
    if min(sides) < 1 or not min(shares) > 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"sizes is {sizes!r}, but sides are at least 1 px and the shares are positive and sum to 1.")
    ends = [*itertools.accumulate(shares[:-1]), 1.0]
    return list(zip(sides, ends, strict=True))


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

AMP_DTYPES: dict[str, torch.dtype | None] = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# settings that may differ between a run and its continuation without changing what is trained
FREE_ON_RESUME = {"device", "workers", "keep_checkpoints", "checkpoint_every", "checkpoint_minutes", "log_every"}
FREE_ON_RESUME |= {"tensorboard", "compile", "compile_mode", "knn_every", "linear"}
# what a run that starts from another run's checkpoint, with settings of its own, has to share with it
BRANCH_FIXED = {"kind", "processes", "batch_size", "accumulate", "opt", "filter_bias_and_norm", "online_linear", "seed"}
BRANCH_FIXED |= {"model.method", "model.architecture", "model.arguments", "model.proj_hidden_dim", "model.proj_dim"}
BRANCH_FIXED |= {"model.queue_size", "data.images", "data.names", "data.pixels", "data.labels", "data.image_size"}
