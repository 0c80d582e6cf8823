"""pretrain: images -> views -> model.contrast -> loss -> optimizer -> checkpoint -> published folder."""

from __future__ import annotations

import inspect
import itertools
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from simco_zoo.data import ImageData, TwoViews, load_images
from simco_zoo.data.presets import PRESETS
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import (
    barrier,
    gather_objects,
    init_distributed,
    is_main,
    mean_over_processes,
    pick_device,
    rank,
    world_size,
)
from simco_zoo.evaluation.features import evaluating
from simco_zoo.files import check_disk_space
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.moco import MoCo
from simco_zoo.models.momentum import MomentumModel
from simco_zoo.publishing import save_pretrained
from simco_zoo.report.curves import draw_curves
from simco_zoo.training.checkpoint import check_settings, find_resume, rng_state, save_checkpoint, set_rng_state
from simco_zoo.training.config import AMP_DTYPES, FREE_ON_RESUME, TrainingConfig, parse_sizes
from simco_zoo.training.interruption import Interrupted, Interruption
from simco_zoo.training.log import DRAW_EVERY, hardware, peak_memory_mb, write_log, write_summary
from simco_zoo.training.monitor import Monitor
from simco_zoo.training.online_probe import OnlineProbe
from simco_zoo.training.optimizer import build_optimizer, build_schedule
from simco_zoo.training.tensorboard import TensorBoard

COLLAPSED_STD = 0.01  # deviation of the projections, 1 for a uniform sphere, below which nothing is left to learn from


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite or the projections collapsed."""


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds besides the tensors of model and optimizer."""

    step: int = 0
    seconds: float = 0.0
    best_knn: float = -math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)


def pretrain(
    model: ContrastiveModel,
    images: ImageData | StreamedImages | str | Path | Any,
    *,
    test_images: ImageData | str | Path | Any | None = None,
    output: str | Path | None = None,
    config: TrainingConfig | None = None,
    resume: str = "auto",
    tag: str | None = None,
    progress_bar: bool | None = None,
    on_start: Callable[[], None] | None = None,
    **settings: Any,
) -> Path:
    """Pretrains a model on images, without their labels.

    The run's folder gets ``log.csv``, ``curves.png`` (if matplotlib is installed), ``summary.json``, ``checkpoints/``
    and two published folders: ``last/`` and ``best/`` (by kNN accuracy; the last if there are no labels to measure it).

    The order of the images and the views depend on the seed, the epoch, the step and the place in the batch alone.

    Under torchrun every process calls this with the same arguments and computes its share of each batch; the first one
    writes the files. The run's folder has to be the same for all.

    Args:
        model: A model of the zoo; changed in place.
        images: ``ImageData``, or anything ``simco_zoo.data.load_images`` takes; labels serve the kNN accuracy only. Or
            ``StreamedImages``, which have no labels; a resumed run reads its epoch's stream again up to its place.
        test_images: Images that the kNN accuracy is measured on; ``images`` are its bank. Both need labels.
        output: The run's folder; default ``runs/NAME``.
        config: Settings; default the paper's.
        resume: "auto" goes on from the run's newest checkpoint if there is one, "never" starts afresh, a path goes on
            from that checkpoint.
        tag: Tag under which the weights are to be published, e.g. the data set.
        progress_bar: Show a progress bar; None: if stderr is a terminal.
        on_start: Called when everything was checked, before the first step, on the process that writes the files.
        **settings: Settings by name, e.g. ``epochs=10``; they go before those in ``config``.

    Returns:
        The absolute path of the published folder ``last/``.

    Raises:
        ValueError: If a setting is out of range, or does not fit the data or the run that is resumed.
        TrainingError: If the loss is not finite or the projections collapse; the last checkpoint is intact.
        Interrupted: A KeyboardInterrupt after Ctrl-C or SIGTERM, when the step was done and a checkpoint and ``last/``
            were written; a second signal ends the run at once.
    """
    config = replace(config or TrainingConfig(), **settings)
    images = images if isinstance(images, ImageData | StreamedImages) else load_images(images)
    if test_images is not None and not isinstance(test_images, ImageData):
        test_images = load_images(test_images, split="test")
    run = Path(output or Path("runs") / (model.architecture or model.method)).absolute()
    trainer = _Trainer(model, images, test_images, run, config, tag, progress_bar)
    trainer.prepare(resume)
    if on_start is not None and is_main():
        on_start()
    return trainer.run_all()


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


