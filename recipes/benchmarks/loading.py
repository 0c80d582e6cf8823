"""Loading weights and importing the package."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
from safetensors.torch import load_file

import simco_zoo
from benchmarks.compare import Row, compare


def benchmark_load(args: argparse.Namespace) -> Iterator[Row]:
    """Weights of R18 size from a folder: hashed, parsed and checked, against timm and safetensors as they are."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = simco_zoo.save_pretrained(simco_zoo.create_model("simco_r18"), Path(temporary) / "model")

        def plain() -> None:
            timm.create_model("simco_r18").load_state_dict(load_file(folder / "model.safetensors"))

        def ours() -> None:
            simco_zoo.create_model("simco_r18", weights=folder)

        what = "create_model with simco_r18's weights: time / timm.create_model + load_file's"
        yield compare(what, ours, plain, args.runs, 1.0)


def benchmark_import(args: argparse.Namespace) -> Iterator[Row]:
    def run(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    yield compare(
        "import simco_zoo: time / import timm", lambda: run("simco_zoo"), lambda: run("timm"), args.runs, 1.10
    )
