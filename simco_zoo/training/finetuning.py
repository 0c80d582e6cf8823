"""finetune: a pretrained backbone and labels -> a classifier in a published folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from simco_zoo.data import ImageData, TwoViews, load_splits
from simco_zoo.data.presets import ViewPreset
from simco_zoo.data.subsets import balanced_subset, split_holdout, warn_of_small_classes
from simco_zoo.distributed import init_distributed, is_main, pick_device, rank, world_size
from simco_zoo.evaluation.features import extract_features
from simco_zoo.evaluation.metrics import accuracy, confusion_matrix
from simco_zoo.models import ContrastiveModel
from simco_zoo.report.confusion import FILES as CONFUSION_FILES
from simco_zoo.report.confusion import write_confusion
from simco_zoo.training.checks import check_image_size
from simco_zoo.training.finetune_config import (
    BRANCH_FIXED,
    FREE_ON_RESUME,
    FinetuneConfig,
    build_auto_augment,
    fitting_config,
)
from simco_zoo.training.folder import stored_identity
from simco_zoo.training.identity import Identity, run_identity
from simco_zoo.training.log import read_summary
from simco_zoo.training.loop import restore, train
from simco_zoo.training.run import Run
from simco_zoo.training.state import preserved_rng, seed_all, seeded_generator
from simco_zoo.training.trainer import Trainer


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
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Trains a classifier on a pretrained backbone, and the backbone with it unless ``freeze``.

    The epoch with the best accuracy on a held-out part of the training images (``holdout``) is taken, and the test
    images are measured once, with its weights, which the model has afterwards.

    The run's folder gets ``log.csv``, ``summary.json``, ``checkpoints/`` and ``best/``, that epoch as a published
    folder with classifier and label names; ``per_class.csv``, the accuracy of each class, and ``confusion.csv``, how
    often each class (row) was taken for each (column), on the test images; and ``curves.png`` and ``confusion.png`` if
    matplotlib is installed. Under torchrun each process computes its share of every batch.

    Args:
        model: A ``ContrastiveModel`` with its weights; it gets a fresh classifier and is changed in place.
        images: Labeled images of the size that the model is to see.
        test_images: Labeled images that the accuracy is measured on at the end.
        output: The run's folder; default ``runs/finetune-NAME``.
        config: Settings.
        resume: "auto" goes on from the run's newest checkpoint, "never" starts afresh, a path goes on from that file.
        name: What the model is called in the card; default its architecture and tag.
        tag: Tag of the published folder.
        progress_bar: Show a progress bar; None: if stderr is a terminal.
        on_start: Called when everything was checked, before the first step, on the process that writes the files.
        callbacks: Objects whose methods are called after steps and epochs and at the end, see ``Callback``.
        **settings: Settings by name; they take precedence over those in ``config``.

    Returns:
        ``top1`` and ``top5`` accuracy on the test images in percent with a 95 % interval ``top1_low`` to ``top1_high``;
        ``val_top1``, that on the held-out images, and ``epoch``, which they chose; ``train``, ``val`` and ``test``
        (numbers of images), ``folder``.

    Raises:
        ValueError: If labels are missing or do not match, or a setting is out of range or differs from the run that is
            resumed.
        TrainingError: If the loss is not finite.
        Interrupted: After Ctrl-C or SIGTERM, when the step was done and a checkpoint and ``last/`` were written.

    Example:
        >>> import simco_zoo, tempfile
        >>> images = simco_zoo.data.load_images("photos", limit=64)
        >>> model = simco_zoo.create_model("simco", backbone="test_resnet")
        >>> settings = {"epochs": 1, "batch_size": 32, "progress_bar": False}
        >>> result = finetune(model, images, images, output=tempfile.mkdtemp(), **settings)
        >>> 0 <= result["top1"] <= 100
        True
    """
    config = replace(config or FinetuneConfig(), **settings)
    images, loaded = load_splits(images, test_images, require_labels=True)
    assert loaded is not None  # required
    test_images = loaded
    class_names = images.class_names or [str(i) for i in range(1 + _largest_label(images, test_images))]
    device = init_distributed(pick_device(config.device))
    check_image_size(model, images.image_size)
    warn_of_small_classes(images)
    if config.label_fraction < 1:
        assert images.labels is not None
        images = images.subset(balanced_subset(images.labels, config.label_fraction, config.seed))
    images, val_images = split_holdout(images, config.holdout, config.seed)
    name = name or ".".join(filter(None, (model.architecture, model.pretrained_cfg.get("tag"))))
    folder = Path(output or Path("runs") / f"finetune-{name}").absolute()
    given, config = config, fitting_config(config, len(images), stored_identity(folder, resume).get("batch_size"))
    run = Run(
        folder,
        config,
        columns=Finetuning.columns,
        best_by=Finetuning.best_by,
        files=CONFUSION_FILES,
        tag=tag,
        progress_bar=progress_bar,
        callbacks=callbacks,
    )
    size = 8 * sum(tensor.nbytes for tensor in model.backbone.state_dict().values())

    def identity() -> Identity:
        sets = {"free": FREE_ON_RESUME, "branch_fixed": BRANCH_FIXED, "published": ("best",)}
        return run_identity("fine-tuning", model, images, test_images, config, **sets)

    if config.batch_size != given.batch_size:
        said = f"batches of {config.batch_size} instead of {given.batch_size}, base learning rate {config.lr:g}"
        run.progress.say(f"{len(images)} images to train on: {said}")
    with run.opened(resume, identity, model, size, on_start):
        trainer = Finetuning(model, images, val_images, class_names, config, device, name=name, tag=tag)
        restore(trainer, run, config)
        if not run.finished:
            run.begin()
            train(trainer, run, f"fine-tuning {name}")
            trainer.finish(run, test_images)
        return {**read_summary(run.folder / "summary.json"), "folder": str(run.folder / "best")}


