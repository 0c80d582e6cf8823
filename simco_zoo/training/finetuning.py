"""finetune: a pretrained backbone and labels -> a classifier in a published folder."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from simco_zoo.data import ImageData, TwoViews, load_images
from simco_zoo.data.presets import ViewPreset
from simco_zoo.data.subsets import balanced_subset, warn_of_small_classes
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
from simco_zoo.evaluation.features import extract_features
from simco_zoo.evaluation.knn import accuracy_with_interval, topk_correct
from simco_zoo.files import check_disk_space
from simco_zoo.models import ContrastiveModel
from simco_zoo.publishing import save_pretrained
from simco_zoo.report.curves import draw_curves
from simco_zoo.training.checkpoint import check_settings, find_resume, rng_state, save_checkpoint, set_rng_state
from simco_zoo.training.config import AMP_DTYPES
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.interruption import Interruption
from simco_zoo.training.log import DRAW_EVERY, hardware, write_log, write_summary
from simco_zoo.training.optimizer import build_optimizer, build_schedule
from simco_zoo.training.pretraining import TrainingError, check_image_size, seeded_generator
from simco_zoo.training.tensorboard import TensorBoard

_COLUMNS = ("epoch", "step", "loss", "top1", "top5", "lr", "images_per_second", "seconds")
_FREE_ON_RESUME = {"device", "workers", "keep_checkpoints", "tensorboard"}


def finetune(
    model: ContrastiveModel,
    images: ImageData | str | Path | Any,
    test_images: ImageData | str | Path | Any,
    *,
    output: str | Path | None = None,
    config: FinetuneConfig | None = None,
    resume: str = "auto",
    name: str | None = None,
    tag: str | None = None,
    progress_bar: bool | None = None,
    on_start: Callable[[], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a classifier on a pretrained backbone, and the backbone with it unless ``freeze``.

    The run's folder gets ``log.csv``, ``curves.png`` (if matplotlib is installed), ``summary.json``, ``checkpoints/``
    and ``best/``: the best epoch as a published folder with classifier and label names. Under torchrun each process
    computes its share of every batch.

    Args:
        model: A model of the zoo with its weights; it gets a fresh classifier and is changed in place.
        images: Labeled images of the size that the model is to see.
        test_images: Labeled images that the accuracy is measured on after each epoch.
        output: The run's folder; default ``runs/finetune-NAME``.
        config: Settings.
        resume: "auto" goes on from the run's newest checkpoint, "never" starts afresh, a path goes on from that file.
        name: What the model is called in the card; default its architecture and tag.
        tag: Tag of the published folder.
        progress_bar: Show a progress bar; None: if stderr is a terminal.
        on_start: Called when everything was checked, before the first step, on the process that writes the files.
        **settings: Settings by name; they go before those in ``config``.

    Returns:
        ``top1`` and ``top5`` accuracy of the best epoch in percent with a 95 % interval ``top1_low`` to ``top1_high``,
        ``epoch``, ``train`` and ``test`` (numbers of images), ``folder``.

    Raises:
        ValueError: If labels are missing or do not match, or a setting is out of range or differs from the run that is
            resumed.
        TrainingError: If the loss is not finite.
        Interrupted: After Ctrl-C or SIGTERM; the last whole epoch's checkpoint stands.
    """
    config = replace(config or FinetuneConfig(), **settings)
    images = images if isinstance(images, ImageData) else load_images(images)
    test_images = test_images if isinstance(test_images, ImageData) else load_images(test_images, split="test")
    class_names = _check_labels(images, test_images)
    warn_of_small_classes(images)
    if config.label_fraction < 1:
        assert images.labels is not None
        images = images.subset(balanced_subset(images.labels, config.label_fraction, config.seed))
    multiple = world_size() * 2 if config.mixup or config.cutmix else world_size()  # mixup wants pairs
    fitting = min(config.batch_size, len(images)) // multiple * multiple
    if fitting < 1:
        raise ValueError(f"{len(images)} labeled images do not fill a batch of {multiple}; use a larger share.")
    config = replace(config, batch_size=fitting)
    check_image_size(model, images.image_size)
    name = name or ".".join(filter(None, (model.architecture, model.pretrained_cfg.get("tag"))))
    run = Path(output or Path("runs") / f"finetune-{name}").absolute()
    finetuning = _Finetuning(model, images, test_images, class_names, run, config, name, tag, progress_bar)
    finetuning.restore(resume)
    if on_start is not None and is_main():
        on_start()
    return finetuning.run_all()


