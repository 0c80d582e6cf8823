"""Run the paper's argument: why many negatives help InfoNCE, and what the second temperature does instead.

    simco-zoo analyze strength --model simco_r18_025 --dataset uoft-cs/cifar100
    simco-zoo analyze temperature --dataset uoft-cs/cifar100 --steps 4000 --processes 2
    simco-zoo analyze batch --dataset uoft-cs/cifar100 --start simco_r18_025
    simco-zoo analyze collapse --quick

strength: how unequally InfoNCE moves the anchors of a trained model, without training anything. The others train small
models, one for each row of their table, from random weights or, with --start, from published ones, whose anchors are
unequal from the first step on (those of an untrained network are all alike):

dictionaries: keys that give an anchor's strength against keys that give the direction, and controls for the step size
temperature: the second temperature, with a queue and with the batch's negatives
staleness: negatives that are older than the positives, or of another momentum
batch: batch sizes with dt_m 1, 2, 10 and infinite
collapse: center and residual of the projections of SimCo, MoCo v2, SimSiam and broken variants of it

Writes tables as CSV and a figure with a caption that says what the paper expects and what was found. A row that is in
the table is not computed again, and an interrupted training goes on with the same command. The last line printed is
JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch

import simco_zoo
from simco_zoo.analysis import anchors
from simco_zoo.analysis.methods import BATCH, COLLAPSE
from simco_zoo.analysis.negatives import DICTIONARIES, STALENESS, TEMPERATURE
from simco_zoo.analysis.study import Settings, run_study
from simco_zoo.arguments import local_path, place
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import AMP, COLUMNS, add_images, add_model, columns, load_model
from simco_zoo.data import load_images
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation.strength import project_views
from simco_zoo.training import Interrupted

STUDIES = {study.name: study for study in (DICTIONARIES, TEMPERATURE, STALENESS, BATCH, COLLAPSE)}
QUICK: dict[str, Any] = {"steps": 48, "batch_size": 64, "image_size": 16, "limit": 1600}
UNTRAINED_IMAGES = 1024


def build_parser() -> argparse.ArgumentParser:
    parser = build_command("analyze", __doc__, "STUDY")
    parser.add_argument("study", choices=("strength", *STUDIES), metavar="STUDY", help="what to measure, see above")
    what = parser.add_argument_group("strength")
    add_model(what)
    data = parser.add_argument_group("data")
    add_images(data)
    what.add_argument("--split", default="train", help="split whose images are the anchors")
    what.add_argument("--views", default="cifar", help="preset of the random views")
    what.add_argument("--anchors", type=int, default=4096, help="images that serve as anchors, at most")
    cells = parser.add_argument_group("studies that train")
    default = Settings()
    cells.add_argument("--backbone", default=default.backbone, help="timm's name of the backbone")
    text = "published weights that each training continues, e.g. simco_r18_025; default: random ones"
    cells.add_argument("--start", type=place, metavar="NAME", help=text)
    cells.add_argument("--steps", type=int, default=default.steps, help="steps of each training")
    cells.add_argument("--batch-size", type=int, default=default.batch_size, help="images per step")
    cells.add_argument("--lr", type=float, default=default.lr, help="learning rate for 256 images per step")
    cells.add_argument("--image-size", type=int, metavar="PX", help="side in pixels; default: the images' own")
    cells.add_argument("--amp", choices=AMP, default=default.amp, help="precision of the forward")
    cells.add_argument("--seeds", type=int, default=1, help="trainings per cell, with seeds from --seed on")
    cells.add_argument("--processes", type=int, default=1, help="trainings at once")
    text = "trainings in this call, the most telling ones first; 0 draws what is there; default: all that are left"
    cells.add_argument("--max-cells", type=int, help=text)
    how = parser.add_argument_group("running")
    how.add_argument("--quick", action="store_true", help="small settings, to see it work")
    how.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps..., or auto: an accelerator if any")
    how.add_argument("--seed", type=int, default=0, help="seed of weights, order and views")
    how.add_argument("--output", type=local_path, help="folder of the results; default: runs/analysis/STUDY")
    return parser


def strength(args: argparse.Namespace, output: Path) -> dict[str, object]:
    """Measures the anchors of a model and of the same network untrained."""
    model = load_model(args)
    size = model.pretrained_cfg["input_size"][-1]
    images = load_images(args.dataset, split=args.split, image_size=size, **columns(args))
    torch.manual_seed(args.seed)
    untrained = simco_zoo.create_model(args.model)
    device, limit = pick_device(args.device), min(args.anchors, 1024) if args.quick else args.anchors
    options = {"views": args.views, "seed": args.seed}
    found = project_views(model.to(device), images, limit=limit, **options)
    reference = project_views(untrained.to(device), images, limit=min(limit, UNTRAINED_IMAGES), **options)
    if len(found[0]) < anchors.SIZES[0] + 1:
        raise ValueError(f"{args.dataset} has {len(found[0])} images; the study needs {anchors.SIZES[0] + 1} or more.")
    rows = anchors.measure(*found, reference)
    print(anchors.as_text(*rows))
    print(f"\n{anchors.report(output, *rows, args.model, f'{Path(args.dataset).name} ({args.split})')}")
    return {"model": args.model, "dataset": args.dataset, "anchors": len(found[0])}


def train_cells(args: argparse.Namespace, output: Path) -> tuple[dict[str, object], int]:
    """Runs a study that trains; returns what the last line says, and the exit status."""
    names = [field.name for field in dataclasses.fields(Settings) if hasattr(args, field.name)]
    given = {name: getattr(args, name) for name in names}
    if args.quick:
        given.update(QUICK)
    if min(args.processes, args.seeds) < 1 or (args.max_cells or 0) < 0:
        raise ValueError("--processes and --seeds are at least 1, and --max-cells at least 0.")
    seeds = tuple(range(args.seed, args.seed + args.seeds))
    given["columns"] = {name: getattr(args, name) for name in COLUMNS}
    settings = Settings(**{**given, "source": args.dataset, "seeds": seeds})
    study = STUDIES[args.study]
    say = functools.partial(print, flush=True)
    caption, failed = run_study(study, settings, output, args.processes, args.max_cells, say)
    print(f"\n{caption}")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return {"dataset": args.dataset, "failed": len(failed)}, int(bool(failed))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    name = f"{args.study}-quick" if args.quick else args.study
    output = (args.output or Path("runs") / "analysis" / name).absolute()
    try:
        result, status = (strength(args, output), 0) if args.study == "strength" else train_cells(args, output)
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 130
    print(json.dumps({"study": args.study, **result, "folder": str(output)}))
    return status
