"""Measure the speed of each part against a plain baseline, side by side in one process.

    python recipes/benchmark.py loss views loader step processes extract knn load import
    python recipes/benchmark.py floor gpu --dataset FOLDER

Baseline and ours take turns, and the median of the ratios pair by pair is reported: machines drift, ratios hardly do.
Prints a table, what could not be measured, and one line of JSON with every row. An aim that is missed is reported, not
an error. The rows are made in ``benchmarks/``; ``gpu`` can be rehearsed with ``--device cpu --batch-size 8 --runs 1``.
"""

from __future__ import annotations

import argparse
import json

import torch
from benchmarks.data import benchmark_loader, benchmark_views
from benchmarks.evaluation import benchmark_extract, benchmark_knn
from benchmarks.floor import benchmark_floor
from benchmarks.gpu import benchmark_gpu
from benchmarks.loading import benchmark_import, benchmark_load
from benchmarks.loss import benchmark_loss
from benchmarks.processes import benchmark_processes
from benchmarks.step import benchmark_step

from simco_zoo.cli.run import run
from simco_zoo.training.config import COMPILE_MODES

BENCHMARKS = {
    "loss": benchmark_loss,
    "views": benchmark_views,
    "loader": benchmark_loader,
    "step": benchmark_step,
    "processes": benchmark_processes,
    "extract": benchmark_extract,
    "knn": benchmark_knn,
    "load": benchmark_load,
    "import": benchmark_import,
    "floor": benchmark_floor,
    "gpu": benchmark_gpu,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=BENCHMARKS, help="which parts")
    parser.add_argument("--runs", type=int, default=11, help="pairs of runs of each row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--n", type=int, default=1024, help="rows of the smaller loss; a tenth of the kNN's bank")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode, for loader")
    gpu = parser.add_argument_group("gpu")
    gpu.add_argument("--device", default="cuda")
    gpu.add_argument("--dataset", help="folder or data set of the Hub with labels; default: random images")
    gpu.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on an accelerator"
    )
    gpu.add_argument("--compile-mode", choices=COMPILE_MODES, default="default")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows, notes = [], []
    print("| what | median ratio | lowest-highest | aim | met |\n| --- | --- | --- | --- | --- |")
    for name in args.what:
        for row in BENCHMARKS[name](args):
            if isinstance(row, str):
                notes.append(row)
                continue
            rows.append(row)
            spread = f"{row['lowest']:.3g}-{row['highest']:.3g}"
            met = {True: "yes", False: "no", None: "-"}[row["met"]]
            print(f"| {row['what']} | {row['ratio']:.3g} | {spread} | {row['aim']} | {met} |", flush=True)
    for note in notes:
        print(f"\n{note}")
    print(json.dumps({"threads": args.threads, "torch": torch.__version__, "rows": rows, "notes": notes}))
    return 0


if __name__ == "__main__":
    run(main)
