"""Classify images with a fine-tuned model, and write class and probability of each to a table.

    simco-zoo predict --model local-dir:runs/classifier/best --images FOLDER --output predictions.csv

The table has a row per image: name, class and probability, and the same of the next four classes. Where the images have
labels of the model's classes, the true class is added and the accuracy printed. The last line printed is JSON, with
accuracies in percent.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch
from torch import Tensor

from simco_zoo.arguments import local_path
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import (
    AMP,
    add_device,
    add_images,
    add_model,
    add_views,
    classify,
    columns,
    load_model,
    note,
    say_side,
    seen_as,
)
from simco_zoo.data import ImageData, load_images
from simco_zoo.distributed import init_distributed, is_main, pick_device
from simco_zoo.evaluation import Features
from simco_zoo.evaluation.metrics import accuracy
from simco_zoo.files import atomic_write, check_disk_space
from simco_zoo.hub import resolve
from simco_zoo.hub.config import section
from simco_zoo.models import ContrastiveModel

SHOWN = 5  # classes per image


def main(argv: list[str] | None = None) -> int:
    parser = build_command("predict", __doc__)
    what = parser.add_argument_group("model and images")
    add_model(what)
    add_images(what, flag="--images", required=True)
    what.add_argument("--split", default="all", help="train, test, any other split, or all")
    what.add_argument("--output", required=True, type=local_path, metavar="FILE", help="the table, .csv")
    how = parser.add_argument_group("scores")
    add_views(how)
    add_device(how)
    args = parser.parse_args(argv)
    if args.output.suffix != ".csv" or args.output.is_dir():
        raise ValueError(f"the output {args.output} has to be a file whose name ends in .csv.")
    check_disk_space(args.output.absolute().parent, 0)
    init_distributed(pick_device(args.device))
    model = load_model(args)
    names = class_names(model, args.model)
    note(f"{args.model} ({len(names)} classes) on {args.images} ({args.split}) -> {args.output}")
    note(say_side(model, args.image_size))
    images = load_images(args.images, args.split, **seen_as(model, args.image_size), **columns(args))
    found = classify(args, model, images, flip=args.flip, amp=AMP[args.amp])
    truth = true_classes(images, found, names)
    if is_main():
        write_predictions(args.output, found, names, truth)
    for name, reason in found.skipped:
        note(f"skipped {name}: {reason}")
    result = {"count": len(found), "skipped": len(found.skipped), "output": str(args.output.absolute())}
    if truth is not None and (truth >= 0).any():
        measured = accuracy(found.features[truth >= 0], truth[truth >= 0])
        note(f"top-1 accuracy on {int((truth >= 0).sum())} labeled images: {measured['top1']:.2f} %")
        if may_be_learned(args, images):
            note(
                "warning: the model learned from images of this name, and some of these may be among them: the "
                "accuracy says little about new images (the summary.json of finetune has that of held-out ones)"
            )
        result.update({key: round(value, 3) for key, value in measured.items()})
    print(json.dumps(result))
    return 0


def class_names(model: ContrastiveModel, name: str) -> list[str]:
    """Returns the names of a model's classes; numbers where it has none."""
    if not model.num_classes:
        raise ValueError(f"{name} has no classifier; make one with simco-zoo finetune --model {name} --dataset FOLDER.")
    names = model.pretrained_cfg.get("label_names") or []
    return list(names) if len(names) == model.num_classes else [str(i) for i in range(model.num_classes)]


def may_be_learned(args: argparse.Namespace, images: ImageData) -> bool:
    """Whether the model says that it was trained on a data set of this name, and the split is not its test split."""
    if args.weights == "none":
        return False
    data = section(resolve(args.model, weights=args.weights).config).get("data", {})
    name = Path(images.source).name if Path(images.source).exists() else images.source
    splits = set(images.splits or [args.split])
    return data.get("name") == name and not splits <= {"test", "validation", "val"}


def true_classes(images: ImageData, found: Features, names: list[str]) -> Tensor | None:
    """Returns the number that each image's class has in the model, -1 where it has none; None without labels."""
    if found.labels is None or not images.class_names:
        return None
    numbers = [names.index(name) if name in names else -1 for name in images.class_names]
    return torch.tensor([numbers[label] if label >= 0 else -1 for label in found.labels.tolist()])


def write_predictions(path: Path, found: Features, names: list[str], truth: Tensor | None) -> None:
    """Writes the table."""
    probability, order = found.features.float().softmax(dim=1).topk(min(SHOWN, len(names)), dim=1)
    header = ["name", *(["split"] if found.splits else []), *(["true_class"] if truth is not None else [])]
    for place in range(1, order.shape[1] + 1):
        header += ["class", "probability"] if place == 1 else [f"class{place}", f"probability{place}"]
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row, name in enumerate(found.names or []):
            cells = [name, *([found.splits[row]] if found.splits else [])]
            if truth is not None:
                cells.append(names[int(truth[row])] if truth[row] >= 0 else "")
            for label, share in zip(order[row].tolist(), probability[row].tolist(), strict=True):
                cells += [names[label], f"{share:.6f}"]
            writer.writerow(cells)
