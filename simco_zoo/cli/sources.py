"""Which model and which images a command works on: the flags, and what they load."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import simco_zoo
from simco_zoo.arguments import add_import, place
from simco_zoo.cli.run import build_command
from simco_zoo.data import ImageData, load_splits
from simco_zoo.data.datasets import VAL_FRACTION
from simco_zoo.data.transforms import image_side, input_config
from simco_zoo.distributed import init_distributed, is_main, pick_device
from simco_zoo.evaluation import Features, extract_features
from simco_zoo.evaluation.features import collect, iterate_features
from simco_zoo.models import ContrastiveModel

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# arguments of load_images and stream_images that are flags
COLUMNS = ("image_column", "label_column", "dataset_config", "revision")


def add_model(parser: Any) -> None:
    """Adds which model: ``--model``, ``--weights``."""
    text = "name, local-dir:PATH or hf-hub:org/name"
    parser.add_argument("--model", type=place, default="simco_r18_025", help=text)
    text = "file or folder of weights, or none for the untrained network; default: the published ones"
    parser.add_argument("--weights", type=place, help=text)
    add_import(parser)


def add_images(parser: Any, flag: str = "--dataset", **options: Any) -> None:
    """Adds which images: ``--dataset`` (or another flag), ``--image-column``, ``--label-column``, ``--limit``..."""
    options = options or {"default": "photos"}
    text = "folder, archive, data set of the Hub, or photos (built in)"
    parser.add_argument(flag, type=place, metavar="FOLDER|NAME", help=text, **options)
    text = "column of the {0} in a table of images; default: {1}"
    parser.add_argument("--image-column", help=text.format("images", "the only one of images"))
    parser.add_argument("--label-column", help=text.format("labels", "label, or the only one of classes"))
    parser.add_argument("--dataset-config", help="configuration of a data set of the Hub that has several")
    parser.add_argument("--revision", help="branch, tag or commit of a data set of the Hub; default: its main branch")
    parser.add_argument("--limit", type=int, metavar="IMAGES", help="use at most that many of each split; default: all")


def add_splits(parser: Any, test_help: str = "name of the test split") -> None:
    """Adds which splits: ``--train-split``, ``--test-split``, ``--val-fraction``."""
    parser.add_argument("--train-split", default="train", help="name of the training split")
    parser.add_argument("--test-split", default="test", help=test_help)
    text = "share of each class that is held out for testing if there is no test split"
    parser.add_argument("--val-fraction", type=float, default=VAL_FRACTION, metavar="SHARE", help=text)


def add_views(parser: Any) -> None:
    """Adds how a model sees images: ``--image-size``, ``--flip``, ``--amp``."""
    text = "side in pixels to which images are brought; default: the model's own"
    parser.add_argument("--image-size", type=int, metavar="PX", help=text)
    text = "also take the mean of the features of each image and of its mirror image"
    parser.add_argument("--flip", action="store_true", help=text)
    parser.add_argument("--amp", choices=AMP, default="none", help="precision of the forward")


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
    how = parser.add_argument_group("features")
    add_views(how)
    add_device(how)
    how.add_argument("--seed", type=int, default=0, help="seed of the untrained network's weights")
    return parser


def load_model(args: argparse.Namespace) -> ContrastiveModel:
    """Returns the model with its weights, or untrained and seeded."""
    torch.manual_seed(getattr(args, "seed", 0))
    trained = args.weights != "none"
    return simco_zoo.create_model(args.model, pretrained=trained, weights=args.weights if trained else None)


def describe(args: argparse.Namespace) -> str:
    """Returns the model, and whether it is trained."""
    return f"{args.model} ({'untrained' if args.weights == 'none' else 'trained'})"


def default_output(command: str, args: argparse.Namespace) -> Path:
    """Returns the folder of a command's results: runs/COMMAND-MODEL-DATASET."""
    name = re.sub(r"[^\w.]+", "-", args.model).strip("-") + ("-untrained" if args.weights == "none" else "")
    return Path("runs") / f"{command}-{name}-{Path(args.dataset).name}"


def columns(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what ``add_images`` added, as arguments of ``load_images``."""
    return {name: getattr(args, name) for name in (*COLUMNS, "limit")}


def seen_as(model: ContrastiveModel, image_size: int | None) -> dict[str, Any]:
    """Returns how a model wants images, as arguments of ``load_images``."""
    config = input_config(model)
    size = {"image_size": image_size or image_side(config["input_size"])}
    return {**size, **{name: config[name] for name in ("crop_pct", "crop_mode", "interpolation", "mean")}}


def say_side(model: ContrastiveModel, image_size: int | None) -> str:
    """Says at which side a model sees images."""
    own = image_side(input_config(model)["input_size"])
    if image_size in (None, own):
        return f"images are seen at {own} px, the model's own side (--image-size takes another)"
    return f"images are seen at {image_size} px; the model was trained at {own} px"


def load_labeled(args: argparse.Namespace, **load: Any) -> tuple[ImageData, ImageData]:
    """Returns the labeled images of both splits, with one numbering of the classes."""
    images, test_images = load_splits(
        args.dataset,
        train_split=args.train_split,
        test_split=args.test_split,
        val_fraction=args.val_fraction,
        require_labels=True,
        **columns(args),
        **load,
    )
    assert test_images is not None  # required
    return images, test_images


def extract(args: argparse.Namespace, model: ContrastiveModel, images: ImageData, flip: bool = False) -> Tensor:
    """Returns the features of images, (N, D), as the flags say."""
    found = extract_features(
        model,
        images,
        args.batch_size,
        flip=flip,
        device=init_distributed(pick_device(args.device)),
        num_workers=args.workers,
        amp=AMP[args.amp],
        progress_bar=True,
        across_processes=True,
    )
    return found.features


def classify(args: argparse.Namespace, model: ContrastiveModel, images: ImageData, **options: Any) -> Features:
    """Returns the scores of a model's classifier, (N, C), as ``.features``."""
    batches = iterate_features(
        model,
        images,
        args.batch_size,
        config=input_config(model),
        classify=True,
        device=init_distributed(pick_device(args.device)),
        num_workers=args.workers,
        progress_bar=True,
        across_processes=True,
        **options,
    )
    rows, scores = zip(*batches, strict=True)
    return collect(images, torch.cat(rows), torch.cat(scores), {})


def note(text: str) -> None:
    """Prints a line of what is done, once."""
    if is_main():
        print(text, flush=True)
