"""Callbacks, which a run calls while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class Callback:
    """Receives every step, every epoch and the end of a run; subclass it and override the methods you need.

    Callbacks go to ``pretrain`` and ``finetune`` as ``callbacks=[...]``. Any object with some of these methods will do.
    They are called on the process that writes the files, and an error of theirs ends the run. A resumed run calls them
    for the steps that are left.

    Example:
        Weights & Biases, one point per epoch and the loss of every 50th step::

            import wandb

            from simco_zoo.training import Callback, pretrain

            class WandbCallback(Callback):
                def on_step(self, step, metrics):
                    if step % 50 == 0:  # reading a value waits for the device
                        wandb.log({"step_loss": float(metrics["loss"])}, step=step)

                def on_epoch(self, row):
                    wandb.log(row, step=row["step"])

                def on_end(self, summary):
                    wandb.summary.update(summary)
                    wandb.finish()

            wandb.init(project="simco", id="my-run", resume="allow", config={"epochs": 20})
            pretrain(model, images, output="runs/my-run", epochs=20, callbacks=[WandbCallback()])

        MLflow::

            import mlflow

            from simco_zoo.training import Callback, pretrain

            class MlflowCallback(Callback):
                def on_epoch(self, row):
                    mlflow.log_metrics(row, step=row["step"])

                def on_end(self, summary):
                    if "folder" in summary:  # empty if the run was interrupted
                        mlflow.log_artifacts(summary["folder"], "model")

            with mlflow.start_run(run_name="my-run"):
                mlflow.log_params({"epochs": 20})
                pretrain(model, images, output="runs/my-run", epochs=20, callbacks=[MlflowCallback()])
    """

    def on_step(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Is called after a step of the optimizer.

        Args:
            step: Steps done.
            metrics: Detached scalars on the device, e.g. ``loss``; of several processes this one's.
        """

    def on_epoch(self, row: Mapping[str, float]) -> None:
        """Is called after an epoch with the numbers of its row of ``log.csv``."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Is called when the run ends: with its summary, or with nothing if it was interrupted or failed."""


def notify(callbacks: Sequence[Any], event: str, *arguments: Any) -> None:
    """Calls the method of that name of every callback that has it."""
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(*arguments)
