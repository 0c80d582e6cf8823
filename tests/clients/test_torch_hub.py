"""torch.hub as owner/repo: from its cache as a download leaves it, in a process without this checkout on its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import simco_zoo

ROOT = Path(__file__).parents[2]
CODE = """
import torch
model = torch.hub.load("someone/simco-zoo:main", "simco_r18_025", pretrained=True, trust_repo=True, verbose=False)
import simco_zoo
print(simco_zoo.__file__)
print(model.eval()(torch.full((1, 3, 32, 32), 0.5)).sum().item())
"""


def test_a_downloaded_repository_is_complete(tmp_path):
    """hubconf.py imports the package that lies next to it, as nothing was installed."""
    repository = tmp_path / "hub" / "someone_simco-zoo_main"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "simco_zoo", repository / "simco_zoo", ignore=ignored)
    shutil.copy(ROOT / "hubconf.py", repository)
    environment = {**os.environ, "TORCH_HOME": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    source, total = done.stdout.split()
    assert Path(source).is_relative_to(repository)
    expected = simco_zoo.create_model("simco_r18_025", pretrained=True).eval()(torch.full((1, 3, 32, 32), 0.5)).sum()
    assert abs(float(total) - expected.item()) < 1e-3
