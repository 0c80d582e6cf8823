"""Callbacks: what they are told, and the examples of their docstring."""

from __future__ import annotations

import inspect
import re
import signal
import sys
import textwrap
from typing import Any
from unittest.mock import MagicMock

import pytest

from simco_zoo.training import Callback, Interrupted, finetune
from tests.training.test_pretrain import images, model
from tests.training.test_run import rows, run, stop_at


class Recorder:
    """Has the methods of a callback, without being one."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.rows: list[dict[str, float]] = []
        self.ends: list[dict[str, Any]] = []

    def on_step(self, step, metrics):
        self.steps.append((step, float(metrics["loss"])))

    def on_epoch(self, row):
        self.rows.append(dict(row))

    def on_end(self, summary):
        self.ends.append(dict(summary))


def test_a_run_tells_of_steps_epochs_and_its_end(tmp_path):
    recorder = Recorder()
    run(tmp_path / "run", callbacks=[recorder, Callback(), object()])
    assert [step for step, _ in recorder.steps] == [1, 2, 3, 4, 5, 6]
    for i, row in enumerate(rows(tmp_path / "run")):
        mean = sum(loss for _, loss in recorder.steps[3 * i : 3 * i + 3]) / 3
        assert recorder.rows[i]["loss"] == float(row["loss"]) == pytest.approx(mean, abs=1e-5)
        assert set(recorder.rows[i]) >= {name for name, value in row.items() if value != ""}
    assert [end["steps"] for end in recorder.ends] == [6]


def test_an_interrupted_run_ends_with_nothing_and_goes_on_with_the_rest(tmp_path, monkeypatch):
    recorder = Recorder()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        run(tmp_path / "run", callbacks=[recorder])
    assert recorder.ends == [{}] and len(recorder.rows) == 1
    run(tmp_path / "run", callbacks=[recorder])
    assert [step for step, _ in recorder.steps] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in recorder.rows] == [1, 2]
    run(tmp_path / "run", callbacks=[recorder])  # it is finished: nothing to tell
    assert len(recorder.ends) == 2


def test_fine_tuning_tells_as_well(tmp_path):
    recorder = Recorder()
    settings = {"epochs": 2, "batch_size": 8, "progress_bar": False, "device": "cpu"}
    result = finetune(model(), images(24), images(10), output=tmp_path / "run", callbacks=[recorder], **settings)
    assert [row["epoch"] for row in recorder.rows] == [1, 2] and recorder.ends[0]["top1"] == result["top1"]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_the_docstrings_examples_run(package, tmp_path, monkeypatch):
    """With a stand-in for the package."""
    stand_in = MagicMock()
    monkeypatch.setitem(sys.modules, package, stand_in)
    monkeypatch.chdir(tmp_path)
    text = inspect.cleandoc(Callback.__doc__ or "")
    blocks = re.findall(r"::\n\n((?:        .*\n|\n)+)", text + "\n")
    (example,) = [textwrap.dedent(block) for block in blocks if f"import {package}" in block]
    example = example.replace("epochs=20", "epochs=2, batch_size=8, device='cpu', linear=False, progress_bar=False")
    exec(compile(example, "example", "exec"), {"model": model(), "images": images(24)})
    if package == "wandb":
        logged = [call.args[0] for call in stand_in.log.call_args_list]
        assert [row["epoch"] for row in logged if "epoch" in row] == [1, 2]
        assert stand_in.summary.update.call_args.args[0]["steps"] == 6
        stand_in.finish.assert_called_once()
    else:
        assert [call.kwargs["step"] for call in stand_in.log_metrics.call_args_list] == [3, 6]
        assert stand_in.log_artifacts.call_args.args[0] == str(tmp_path / "runs" / "my-run" / "last")
