"""timm's train.py fine-tunes a registered model: ``--device-modules simco_zoo`` registers the names.

The script is not in timm's wheel. TIMM_TRAIN=PATH names it, or it lies in a checkout of timm that is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import simco_zoo


@pytest.fixture
def script() -> Path:
    places = [Path(os.environ.get("TIMM_TRAIN", "")), Path(timm.__file__).parents[1] / "train.py"]
    for place in places:
        if place.is_file():
            return place
    pytest.skip("timm's train.py is not here (it is not in the wheel); TIMM_TRAIN=PATH names it")


def test_one_epoch(script, tmp_path):
    for split in ("train", "validation"):
        for label, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), color).save(folder / f"{i}.png")
    done = subprocess.run(
        [sys.executable, str(script), "--device-modules", "simco_zoo", "--data-dir", str(tmp_path / "images"),
         "--model", "simco_r18_025", "--pretrained", "--num-classes", "2", "--img-size", "32", "--epochs", "1",
         "--batch-size", "4", "--workers", "0", "--device", "cpu", "--lr", "0.01", "--output", str(tmp_path / "out"),
         "--experiment", "x"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.serialization.safe_globals([argparse.Namespace]):  # timm keeps its arguments
        saved = torch.load(tmp_path / "out" / "x" / "last.pth.tar", weights_only=True)["state_dict"]
    start = simco_zoo.create_model("simco_r18_025", pretrained=True).backbone.state_dict()
    assert set(saved) - set(start) == {"fc.weight", "fc.bias"}
    assert all(torch.isfinite(tensor).all() for tensor in saved.values() if tensor.is_floating_point())
