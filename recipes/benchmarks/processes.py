"""A SimCo step shared by two processes against one process; run as a module it is what each process does."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import simco_zoo
from benchmarks.compare import Row, judge, report, seconds_of
from benchmarks.step import COMPACT, build_trainer, random_images, training_step
from simco_zoo.distributed import barrier, is_main, rank, world_size

STEPS = 3  # after an unmeasured one
LAUNCHES = 3  # at most: each takes as long to start as to measure


def benchmark_processes(args: argparse.Namespace) -> Iterator[Row]:
    """The aim is ours: half of the gain that two cores could bring at best, on a machine that may have other work."""
    n = args.batch_size
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pairs = [(measure(torchrun, n), measure([], n)) for _ in range(min(args.runs, LAUNCHES))]
    what = f"simco: whole step, two processes (gloo) of N = {n // 2} / one of N = {n}, 1 thread each; ideal 0.5"
    yield judge(f"{what}: time", [two["seconds"] / one["seconds"] for two, one in pairs], 0.75)
    yield report("the same: CPU time of each process", [two["cpu_seconds"] / one["cpu_seconds"] for two, one in pairs])


def measure(launcher: list[str], n: int) -> dict[str, float]:
    """Returns what ``main`` measures in the processes that the launcher starts."""
    command = [sys.executable, *launcher, "-m", "benchmarks.processes", str(n)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    recipes = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=recipes, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(n: int) -> None:
    """Measures a process's share of a step of n images; the first process prints its medians as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = simco_zoo.create_model("simco_r18", backbone_kwargs=COMPACT)
    images = random_images(n)
    trainer = build_trainer(model, images, device="cpu", batch_size=n)
    step = training_step(trainer, images.images.chunk(world_size())[rank()])
    step()
    found = []
    for _ in range(STEPS):
        barrier()
        began = time.process_time()
        found.append({"seconds": seconds_of(step), "cpu_seconds": time.process_time() - began})
    if is_main():
        print(json.dumps({name: statistics.median(one[name] for one in found) for name in found[0]}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
