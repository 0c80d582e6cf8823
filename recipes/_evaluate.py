"""What knn.py, linear_probe.py and finetune.py share: arguments, the model, images and features of both splits."""

from __future__ import annotations

import argparse

import torch

import simco_zoo
from simco_zoo.data import ImageData, load_images
from simco_zoo.distributed import init_distributed, pick_device
from simco_zoo.evaluation import Features, extract_features
from simco_zoo.models import ContrastiveModel


def build_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained network's weights")
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds which model and which images."""
    parser.add_argument("--model", default="simco_r18_025", help="name, local-dir:PATH or hf-hub:org/name")
    parser.add_argument("--weights", help="file or folder of weights; none for the untrained network")
    parser.add_argument("--dataset", default="photos", help="folder, data set of the Hub, or photos (built in)")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--image-column")
    parser.add_argument("--label-column")
    parser.add_argument("--limit", type=int, help="use only so many images of each split")


def load_model(args: argparse.Namespace) -> ContrastiveModel:
    """Returns the model with its weights, or untrained and seeded."""
    torch.manual_seed(args.seed)
    trained = args.weights != "none"
    model = simco_zoo.create_model(args.model, pretrained=trained, weights=args.weights if trained else None)
    state = "trained" if trained else "untrained"
    print(f"{args.model} ({state}) on {args.dataset}: {args.train_split} -> {args.test_split}", flush=True)
    return model


def load_labeled(
    args: argparse.Namespace, image_size: int | None = None
) -> tuple[ContrastiveModel, ImageData, ImageData]:
    """Returns the model and the images of both splits, by default of the size that it was trained on."""
    init_distributed(pick_device(args.device))
    model = load_model(args)
    size = image_size or model.pretrained_cfg["input_size"][-1]
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    images, test_images = (
        load_images(args.dataset, split=split, image_size=size, limit=args.limit, **columns)
        for split in (args.train_split, args.test_split)
    )
    return model, images, test_images


def extract_splits(args: argparse.Namespace) -> tuple[Features, Features]:
    """Returns the features of the training and the test split, both with labels."""
    device = init_distributed(pick_device(args.device))
    model = load_model(args)
    found = [
        extract_features(
            model,
            args.dataset,
            args.batch_size,
            split=split,
            device=device,
            num_workers=args.workers,
            progress_bar=True,
            across_processes=True,
            image_column=args.image_column,
            label_column=args.label_column,
            limit=args.limit,
        )
        for split in (args.train_split, args.test_split)
    ]
    if any(features.labels is None for features in found):
        raise ValueError(f"{args.dataset} has no labels; accuracy needs them (name the column with --label-column).")
    return found[0], found[1]
