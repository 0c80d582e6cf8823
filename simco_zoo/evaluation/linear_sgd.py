"""The field's linear evaluation: a linear classifier trained by SGD on crops of the images, for many rates at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simco_zoo.data import ImageData, TwoViews, ViewPreset
from simco_zoo.data.subsets import holdout
from simco_zoo.data.transforms import input_config
from simco_zoo.distributed import is_main, mean_over_processes, rank, world_size
from simco_zoo.evaluation.features import Features, extract_features
from simco_zoo.evaluation.forward import build_forward, evaluating
from simco_zoo.evaluation.metrics import accuracy
from simco_zoo.evaluation.resumable import hash_images, hash_weights
from simco_zoo.sealed import load_sealed, save_sealed

LEARNING_RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MOMENTUM = 0.9


def linear_probe_sgd(
    model: nn.Module,
    images: ImageData,
    test_images: ImageData,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    min_scale: float = 0.08,
    held_out: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    num_workers: int = 0,
    amp: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains linear classifiers on a frozen backbone by SGD on random crops and flips, one for each learning rate.

    As in MoCo (CVPR 2020, section 4.1): momentum 0.9, no weight decay, a cosine to 0. All classifiers see the same
    features, so a grid of rates costs one pass. The rate is the one that does best on a held-out part of the training
    images; the test images are measured once.

    Args:
        model: A model from ``create_model`` or from timm; it stays as it is.
        images: Labeled training images.
        test_images: Labeled test images of the same classes.
        learning_rates: Candidates, for a batch of 256.
        epochs: Passes over the training images.
        batch_size: Images per step, of all processes together.
        min_scale: Smallest share of the image's area that a crop has, in (0, 1].
        held_out: Share of each class that chooses the rate, in (0, 1).
        seed: Seed of hold-out, order, crops and initial weights.
        device: Device to compute on; default: that of the model.
        num_workers: Processes that decode images which are not in memory.
        amp: Type for autocast of the backbone; None: none.
        checkpoint: File from which an interrupted call continues; it is written after each epoch.
        on_epoch: Called after each epoch with ``epoch``, ``loss`` and ``held_out_top1`` of the best rate so far.

    Returns:
        ``top1`` and ``top5`` accuracy in percent on the test images, the 95 % interval ``top1_low`` to ``top1_high``,
        ``learning_rate``, ``held_out_top1`` (by rate) and ``scores`` (M, C) of the test images.

    Raises:
        ValueError: If labels are missing, a setting is out of range, or the checkpoint belongs to another call.
    """
    if epochs < 1 or batch_size < 1 or not learning_rates or min(learning_rates) <= 0:
        raise ValueError("epochs and batch_size have to be at least 1, and learning_rates needs positive values.")
    if images.labels is None or test_images.labels is None:
        raise ValueError(f"the images of {images.source} need labels for a linear evaluation.")
    parameter = next(model.parameters())
    target = torch.device(device) if device is not None else parameter.device
    kept, chosen_by = holdout(images.labels, len(images), held_out, seed)
    train, validation = images.subset(kept), images.subset(chosen_by)
    classes = int(max(images.labels.max(), test_images.labels.max())) + 1
    options = {"device": target, "num_workers": num_workers, "amp": amp, "across_processes": True}

    held = extract_features(model, validation, batch_size, **options)  # type: ignore[arg-type]
    heads = _Heads(learning_rates, classes, held.features.shape[1], target, seed)
    identity = {
        "epochs": epochs,
        "batch_size": batch_size,
        "min_scale": min_scale,
        "held_out": held_out,
        "seed": seed,
        "learning_rates": list(learning_rates),
        "weights": hash_weights(model),
        "images": hash_images(images),
    }
    done = heads.load(Path(checkpoint), identity) if checkpoint is not None else 0
    trainer = _Trainer(model, train, batch_size, epochs, min_scale, seed, target, num_workers, amp)
    for epoch in range(done + 1, epochs + 1):
        loss = trainer.run_epoch(epoch, heads)
        if checkpoint is not None and is_main():
            heads.save(Path(checkpoint), identity, epoch)
        if on_epoch is not None:
            best, top1 = heads.best(held)
            on_epoch({"epoch": epoch, "loss": loss[best], "held_out_top1": top1[best], "rate": learning_rates[best]})

    best, top1 = heads.best(held)
    test = extract_features(model, test_images, batch_size, **options)  # type: ignore[arg-type]
    assert test.labels is not None
    scores = heads.scores(test.features)[best]
    return {
        **accuracy(scores, test.labels.to(scores.device)),
        "learning_rate": learning_rates[best],
        "held_out_top1": dict(zip(map(str, learning_rates), top1, strict=True)),
        "scores": scores.cpu(),
    }


