"""pretrain: images -> views -> model.contrast -> loss -> optimizer -> checkpoint -> published folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from simco_zoo.data import ImageData, load_images, load_splits
from simco_zoo.data.rectangles import Rectangles
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.data.transforms import input_config
from simco_zoo.distributed import init_distributed, pick_device, rank, world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.momentum import MomentumModel
from simco_zoo.training.budget import fitting_steps
from simco_zoo.training.checks import check_pretraining
from simco_zoo.training.config import BRANCH_FIXED, FREE_ON_RESUME, TrainingConfig
from simco_zoo.training.contrast_module import ContrastModule
from simco_zoo.training.identity import Identity, run_identity
from simco_zoo.training.log import COLUMNS, peak_memory_mb
from simco_zoo.training.loop import restore, train
from simco_zoo.training.monitor import Monitor
from simco_zoo.training.online_probe import OnlineProbe
from simco_zoo.training.optimizer import Phase
from simco_zoo.training.ramp import RampedViews
from simco_zoo.training.run import Run
from simco_zoo.training.state import seed_all, seeded_generator
from simco_zoo.training.trainer import CollapseError, Trainer

COLLAPSED_STD = 0.01  # deviation of the projections, 1 for a uniform sphere, below which nothing is left to learn from
_SOURCE_KEYS = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "state_dict", "label_names"}


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
    callbacks: Sequence[Any] = (),
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
        images: ``ImageData``, or anything ``simco_zoo.data.load_images`` takes; labels serve the kNN accuracy only.
            Images of several sizes are brought to the model's own side, and random crops come from all of each. Or
            ``StreamedImages``, which have no labels; a resumed run reads its epoch's stream again up to its place.
        test_images: Images that the kNN accuracy is measured on; ``images`` are its bank. Both need labels.
        output: The run's folder; default ``runs/NAME``.
        config: Settings; default the paper's.
        resume: "auto" goes on from the run's newest checkpoint if there is one, "never" starts afresh, a path goes on
            from that checkpoint.
        tag: Tag under which the weights are to be published, e.g. the data set.
        progress_bar: Show a progress bar; None: if stderr is a terminal.
        on_start: Called when everything was checked, before the first step, on the process that writes the files.
        callbacks: Objects whose methods are called after steps and epochs and at the end, see ``Callback``.
        **settings: Settings by name, e.g. ``epochs=10``; they take precedence over those in ``config``.

    Returns:
        The absolute path of the published folder ``last/``.

    Raises:
        ValueError: If a setting is out of range, or does not fit the data or the run that is resumed.
        TrainingError: If the loss is not finite; the last checkpoint is intact.
        CollapseError: A TrainingError, if the projections collapse.
        Interrupted: A KeyboardInterrupt after Ctrl-C or SIGTERM, when the step was done and a checkpoint and ``last/``
            were written; a second signal ends the run at once.

    Example:
        >>> import simco_zoo, tempfile
        >>> model = simco_zoo.create_model("simco", backbone="test_resnet")
        >>> images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
        >>> folder = pretrain(model, images, output=tempfile.mkdtemp(), epochs=1, batch_size=16, progress_bar=False)
        >>> trained = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    """
    config = replace(config or TrainingConfig(), **settings)
    if isinstance(images, StreamedImages):
        test_images = load_images(test_images, split="test") if test_images is not None else None
    else:
        load: dict[str, Any] = {"test_split": None if test_images is None else "test", "whole": True}
        size = input_config(model)["input_size"][-1]
        images, test_images = load_splits(images, test_images, default_size=size, **load)
    config = config.fitting(len(images))
    device = init_distributed(pick_device(config.device))
    check_pretraining(model, images, test_images, config, device)

    folder = Path(output or Path("runs") / (model.architecture or model.method)).absolute()
    run = Run(
        folder,
        config,
        columns=Pretraining.columns,
        best_by=Pretraining.best_by,
        tag=tag,
        progress_bar=progress_bar,
        callbacks=callbacks,
    )
    # weights, a key encoder and the optimizer's momentum in each checkpoint; last/ and best/
    size = sum(tensor.nbytes for tensor in model.state_dict().values()) * (3 * (config.keep_checkpoints + 1) + 3)

    def identity() -> Identity:
        sets = {"free": FREE_ON_RESUME, "branch_fixed": BRANCH_FIXED, "published": ("last", "best")}
        return run_identity("pretraining", model, images, test_images, config, **sets)

    with run.opened(resume, identity, model, size, on_start):
        trainer = Pretraining(model, images, test_images, config, device, tag)
        restore(trainer, run, config)
        if not run.finished:
            run.begin()
            train(trainer, run, model.architecture or model.method)
            trainer.finish(run)
    return folder / "last"


