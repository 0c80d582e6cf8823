"""A run and what it leaves in its folder: checkpoints, log, curves, published models; and the signals that end it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from simco_zoo.data import ImageData
from simco_zoo.data.fingerprint import hash_tensors
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import barrier, gather_objects, is_main, on_main, rank
from simco_zoo.models import ContrastiveModel
from simco_zoo.publishing.names import check_tag
from simco_zoo.training.callbacks import notify
from simco_zoo.training.checkpoint import load_checkpoint, save_checkpoint
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.folder import RunFolder, Start, published_step
from simco_zoo.training.identity import Identity
from simco_zoo.training.interruption import Interruption
from simco_zoo.training.log import Log, write_summary
from simco_zoo.training.progress import Progress
from simco_zoo.training.publish import publish_run
from simco_zoo.training.state import TrainState
from simco_zoo.training.tensorboard import TensorBoard


class Run:
    """What a run leaves in its folder; of several processes the first one writes.

    Args:
        folder: Where to write.
        config: The settings of the run.
        columns: The first columns of the log.
        best_by: The column whose highest value makes an epoch the best one.
        files: Names of files that the caller writes into the folder.
        tag: Tag of the published weights.
        progress_bar: Show a progress bar; None: a bar if stderr is a terminal, else a line per epoch.
        callbacks: See ``Callback``.

    Raises:
        ValueError: If the tag cannot be part of a model's name.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig | FinetuneConfig,
        *,
        columns: Sequence[str],
        best_by: str,
        files: Sequence[str] = (),
        tag: str | None = None,
        progress_bar: bool | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        check_tag(tag)
        self.folder, self.config, self.tag = folder, config, tag
        self.files = list(files)
        self.callbacks = list(callbacks) if is_main() else []
        self.best_by = best_by
        self.state = TrainState()
        self.start = Start("")
        self.start_step = 0
        self.progress = Progress(is_main() and progress_bar is not False, progress_bar)
        self.interruption = Interruption()
        self._identity = Identity({}, {}, (), {}, 0)
        self._board = TensorBoard(folder, 0, enabled=False)
        self._begun, self._summary = False, dict[str, Any]()
        self._log = Log(folder, columns)
        self._saved = -math.inf  # when the last checkpoint was written

    # How it begins

    @contextlib.contextmanager
    def opened(
        self,
        resume: str,
        identity: Callable[[], Identity],
        model: ContrastiveModel,
        size: int,
        on_start: Callable[[], None] | None,
    ) -> Iterator[None]:
        """Holds the folder for this run, and finds the checkpoint from which it goes on.

        Args:
            resume: "auto", "never", or a checkpoint's path.
            identity: Computes what must be the same for the run to be continued.
            model: The model, with its starting weights.
            size: Bytes that will be written.
            on_start: What ``begin`` will call; a caller that has one writes ``config.yaml``.
        """
        self._resume, self._on_start = resume, on_start
        folder = RunFolder(self.folder, self.progress.say)

        def open_folder() -> tuple[Start, Identity]:
            own = identity()
            reserved = [*self.files, *(["config.yaml"] if on_start is not None else [])]
            return folder.open(resume, own, hash_tensors(model.state_dict().values()), size, reserved), own

        try:
            # a checkpoint is read by each process from the file, not sent around
            start, self._identity = on_main(open_folder, lambda found: (found[0].without_state(), found[1]))
            if start.path is not None and start.checkpoint is None:
                start.checkpoint = load_checkpoint(start.path)
            self.start, self._folder = start, folder
            yield
        finally:
            if is_main():
                folder.close()
                if self._begun:
                    notify(self.callbacks, "on_end", self._summary)

    @property
    def schedule(self) -> dict[str, Any]:
        """Settings of the run's length."""
        return self._identity.schedule

    @property
    def finished(self) -> bool:
        """Whether the run had been finished before."""
        return self.start.finished

    def begin(self) -> None:
        """Makes the folder this run's; everything has been checked, and the first step comes next."""
        self._begun = True

        def write() -> None:
            self._folder.write_entry(self.start, self._identity, self.state.phases[-1].end, self._resume)
            if self._on_start is not None:
                self._on_start()

        on_main(write)

    def restore(self, state: TrainState) -> dict[str, Any] | None:
        """Takes over where the run stands, and brings ``state`` to where its checkpoint was.

        Returns:
            What else the checkpoint holds, with this process's part under "own"; None for a fresh start.
        """
        self.state = state
        checkpoint = self.start.checkpoint
        if checkpoint is None:
            return None
        own = checkpoint["processes"][rank()]
        state.restore(checkpoint, own)
        self.start_step = state.step
        return {**checkpoint, "own": own}

    # While it trains

    @contextlib.contextmanager
    def training(self, total_steps: int, description: str) -> Iterator[None]:
        """Shows the progress, and holds signals back, while the run trains."""
        enabled = self.config.tensorboard and is_main() and self.state.step < total_steps
        self._board = TensorBoard(self.folder, len(self.state.rows), enabled)
        self._saved = time.monotonic()
        shown = self.progress.shown(description, self.state.step, total_steps)
        with shown, contextlib.closing(self._board), self.interruption:
            yield

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint within the epoch is due; raises Interrupted if a signal came.

        Every process has to ask before each step, and gets the same answer.
        """
        minutes = self.config.checkpoint_minutes
        due = minutes > 0 and time.monotonic() - self._saved > 60 * minutes
        return self.interruption.check(due and is_main())

    def step_done(self, report: dict[str, Tensor]) -> bool:
        """Counts a step and notifies the callbacks; returns whether its loss is to be read."""
        self.progress.step()
        notify(self.callbacks, "on_step", self.state.step, report)
        return self.state.step % self.config.log_every == 0

    def show(self, values: dict[str, float]) -> None:
        """Shows a step's figures and the last accuracy."""
        measured = [row[self.best_by] for row in self.state.rows if self.best_by in row]
        self.progress.show({**values, **({self.best_by: measured[-1]} if measured else {})})

    # What it leaves

    def record(self, row: dict[str, Any], final: bool) -> bool:
        """Adds an epoch's row to the log; returns whether the epoch is the best so far."""
        state = self.state
        state.end_epoch(row)
        notify([self._board, *self.callbacks], "on_epoch", numbers(row))
        self.write_log(final)
        self.progress.epoch(row)
        better = row.get(self.best_by, -math.inf) > state.best.get(self.best_by, -math.inf)
        if better:
            state.best = row
        return better

    def write_log(self, final: bool) -> None:
        """Writes ``log.csv`` and, not more often than twice a minute unless ``final``, ``curves.png``."""
        if is_main():
            self._log.write(self.state.rows, final)

    def save(self, tensors: dict[str, Any], model: ContrastiveModel, buffers: dict[str, Tensor]) -> None:
        """Writes a checkpoint; every process has to call it.

        Args:
            tensors: State of the trainer, the same on every process.
            model: The model, whose weights are hashed.
            buffers: What differs between the processes.
        """
        own = {**self.state.own(), "buffers": {name: value.cpu() for name, value in buffers.items()}}
        content = {
            **tensors,
            **self.state.shared(),
            "run": self.start.run,
            "identity": self._identity.values,
            "schedule": self.schedule,
            "weights": hash_tensors(model.state_dict().values()),
            "processes": gather_objects(own),
        }
        if is_main():
            save_checkpoint(self.folder / "checkpoints", self.state.step, content, self.config.keep_checkpoints)
        self._saved = time.monotonic()

    def publish(self, model: ContrastiveModel, name: str, images: ImageData | StreamedImages, **what: Any) -> None:
        """Writes the model as the published folder ``name`` of the run; ``what`` goes to ``save_pretrained``."""
        if is_main():
            publish_run(self.folder, name, model, images, tag=self.tag, **what)

    def published_step(self, name: str) -> int | None:
        """Returns the step at which the published folder ``name`` was made, the same on every process.

        None if it is not there or damaged, -1 if it does not say.
        """
        step: int | None = on_main(lambda: published_step(self.folder / name), lambda found: found)
        return step

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary; it makes the run a finished one."""
        if is_main():
            write_summary(self.folder / "summary.json", summary)
        self._summary = summary
        barrier()


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row of the log."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}