class _Heads:
    """A linear classifier for each learning rate, and their momentum.

    Args:
        learning_rates: Learning rates for a batch of 256.
        classes: Number of classes C.
        dim: Length D of a feature.
        device: Device of the classifiers.
        seed: Seed of the initial weights.
    """

    def __init__(
        self, learning_rates: Sequence[float], classes: int, dim: int, device: torch.device, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = 0.01 * torch.randn(classes, dim + 1, generator=generator)
        start[:, -1] = 0  # the bias
        self.weight = start.to(device).repeat(len(learning_rates), 1, 1)  # (R, C, D + 1)
        self.velocity = torch.zeros_like(self.weight)
        self.rates = torch.tensor(learning_rates, device=device).view(-1, 1, 1)

    def scores(self, features: Tensor) -> Tensor:
        """Returns (R, B, C) for features (B, D)."""
        return (
            torch.einsum("bd,rcd->rbc", features.to(self.weight), self.weight[..., :-1]) + self.weight[:, None, :, -1]
        )

    def step(self, features: Tensor, labels: Tensor, factor: float) -> Tensor:
        """Makes a step of SGD; returns the loss of each classifier, (R,)."""
        scores = self.scores(features)
        count = len(features)
        # the gradient of mean cross-entropy: softmax minus one-hot
        error = (scores.softmax(dim=2) - F.one_hot(labels, scores.shape[2])) / count  # (R, B, C)
        extended = F.pad(features.to(self.weight), (0, 1), value=1.0)  # (B, D + 1)
        gradient = mean_over_processes(torch.einsum("rbc,bd->rcd", error, extended))
        self.velocity.mul_(MOMENTUM).add_(gradient)
        self.weight -= factor * self.rates * self.velocity
        losses = F.cross_entropy(scores.flatten(0, 1), labels.repeat(len(scores)), reduction="none")
        return losses.view(len(scores), -1).mean(dim=1)

    def accuracies(self, held: Features) -> list[float]:
        """Returns the top-1 accuracy of each classifier in percent; 0 for one that has diverged."""
        assert held.labels is not None
        found = []
        for scores in self.scores(held.features):
            finite = bool(torch.isfinite(scores).all())
            found.append(round(accuracy(scores, held.labels.to(scores.device))["top1"], 3) if finite else 0.0)
        return found

    def best(self, held: Features) -> tuple[int, list[float]]:
        """Returns the number of the best classifier, and the accuracies of all."""
        top1 = self.accuracies(held)
        return max(range(len(top1)), key=lambda i: top1[i]), top1

    def save(self, path: Path, identity: dict[str, Any], epoch: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"weight": self.weight, "velocity": self.velocity, "epoch": epoch, "identity": identity}
        save_sealed(path, state)

    def load(self, path: Path, identity: dict[str, Any]) -> int:
        """Takes over a checkpoint, if there is one; returns the number of epochs done."""
        if not path.is_file():
            return 0
        try:
            state, verified = load_sealed(path, "a checkpoint of a linear evaluation")
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}; delete it, or choose another --output.") from error
        if not verified or not isinstance(state, dict) or "identity" not in state:
            raise ValueError(
                f"{path} is not a whole checkpoint of a linear evaluation; delete it, or choose another --output."
            )
        changed = sorted(key for key in identity if state["identity"].get(key) != identity[key])
        if changed:
            raise ValueError(
                f"{path} belongs to another linear evaluation (other {', '.join(changed)}); delete it, or choose "
                "another --output."
            )
        self.weight, self.velocity = state["weight"].to(self.weight), state["velocity"].to(self.velocity)
        return int(state["epoch"])


class _Trainer:
    """The passes over the training images: order, crops, features, steps."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageData,
        batch_size: int,
        epochs: int,
        min_scale: float,
        seed: int,
        device: torch.device,
        num_workers: int,
        amp: torch.dtype | None,
    ) -> None:
        self.model, self.images, self.seed, self.device, self.num_workers = model, images, seed, device, num_workers
        self.share = max(1, min(batch_size, len(images)) // world_size())  # of each process
        self.steps = max(1, len(images) // (self.share * world_size()))
        self.total = self.steps * epochs
        config = input_config(model)
        self.forward = build_forward(model, config, device=device, amp=amp)
        preset = ViewPreset(scale=(min_scale, 1.0), mean=config["mean"], std=config["std"], jitter=0.0, grayscale=0.0)
        self.side = images.image_size, images.image_size
        self.views = TwoViews(preset, size=images.image_size, dtype=next(model.parameters()).dtype)

    def run_epoch(self, epoch: int, heads: _Heads) -> list[float]:
        """Makes the steps of an epoch; returns the mean loss of each classifier."""
        order = torch.randperm(len(self.images), generator=_generator(self.seed, epoch, 0))
        whole = self.share * world_size()
        rows = [order[step * whole + rank() * self.share :][: self.share] for step in range(self.steps)]
        crops = _generator(self.seed, epoch, 1 + rank())
        assert self.images.labels is not None
        losses = torch.zeros(len(heads.weight), device=self.device)
        with evaluating(self.model):
            for step, (index, batch) in enumerate(zip(rows, self.images.batches(rows, self.num_workers), strict=True)):
                batch = batch.to(self.device)
                view = self.views.apply(batch, self.views.draw(len(batch), *self.side, crops))
                progress = ((epoch - 1) * self.steps + step) / self.total
                factor = whole / 256 * 0.5 * (1 + math.cos(math.pi * progress))
                losses += heads.step(self.forward(view), self.images.labels[index].to(self.device), factor)
        return (losses / self.steps).tolist()


def _generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint32)[0]))
