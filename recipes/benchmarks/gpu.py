"""The speed table of one GPU: the fast path's errors, its cost next to the bare backbone, and lightly's recipe.

On a CPU the same code runs at the compact width, as a rehearsal.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import simco_zoo
from benchmarks.compare import Row, in_turns, judge, repeated, report, seconds_of
from benchmarks.floor import EPOCHS, IMAGES, PEAKS, TEST_IMAGES, floor_rows, milliseconds, parts_of_step, peak_of
from benchmarks.lightly_recipe import PREFETCHED, WORKERS, cores, lightly_steps
from benchmarks.step import COMPACT, STEPS, bare_step, build_trainer, random_images, training_step, views_of_bare
from simco_zoo.data import ImageData, load_images
from simco_zoo.distributed import pick_device
from simco_zoo.training import Pretraining
from simco_zoo.training.config import AMP_DTYPES
from simco_zoo.training.loop import run_epoch, save
from simco_zoo.training.optimizer import plan
from simco_zoo.training.run import Run
from simco_zoo.training.state import seeded_generator

KNN_EVERY = 10  # epochs
PLAIN = {"amp": "none", "channels_last": False, "compile": False}


@dataclass(frozen=True)
class Scale:
    """What is measured where: settings of the fast path, images, and how many steps make one measurement."""

    device: torch.device
    name: str
    fast: dict[str, Any]
    images: ImageData
    test_images: ImageData
    batch_size: int
    runs: int
    repeats: int
    backbone_kwargs: dict[str, Any]
    folder: Path

    @property
    def compile_mode(self) -> str | None:
        return self.fast["compile_mode"] if self.fast["compile"] else None

    def trainer(self, name: str, settings: dict[str, Any]) -> Pretraining:
        """Returns a trainer, always with the same weights."""
        torch.manual_seed(0)
        model = simco_zoo.create_model(name, backbone_kwargs=self.backbone_kwargs)
        images, queue = self.images, getattr(model, "queue_size", 0)
        if len(images) <= queue:  # of which a run would be warned
            images = random_images(queue + 1)
        settings = {**settings, "device": str(self.device), "batch_size": self.batch_size, "tensorboard": False}
        return build_trainer(model, images, test_images=self.test_images, **settings)


def benchmark_gpu(args: argparse.Namespace) -> Iterator[Row | str]:
    device = pick_device(args.device)
    on_cpu = device.type == "cpu"
    compiled = not on_cpu if args.compile is None else args.compile
    images, test_images = load(args, *((8 * args.batch_size, 2 * args.batch_size) if on_cpu else (IMAGES, TEST_IMAGES)))
    with tempfile.TemporaryDirectory() as temporary:
        scale = Scale(
            device=device,
            name=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            fast={"amp": "bf16", "channels_last": True, "compile": compiled, "compile_mode": args.compile_mode},
            images=images,
            test_images=test_images,
            batch_size=args.batch_size,
            runs=args.runs,
            repeats=1 if on_cpu else 10,
            backbone_kwargs=COMPACT if on_cpu else {},
            folder=Path(temporary),
        )
        yield f"Measured on {scale.name}, {len(images)} images ({Path(images.source).name}); fast path: {scale.fast}."
        if on_cpu:
            yield "On a CPU the models have a quarter of the width: a rehearsal, whose figures say nothing of a GPU."
        peak = peak_of(scale.name) or PEAKS[-1]
        yield from floor_rows(peak, scale.batch_size)
        batch = images.images[: scale.batch_size].to(device)
        for name, aim_of, one_sided in STEPS:
            trainer = scale.trainer(name, scale.fast)
            yield from correctness(scale, name, trainer, batch)
            yield from against_bare(scale, name, trainer, batch, aim_of, one_sided)
            if name == "simco_r18":
                yield from synchronizations(scale, trainer, batch)
                yield from whole_run(scale, trainer)
            del trainer
            torch.compiler.reset()


def load(args: argparse.Namespace, count: int, test_count: int) -> tuple[ImageData, ImageData]:
    """Returns images for training and test, with labels: those of the data set, or random ones."""
    if args.dataset is None:
        return random_images(count), random_images(test_count)
    images, test_images = (load_images(args.dataset, split) for split in ("train", "test"))
    if images.labels is None or test_images.labels is None or images.images is None:
        raise ValueError(f"{args.dataset} has no labels, or does not fit in memory; leave --dataset out.")
    return images, test_images


# Is it right?


def correctness(scale: Scale, name: str, fast: Pretraining, batch: Tensor) -> Iterator[Row]:
    """First steps from the same weights, with the same draws for the views: the fast path against plain fp32.

    bf16 turns some ReLUs on or off, and each takes its share of the gradient along: the error of the gradient is held
    against that of bf16 without compilation, and the compiled code itself is looked at in fp32.
    """
    method = name.split("_")[0]
    plain, eager = scale.trainer(name, PLAIN), scale.trainer(name, {**scale.fast, "compile": False})
    views = [trainer.views.by_side[32](batch, generator=seeded_generator(0, "views", 0)) for trainer in (fast, plain)]
    off = max((a - b).abs().max().item() for a, b in zip(*views, strict=True))
    yield judge(f"{method}: largest difference of a normalized pixel, views of the fast path / plain", [off], 1e-3)

    found, without_compiling = first_step(fast, batch), first_step(eager, batch)
    with exact_convolutions():
        exact = first_step(plain, batch)
    error = relative_error(found[0], exact[0])
    yield judge(f"{method}: relative error of the loss, fast path / plain fp32", [error], 0.01)
    errors = [relative_error(gradient, exact[1]) for gradient in (found[1], without_compiling[1])]
    yield report(f"{method}: relative error of the gradient, fast path / plain fp32", errors[:1])
    yield judge(f"{method}: the same / that of bf16 without compilation", [errors[0] / errors[1]], 1.25)
    if name == "simco_r18":  # one compilation more
        with exact_convolutions():
            in_fp32 = first_step(scale.trainer(name, {**scale.fast, "amp": "none"}), batch)
        error = relative_error(in_fp32[1], exact[1])
        yield judge(f"{method}: relative error of the gradient, fast path in fp32 / plain fp32", [error], 0.03)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Keeps cuDNN from tf32, which torch lets it use for convolutions in fp32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def first_step(trainer: Pretraining, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Makes a step and returns its loss and gradient, which it leaves in the parameters."""
    loss = trainer.step(batch, seeded_generator(0, "views", 0))["loss"].double()
    return loss, torch.cat([p.grad.flatten().double() for p in trainer.model.parameters() if p.grad is not None])


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


