"""The loop over epochs and steps, for pretraining and fine-tuning alike."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from simco_zoo.distributed import mean_over_processes
from simco_zoo.training.checkpoint import list_checkpoints
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import FinetuneConfig
from simco_zoo.training.interruption import Interrupted
from simco_zoo.training.optimizer import Phase, extend, plan
from simco_zoo.training.run import Run
from simco_zoo.training.state import preserved_rng, set_rng_state
from simco_zoo.training.trainer import Trainer, TrainingError


def restore(trainer: Trainer, run: Run, config: TrainingConfig | FinetuneConfig) -> None:
    """Brings a trainer to where the run's checkpoint was, if there is one, and plans what is left.

    Raises:
        ValueError: If the run was started for more steps than it has now.
    """
    state, per_epoch = trainer.state, trainer.steps_per_epoch
    checkpoint = run.restore(state)
    if checkpoint is None:
        steps = _planned_steps(trainer, run, config, None)
        if steps != trainer.total_steps:
            trainer.set_phases([plan(config, per_epoch, 0, steps)])
        return
    trainer.load_state_dict(checkpoint)
    for name, buffer in trainer.local_buffers().items():
        buffer.copy_(checkpoint["own"]["buffers"].get(name, buffer))
    phases = _phases_of(checkpoint, config, per_epoch)
    trainer.set_phases(phases)
    steps = _planned_steps(trainer, run, config, None if run.start.branched else checkpoint)
    if run.start.branched:
        phases = [plan(config, per_epoch, 0, steps)]
    if steps < max(phases[-1].end, state.step):
        raise ValueError(
            f"the run in {run.folder} was started for {phases[-1].end} steps and is at step {state.step}, but now has "
            f"{steps}; it can be extended, but not shortened (see epochs, max_steps, max_hours, batch_size)."
        )
    said = f"goes on from step {state.step} of {steps} ({run.start.path})"
    if steps > phases[-1].end:
        said += f", extended from {phases[-1].end} steps"
        phases = extend(phases, config, per_epoch, state.step, steps)
        if phases[-1].start == state.step:
            said += ": the learning rate warms up again, then decays"
    trainer.set_phases(phases)
    set_rng_state(checkpoint["own"]["rng"])
    run.progress.say(f"the run in {run.folder} is finished" if run.finished else said)


def _phases_of(checkpoint: dict[str, Any], config: TrainingConfig | FinetuneConfig, per_epoch: int) -> list[Phase]:
    """Returns the stretches of the run as they were planned when the checkpoint was written."""
    if checkpoint["phases"]:
        return [Phase(**phase) for phase in checkpoint["phases"]]
    before = {**config.to_dict(), **checkpoint["identity"]}  # of an earlier version
    planned = min(before["epochs"] * per_epoch, before.get("max_steps") or math.inf)
    return [plan(config, per_epoch, 0, int(planned))]


def _planned_steps(
    trainer: Trainer, run: Run, config: TrainingConfig | FinetuneConfig, checkpoint: dict[str, Any] | None
) -> int:
    """Returns the steps of the whole run: by its settings, or by the time that a step takes."""
    most, hours = config.total_steps(len(trainer.images)), getattr(config, "max_hours", None)
    if hours is None:
        return most
    if checkpoint is not None and checkpoint.get("schedule") == run.schedule:
        return trainer.total_steps
    state = trainer.state
    steps = state.step + trainer.fitting_steps(3600 * hours - state.seconds, most - state.step)
    epochs = steps / trainer.steps_per_epoch
    run.progress.say(
        f"{hours:g} hours are enough for {steps} steps ({epochs:.1f} epochs), by the time of the first ones"
    )
    return steps


def train(trainer: Trainer, run: Run, description: str) -> None:
    """Runs every epoch that is left; Ctrl-C and SIGTERM save before they end the run.

    Raises:
        TrainingError: If the loss is not finite, or the trainer sees no point in going on.
        Interrupted: After a signal, when checkpoint and ``last/`` were written.
    """
    state = trainer.state
    with run.training(trainer.total_steps, description):
        if state.rows:  # what is published has the log, of which another folder has none yet
            run.write_log(state.step == trainer.total_steps)
        _settle_best(trainer, run)
        try:
            while state.step < trainer.total_steps:
                row = run_epoch(trainer, run)
                final = state.step == trainer.total_steps
                trainer.average_batch_norm()
                with preserved_rng():
                    row.update(trainer.measure(row["epoch"]))
                    if run.record(row, final):
                        trainer.keep_best()
                        trainer.publish(run, "best", row)
                if final or row["epoch"] % trainer.checkpoint_every == 0:
                    save(trainer, run)
        except Interrupted:
            save(trainer, run)
            run.write_log(True)
            trainer.average_batch_norm()
            trainer.publish(run, "last", {key: state.rows[-1][key] for key in ("loss",) if state.rows})
            raise


def _settle_best(trainer: Trainer, run: Run) -> None:
    """Sees to it that ``best/`` is the best epoch's; of a step that was given up it would stay there for ever."""
    state = trainer.state
    if not state.best or trainer.remembers_best or run.published_step("best") in (state.best["step"], -1):
        return
    if state.best["step"] == state.step:
        trainer.publish(run, "best", state.best)
    else:  # those weights are lost
        state.best = {}


