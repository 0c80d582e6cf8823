"""What ``knn`` and ``linear`` do around their classifier: baselines, accuracy per class, pictures, and the JSON."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import simco_zoo
from simco_zoo.arguments import local_path
from simco_zoo.cli.sources import describe, extract, load_labeled, load_model, note, say_side, seen_as
from simco_zoo.data import ImageData
from simco_zoo.distributed import is_main
from simco_zoo.evaluation.baselines import raw_pixels
from simco_zoo.evaluation.metrics import accuracy, confusion_matrix
from simco_zoo.files import atomic_write, check_disk_space
from simco_zoo.report.charts import draw_bars
from simco_zoo.report.confusion import write_confusion

SHIPPED = "simco_r18_025"  # what a person's own pretraining has to beat

# (train features, train labels, test features, number of classes) -> scores (M, C)
Classify = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def add_results(parser: Any) -> None:
    """Adds what is measured and written besides: ``--baselines``, ``--output``."""
    text = "also measure raw pixels, the untrained network and the shipped weights"
    parser.add_argument("--baselines", action="store_true", help=text)
    text = "folder for result.json, per_class.csv, confusion.csv and, with matplotlib, pictures"
    parser.add_argument("--output", type=local_path, metavar="FOLDER", help=text)


def evaluate(args: argparse.Namespace, classify: Classify, *, pixel_side: int) -> dict[str, Any]:
    """Measures a model as the flags say, prints and writes the results, and returns what the JSON has.

    Args:
        args: Those of ``build_parser`` and ``add_results``.
        classify: The classifier on frozen features.
        pixel_side: Side in pixels at which raw pixels are a baseline.
    """
    if args.output is not None and is_main():
        check_disk_space(args.output, 0)
    if args.test_split == args.train_split:
        note(f"warning: the {args.test_split} images are both learned and tested, which says little about new images")
    model = load_model(args)
    note(f"{describe(args)} on {args.dataset}: {args.train_split} -> {args.test_split}")
    note(say_side(model, args.image_size))
    images, test_images = load_labeled(args, **seen_as(model, args.image_size))
    labels, test_labels = (torch.as_tensor(part.labels) for part in (images, test_images))
    classes = int(max(labels.max(), test_labels.max())) + 1

    def measure(train: Tensor, test: Tensor) -> tuple[dict[str, float], Tensor]:
        scores = classify(train, labels, test, classes)
        return accuracy(scores, test_labels.to(scores.device)), scores.cpu()

    result, scores = measure(*(extract(args, model, part) for part in (images, test_images)))
    if args.flip:
        result["flip"] = measure(*(extract(args, model, part, flip=True) for part in (images, test_images)))[0]  # type: ignore[assignment]
    found: dict[str, Any] = {**result, "train": len(images), "test": len(test_images)}
    if args.baselines:
        found["baselines"] = {}
        for name, features in baselines(args, images, test_images, pixel_side):
            found["baselines"][name] = round(measure(*features)[0]["top1"], 3)
            note(f"  {name}: {found['baselines'][name]:.2f} %")
        note(f"  {describe(args)}: {found['top1']:.2f} %")
    if args.output is not None and is_main():
        write_results(args.output, found, scores, test_images, describe(args))
    return found


def baselines(args: argparse.Namespace, images: ImageData, test_images: ImageData, pixel_side: int) -> Any:
    """Yields the name of each baseline and the features of both parts."""
    yield "raw pixels", [raw_pixels(part, pixel_side) for part in (images, test_images)]
    if args.weights != "none":
        untrained = copy.copy(args)
        untrained.weights = "none"
        network = load_model(untrained)
        yield f"untrained {network.architecture}", [extract(args, network, part) for part in (images, test_images)]
    if args.model != SHIPPED or args.weights is not None:
        shipped = simco_zoo.create_model(SHIPPED, pretrained=True)
        parts = load_labeled(args, **seen_as(shipped, None))
        yield f"shipped {SHIPPED}", [extract(args, shipped, part) for part in parts]


def write_results(folder: Path, found: dict[str, Any], scores: Tensor, images: ImageData, name: str) -> None:
    """Writes the numbers, the accuracy per class and the confusion matrix, as files and as pictures."""
    labels = torch.as_tensor(images.labels)
    names = images.class_names or [str(i) for i in range(scores.shape[1])]
    with atomic_write(folder / "result.json") as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    write_confusion(folder, confusion_matrix(scores.argmax(dim=1), labels, scores.shape[1]), names, title=name)
    if "baselines" in found and importlib.util.find_spec("matplotlib") is not None:
        title = f"top-1 accuracy on {len(images):,} test images of {images.source}"
        draw_bars(folder / "baselines.png", {**found["baselines"], name: found["top1"]}, highlight=[name], title=title)
    note(f"results: {folder}")