def _largest_label(images: ImageData, test_images: ImageData) -> int:
    assert images.labels is not None and test_images.labels is not None
    return int(max(images.labels.max(), test_images.labels.max()))


class Finetuning(Trainer):
    """Supervised training of a backbone with a fresh classifier.

    Args:
        model: A ``ContrastiveModel`` with its weights; it gets a classifier and is changed in place.
        images: Labeled training images.
        val_images: Labeled images that choose the best epoch, or None: the last one is taken.
        class_names: Names of the classes.
        config: Settings; the batch size fits the images.
        device: Device to compute on.
        name: What the model is called in the card.
        tag: Tag of the published folder, or None.

    Example:
        >>> import simco_zoo
        >>> images = simco_zoo.data.load_images("photos", limit=16)
        >>> model = simco_zoo.create_model("simco", backbone="test_resnet")
        >>> config = FinetuneConfig(batch_size=16)
        >>> trainer = Finetuning(model, images, None, images.class_names, config, torch.device("cpu"), name="test")
        >>> list(trainer.train_step((images.images, images.labels)))
        ['loss']
    """

    columns = ("epoch", "step", "loss", "val_top1", "val_top5", "lr", "images_per_second", "seconds")
    best_by = "val_top1"
    remembers_best = True
    images: ImageData

    def __init__(
        self,
        model: ContrastiveModel,
        images: ImageData,
        val_images: ImageData | None,
        class_names: list[str],
        config: FinetuneConfig,
        device: torch.device,
        *,
        name: str,
        tag: str | None = None,
    ) -> None:
        torch.manual_seed(config.seed)  # the classifier's weights
        model.reset_classifier(len(class_names))
        super().__init__(model, images, config, device)
        torch.manual_seed(config.seed + rank())  # drop path
        self.val_images, self.config, self.name, self.class_names = val_images, config, name, class_names
        self.best_weights: dict[str, Tensor] = {}
        entries = {"label_names": class_names, "num_classes": len(class_names), **({"tag": tag} if tag else {})}
        self.describe_input(**entries)
        if config.freeze:
            model.backbone.requires_grad_(False)
            model.get_classifier().requires_grad_(True)
        self.build_optimizer(model.backbone, config)
        self.ema = ModelEmaV3(self.network, decay=config.ema, use_warmup=True) if config.ema else None
        self.forward = self.distribute(self.network)
        cfg = model.pretrained_cfg
        self.views = TwoViews(
            ViewPreset(scale=(config.min_scale, 1.0), mean=cfg["mean"], std=cfg["std"], jitter=0.0, grayscale=0.0),
            size=images.image_size,
            dtype=next(model.parameters()).dtype,
            channels_last=config.channels_last,
        )
        self.policy = config.auto_augment and build_auto_augment(config.auto_augment, cfg["mean"], images.image_size)
        self.criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.mixup: Mixup | None = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=len(class_names)
            )
            self.criterion = SoftTargetCrossEntropy()

    def begin_epoch(self, epoch: int, first: int) -> None:
        self.network.train(not self.config.freeze)
        if first == 0:  # timm's mixup draws from numpy's global generator
            generator = seeded_generator(self.seed, "mixup", epoch * world_size() + rank())
            np.random.seed(generator.initial_seed() % 2**32)

    def batches(self, epoch: int, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's uint8 images of the epoch's steps first to last, and their labels, on the device."""
        assert self.images.labels is not None
        rows = self.share_of_epoch(epoch, first, last)
        decoded = self.images.batches(list(rows), num_workers=self.config.workers)
        for indices, batch in zip(rows, decoded, strict=True):
            yield batch.to(self.device), self.images.labels[indices].to(self.device)

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, targets = batch
        if self.policy:
            images = self._augmented(images)
        n, _, height, width = images.shape
        generator = seeded_generator(self.seed, "crops", self.state.step)
        parameters = self.views.draw(n * world_size(), height, width, generator)[n * rank() : n * (rank() + 1)]
        views = self.views.apply(images, parameters)
        if self.mixup is not None:
            views, targets = self.mixup(views, targets)
        with self.autocast():
            loss = self.criterion(self.forward(views), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.update_weights()
        if self.ema is not None:
            self.ema.update(self.network, step=self.state.step - 1)
        return {"loss": loss.detach()}

    def _augmented(self, images: Tensor) -> Tensor:
        """Applies timm's policy to uint8 images; it draws from the global generators, which are put back."""
        assert callable(self.policy)
        generator = seeded_generator(self.seed, "policy", self.state.step * world_size() + rank())
        with preserved_rng():
            seed_all(generator.initial_seed() % 2**32)
            changed = [np.array(self.policy(to_pil_image(image))) for image in images.cpu()]
        return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous().to(images.device)

    def trained_modules(self) -> list[nn.Module]:
        return [self.network] if self.ema is None else [self.network, self.ema.module]

    @property
    def measured(self) -> Any:
        """The network that is measured and published: with averaged weights, if they are averaged."""
        return self.network if self.ema is None else self.ema.module

    def measure(self, epoch: int) -> dict[str, Any]:
        if self.val_images is None:
            return {}
        scores, labels = self._scores(self.measured, self.val_images)
        found = accuracy(scores, labels)
        return {f"val_{top}": round(found[top], 3) for top in ("top1", "top5")}

    def _scores(self, network: Any, images: ImageData) -> tuple[Tensor, Tensor]:
        """Returns the class scores (N, C) of clean images and their labels (N,)."""
        workers = self.config.workers
        extracted = extract_features(network, images, num_workers=workers, across_processes=True)
        classifier = network.get_classifier()
        with torch.inference_mode():
            scores: Tensor = classifier(extracted.features.to(next(classifier.parameters())))
        assert extracted.labels is not None
        return scores, extracted.labels.to(scores.device)

    def keep_best(self) -> None:
        self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self.measured.state_dict().items()}

    def publish(self, run: Run, name: str, row: dict[str, Any]) -> None:
        metrics = {f"finetune_{top}": row[top] for top in ("top1", "top5") if top in row}
        with _weights_of(self.model, self.measured):
            self._publish(run, name, metrics)

    def _publish(self, run: Run, name: str, metrics: dict[str, Any]) -> None:
        recipe = {**self.config.to_dict(), "finetuned_from": self.name, "started_from": self.model.loaded_from}
        run.publish(self.model, name, self.images, recipe=recipe, metrics=metrics, projector=False)

    def finish(self, run: Run, test_images: ImageData) -> None:
        """Measures the best epoch's weights on the test images, leaves them in the model, and ends the run."""
        if not self.state.best:  # nothing chose an epoch
            self.keep_best()
        best = self.state.best or self.state.rows[-1]
        self.network.load_state_dict(self.best_weights)
        with preserved_rng():
            scores, labels = self._scores(self.network, test_images)
        result = {key: round(value, 3) for key, value in accuracy(scores, labels).items()}
        if is_main():
            confusion = confusion_matrix(scores.argmax(dim=1), labels, len(self.class_names))
            title = f"{run.folder.name} on {len(test_images):,} test images"
            write_confusion(run.folder, confusion, self.class_names, title=title)
        self._publish(run, "best", {f"finetune_{top}": result[top] for top in ("top1", "top5")})
        run.finish(
            {
                **result,
                "val_top1": best.get("val_top1"),
                "epoch": best["epoch"],
                "train": len(self.images),
                "val": len(self.val_images or ()),
                "test": len(test_images),
                "steps": self.state.step,
                "folder": str(run.folder / "best"),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        ema = self.ema.module.state_dict() if self.ema is not None else {}
        tensors = {"network": self.network.state_dict(), "ema": ema, "best_weights": self.best_weights}
        return {**super().state_dict(), **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.best_weights = state.get("best_weights", {})
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        super().load_state_dict(state)


@contextlib.contextmanager
def _weights_of(model: ContrastiveModel, network: nn.Module) -> Iterator[None]:
    """The model with another copy of its backbone for a while."""
    own = model.backbone
    model.backbone = network
    try:
        yield
    finally:
        model.backbone = own
