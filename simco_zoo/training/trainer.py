"""What pretraining and fine-tuning share: optimizer, schedule, one update of the weights, the loop over epochs."""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import mean_over_processes, rank, world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.training.config import AMP_DTYPES, TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.interruption import Interrupted
from simco_zoo.training.optimizer import build_optimizer, build_schedule
from simco_zoo.training.run import Run
from simco_zoo.training.state import TrainState, preserved_rng, seeded_generator


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite or the projections collapsed."""


class Trainer(ABC):
    """A model, its images and its optimizer, without files.

    Args:
        model: A model of the zoo; moved to the device and trained in place.
        images: Training images.
        config: Settings.
        device: Where to compute.
    """

    columns: ClassVar[tuple[str, ...]]  # the first columns of log.csv
    best_by: ClassVar[str]  # the column that chooses the best epoch

    def __init__(
        self,
        model: ContrastiveModel,
        images: ImageData | StreamedImages,
        config: TrainingConfig | FinetuneConfig,
        device: torch.device,
    ) -> None:
        self.model, self.images, self.device = model, images, device
        self.state = TrainState()
        self.amp = AMP_DTYPES[config.amp]
        self.clip_grad, self.seed = config.clip_grad, config.seed
        self.images_per_step = config.images_per_step  # of all processes
        self.images_per_process = config.batch_size // world_size()  # in one forward
        self.steps_per_epoch = len(images) // self.images_per_step
        self.total_steps = config.epochs * self.steps_per_epoch
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(device).to(memory_format=memory_format)

    def build_optimizer(self, network: nn.Module, config: TrainingConfig | FinetuneConfig) -> None:
        """Makes optimizer, schedule and gradient scaler for the network's trained parameters."""
        self.network = network
        self.optimizer = build_optimizer(network, config)
        self.schedule = build_schedule(self.optimizer, config, self.steps_per_epoch, self.total_steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")

    def describe_input(self, **entries: Any) -> None:
        """Writes into the model what it is trained on, so that everyone who loads it prepares images alike."""
        size = self.images.image_size
        cfg = {**self.model.pretrained_cfg, "input_size": (3, size, size), "crop_pct": 1.0, **entries}
        self.model.set_pretrained_cfg(cfg)

    def autocast(self) -> torch.autocast:
        """Returns the context in which the network computes."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def update_weights(self) -> None:
        """Makes one step of the optimizer with the gradients at hand, and of the schedule."""
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.state.step += 1
        self.schedule.step_update(self.state.step)

    def share_of_epoch(self, epoch: int, first: int, last: int) -> Tensor:
        """Returns the rows of the images that this process sees in an epoch's steps first to last, one step per row.

        A step's images are laid out forward by forward (see ``accumulate``), and in each process by process.
        """
        order = torch.randperm(len(self.images), generator=seeded_generator(self.seed, "order", epoch))
        shares = order[: last * self.images_per_step].view(last, -1, world_size(), self.images_per_process)
        return shares[first:, :, rank()].flatten(1)

    def distribute(self, module: nn.Module, find_unused_parameters: bool = False) -> nn.Module:
        """Returns the module as it is called under torchrun: with the gradients averaged over the processes."""
        if world_size() == 1:
            return module
        # batch norm's buffers are averaged when an epoch ends; torch renamed the argument
        known = inspect.signature(DistributedDataParallel).parameters
        buffers: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=find_unused_parameters, **buffers
        )

    def average_batch_norm(self) -> None:
        """Makes the running statistics those of all processes' images."""
        if world_size() > 1:
            distribute_bn(self.model, world_size(), reduce=True)

    def set_mode(self) -> None:
        """Puts the model into the mode in which it is trained."""
        self.model.train()

    # What differs

    @abstractmethod
    def batches(self, epoch: int, first: int, last: int) -> Iterator[Any]:
        """Yields what ``train_step`` takes, for the epoch's steps first to last."""

    @abstractmethod
    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """Makes one step and returns detached scalars, among them ``loss``."""

    @abstractmethod
    def measure(self, epoch: int) -> dict[str, Any]:
        """Measures the model after an epoch; every process calls it, the main process gets the numbers."""

    def check_means(self, means: dict[str, float], epoch: int) -> None:
        """Raises TrainingError if the means of an epoch show that going on is pointless."""
        if not math.isfinite(means["loss"]):
            raise TrainingError(f"the mean loss of epoch {epoch} is {means['loss']}.")

    @abstractmethod
    def publish(self, run: Run, name: str, row: dict[str, Any]) -> None:
        """Writes the model, with the figures of a row of the log, as a published folder of the run."""

    # What a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that changes in training, besides ``state``."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; ``state`` has to be restored already."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.schedule.step_update(self.state.step)


def train(trainer: Trainer, run: Run, description: str) -> dict[str, Any]:
    """Runs every epoch that is left; Ctrl-C and SIGTERM save before they end the run.

    Returns:
        The last row of the log.

    Raises:
        TrainingError: If the loss is not finite, or the trainer sees no point in going on.
        Interrupted: After a signal, when checkpoint and ``last/`` were written.
    """
    state = trainer.state
    with run.training(trainer.total_steps, description):
        try:
            while state.step < trainer.total_steps:
                row = run_epoch(trainer, run)
                final = state.step == trainer.total_steps
                trainer.average_batch_norm()
                with preserved_rng():
                    row.update(trainer.measure(row["epoch"]))
                    if run.record(row, final):
                        trainer.publish(run, "best", row)
                run.save_epoch(trainer.state_dict, row["epoch"], final)
        except Interrupted:
            run.save(trainer.state_dict())
            run.write_log(True)
            trainer.average_batch_norm()
            trainer.publish(run, "last", {key: state.rows[-1][key] for key in ("loss",) if state.rows})
            raise
    return state.rows[-1]


def run_epoch(trainer: Trainer, run: Run) -> dict[str, Any]:
    """Runs what is left of the epoch that has begun and returns its row of the log."""
    state, per_epoch = trainer.state, trainer.steps_per_epoch
    epoch = state.step // per_epoch
    first = state.step - epoch * per_epoch
    last = min(per_epoch, trainer.total_steps - epoch * per_epoch)
    trainer.set_mode()
    began = time.perf_counter()
    for batch in trainer.batches(epoch, first, last):
        if run.checkpoint_due():
            run.save(trainer.state_dict())
        report = trainer.train_step(batch)
        state.add(report)
        now = time.perf_counter()
        state.add_seconds(now - began)
        began = now
        if run.step_done():
            _look(trainer, run, report)
    _look(trainer, run, report)  # before anything of this epoch is saved
    totals = mean_over_processes(torch.stack(list(state.sums.values()))) / last
    state.add_seconds(time.perf_counter() - began)  # the device has caught up
    means = dict(zip(state.sums, totals.tolist(), strict=True))
    trainer.check_means(means, epoch + 1)
    return {
        "epoch": epoch + 1,
        "step": state.step,
        **{name: round(value, 6 if name == "loss" else 5) for name, value in means.items()},
        "lr": max(group["lr"] for group in trainer.optimizer.param_groups),
        "images_per_second": round(last * trainer.images_per_step / state.epoch_seconds, 1),
        "seconds": round(state.seconds, 1),
    }


def _look(trainer: Trainer, run: Run, report: dict[str, Tensor]) -> None:
    """Shows a step and stops the run if the loss is not finite; this waits for the device."""
    loss = report["loss"].item()
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {trainer.state.step}; lower the learning rate, raise the temperature, or use "
            "--amp none; the last checkpoint is intact."
        )
    run.show({name: value.item() for name, value in report.items() if name in ("loss", "proj_std")})