# What does it cost?


def peak_memory(call: Callable[[], Any], device: torch.device) -> list[float]:
    """Returns the GiB that a call needs beyond what lies there before it; nothing without CUDA."""
    if device.type != "cuda":
        return []
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return [(torch.cuda.max_memory_allocated(device) - before) / 2**30]


def against_bare(
    scale: Scale, name: str, trainer: Pretraining, batch: Tensor, aim_of: str, one_sided: bool
) -> Iterator[Row]:
    device, method, n = scale.device, name.split("_")[0], scale.batch_size
    ours = training_step(trainer, batch)
    backbone = simco_zoo.create_model(name, backbone_kwargs=scale.backbone_kwargs).backbone
    amp = AMP_DTYPES[scale.fast["amp"]]
    bare = bare_step(backbone, *views_of_bare(n, one_sided, device), amp, scale.compile_mode)
    times = in_turns(repeated(ours, scale.repeats), repeated(bare, scale.repeats), scale.runs, device)
    what = f"{method}: whole step (views, forward, backward, optimizer), N = {n} / bare {aim_of}"
    yield judge(what, [a / b for a, b in times], 1.10)
    for label, side, call in (("whole step", 0, ours), (f"bare {aim_of}", 1, bare)):
        yield report(f"{method}: {label}, ms", [1e3 * pair[side] / scale.repeats for pair in times])
        for needed in peak_memory(call, device):
            yield report(f"{method}: {label}, GiB beyond what stays", [needed])
    peak = peak_of(scale.name)
    if peak is not None and name == "simco_r18":
        model = simco_zoo.create_model(name, backbone_kwargs=scale.backbone_kwargs)
        floor = milliseconds(parts_of_step(model, n, scale.images.image_size), peak)
        yield report(f"{method}: whole step / its floor", [1e3 * a / scale.repeats / floor for a, _ in times])


