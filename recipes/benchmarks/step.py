"""A whole training step, as the trainer runs it, against the bare backbone's forward and backward."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import simco_zoo
from benchmarks.compare import Call, Row, compare
from simco_zoo.data import ImageData, load_images
from simco_zoo.distributed import init_distributed, pick_device
from simco_zoo.training import Pretraining, TrainingConfig
from simco_zoo.training.state import seeded_generator

# method's full-size model, what its step has to run whatever else it does, and whether view 2 needs no gradient
STEPS = (
    ("simco_r18", "forward + backward of 2N", False),
    ("simmoco_r18", "forward + backward of N, forward of N", True),
    ("mocov2_r18", "forward + backward of N, forward of N", True),
)
COMPACT = {"channels": (16, 32, 64, 128)}  # the width of simco_r18_025


def build_trainer(
    model: Any, images: ImageData, *, test_images: ImageData | None = None, **settings: Any
) -> Pretraining:
    """Returns the trainer of a run that does not begin."""
    config = TrainingConfig(**settings)
    trainer = Pretraining(model, images, test_images, config, init_distributed(pick_device(config.device)))
    model.train()
    return trainer


def training_step(trainer: Pretraining, batch: Tensor) -> Call:
    """Returns the trainer's step on a batch, with other views each time as in a run."""
    steps = itertools.count()
    return lambda: trainer.step(batch, seeded_generator(0, "views", next(steps)))


def bare_step(
    backbone: nn.Module,
    graded: Tensor,
    ungraded: Tensor | None,
    amp: torch.dtype | None = None,
    compile_mode: str | None = None,
) -> Call:
    """Returns forward and backward of a backbone on finished views, and a forward of those that need no gradient."""
    backbone.train().to(graded.device, memory_format=torch.channels_last)
    forward = backbone if compile_mode is None else torch.compile(backbone, mode=compile_mode)

    def step() -> None:
        for parameter in backbone.parameters():
            parameter.grad = None
        if ungraded is not None:
            with torch.no_grad(), torch.autocast(graded.device.type, dtype=amp, enabled=amp is not None):
                forward(ungraded)
        with torch.autocast(graded.device.type, dtype=amp, enabled=amp is not None):
            features = forward(graded)
        features.sum().backward()

    return step


def views_of_bare(n: int, one_sided: bool, device: torch.device | None = None) -> tuple[Tensor, Tensor | None]:
    """Returns random views: 2N with gradient, or one-sided N with it and N without."""
    both = torch.randn(2 * n, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    return (both[:n], both[n:]) if one_sided else (both, None)


def random_images(count: int, classes: int = 10) -> ImageData:
    """Returns images of 32 px, 8 x 8 blocks of random color, with random labels."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = blocks.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    data = load_images(images)
    labels = torch.randint(classes, (count,), generator=generator)
    return replace(data, labels=labels, source="random images")


def benchmark_step(args: argparse.Namespace) -> Iterator[Row]:
    n = args.batch_size
    for name, aim_of, one_sided in STEPS:
        model = simco_zoo.create_model(name, backbone_kwargs=COMPACT)
        images = random_images(max(n, getattr(model, "queue_size", 0) + 1))  # a longer queue is warned of
        trainer = build_trainer(model, images, device="cpu", batch_size=n)
        ours = training_step(trainer, images.images[:n])
        backbone = simco_zoo.create_model(name, backbone_kwargs=COMPACT).backbone
        baseline = bare_step(backbone, *views_of_bare(n, one_sided))
        method = name.split("_")[0]
        what = f"{method}: whole step (views, forward, backward, optimizer), N = {n} / bare {aim_of}"
        yield compare(what, ours, baseline, args.runs, 1.10)
