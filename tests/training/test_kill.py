"""SIGKILL at random steps: the run that goes on ends with the same bits as one that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch

import simco_zoo
from simco_zoo.data import load_images
from simco_zoo.training import Pretraining, checkpoint, pretrain
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint

STEPS, KILLS = 60, 20
PLACES = ("before the step", "within the step", "while a checkpoint is written")


def train(folder: Path, kill_at: int | None = None, place: str = "") -> None:
    """Runs to the end, or kills itself; a module's function, so that another process can be told to call it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = simco_zoo.create_model(
        "mocov2",
        backbone="test_resnet",
        small_stem=True,
        queue_size=20,
        bn_splits=2,
        backbone_kwargs={"drop_path_rate": 0.2},  # draws from torch's global generator
    )
    pixels = torch.randint(0, 256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    step, save = Pretraining.step, checkpoint.torch.save

    def killed_step(self, *inputs):
        if kill_at == self.state.step + 1 and place != PLACES[2]:
            if place == PLACES[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            self.schedule.step_update = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *inputs)

    def killed_save(state, path):
        if kill_at is not None and state["step"] >= kill_at:
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path)

    Pretraining.step = killed_step  # type: ignore[method-assign]
    checkpoint.torch.save = killed_save  # type: ignore[assignment]
    try:
        settings = {"epochs": STEPS // 3, "batch_size": 8, "linear": False, "progress_bar": False, "device": "cpu"}
        pretrain(model, load_images(pixels), output=folder, lr=0.5, **settings)
    finally:
        Pretraining.step, checkpoint.torch.save = step, save  # type: ignore[method-assign]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_twenty_random_steps(tmp_path):
    context = multiprocessing.get_context("forkserver")  # a process that has imported all, and forks quickly
    context.set_forkserver_preload(["tests.training.test_kill"])

    def run(*args) -> int | None:
        process = context.Process(target=train, args=args)
        process.start()
        process.join()
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    draw = random.Random(0)
    for step in sorted(draw.sample(range(1, STEPS + 1), KILLS)):
        assert run(tmp_path / "killed", step, draw.choice(PLACES)) == -signal.SIGKILL, step
    assert run(tmp_path / "killed") == 0

    whole, killed = (
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "killed")
    )
    assert whole["step"] == killed["step"] == STEPS
    for name, tensor in whole["model"].items():
        assert torch.equal(killed["model"][name], tensor), name
    assert torch.equal(killed["processes"][0]["rng"]["torch"], whole["processes"][0]["rng"]["torch"])
