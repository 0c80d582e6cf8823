"""A run's folder: checkpoints, log, curves, published models, and the signals that end it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import barrier, gather_objects, is_main, rank
from simco_zoo.files import check_disk_space
from simco_zoo.models import ContrastiveModel
from simco_zoo.publishing import save_pretrained
from simco_zoo.report.curves import draw_curves
from simco_zoo.training.checkpoint import check_settings, find_resume, save_checkpoint
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.interruption import Interruption
from simco_zoo.training.log import DRAW_EVERY, hardware, write_log, write_summary
from simco_zoo.training.state import TrainState, rng_state, set_rng_state
from simco_zoo.training.tensorboard import TensorBoard


class Run:
    """What a run leaves in its folder; of several processes the first one writes.

    Args:
        folder: Where to write.
        settings: What must be equal for a checkpoint to be continued, as plain values.
        config: The settings of the run.
        columns: The first columns of the log.
        best_by: The column whose highest value makes an epoch the best one.
        tag: Tag of the published weights.
        progress_bar: Show a progress bar; None: if stderr is a terminal.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        config: TrainingConfig | FinetuneConfig,
        *,
        columns: Sequence[str],
        best_by: str,
        tag: str | None,
        progress_bar: bool | None,
    ) -> None:
        self.folder, self.settings, self.config = folder, settings, config
        self.columns, self.best_by, self.tag, self.progress_bar = tuple(columns), best_by, tag, progress_bar
        self.state = TrainState()
        self.start_step = 0
        self.interruption = Interruption()
        self._bar = tqdm(disable=True)
        self._board = TensorBoard(folder, 0, enabled=False)
        self._drawn = -math.inf  # when the curves were drawn last
        self._saved = -math.inf  # when the last checkpoint was written

    def check_disk_space(self, size: int) -> None:
        """Raises OSError unless files of that many bytes in all can be written to the folder."""
        if is_main():
            check_disk_space(self.folder, size)
        barrier()

    def resume(self, resume: str, state: TrainState, load: Callable[[dict[str, Any]], None]) -> None:
        """Goes on from the checkpoint that ``resume`` asks for, if there is one.

        Args:
            resume: "auto", "never", or a checkpoint's path.
            state: Where the run stands; overwritten by the checkpoint's.
            load: Restores what else the checkpoint holds.
        """
        self.state = state
        checkpoint = find_resume(resume, self.folder / "checkpoints")
        if checkpoint is None:
            return
        check_settings(self.settings, checkpoint["settings"], self.folder)
        own = checkpoint["processes"][rank()]
        state.step, state.seconds, state.epoch_seconds = (
            checkpoint[name] for name in ("step", "seconds", "epoch_seconds")
        )
        state.rows, state.best, state.sums = checkpoint["rows"], checkpoint["best"], own["sums"]
        load(checkpoint)
        set_rng_state(own["rng"])
        self.start_step = state.step

    def finished(self, total_steps: int) -> bool:
        """Whether the run was finished before."""
        return self.state.step >= total_steps and (self.folder / "summary.json").is_file()

    # While it trains

    @contextlib.contextmanager
    def training(self, total_steps: int, description: str) -> Iterator[None]:
        """Shows the progress, and holds signals back, while the run trains."""
        quiet = not is_main() or self.progress_bar is False
        self._bar = tqdm(
            total=total_steps,
            initial=self.state.step,
            desc=description,
            unit="step",
            disable=True if quiet else None if self.progress_bar is None else False,
            dynamic_ncols=True,
        )
        enabled = self.config.tensorboard and is_main() and self.state.step < total_steps
        self._board = TensorBoard(self.folder, len(self.state.rows), enabled)
        self._saved = time.monotonic()
        with self._bar, contextlib.closing(self._board), self.interruption:
            yield

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint within the epoch is due; raises Interrupted if a signal came.

        Every process has to ask before each step, and gets the same answer.
        """
        minutes = self.config.checkpoint_minutes
        due = minutes > 0 and time.monotonic() - self._saved > 60 * minutes
        return self.interruption.check(due and is_main())

    def step_done(self) -> bool:
        """Counts a step; returns whether it is one that is looked at."""
        self._bar.update()
        return self.state.step % self.config.log_every == 0

    def show(self, values: dict[str, float]) -> None:
        """Shows a step's figures and the last accuracy in the progress bar."""
        measured = [row[self.best_by] for row in self.state.rows if self.best_by in row]
        shown = {name: f"{value:.3f}" for name, value in values.items()}
        self._bar.set_postfix({**shown, **({self.best_by: f"{measured[-1]:.1f}"} if measured else {})})

    # What it leaves

    def record(self, row: dict[str, Any], final: bool) -> bool:
        """Adds an epoch's row to the log; returns whether the epoch is the best so far."""
        state = self.state
        state.end_epoch(row)
        self._board.add(row)
        self.write_log(final)
        better = row.get(self.best_by, -math.inf) > state.best.get(self.best_by, -math.inf)
        if better:
            state.best = row
        return better

    def write_log(self, final: bool) -> None:
        """Writes ``log.csv`` and, not more often than twice a minute unless ``final``, ``curves.png``."""
        if not is_main():
            return
        write_log(self.folder / "log.csv", self.state.rows, self.columns)
        if final or time.monotonic() - self._drawn > DRAW_EVERY:  # a picture takes longer than a fast epoch
            draw_curves(self.folder / "curves.png", self.state.rows, self.folder.name)
            self._drawn = time.monotonic()

    def save_epoch(self, state_dict: Callable[[], dict[str, Any]], epoch: int, final: bool) -> None:
        """Writes a checkpoint after an epoch, if one is due."""
        if final or epoch % self.config.checkpoint_every == 0:
            self.save(state_dict())

    def save(self, tensors: dict[str, Any]) -> None:
        """Writes a checkpoint; every process has to call it."""
        state = self.state
        own = {"rng": rng_state(), "sums": {name: value.cpu() for name, value in state.sums.items()}}
        content = {
            **tensors,
            "settings": self.settings,
            "step": state.step,
            "seconds": state.seconds,
            "epoch_seconds": state.epoch_seconds,
            "rows": state.rows,
            "best": state.best,
            "processes": gather_objects(own),
        }
        if is_main():
            save_checkpoint(self.folder / "checkpoints", state.step, content, self.config.keep_checkpoints)
        self._saved = time.monotonic()

    def publish(self, model: ContrastiveModel, name: str, images: ImageData | StreamedImages, **what: Any) -> None:
        """Writes the model as the published folder ``name`` of the run; ``what`` goes to ``save_pretrained``."""
        if not is_main():
            return
        curves = self.folder / "curves.png"
        save_pretrained(
            model,
            self.folder / name,
            data=describe_data(images),
            log=self.folder / "log.csv",
            curves=curves if curves.is_file() else None,
            hardware=hardware(next(model.parameters()).device),
            tag=self.tag,
            **what,
        )

    def highest(self, column: str) -> float | None:
        """Returns the highest value of a column of the log, None if it was not measured."""
        return max((row[column] for row in self.state.rows if column in row), default=None)

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary; it makes the run a finished one."""
        if is_main():
            write_summary(self.folder / "summary.json", summary)
        barrier()


def describe_data(images: ImageData | StreamedImages) -> dict[str, Any]:
    """Returns what a published folder says of its training images."""
    return {
        # of a local folder only the name: its path says nothing to those who load the weights
        "name": Path(images.source).name if Path(images.source).exists() else images.source,
        "split": images.split,
        "images": len(images),
        "image_size": images.image_size,
    }