class Pretraining(Trainer):
    """Contrastive training of a model: the views, the loss, the gradient, the update of the weights.

    Args:
        model: A ``ContrastiveModel``; it is changed in place.
        images: Training images.
        test_images: Images that accuracies are measured on, or None.
        config: Settings that ``check_pretraining`` has accepted.
        device: Device to compute on.
        tag: Tag of the published weights, or None.

    Example:
        >>> import simco_zoo
        >>> images = simco_zoo.data.load_images("photos", limit=8)
        >>> model = simco_zoo.create_model("simco", backbone="test_resnet")
        >>> trainer = Pretraining(model, images, None, TrainingConfig(batch_size=8), torch.device("cpu"))
        >>> sorted(trainer.step(images.images, torch.Generator()))
        ['loss', 'positive_similarity', 'proj_std']
    """

    columns = COLUMNS
    best_by = "knn_top1"
    config: TrainingConfig

    def __init__(
        self,
        model: ContrastiveModel,
        images: ImageData | StreamedImages,
        test_images: ImageData | None,
        config: TrainingConfig,
        device: torch.device,
        tag: str | None = None,
    ) -> None:
        seed_all(config.seed + rank())  # drop path draws from the global generators; other images, other draws
        super().__init__(model, images, config, device)
        self.config = config
        if config.sync_bn:
            convert_sync_batchnorm(model)
        if isinstance(model, MomentumModel):
            model.init_key_encoder()
        if config.freeze_patch_embed:
            model.backbone.patch_embed.requires_grad_(False)
        self._describe_views(tag)
        self.build_optimizer(model, config)
        # a classifier takes no part
        self.contrast = self.distribute(ContrastModule(model, config), find_unused_parameters=model.num_classes > 0)
        self.monitor = Monitor(model, images, test_images, config)
        if config.online_linear:
            assert images.labels is not None
            classes = int(images.labels.max()) + 1
            self.monitor.online_probe = OnlineProbe(model, classes, config, self.state.phases[-1])

    def _describe_views(self, tag: str | None) -> None:
        """Makes the random views, and writes their normalization into the model."""
        config, model, preset = self.config, self.model, self.config.view_preset
        self.views = RampedViews(config, self.images.image_size, next(model.parameters()).dtype, self.device)
        cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in _SOURCE_KEYS}
        model.set_pretrained_cfg({**cfg, **({"tag": tag} if tag else {})})
        self.describe_input(
            mean=tuple(preset.mean), std=tuple(preset.std), interpolation="bicubic", num_classes=model.num_classes
        )

    # One step

    def step(
        self, batch: Tensor | Rectangles, generator: torch.Generator, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Makes one step of the optimizer on uint8 images (accumulate * N, 3, H, W) and returns detached scalars.

        The images may be of different sizes.

        The labels (accumulate * N,) are for the online linear probe alone.
        """
        probe = self.monitor.online_probe
        self.optimizer.zero_grad(set_to_none=True)
        reports = []
        parts: Sequence[Tensor | Rectangles] = batch.chunk(self.config.accumulate)
        make_views = self.views.at(self.state)
        for part, images in enumerate(parts):
            views = make_views(images, generator=generator, share=(rank(), world_size()))
            # after the first part the query encoder has not moved, so the key encoder does not either
            options = {"generator": generator, "hold_key_encoder": part > 0}
            report = self._backward(views, options, parts=len(parts), last=part == len(parts) - 1)
            if probe is not None:
                assert labels is not None
                probe.step(report.pop("features"), labels.chunk(len(parts))[part], self.state.step + 1)
            # cloned: the next forward of a captured CUDA graph writes to the same place
            reports.append({name: value.detach().clone() for name, value in report.items()})
        self.update_weights()
        return {name: torch.stack([report[name] for report in reports]).mean() for name in reports[0]}

    def _backward(
        self, views: tuple[Tensor, ...], options: dict[str, Any], parts: int, last: bool
    ) -> dict[str, Tensor]:
        """Adds the gradient of the views' loss, divided by the number of parts, and returns what contrast reports."""
        synchronized = last or not isinstance(self.contrast, DistributedDataParallel)
        with nullcontext() if synchronized else self.contrast.no_sync():  # type: ignore[operator]
            with self.autocast():
                report: dict[str, Tensor] = self.contrast(*views, **options)
            self.scaler.scale(report["loss"] / parts).backward()
        return report

    def train_step(self, batch: tuple[Tensor | Rectangles, Tensor | None]) -> dict[str, Tensor]:
        images, labels = batch
        return self.step(images, seeded_generator(self.seed, "views", self.state.step), labels)

    # One epoch

    def batches(self, epoch: int, first: int, last: int) -> Iterator[tuple[Tensor | Rectangles, Tensor | None]]:
        """Yields this process's uint8 images of the epoch's steps first to last, on the device, and their labels.

        They are the whole images if there are such, so that random crops come from all of them.
        """
        workers = self.config.workers
        if isinstance(self.images, StreamedImages):
            share = {"rank": rank(), "world_size": world_size(), "num_workers": workers}
            stream = self.images.epoch(epoch, self.images_per_step // world_size(), seed=self.seed, **share)
            # a stream has no places to jump to: what was seen before is read again and dropped
            for batch in itertools.islice(stream, first, last):
                yield batch.to(self.device, non_blocking=True), None
            return
        index_batches = self.share_of_epoch(epoch, first, last)
        # images in memory, labels and the epoch's order are moved to the device at once: no step waits for a copy
        on_device = index_batches.to(self.device)
        labels = self.images.labels.to(self.device) if self.images.labels is not None else None
        batches: Iterator[Tensor | Rectangles]
        if self.images.whole is None and self.images.images is not None:
            pool = self.images.images.to(self.device)
            batches = (pool[indices] for indices in on_device)
        else:
            read = self.images.batches if self.images.whole is None else self.images.whole_batches
            decoded = read(index_batches.unbind(), num_workers=workers)
            batches = (batch.to(self.device, non_blocking=True) for batch in decoded)
        for indices, batch in zip(on_device, batches, strict=True):
            yield batch, None if labels is None else labels[indices]

    def fitting_steps(self, seconds: float, most: int) -> int:
        return fitting_steps(self, seconds, most)

    def check_means(self, means: dict[str, float], epoch: int) -> None:
        super().check_means(means, epoch)
        if means.get("proj_std", math.inf) < COLLAPSED_STD:
            raise CollapseError(
                f"the projections collapsed in epoch {epoch} (deviation {means['proj_std']:.4f}; 1 is uniform): "
                f"all images look alike to the model; try a smaller learning rate than {self.config.lr}."
            )

    def measure(self, epoch: int) -> dict[str, Any]:
        every, final = self.config.knn_every, self.state.step == self.total_steps
        due = final or (every > 0 and epoch % every == 0)
        return {**(self.monitor.accuracies(self.state.step) if due else {}), **self.monitor.diagnostics()}

    # What is published

    def publish(self, run: Run, name: str, row: dict[str, Any]) -> None:
        kept = ("loss", *(f"{how}_{top}" for how in ("knn", "linear", "online") for top in ("top1", "top5")))
        measured: dict[str, Any] = {key: row[key] for key in kept if key in row}
        if "knn_top1" in measured:
            measured["knn_k"] = min(self.config.knn_k, len(self.images))
            measured["knn_temperature"] = 0.1
        recipe = {
            **self.config.to_dict(),
            "started_from": self.model.loaded_from,
            "steps": self.state.step,
            "total_steps": self.total_steps,
            "seconds": round(self.state.seconds, 1),
        }
        run.publish(self.model, name, self.images, recipe=recipe, metrics=measured)

    def finish(self, run: Run) -> None:
        """Measures the linear probe, publishes ``last/`` (and ``best/`` if no epoch was measured), ends the run."""
        row = self.state.rows[-1]
        metrics = {**row, **self.monitor.linear(self.state.step)}
        self.publish(run, "last", metrics)
        if not self.state.best:
            self.publish(run, "best", metrics)
        run.finish(
            {
                "loss": row["loss"],
                "steps": self.state.step,
                "start_step": run.start_step,
                "knn_top1": row.get("knn_top1"),
                "best_knn_top1": (self.state.best or row).get("knn_top1"),
                "linear_top1": metrics.get("linear_top1"),
                "online_top1": row.get("online_top1"),
                "best_online_top1": self.state.highest("online_top1"),
                "images_per_second": row["images_per_second"],
                "peak_memory_mb": peak_memory_mb(self.device),
                "seconds": round(self.state.seconds, 1),
                "folder": str(run.folder / "last"),
            }
        )

    # What a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        probe = self.monitor.online_probe
        return {
            **super().state_dict(),
            "model": self.model.state_dict(),
            "online_probe": probe.state_dict() if probe is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        super().load_state_dict(state)
        if self.monitor.online_probe is not None:
            self.monitor.online_probe.load_state_dict(state["online_probe"])

    def set_phases(self, phases: list[Phase]) -> None:
        super().set_phases(phases)
        if self.monitor.online_probe is not None:
            self.monitor.online_probe.set_phase(phases[-1], self.state.step)
