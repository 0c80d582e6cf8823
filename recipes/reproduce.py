"""Measure the paper's table again, cell by cell: methods x batch sizes x seeds, with the controls that it lacks.

    python recipes/reproduce.py --dry-run                                              # what would run, and how
    python recipes/reproduce.py --amp bf16 --jobs 3                                    # the paper's 15 cells, on a GPU
    python recipes/reproduce.py --methods simco simco-infonce --batch-sizes 256 --backbone r18_025 --epochs 5
    python recipes/reproduce.py --summary                                              # the table next to the paper's

Each cell is a run of pretrain.py in the paper's settings, in a process and a folder of its own
(OUTPUT/DATASET/BACKBONE/METHOD-bBATCH-sSEED-eEPOCHS...), with its output in output.log there. A finished one is a row
of the table. The same command goes on where it was ended: it skips the cells in the table and resumes those that were
interrupted. Cells start in this order: CIFAR-100 at batch 256, CIFAR-10 at batch 256, symmetric controls, other
controls, the other batch sizes.

Exit status: 0 all done, 1 a cell failed (the others ran), 124 --time-limit ended it, 130 after Ctrl-C and 143 after
SIGTERM; in the last three cases the running cells wrote checkpoints. The last line printed is JSON. Linux and macOS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path

from paper.cells import BATCH_SIZES, DEVIATIONS, EPOCHS, HUB_IDS, METHODS, PAPER, Cell
from paper.scheduler import command, epochs_done, only_one, run_cells
from paper.table import METRICS, draw_table, read_table, summarize

from simco_zoo.cli.run import run
from simco_zoo.files import write_text
from simco_zoo.training.config import AMP_DTYPES, COMPILE_MODES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("cells")
    what.add_argument("--dataset", nargs="+", default=["cifar100"], help="cifar100, cifar10, photos, or your own name")
    what.add_argument("--data", nargs="+", help="where each of them is: Hub id or folder; default: on the Hub")
    what.add_argument("--methods", nargs="+", choices=METHODS, default=list(PAPER), metavar="METHOD")
    what.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    what.add_argument("--seeds", nargs="+", type=int, default=[0])
    what.add_argument("--backbone", default="r18", help="r18 (the paper's), r18_025, or a name of timm")
    what.add_argument("--epochs", type=int, default=EPOCHS)
    what.add_argument("--limit", type=int, help="use at most this many images of each split")
    what.add_argument("--stem-padding", type=int, choices=(1, 2), default=1, help="2 is the official code's")
    what.add_argument("--amp", choices=AMP_DTYPES, default="none")

    how = parser.add_argument_group("running")
    how.add_argument("--jobs", type=int, default=1, help="cells at once, on the same device")
    how.add_argument("--device", default="auto")
    how.add_argument("--compile", action="store_true")
    how.add_argument("--compile-mode", choices=COMPILE_MODES, default="default")
    how.add_argument("--workers", type=int, default=0)
    how.add_argument("--knn-every", type=int, default=5, help="epochs between measurements")
    how.add_argument("--checkpoint-every", type=int, default=5, help="epochs between checkpoints")
    how.add_argument("--time-limit", type=float, metavar="MINUTES", help="then running cells save, and all ends")
    how.add_argument("--output", type=Path, default=Path("runs/reproduce"))
    how.add_argument("--table", type=Path, default=Path(__file__).parent / "results" / "paper_table.csv")
    how.add_argument("--dry-run", action="store_true", help="only print deviations, cells and commands")
    how.add_argument(
        "--summary", action="store_true", help="only read the table: print it, and write .md and .png next to it"
    )
    how.add_argument("--metrics", nargs="+", choices=METRICS, default=["online_last", "linear_last", "knn_last"])
    return parser


def list_cells(args: argparse.Namespace) -> list[Cell]:
    """Returns the cells asked for, in the order in which they start."""
    sources = args.data or [HUB_IDS.get(name, name) for name in args.dataset]
    if len(sources) != len(args.dataset):
        raise ValueError(f"--data names {len(sources)} places for {len(args.dataset)} data sets; pass one for each.")
    named = [name for name in args.dataset if "/" in name]
    if named:
        raise ValueError(f"--dataset {named[0]} is a place, not a name; say --dataset NAME --data {named[0]}.")
    common = {"backbone": args.backbone, "epochs": args.epochs, "limit": args.limit}
    common.update({"stem_padding": args.stem_padding, "amp": args.amp})
    places = dict(zip(args.dataset, sources, strict=True)).items()
    cells = {
        Cell(dataset, data, method, batch_size, seed, **common)
        for (dataset, data), method, batch_size, seed in itertools.product(
            places, args.methods, args.batch_sizes, args.seeds
        )
    }
    return sorted(cells, key=Cell.order)


def print_plan(cells: list[Cell], args: argparse.Namespace, finished: set[str]) -> None:
    print(DEVIATIONS)
    for cell in cells:
        epochs = epochs_done(args.output / cell.folder)
        state = "done" if cell.folder in finished else f"{epochs} of {cell.epochs} epochs done" if epochs else "to do"
        print(f"{cell.folder}: {state}\n  {shlex.join(command(cell, args, 'pretrain.py'))}")


def write_summary(args: argparse.Namespace) -> None:
    """Prints the table next to the paper's, and writes it with the deviations, and a picture of it."""
    rows = read_table(args.table)
    text = summarize(rows, args.metrics)
    print(text)
    args.table.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.table.with_suffix(".md"), f"{text}\n# Deviations\n\n{DEVIATIONS}")
    if draw_table(args.table.with_suffix(".png"), rows, args.metrics):
        print(f"picture: {args.table.with_suffix('.png')}")
    else:
        print("no picture: there is no full-length cell of CIFAR-100 yet to compare with the paper's points")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"jobs is {args.jobs}, but has to be at least 1.")
    if args.summary:
        write_summary(args)
        return 0
    cells = list_cells(args)
    finished = {row["folder"] for row in read_table(args.table)}
    waiting = [cell for cell in cells if cell.folder not in finished]
    if args.dry_run:
        print_plan(cells, args, finished)
        done, failed, status = 0, {}, 0
    else:
        print(f"{len(cells)} cells, {len(cells) - len(waiting)} in the table already", flush=True)
        with only_one(args.output) as lock:
            done, failed, status = run_cells(waiting, args, lock)
    for folder, reason in failed.items():
        print(f"failed: {folder}: {reason} ({args.output / folder / 'output.log'})", file=sys.stderr)
    result = {"cells": len(cells), "before": len(cells) - len(waiting), "done": done, "failed": sorted(failed)}
    print(json.dumps({**result, "left": len(waiting) - done - len(failed), "table": str(args.table.absolute())}))
    return 1 if failed and not status else status


if __name__ == "__main__":
    run(main)