class _Trainer:
    """One run: its parts are made in ``__init__``, put in their places by ``prepare``, used by ``run_all``."""

    def __init__(
        self,
        model: ContrastiveModel,
        images: ImageData | StreamedImages,
        test_images: ImageData | None,
        run: Path,
        config: TrainingConfig,
        tag: str | None,
        progress_bar: bool | None,
    ) -> None:
        if config.views not in PRESETS:
            raise ValueError(f"views is {config.views!r}, but has to be one of {', '.join(PRESETS)}.")
        if len(images) < config.batch_size * config.accumulate:
            times = f" times accumulate {config.accumulate}" if config.accumulate > 1 else ""
            raise ValueError(
                f"batch_size is {config.batch_size}{times}, but there are only {len(images)} images; "
                f"pass a batch size of at most {len(images) // config.accumulate}."
            )
        if isinstance(model, MoCo) and model.queue_size >= len(images):
            warnings.warn(
                f"the queue of {model.queue_size} keys is as long as the data set of {len(images)} images or longer: "
                "it holds older keys of the query's own image as negatives; a tenth of the images serves better.",
                stacklevel=3,
            )
        self.model, self.images, self.test_images, self.run, self.config = model, images, test_images, run, config
        self.tag, self.progress_bar = tag, progress_bar
        self.device = init_distributed(pick_device(config.device))
        if config.batch_size % world_size() or config.batch_size // world_size() < 1:
            raise ValueError(
                f"batch_size is {config.batch_size}, but {world_size()} processes share it equally; "
                f"pass a multiple of {world_size()}."
            )
        if config.sync_bn and self.device.type != "cuda":
            raise ValueError(
                f"sync_bn needs GPUs, as torch's SyncBatchNorm does, but the device is {self.device}; "
                "leave it out, or use a backbone without batch norm."
            )
        if config.sync_bn and getattr(model, "bn_splits", 1) > 1:
            raise ValueError("sync_bn joins what bn_splits parts; choose one of them.")
        self.steps_per_epoch = len(images) // (config.batch_size * config.accumulate)
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        if config.online_linear and (images.labels is None or test_images is None or test_images.labels is None):
            raise ValueError("online_linear needs labels of the training and of the test images; leave it out.")
        self.stages = parse_sizes(config.sizes or f"{images.image_size}:1")
        for side in {images.image_size, *(side for side, _ in self.stages)}:
            check_image_size(model, side)
        self.monitor = Monitor(model, images, test_images, config)
        self.progress = Progress()
        self.start_step = 0
        self.drawn = -math.inf  # when the curves were drawn last
        self.interruption = Interruption()

    def prepare(self, resume: str) -> None:
        """Puts everything on the device, restores a checkpoint, and describes the model as it will be published."""
        config, model = self.config, self.model
        if is_main():
            size = sum(tensor.nbytes for tensor in model.state_dict().values())
            # weights, a key encoder and the optimizer's momentum in each checkpoint; last/ and best/
            check_disk_space(self.run, size * (3 * (config.keep_checkpoints + 1) + 3))
        barrier()
        # drop path and mixup draw from the global generators; they differ between processes, as the images do
        seed = config.seed + rank()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(self.device).to(memory_format=memory_format)
        if isinstance(model, MomentumModel):
            model.init_key_encoder()
        if config.sync_bn:
            convert_sync_batchnorm(model)
        if config.freeze_patch_embed:
            patch_embed = getattr(model.backbone, "patch_embed", None)
            if patch_embed is None:
                raise ValueError(f"{model.architecture} has no patch embedding; leave freeze_patch_embed out.")
            patch_embed.requires_grad_(False)
        # the queue is the same on all processes, so it takes the keys of all
        model.across_processes = world_size() > 1 and (config.negatives == "global" or isinstance(model, MoCo))
        self._describe_input()
        dtype = next(model.parameters()).dtype
        self.views = {
            side: TwoViews(
                config.views,
                size=side,
                count=config.views_per_image,
                dtype=dtype,
                channels_last=config.channels_last,
                # on a CPU only the chosen images' colors are computed, and how many differs from step to step
                compile_mode=config.compile_mode if config.compile and self.device.type != "cpu" else None,
            )
            for side, _ in self.stages
        }
        self.optimizer = build_optimizer(model, config)
        self.schedule = build_schedule(self.optimizer, config, self.steps_per_epoch, self.total_steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.contrast: nn.Module = _Contrast(model, config)
        if world_size() > 1:
            # batch norm's buffers are averaged when an epoch ends, the queue's are equal; torch renamed the argument
            known = inspect.signature(DistributedDataParallel).parameters
            buffers: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
            self.contrast = DistributedDataParallel(
                self.contrast,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                find_unused_parameters=model.num_classes > 0,  # a classifier takes no part
                **buffers,
            )
        if config.online_linear:
            assert self.images.labels is not None
            classes = int(self.images.labels.max()) + 1
            self.monitor.online_probe = OnlineProbe(model, classes, config, self.steps_per_epoch, self.total_steps)

        state = find_resume(resume, self.run / "checkpoints")
        if state is not None:
            self._restore(state)

    def _describe_input(self) -> None:
        """Writes into the model what it is trained on, so that everyone who loads it prepares images alike."""
        preset, size = PRESETS[self.config.views], self.images.image_size
        cfg = {key: value for key, value in self.model.pretrained_cfg.items() if key not in _SOURCE_KEYS}
        cfg.update(
            input_size=(3, size, size),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation="bicubic",
            crop_pct=1.0,
            num_classes=self.model.num_classes,
        )
        if self.tag:
            cfg["tag"] = self.tag
        self.model.backbone.pretrained_cfg = self.model.backbone.default_cfg = cfg

    # One step, one epoch, the run

    def step(self, batch: Tensor, generator: torch.Generator, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Runs one optimizer step on uint8 images (accumulate * N, 3, H, W) and returns the detached scalars.

        The labels (accumulate * N,) are for the online linear probe alone.
        """
        config, amp, probe = self.config, AMP_DTYPES[self.config.amp], self.monitor.online_probe
        self.optimizer.zero_grad(set_to_none=True)
        reports = []
        parts = batch.chunk(config.accumulate)
        for part, images in enumerate(parts):
            views = self.views[self._side()](images, generator=generator, share=(rank(), world_size()))
            if isinstance(self.model, MomentumModel):
                self.model.hold_key_encoder = part > 0  # the query encoder has not moved since
            last = part == len(parts) - 1
            synchronized = last or not isinstance(self.contrast, DistributedDataParallel)
            with nullcontext() if synchronized else self.contrast.no_sync():  # type: ignore[operator]
                with torch.autocast(self.device.type, dtype=amp, enabled=amp is not None):
                    report = self.contrast(*views, generator=generator)
                self.scaler.scale(report["loss"] / len(parts)).backward()
            if probe is not None:
                assert labels is not None
                probe.step(report.pop("features"), labels.chunk(config.accumulate)[part], self.progress.step + 1)
            # cloned: the next forward of a captured CUDA graph writes to the same place
            reports.append({name: value.detach().clone() for name, value in report.items()})
        if isinstance(self.model, MomentumModel):
            self.model.hold_key_encoder = False
        if config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step += 1
        self.schedule.step_update(self.progress.step)
        return {name: torch.stack([report[name] for report in reports]).mean() for name in reports[0]}

    def _side(self) -> int:
        """Returns the side of the next step's views in pixels, by the resolution ramp."""
        done = self.progress.step / self.total_steps
        return next(side for side, end in self.stages if done < end)

    def run_epoch(self, epoch: int, bar: tqdm) -> dict[str, Any]:
        """Runs what is left of an epoch and returns its row of the log."""
        config, progress, began = self.config, self.progress, time.perf_counter()
        self.model.train()
        first = progress.step - epoch * self.steps_per_epoch
        last = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)

        sums: dict[str, Tensor] = {}
        for batch, labels in self._batches(epoch, first, last):
            self.interruption.check()
            report = self.step(batch, seeded_generator(config.seed, "views", progress.step), labels)
            for name, value in report.items():
                sums[name] = sums[name] + value if name in sums else value
            bar.update()
            if progress.step % config.log_every == 0:
                self._look(report, bar)
        self._look(report, bar)  # before anything of this epoch is saved
        totals = mean_over_processes(torch.stack(list(sums.values()))) / (last - first)
        means = dict(zip(sums, totals.tolist(), strict=True))
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        if means["proj_std"] < COLLAPSED_STD:
            raise TrainingError(
                f"the projections collapsed in epoch {epoch + 1} (deviation {means['proj_std']:.4f}; 1 is uniform): "
                f"all images look alike to the model; try a smaller learning rate than {config.lr}."
            )
        return {
            "epoch": epoch + 1,
            "step": progress.step,
            "loss": round(means["loss"], 6),
            "proj_std": round(means["proj_std"], 5),
            "positive_similarity": round(means["positive_similarity"], 5),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round((last - first) * config.batch_size * config.accumulate / seconds, 1),
            "seconds": round(progress.seconds, 1),
        }

    def run_all(self) -> Path:
        """Runs every epoch that is left, then publishes; Ctrl-C and SIGTERM save before they end the run."""
        progress, config = self.progress, self.config
        summary_file = self.run / "summary.json"
        if progress.step >= self.total_steps and summary_file.is_file() and (self.run / "last").is_dir():
            return self.run / "last"
        bar = tqdm(
            total=self.total_steps,
            initial=progress.step,
            desc=self.model.architecture or self.model.method,
            unit="step",
            disable=True if not is_main() else None if self.progress_bar is None else not self.progress_bar,
            dynamic_ncols=True,
        )
        row: dict[str, Any] = progress.rows[-1] if progress.rows else {}
        board = TensorBoard(self.run, len(progress.rows), config.tensorboard and is_main())
        try:
            with bar, closing(board), self.interruption:
                for epoch in range(progress.step // self.steps_per_epoch, self.epochs):
                    row = self.run_epoch(epoch, bar)
                    self._average_batch_norm()
                    final = progress.step == self.total_steps
                    if final or (config.knn_every and (epoch + 1) % config.knn_every == 0):
                        row.update(self.monitor.accuracies(progress.step))
                    row.update(self.monitor.diagnostics())
                    progress.rows.append(row)
                    board.add(row)
                    self._write_log(final)
                    if row.get("knn_top1", -math.inf) > progress.best_knn:
                        progress.best_knn = row["knn_top1"]
                        self._publish("best", row)
                    if final or (epoch + 1) % config.checkpoint_every == 0:
                        self._save()
        except Interrupted:
            self._average_batch_norm()
            self._save()
            self._write_log(True)
            self._publish("last", {key: row[key] for key in ("loss",) if key in row})
            raise
        metrics = {**row, **self.monitor.linear(progress.step)}
        self._publish("last", metrics)
        if not progress.best_knn > -math.inf:
            self._publish("best", metrics)
        summary = {
            "loss": row["loss"],
            "steps": progress.step,
            "start_step": self.start_step,
            "knn_top1": row.get("knn_top1"),
            "best_knn_top1": self._best("knn_top1"),
            "linear_top1": metrics.get("linear_top1"),
            "online_top1": row.get("online_top1"),
            "best_online_top1": self._best("online_top1"),
            "images_per_second": row["images_per_second"],
            "peak_memory_mb": peak_memory_mb(self.device),
            "seconds": round(progress.seconds, 1),
            "folder": str(self.run / "last"),
        }
        if is_main():
            write_summary(summary_file, summary)
        barrier()
        return self.run / "last"

    def _best(self, column: str) -> float | None:
        """Returns the highest value of a column of the log, None if it was not measured."""
        return max((row[column] for row in self.progress.rows if column in row), default=None)

    def _average_batch_norm(self) -> None:
        """Makes the running statistics those of all processes' images."""
        if world_size() > 1:
            distribute_bn(self.model, world_size(), reduce=True)

    # Parts of a step and of an epoch

    def _batches(self, epoch: int, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields this process's uint8 images of the epoch's steps first to last, on the device, and their labels."""
        config = self.config
        per_process = config.batch_size // world_size()
        if isinstance(self.images, StreamedImages):
            share = {"rank": rank(), "world_size": world_size(), "num_workers": config.workers}
            stream = self.images.epoch(epoch, per_process * config.accumulate, seed=config.seed, **share)
            # a stream has no places to jump to: what was seen before is read again and dropped
            for batch in itertools.islice(stream, first, last):
                yield batch.to(self.device, non_blocking=True), None
            return
        order = torch.randperm(len(self.images), generator=seeded_generator(config.seed, "order", epoch))
        shares = order[: last * config.accumulate * config.batch_size].view(last, -1, world_size(), per_process)
        index_batches = shares[first:, :, rank()].flatten(1)
        # images in memory, labels and the epoch's order are moved to the device at once: no step waits for a copy
        on_device = index_batches.to(self.device)
        labels = self.images.labels.to(self.device) if self.images.labels is not None else None
        if self.images.images is not None:
            pool = self.images.images.to(self.device)
            batches = (pool[indices] for indices in on_device)
        else:
            decoded = self.images.batches(index_batches.unbind(), num_workers=config.workers)
            batches = (batch.to(self.device, non_blocking=True) for batch in decoded)
        for indices, batch in zip(on_device, batches, strict=True):
            yield batch, None if labels is None else labels[indices]

    def _look(self, report: dict[str, Tensor], bar: tqdm) -> None:
        """Shows the step and stops the run if the loss is not finite."""
        loss, std = report["loss"].item(), report["proj_std"].item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.progress.step}; lower the learning rate (now {self.config.lr}), "
                "raise the temperature, or use --amp none; the last checkpoint is intact."
            )
        knns = [row["knn_top1"] for row in self.progress.rows if "knn_top1" in row]
        bar.set_postfix({"loss": f"{loss:.3f}", "std": f"{std:.2f}", **({"kNN": f"{knns[-1]:.1f}"} if knns else {})})

    # Files

    def _publish(self, name: str, metrics: dict[str, Any]) -> None:
        if not is_main():
            return
        kept = ("loss", *(f"{how}_{top}" for how in ("knn", "linear", "online") for top in ("top1", "top5")))
        measured: dict[str, Any] = {key: metrics[key] for key in kept if key in metrics}
        if "knn_top1" in measured:
            measured["knn_k"] = min(self.config.knn_k, len(self.images))
            measured["knn_temperature"] = 0.1
        recipe = {
            **self.config.to_dict(),
            "steps": self.progress.step,
            "total_steps": self.total_steps,
            "seconds": round(self.progress.seconds, 1),
        }
        data = {
            # of a local folder only the name: its path says nothing to those who load the weights
            "name": Path(self.images.source).name if Path(self.images.source).exists() else self.images.source,
            "split": self.images.split,
            "images": len(self.images),
            "image_size": self.images.image_size,
        }
        curves = self.run / "curves.png"
        save_pretrained(
            self.model,
            self.run / name,
            recipe=recipe,
            data=data,
            metrics=measured,
            log=self.run / "log.csv",
            curves=curves if curves.is_file() else None,
            hardware=hardware(self.device),
            tag=self.tag,
        )

    def _write_log(self, final: bool) -> None:
        if not is_main():
            return
        write_log(self.run / "log.csv", self.progress.rows)
        if final or time.monotonic() - self.drawn > DRAW_EVERY:  # a picture takes longer than a fast epoch
            draw_curves(self.run / "curves.png", self.progress.rows, self.run.name)
            self.drawn = time.monotonic()

    def _save(self) -> None:
        progress = self.progress
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "online_probe": self.monitor.online_probe.state_dict() if self.monitor.online_probe is not None else {},
            "rng": gather_objects(rng_state()),
            "settings": self._settings(),
            "step": progress.step,
            "seconds": progress.seconds,
            "best_knn": progress.best_knn,
            "rows": progress.rows,
        }
        if is_main():
            save_checkpoint(self.run / "checkpoints", progress.step, state, self.config.keep_checkpoints)

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: the recipe, the method, the model, the data."""
        settings = {key: value for key, value in self.config.to_dict().items() if key not in FREE_ON_RESUME}
        model = self.model
        settings.update({f"model.{key}": value for key, value in model.method_config().items()})
        settings.update({"model.method": model.method, "model.architecture": model.architecture})
        settings["model.arguments"] = model.model_args
        settings.update({"data.source": self.images.source, "data.images": len(self.images)})
        settings["processes"] = world_size()
        return settings

    def _restore(self, state: dict[str, Any]) -> None:
        check_settings(self._settings(), state["settings"], self.run)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        set_rng_state(state["rng"][rank()])
        self.progress = Progress(state["step"], state["seconds"], state["best_knn"], state["rows"])
        self.start_step = state["step"]
        self.schedule.step_update(self.progress.step)
        if self.monitor.online_probe is not None:
            self.monitor.online_probe.load_state_dict(state["online_probe"], self.progress.step)


class _Contrast(nn.Module):
    """The method's loss as a forward: DistributedDataParallel synchronizes gradients through no other."""

    def __init__(self, model: ContrastiveModel, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = torch.compile(model.contrast, mode=config.compile_mode) if config.compile else model.contrast

    def forward(self, *views: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.loss(*views, generator=generator)


_SOURCE_KEYS = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "state_dict", "label_names"}


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Returns a CPU generator for one purpose ("order" of an epoch, "views" of a step) of one run.

    Nothing of it has to be saved: seed and index give the same draws again.
    """
    # numpy's SeedSequence mixes the three numbers, so that neighboring seeds and steps share nothing
    entropy = [seed, sum(map(ord, purpose)), index]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