def _check_labels(images: ImageData, test_images: ImageData) -> list[str]:
    """Returns the classes' names, numbers where there are none."""
    for part, data in (("training", images), ("test", test_images)):
        if data.labels is None:
            raise ValueError(f"the {part} images of {data.source} have no labels; name their column, or use folders.")
    assert images.labels is not None and test_images.labels is not None
    if images.class_names != test_images.class_names:
        raise ValueError(
            f"the training images have the classes {images.class_names}, the test images {test_images.class_names}; "
            "both parts need the same."
        )
    count = max(len(images.class_names or []), int(max(images.labels.max(), test_images.labels.max())) + 1)
    return images.class_names or [str(i) for i in range(count)]


class _Finetuning:
    """One run of ``finetune``."""

    def __init__(
        self,
        model: ContrastiveModel,
        images: ImageData,
        test_images: ImageData,
        class_names: list[str],
        run: Path,
        config: FinetuneConfig,
        name: str,
        tag: str | None,
        progress_bar: bool | None,
    ) -> None:
        self.model, self.images, self.test_images, self.run, self.config = model, images, test_images, run, config
        self.class_names, self.name, self.tag, self.progress_bar = class_names, name, tag, progress_bar
        self.device = init_distributed(pick_device(config.device))
        if is_main():
            check_disk_space(run, 8 * sum(tensor.nbytes for tensor in model.backbone.state_dict().values()))
        barrier()
        torch.manual_seed(config.seed)  # the classifier's weights
        model.reset_classifier(len(class_names))
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(self.device).to(memory_format=memory_format)
        torch.manual_seed(config.seed + rank())  # drop path
        self._describe_input()

        self.network: Any = model.backbone
        if config.freeze:
            self.network.requires_grad_(False)
            self.network.get_classifier().requires_grad_(True)
        self.steps_per_epoch = len(images) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.optimizer = build_optimizer(self.network, config)
        self.schedule = build_schedule(self.optimizer, config, self.steps_per_epoch, self.total_steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.ema = ModelEmaV3(self.network, decay=config.ema, use_warmup=True) if config.ema else None
        self.forward: nn.Module = self.network
        if world_size() > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.network, device_ids=devices)
        cfg = model.pretrained_cfg
        self.views = TwoViews(
            ViewPreset(scale=(config.min_scale, 1.0), mean=cfg["mean"], std=cfg["std"], jitter=0.0, grayscale=0.0),
            size=images.image_size,
            dtype=next(model.parameters()).dtype,
            channels_last=config.channels_last,
        )
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=len(class_names)
            )
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"top1": -math.inf}
        self.drawn = -math.inf  # when the curves were drawn last
        self.interruption = Interruption()

    def _describe_input(self) -> None:
        size = self.images.image_size
        cfg = {**self.model.pretrained_cfg, "input_size": (3, size, size), "label_names": self.class_names}
        cfg.update(num_classes=len(self.class_names), crop_pct=1.0, **({"tag": self.tag} if self.tag else {}))
        self.model.backbone.pretrained_cfg = self.model.backbone.default_cfg = cfg

    def restore(self, resume: str) -> None:
        """Goes on from the checkpoint that ``resume`` asks for, if there is one."""
        state = find_resume(resume, self.run / "checkpoints")
        if state is not None:
            self._restore(state)

    def run_all(self) -> dict[str, Any]:
        """Runs every epoch that is left and returns the best one's figures."""
        epochs = self.config.epochs
        began = time.perf_counter() - (self.rows[-1]["seconds"] if self.rows else 0)
        bar = tqdm(
            total=self.total_steps,
            initial=len(self.rows) * self.steps_per_epoch,
            desc=f"fine-tuning {self.name}",
            unit="step",
            disable=True if not is_main() else None if self.progress_bar is None else not self.progress_bar,
            dynamic_ncols=True,
        )
        board = TensorBoard(self.run, len(self.rows), self.config.tensorboard and is_main() and len(self.rows) < epochs)
        with bar, contextlib.closing(board), self.interruption:
            for epoch in range(len(self.rows), epochs):
                row = self._run_epoch(epoch, bar)
                row["seconds"] = round(time.perf_counter() - began, 1)
                self._finish_epoch(row)
                board.add(row)
        result = {**self.best, "folder": str(self.run / "best")}
        if is_main():
            write_summary(self.run / "summary.json", result)
        barrier()
        return result

    def _run_epoch(self, epoch: int, bar: tqdm) -> dict[str, Any]:
        config, began = self.config, time.perf_counter()
        self.network.train(not config.freeze)
        # timm's mixup draws from numpy's global generator
        np.random.seed(seeded_generator(config.seed, "mixup", epoch * world_size() + rank()).initial_seed() % 2**32)
        order = torch.randperm(len(self.images), generator=seeded_generator(config.seed, "order", epoch))
        shares = order[: self.steps_per_epoch * config.batch_size].view(self.steps_per_epoch, world_size(), -1)
        assert self.images.labels is not None
        total = torch.zeros((), device=self.device)
        batches = self.images.batches(list(shares[:, rank()]), num_workers=config.workers)
        for i, batch in enumerate(batches):
            self.interruption.check()
            step = epoch * self.steps_per_epoch + i
            targets = self.images.labels[shares[i, rank()]].to(self.device)
            total += self._step(batch.to(self.device), targets, step)
            bar.update()
        loss = mean_over_processes(total / self.steps_per_epoch).item()
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} in epoch {epoch + 1}; lower the learning rate (now {config.lr}).")
        seconds = time.perf_counter() - began
        scores = self._accuracy()
        bar.set_postfix({"loss": f"{loss:.3f}", "top-1": f"{scores['top1']:.1f}"})
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.steps_per_epoch,
            "loss": round(loss, 6),
            **{key: round(value, 3) for key, value in scores.items()},
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "images_per_second": round(self.steps_per_epoch * config.batch_size / seconds, 1),
        }

    def _step(self, batch: Tensor, targets: Tensor, step: int) -> Tensor:
        config, amp = self.config, AMP_DTYPES[self.config.amp]
        generator = seeded_generator(config.seed, "crops", step)
        n, _, height, width = batch.shape
        parameters = self.views.draw(n * world_size(), height, width, generator)[n * rank() : n * (rank() + 1)]
        views = self.views.apply(batch, parameters)
        criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        if self.mixup is not None:
            views, targets = self.mixup(views, targets)
            criterion = SoftTargetCrossEntropy()
        with torch.autocast(self.device.type, dtype=amp, enabled=amp is not None):
            loss = criterion(self.forward(views), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step_update(step + 1)
        if self.ema is not None:
            self.ema.update(self.network, step=step)
        return loss.detach()

    def _measured(self) -> Any:
        return self.network if self.ema is None else self.ema.module

    def _accuracy(self) -> dict[str, float]:
        network = self._measured()
        test = extract_features(network, self.test_images, num_workers=self.config.workers, across_processes=True)
        classifier = network.get_classifier()
        with torch.inference_mode():
            scores = classifier(test.features.to(next(classifier.parameters())))
        assert test.labels is not None
        return accuracy_with_interval(topk_correct(scores, test.labels.to(self.device)), len(test))

    # Files

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        """Writes log, checkpoint and, if it is the best so far, the published folder."""
        better = row["top1"] > self.best["top1"]
        if better:
            counts = {"train": len(self.images), "test": len(self.test_images)}
            self.best = {key: row[key] for key in ("top1", "top5", "top1_low", "top1_high", "epoch")} | counts
        self.rows.append({key: row[key] for key in _COLUMNS})
        if is_main():
            write_log(self.run / "log.csv", self.rows, _COLUMNS)
            if len(self.rows) == self.config.epochs or time.monotonic() - self.drawn > DRAW_EVERY:
                draw_curves(self.run / "curves.png", self.rows, self.run.name)
                self.drawn = time.monotonic()
            if better:
                self._publish()
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": gather_objects(rng_state()),
            "settings": self._settings(),
            "step": row["step"],
            "rows": self.rows,
            "best": self.best,
        }
        if is_main():
            save_checkpoint(self.run / "checkpoints", row["step"], state, self.config.keep_checkpoints)

    def _publish(self) -> None:
        source = self.images.source
        curves = self.run / "curves.png"
        with _weights_of(self.model, self._measured()):
            save_pretrained(
                self.model,
                self.run / "best",
                recipe={**self.config.to_dict(), "finetuned_from": self.name},
                data={
                    "name": Path(source).name if Path(source).exists() else source,
                    "split": self.images.split,
                    "images": len(self.images),
                    "image_size": self.images.image_size,
                },
                metrics={"finetune_top1": self.best["top1"], "finetune_top5": self.best["top5"]},
                log=self.run / "log.csv",
                curves=curves if curves.is_file() else None,
                hardware=hardware(self.device),
                tag=self.tag,
                projector=False,
            )

    def _settings(self) -> dict[str, Any]:
        settings = {key: value for key, value in self.config.to_dict().items() if key not in _FREE_ON_RESUME}
        settings.update({"model": self.name, "data.source": self.images.source, "data.images": len(self.images)})
        return {**settings, "processes": world_size()}

    def _restore(self, state: dict[str, Any]) -> None:
        check_settings(self._settings(), state["settings"], self.run)
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        set_rng_state(state["rng"][rank()])
        self.rows, self.best = state["rows"], state["best"]
        self.schedule.step_update(state["step"])


@contextlib.contextmanager
def _weights_of(model: ContrastiveModel, network: nn.Module) -> Any:
    """The model with another copy of its backbone for a while."""
    own = model.backbone
    model.backbone = network
    try:
        yield
    finally:
        model.backbone = own
