"""What pretraining and fine-tuning share: optimizer, schedule, one update of the weights, the loop over epochs."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import rank, world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.training.config import AMP_DTYPES, TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.optimizer import Phase, build_optimizer, build_schedule, load_optimizer, plan
from simco_zoo.training.run import Run
from simco_zoo.training.state import TrainState, seeded_generator


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite or the projections collapsed.

    Example:
        >>> try:
        ...     pretrain(model, images, lr=1e9)  # doctest: +SKIP
        ... except TrainingError as error:
        ...     print(error)
    """


class CollapseError(TrainingError):
    """The projections collapsed: all images look alike to the model.

    Example:
        >>> try:
        ...     pretrain(model, images, lr=1.0)  # doctest: +SKIP
        ... except CollapseError as error:
        ...     print(error)
    """


class Trainer(ABC):
    """A model, its images and its optimizer, without files.

    Args:
        model: A ``ContrastiveModel``; it is moved to the device and trained in place.
        images: Training images.
        config: Settings.
        device: Device to compute on.
    """

    columns: ClassVar[tuple[str, ...]]  # the first columns of log.csv
    best_by: ClassVar[str]  # the column that chooses the best epoch
    remembers_best: ClassVar[bool] = False  # whether its checkpoints hold the best epoch's weights

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
        self.clip_grad, self.seed, self.lr = config.clip_grad, config.seed, config.lr
        self.checkpoint_every = config.checkpoint_every
        self.images_per_step = config.images_per_step  # of all processes
        self.images_per_process = config.batch_size // world_size()  # in one forward
        self.steps_per_epoch = len(images) // self.images_per_step
        self.state.phases = [plan(config, self.steps_per_epoch, 0, config.total_steps(len(images)))]
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(device).to(memory_format=memory_format)

    def build_optimizer(self, network: nn.Module, config: TrainingConfig | FinetuneConfig) -> None:
        """Makes optimizer, schedule and gradient scaler for the network's trained parameters."""
        self.network, self.schedule_config = network, config
        self.optimizer = build_optimizer(network, config)
        self.schedule = build_schedule(self.optimizer, config, self.state.phases[-1])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.state.phases[-1].end

    def set_phases(self, phases: list[Phase]) -> None:
        """Goes on by the schedule of the last of these stretches of the run."""
        self.state.phases = phases
        self.schedule = build_schedule(self.optimizer, self.schedule_config, phases[-1])
        self.schedule.step_update(self.state.step)

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
            for module in self.trained_modules():
                distribute_bn(module, world_size(), reduce=True)

    def begin_epoch(self, epoch: int, first: int) -> None:
        """Puts the model into the mode in which it is trained, before step ``first`` of an epoch."""
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

    def fitting_steps(self, seconds: float, most: int) -> int:
        """Returns how many steps fit into a time, at most ``most``; every process calls it."""
        raise NotImplementedError

    def check_means(self, means: dict[str, float], epoch: int) -> None:
        """Raises TrainingError if the means of an epoch show that going on is pointless."""
        if not math.isfinite(means["loss"]):
            raise TrainingError(f"the mean loss of epoch {epoch} is {means['loss']}; lower the learning rate.")

    def keep_best(self) -> None:  # noqa: B027 - most trainers need not
        """Is called after the best epoch so far, before it is published."""

    @abstractmethod
    def publish(self, run: Run, name: str, row: dict[str, Any]) -> None:
        """Writes the model, with the figures of a row of the log, as a published folder of the run."""

    # What a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that changes in training, besides ``state``."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        load_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty where the run that is branched from had none
            self.scaler.load_state_dict(state["scaler"])

    def trained_modules(self) -> list[nn.Module]:
        """Returns the modules whose batch norms have statistics of this process's images."""
        return [self.model]

    def local_buffers(self) -> dict[str, Tensor]:
        """Returns what differs between the processes within an epoch: batch norm's statistics; nothing for one."""
        if world_size() == 1:
            return {}
        return {
            f"{i}.{path}.{name}": buffer
            for i, trained in enumerate(self.trained_modules())
            for path, module in trained.named_modules()
            if isinstance(module, _BatchNorm)
            for name, buffer in module.named_buffers(recurse=False)
        }
