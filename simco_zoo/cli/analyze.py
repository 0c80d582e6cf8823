"""Run the paper's argument: why many negatives help InfoNCE, and what the second temperature does instead.

    simco-zoo analyze strength --model simco_r18_025 --dataset uoft-cs/cifar100

strength: how unequally InfoNCE moves the anchors of a trained model, without training anything.

Writes tables as CSV and a figure with a caption that says what the paper expects and what was found. The last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import simco_zoo
from simco_zoo.analysis import anchors
from simco_zoo.arguments import local_path
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import add_images, add_model, columns, load_model
from simco_zoo.data import load_images
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation.strength import project_views

STUDIES = ("strength",)
UNTRAINED_IMAGES = 1024


def build_parser() -> argparse.ArgumentParser:
    parser = build_command("analyze", __doc__, "STUDY")
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help=f"what to measure: {', '.join(STUDIES)}")
    what = parser.add_argument_group("strength")
    add_model(what)
    data = parser.add_argument_group("data")
    add_images(data)
    data.add_argument("--split", default="train", help="split whose images are the anchors")
    data.add_argument("--views", default="cifar", help="preset of the random views")
    how = parser.add_argument_group("running")
    how.add_argument("--anchors", type=int, default=4096, help="images that serve as anchors, at most")
    how.add_argument("--quick", action="store_true", help="small settings, to see it work")
    how.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps..., or auto: an accelerator if any")
    how.add_argument("--seed", type=int, default=0, help="seed of the views and of the untrained network's weights")
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
    print(f"\n{anchors.report(output, *rows, args.model, f'{args.dataset} ({args.split})')}")
    return {"model": args.model, "dataset": args.dataset, "anchors": len(found[0])}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    output = (args.output or Path("runs") / "analysis" / args.study).absolute()
    result = strength(args, output)
    print(json.dumps({"study": args.study, **result, "folder": str(output)}))
    return 0
