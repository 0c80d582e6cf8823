"""SIGKILL at random moments: the run that goes on ends with the same bits and the same log as one never killed.

pytest tests/fuzz/test_kills.py               # a few kills of each kind
pytest tests/fuzz/test_kills.py --fuzz 0 -s   # as many as PLACES says, and the counts
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import simco_zoo
from simco_zoo.data import load_images
from simco_zoo.publishing import save as publishing
from simco_zoo.training import Pretraining, log, pretrain
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint
from tests.training.test_run import rows

STEPS = 30
# place: kills at full length
PLACES = {
    "at a moment": 30,
    "before the step": 10,
    "within the step": 10,
    "in a checkpoint": 5,
    "in a folder's change": 5,
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, place: str = "", number: float = 0) -> None:
    """Runs to the end, or kills itself; a module's function, so that another process can be told to call it.

    Args:
        folder: The run's.
        place: Where it is to kill itself, one of ``PLACES``.
        number: The step before or after which it is to do so, or the seconds.
    """
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
    data = load_images(pixels)
    data = type(data)(**{**vars(data), "labels": torch.arange(24) % 3})
    step, save, replace = Pretraining.step, torch.save, publishing.os.replace

    def killed_step(self, *inputs):
        if self.state.step + 1 == number:
            if place == "before the step":
                kill()
            if place == "within the step":
                self.schedule.step_update = lambda *_: kill()
        return step(self, *inputs)

    def killed_save(state, file):
        if place == "in a checkpoint" and state["step"] >= number:
            file.write(b"half a file")
            file.flush()
            kill()
        save(state, file)

    def killed_replace(source, target):
        replace(source, target)
        # an older folder has been moved away, or, where there was none, the new one stands
        if place == "in a folder's change" and Path(target).parent == folder and Path(target).is_dir():
            kill()

    def watch() -> None:
        time.sleep(number)
        kill()

    Pretraining.step = killed_step  # type: ignore[method-assign]
    torch.save = killed_save  # type: ignore[assignment]
    publishing.os.replace = killed_replace  # type: ignore[assignment]
    log.draw_curves = lambda path, *_: path.write_bytes(b"")  # most of the seconds of a run this short
    if place == "at a moment":
        threading.Thread(target=watch, daemon=True).start()
    settings = {"epochs": STEPS // 3, "batch_size": 8, "linear": False, "tensorboard": False, "device": "cpu"}
    pretrain(model, data, test_images=data, output=folder, lr=0.5, knn_every=1, knn_k=3, progress_bar=False, **settings)


def check_equal(resumed: Path, whole: Path) -> None:
    """The run that was killed has the bits, the log and the files of the one that was not."""
    expected, found = (load_checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (whole, resumed))
    assert expected["step"] == found["step"] == STEPS
    for name, tensor in expected["model"].items():
        assert torch.equal(found["model"][name], tensor), (resumed.name, name)
    assert torch.equal(found["processes"][0]["rng"]["torch"], expected["processes"][0]["rng"]["torch"])
    assert rows(resumed) == rows(whole)
    for name in ("last", "best"):
        files = [(run / name / "model.safetensors").read_bytes() for run in (whole, resumed)]
        assert files[0] == files[1], (resumed.name, name)
    assert {path.name for path in resumed.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_random(tmp_path, fuzz_count):
    context = multiprocessing.get_context("forkserver")  # a process that has imported all, and forks quickly
    context.set_forkserver_preload([__name__, "torch._dynamo"])

    def start(*args) -> int | None:
        process = context.Process(target=train, args=args)
        process.start()
        process.join()
        return process.exitcode

    assert start(tmp_path / "first") == 0  # the process that forks imports everything meanwhile
    began = time.monotonic()
    assert start(tmp_path / "whole") == 0
    seconds = time.monotonic() - began
    draw, killed = random.Random(0), dict.fromkeys(PLACES, 0)
    for place, most in PLACES.items():
        count = most if fuzz_count == 0 else min(most, -(-fuzz_count // 20))
        folders = [tmp_path / place]
        for step in sorted(draw.sample(range(1, STEPS + 1), count)):
            hit = False
            while not hit:  # a run that is finished before its moment comes is followed by another one
                if (folders[-1] / "summary.json").is_file():
                    folders.append(tmp_path / f"{place} {len(folders)}")
                number = draw.uniform(0.1, 0.5) * seconds if place == "at a moment" else step
                hit = start(folders[-1], place, number) == -signal.SIGKILL
            killed[place] += 1
        for folder in folders:
            assert start(folder) == 0
            check_equal(folder, tmp_path / "whole")
    print(f"killed: {killed}")
    assert all(killed.values())
