"""See it work, offline, in about two minutes on two cores: load, extract, compare, train, draw.

    simco-zoo quickstart

Loads the shipped weights, measures the kNN accuracy of raw pixels, an untrained and the shipped network on the built-in
photographs, trains the untrained one for about a minute, and draws two pictures: nearest neighbors, and a map of the
features. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

import simco_zoo
from simco_zoo.arguments import local_path
from simco_zoo.cli.run import build_command
from simco_zoo.data import ImageData, load_images, normalize
from simco_zoo.evaluation import extract_features, knn
from simco_zoo.report.charts import draw_bars
from simco_zoo.report.pictures import draw_map, draw_neighbors, pick_images
from simco_zoo.training import pretrain

MODEL = "simco_r18_025"


def load_patches(split: str, limit: int | None) -> ImageData:
    """Returns the patches of the built-in photographs, or the first ``limit`` of each photograph's."""
    patches = load_images("photos", split=split)
    if limit is None:
        return patches
    labels = torch.as_tensor(patches.labels)
    return patches.subset(torch.cat([torch.nonzero(labels == label)[:limit, 0] for label in range(16)]))


def draw(
    output: Path,
    images: ImageData,
    features: Tensor,
    test_images: ImageData,
    test_features: Tensor,
    top1: dict[str, float],
) -> None:
    """Writes ``neighbors.png``, ``map.png`` and ``knn.png``."""
    draw_neighbors(
        output / "neighbors.png",
        images,
        features,
        test_images,
        test_features,
        rows=pick_images(test_images, 16),  # one of each photograph
        blocks=2,
        title=f"Test patches and their five nearest training patches by {MODEL}; red: from another photograph",
    )
    title = f"Features of {len(test_images)} test patches by the shipped {MODEL} (t-SNE)"
    draw_map(output / "map.png", test_images, test_features, title=title)
    draw_bars(
        output / "knn.png",
        top1,
        highlight=list(top1)[2:],
        title=f"kNN on {len(test_images)} test patches of the built-in photographs",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = build_command("quickstart", __doc__)
    parser.add_argument("--output", type=local_path, default=Path("runs/quickstart"), help="the folder to write")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the training from scratch")
    text = "use at most that many patches of each photograph; default: all"
    parser.add_argument("--limit", type=int, metavar="PATCHES", help=text)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    began = time.perf_counter()
    args.output.mkdir(parents=True, exist_ok=True)

    print("1. load the shipped weights, and the built-in photographs (16, cut into patches of 32 px)")
    shipped = simco_zoo.create_model(MODEL, pretrained=True)
    torch.manual_seed(0)
    scratch = simco_zoo.create_model(MODEL)
    images, test_images = (load_patches(split, args.limit) for split in ("train", "test"))
    labels, test_labels = (torch.as_tensor(part.labels) for part in (images, test_images))

    def measure(train: Tensor, test: Tensor) -> float:
        return knn(train, labels, test, test_labels)["top1"]

    print(f"   {len(images)} training and {len(test_images)} test patches; a label is the photograph of a patch")

    print("2. extract features, and classify the test patches by their nearest training patches", flush=True)
    top1: dict[str, float] = {}
    pixels = [
        normalize(torch.as_tensor(part.images), shipped.pretrained_cfg).flatten(1) for part in (images, test_images)
    ]
    top1["raw pixels"] = measure(*pixels)
    untrained = [extract_features(scratch, part).features for part in (images, test_images)]
    top1["untrained network"] = measure(*untrained)
    features, test_features = (extract_features(shipped, part).features for part in (images, test_images))
    top1["shipped weights"] = measure(features, test_features)

    print("3. train the untrained network with SimCo, about a minute", flush=True)
    folder = pretrain(
        scratch,
        images,
        test_images=test_images,
        output=args.output / "pretrain",
        resume="never",
        epochs=args.epochs,
        batch_size=min(256, len(images)),
        lr=0.06,
        knn_every=1,
        linear=False,
        tag="photos",
    )
    trained = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    trained_features = [extract_features(trained, part).features for part in (images, test_images)]
    top1[f"trained here, {args.epochs} epochs"] = measure(*trained_features)

    print("4. draw", flush=True)
    draw(args.output, images, features, test_images, test_features, top1)

    print(f"\n{'features':<28}kNN top-1 on photos (%)")
    for name, value in top1.items():
        print(f"{name:<28}{value:>6.1f}")
    print(f"\npictures: {', '.join(str(args.output / f'{name}.png') for name in ('neighbors', 'map', 'knn'))}")
    print(f"load what was trained: simco_zoo.create_model('local-dir:{folder}', pretrained=True)")
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"knn_top1": top1, "folder": str(folder), "seconds": seconds}))
    return 0
