"""Which model and which images a command works on: the flags, and what they load."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

import simco_zoo
from simco_zoo.arguments import add_import, place
from simco_zoo.cli.run import build_command
from simco_zoo.data import ImageData, load_splits
from simco_zoo.data.datasets import VAL_FRACTION
from simco_zoo.data.transforms import input_config
from simco_zoo.distributed import init_distributed, pick_device
from simco_zoo.evaluation import extract_features
from simco_zoo.models import ContrastiveModel


def add_model(parser: Any) -> None:
    """Adds which model: ``--model``, ``--weights``."""
    text = "name, local-dir:PATH or hf-hub:org/name"
    parser.add_argument("--model", type=place, default="simco_r18_025", help=text)
    text = "file or folder of weights, or none for the untrained network; default: the published ones"
    parser.add_argument("--weights", type=place, help=text)
    add_import(parser)


def add_images(parser: Any, flag: str = "--dataset", **options: Any) -> None:
    """Adds which images: ``--dataset`` (or another flag), ``--image-column``, ``--label-column``, ``--limit``."""
    options = options or {"default": "photos"}
    text = "folder, data set of the Hub, or photos (built in)"
    parser.add_argument(flag, type=place, metavar="FOLDER|NAME", help=text, **options)
    text = "column of the {0} in a table of images; default: {1}"
    parser.add_argument("--image-column", help=text.format("images", "the only one of images"))
    parser.add_argument("--label-column", help=text.format("labels", "label or the only one of classes"))
    parser.add_argument("--dataset-config", metavar="NAME", help="configuration of a data set that has several")
    parser.add_argument("--revision", help="branch, tag or commit of a data set of the Hub; default: its newest")
    parser.add_argument("--limit", type=int, metavar="IMAGES", help="use at most that many of each split; default: all")


def add_splits(parser: Any) -> None:
    """Adds which splits: ``--train-split``, ``--test-split``, ``--val-fraction``."""
    parser.add_argument("--train-split", default="train", help="name of the training split")
    parser.add_argument("--test-split", default="test", help="name of the test split")
    add_val_fraction(parser)


def add_val_fraction(parser: Any) -> None:
    """Adds ``--val-fraction``."""
    text = "share of each class that is held out if the images have no test split"
    parser.add_argument("--val-fraction", type=float, default=VAL_FRACTION, metavar="SHARE", help=text)


def add_device(parser: Any) -> None:
    """Adds how to compute features: ``--batch-size``, ``--workers``, ``--device``."""
    parser.add_argument("--batch-size", type=int, default=256, help="images per forward")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images which are not in memory")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps..., or auto: an accelerator if any")


def build_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a command that evaluates a model on labeled images; its own flags are added to it."""
    parser = build_command(name, description)
    what = parser.add_argument_group("model and data")
    add_model(what)
    add_images(what)
    add_splits(what)
    how = parser.add_argument_group("computing")
    add_device(how)
    how.add_argument("--seed", type=int, default=0, help="seed of the untrained network's weights")
    return parser


def load_model(args: argparse.Namespace) -> ContrastiveModel:
    """Returns the model with its weights, or untrained and seeded."""
    torch.manual_seed(args.seed)
    trained = args.weights != "none"
    model = simco_zoo.create_model(args.model, pretrained=trained, weights=args.weights if trained else None)
    state = "trained" if trained else "untrained"
    print(f"{args.model} ({state}) on {args.dataset}: {args.train_split} -> {args.test_split}", flush=True)
    return model


def source_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what ``add_images`` asks about the source, as arguments of ``load_images``."""
    return {name: getattr(args, name) for name in ("image_column", "label_column", "dataset_config", "revision")}


def load_labeled(
    args: argparse.Namespace, image_size: int | None = None
) -> tuple[ContrastiveModel, ImageData, ImageData]:
    """Returns the model and the labeled images of both splits, by default of the size that it was trained on."""
    init_distributed(pick_device(args.device))
    model = load_model(args)
    images, test_images = load_both(args, image_size=image_size or model.pretrained_cfg["input_size"][-1])
    return model, images, test_images


def load_both(args: argparse.Namespace, **load: Any) -> tuple[ImageData, ImageData]:
    """Returns the labeled images of both splits, with the same classes."""
    splits = {"train_split": args.train_split, "test_split": args.test_split, "val_fraction": args.val_fraction}
    images, test_images = load_splits(
        args.dataset, require_labels=True, limit=args.limit, **splits, **source_options(args), **load
    )
    assert test_images is not None  # required
    return images, test_images


def extract_splits(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns features (N, D) and labels (N,) of the training split, then of the test split."""
    device = init_distributed(pick_device(args.device))
    model = load_model(args)
    config = input_config(model)
    load = {name: config[name] for name in ("crop_pct", "crop_mode", "interpolation", "mean")}
    train, test = (
        extract_features(
            model,
            images,
            args.batch_size,
            device=device,
            num_workers=args.workers,
            progress_bar=True,
            across_processes=True,
        )
        for images in load_both(args, image_size=config["input_size"][-1], **load)
    )
    assert train.labels is not None and test.labels is not None  # required
    return train.features, train.labels, test.features, test.labels