def synchronizations(scale: Scale, trainer: Pretraining, batch: Tensor) -> Iterator[Row | str]:
    """Counts where the host waits for the device: within a step, and when it fetches a batch."""
    if scale.device.type != "cuda":
        yield f"Host synchronizations: not measured, torch counts those of CUDA only, not of {scale.device.type}."
        return
    steps = 4
    step = training_step(trainer, batch)
    batches = trainer.batches(0, 0, steps + 1)
    next(batches)  # moves the images to the device
    for what, call in (("steps", step), ("batches fetched", lambda: next(batches))):
        places = waits(repeated(call, steps))
        yield judge(f"simco: host synchronizations in {steps} {what}", [float(places.total())], 0)
        for place, count in places.items():
            yield f"The host waits for the device {count} times in {steps} {what}: {place}."


def waits(call: Callable[[], Any]) -> Counter[str]:
    """Returns the lines at which a call waited for the CUDA device, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message))


# What does a run cost?


def whole_run(scale: Scale, trainer: Pretraining) -> Iterator[Row | str]:
    """Measures epochs as a run has them, what is done between them, and lightly's recipe on the same images."""
    device, n = scale.device, scale.batch_size
    trainer.state.step = 0
    rows = trainer.state.rows
    run = Run(scale.folder, trainer.config, columns=trainer.columns, best_by=trainer.best_by, progress_bar=False)
    run.restore(trainer.state)
    measured = min(3, scale.runs)
    trainer.set_phases([plan(trainer.config, trainer.steps_per_epoch, 0, measured * trainer.steps_per_epoch)])

    def epoch() -> None:
        trainer.state.end_epoch(run_epoch(trainer, run))

    passes = [seconds_of(epoch, device) for _ in range(measured)]
    steps = trainer.steps_per_epoch
    ours = [steps * n / seconds for seconds in passes]
    yield report(f"simco: images/s over {measured} epoch(s) of {steps} steps, N = {n}", ours)

    numbers = itertools.count(-1, -1)  # features are kept for a step, so each evaluation has a number of its own

    def evaluate() -> None:
        rows[-1].update(trainer.monitor.accuracies(next(numbers)))

    evaluate()
    knn = [seconds_of(evaluate, device) for _ in range(measured)]
    yield report(f"simco: kNN of {len(scale.test_images)} images against {len(scale.images)}, seconds", knn)

    def finish_epoch() -> None:
        rows[-1].update(trainer.monitor.diagnostics())
        save(trainer, run)

    finish_epoch()
    between = [seconds_of(finish_epoch, device) for _ in range(measured)]
    yield report("simco: diagnostics and checkpoint of an epoch, seconds", between)
    minutes = [projected_minutes(n, a / steps, b, c) for a, b, c in zip(passes, between, knn, strict=True)]
    what = f"{EPOCHS} epochs of {IMAGES} images, kNN every {KNN_EVERY}, minutes: projected from these"
    yield judge(f"simco: {what}", minutes, 6)
    yield from against_lightly(scale, statistics.median(ours), sorted({min(WORKERS, cores()), cores()}))


def projected_minutes(n: int, step: float, between: float, knn: float) -> float:
    """Returns the minutes of a run, of the seconds of a step of n images, of an epoch's rest and of a kNN."""
    return (EPOCHS * (IMAGES // n * step + between) + EPOCHS // KNN_EVERY * knn) / 60


def against_lightly(scale: Scale, ours: float, worker_counts: list[int]) -> Iterator[Row | str]:
    """Measures one uninterrupted stretch each: with pauses the workers would fill their queues for free."""
    device, n = scale.device, scale.batch_size
    width = 0.25 if scale.backbone_kwargs else 1.0
    for workers in worker_counts:
        training = lightly_steps(scale.images.images, n, device, width, workers)
        try:
            next(training)
        except ImportError as error:
            yield f"lightly's recipe: not measured, lightly cannot be imported ({error}); pip install lightly."
            return
        for _ in range(PREFETCHED * workers):
            next(training)
        steps = repeated(lambda training=training: next(training), scale.repeats)
        theirs = [scale.repeats * n / seconds_of(steps, device) for _ in range(scale.runs)]
        memory = peak_memory(steps, device)
        training.close()
        what = f"lightly's SimCLR, ResNet-18, fp32, {workers} loader workers, N = {n}"
        yield report(f"{what}: images/s", theirs)
        for needed in memory:
            yield report(f"{what}: GiB beyond what stays", [needed])
        ratios = [ours / each for each in theirs]
        yield judge(f"simco: images/s / lightly's with {workers} workers", ratios, 8, at_least=True)