def save(trainer: Trainer, run: Run) -> None:
    """Writes a checkpoint, unless the weights have become useless.

    Raises:
        TrainingError: If a weight is not finite; the checkpoint before is left as it is.
    """
    finite = torch.stack([parameter.isfinite().all() for parameter in trainer.network.parameters()]).all()
    if not finite:
        raise TrainingError(f"weights are not finite after step {trainer.state.step}; {_advice(run, trainer.lr)}")
    run.save(trainer.state_dict(), trainer.model, trainer.local_buffers())


def run_epoch(trainer: Trainer, run: Run) -> dict[str, Any]:
    """Runs what is left of the epoch that has begun and returns its row of the log."""
    state, per_epoch = trainer.state, trainer.steps_per_epoch
    epoch = state.step // per_epoch
    first = state.step - epoch * per_epoch
    last = min(per_epoch, trainer.total_steps - epoch * per_epoch)
    trainer.begin_epoch(epoch, first)
    began = time.perf_counter()
    for batch in _without_draws(trainer.batches(epoch, first, last)):
        if run.checkpoint_due():
            save(trainer, run)
        report = trainer.train_step(batch)
        state.add(report)
        now = time.perf_counter()
        state.add_seconds(now - began)
        began = now
        if run.step_done(report):
            _look(trainer, run, report)
    _look(trainer, run, report)  # before anything of this epoch is saved
    totals = mean_over_processes(torch.stack(list(state.sums.values()))) / state.epoch_steps
    state.add_seconds(time.perf_counter() - began)  # the device has caught up
    means = dict(zip(state.sums, totals.tolist(), strict=True))
    trainer.check_means(means, epoch + 1)
    return {
        "epoch": epoch + 1,
        "step": state.step,
        **{name: round(value, 6 if name == "loss" else 5) for name, value in means.items()},
        "lr": max(group["lr"] for group in trainer.optimizer.param_groups),
        "images_per_second": round(state.epoch_steps * trainer.images_per_step / state.epoch_seconds, 1),
        "seconds": round(state.seconds, 1),
    }


def _without_draws(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches; torch's loader draws from the global generator when it starts, which a resumed run does anew."""
    try:
        with preserved_rng():
            first = list(itertools.islice(batches, 1))
        yield from first
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "a process that decodes images was ended by the system, most likely for lack of memory; pass fewer "
            "--workers or a smaller batch, and the same command goes on from the last checkpoint."
        ) from error


def _look(trainer: Trainer, run: Run, report: dict[str, Tensor]) -> None:
    """Shows a step and stops the run if the loss is not finite; this waits for the device."""
    loss = report["loss"].item()
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {trainer.state.step}; {_advice(run, trainer.lr)}")
    run.show({name: value.item() for name, value in report.items() if name in ("loss", "proj_std")})


def _advice(run: Run, lr: float) -> str:
    """Says how a run can go on after its loss or weights became useless."""
    saved = list_checkpoints(run.folder / "checkpoints")
    if not saved:
        return f"no checkpoint was written yet; start again with a lower learning rate than {lr:g}."
    return (
        f"go on from the last checkpoint in a new folder with a lower learning rate than {lr:g}: "
        f"--resume {saved[-1]} --lr {lr / 2:g} --output {run.folder}-2"
    )
