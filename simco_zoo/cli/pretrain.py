"""Pretrain a backbone on images without labels, and leave a folder that loads in one line.

    simco-zoo pretrain --model simco_r18_025 --dataset photos --epochs 5
    simco-zoo pretrain --config cifar100/simco_r18
    simco-zoo pretrain --model simco --backbone convnext_atto --dataset FOLDER --image-size 64
    torchrun --nproc-per-node 2 -m simco_zoo.cli pretrain --model simco_r18_025 --dataset photos

Every setting is a flag and a key of the config file; a flag takes precedence over the file. The last line
printed is JSON.

Exit status: 0 done (or done before); 130 after Ctrl-C and 143 after SIGTERM, both with a checkpoint from which the same
command continues; anything else is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from timm.models import get_pretrained_cfg
from timm.utils import ParseKwargs

import simco_zoo
from simco_zoo.arguments import (
    add_config,
    add_import,
    add_method_settings,
    add_settings,
    import_first,
    local_path,
    place,
    read_settings,
    write_settings,
)
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import add_images, add_splits, columns
from simco_zoo.data import ImageData, load_splits, stream_images
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import init_distributed, pick_device, world_size
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.methods import METHODS, argument_owners, method_arguments
from simco_zoo.training import Interrupted, TrainingConfig, pretrain


def build_parser() -> argparse.ArgumentParser:
    parser = build_command("pretrain", __doc__)
    model = parser.add_argument_group("model")
    add_config(model)
    text = "a registered name, or a method over a free backbone (simco, simmoco...)"
    model.add_argument("--model", type=place, default="simco_r18", help=text)
    model.add_argument("--backbone", help="timm's name of the backbone, if --model is a method")
    text = "arguments of the backbone, e.g. drop_path_rate=0.1"
    model.add_argument("--backbone-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help=text)
    text = "adapt a free backbone to small images; default: for images up to 64 px"
    model.add_argument("--small-stem", action=argparse.BooleanOptionalAction, default=None, help=text)
    text = "weights to start from: a published folder or a .safetensors file; default: random ones"
    model.add_argument("--weights", type=local_path, metavar="PATH", help=text)
    text = "start from the published weights of --model, or from timm's own of --backbone"
    model.add_argument("--pretrained", action="store_true", help=text)
    add_import(model)

    data = parser.add_argument_group("data")
    add_images(data)
    add_splits(data, test_help="split for the kNN accuracy, or none to go without")
    data.add_argument("--image-size", type=int, metavar="PX", help="side in pixels; default: the images' own")
    text = "shorter side in pixels at which photographs are kept; views are cut from all of them; default: --image-size"
    data.add_argument("--keep-size", type=int, metavar="PX", help=text)
    data.add_argument("--streaming", action="store_true", help="read the data set as it comes (needs --image-size)")
    text = "images per epoch; default: as many as the stream says that it has"
    data.add_argument("--epoch-images", type=int, metavar="IMAGES", help=text)

    run = parser.add_argument_group("run")
    run.add_argument("--output", type=local_path, help="the run's folder; default: runs/MODEL-DATASET")
    run.add_argument("--tag", help="tag of the published weights; default: the data set's name")
    run.add_argument("--resume", default="auto", help="auto, never, or a checkpoint's path")

    queue = "largest power of two up to a tenth of the images"
    add_method_settings(parser.add_argument_group("method"), {"queue_size": queue})
    add_settings(parser.add_argument_group("training"), TrainingConfig)
    return parser


def build_model(args: argparse.Namespace, image_size: int, images: int) -> ContrastiveModel:
    method_settings = {name: getattr(args, name) for name in argument_owners() if getattr(args, name) is not None}
    method = METHODS.get(args.model.split("_")[0])
    if method is not None and "queue_size" in method_arguments(method.cls):
        # the paper's queue of 4096 would be most of a small data set: at most a tenth of the images
        method_settings.setdefault("queue_size", 2 ** max((images // 10).bit_length() - 1, 0))
    # a folder, a repository and a tag name weights, too
    named = args.weights is None and (":" in args.model or "." in args.model)
    options = {"backbone_kwargs": args.backbone_kwargs, "weights": args.weights, "pretrained": args.pretrained or named}
    if args.model in METHODS:
        options |= {"backbone": args.backbone, "small_stem": args.small_stem}
        if args.weights is None:  # weights say how the backbone was built
            options["small_stem"] = adapt_backbone(args, image_size)
    return simco_zoo.create_model(args.model, **options, **method_settings)


def adapt_backbone(args: argparse.Namespace, image_size: int) -> bool:
    """Gives a free backbone the images' size where it has a fixed one; returns whether it gets the small-image stem."""
    small_stem = image_size <= 64 and not args.pretrained if args.small_stem is None else args.small_stem
    cfg = get_pretrained_cfg(args.backbone) if args.backbone else None
    if cfg is not None and cfg.fixed_input_size:
        args.backbone_kwargs.setdefault("img_size", image_size)
    if small_stem:
        print(f"{args.backbone} gets the small-image stem for images of {image_size} px (--no-small-stem keeps timm's)")
    return bool(small_stem)


def load(args: argparse.Namespace) -> tuple[ImageData | StreamedImages, ImageData | None]:
    """Returns the images to train on and, if they have labels, those for the kNN accuracy."""
    whole = True if args.keep_size is None else args.keep_size
    if not args.streaming:
        splits = {"train_split": args.train_split, "test_split": args.test_split, "val_fraction": args.val_fraction}
        return load_splits(args.dataset, image_size=args.image_size, whole=whole, **splits, **columns(args))
    if args.image_size is None:
        raise ValueError("a stream's images are not looked at beforehand; say what size they get with --image-size.")
    options = {name: getattr(args, name) for name in ("image_column", "dataset_config", "revision")}
    options |= {"image_size": args.image_size, "length": args.epoch_images, "whole": whole}
    return stream_images(args.dataset, args.train_split, **options), None


def main(argv: list[str] | None = None) -> int:
    import_first(argv)
    args, config = read_settings(build_parser(), TrainingConfig, argv)
    init_distributed(pick_device(config.device))
    images, test_images = load(args)
    given, config = config, config.fitting(len(images))

    torch.manual_seed(config.seed)  # the initial weights
    model = build_model(args, images.image_size, len(images))
    print(f"starts from the weights of {model.loaded_from}" if model.loaded_from else "starts from random weights")
    name = args.model if args.model not in METHODS else f"{args.model}-{args.backbone}"
    dataset = Path(args.dataset).name
    output = args.output or Path("runs") / f"{name.replace('/', '-')}-{dataset}"

    per_step = config.batch_size * config.accumulate
    steps = len(images) // per_step * config.epochs
    parameters = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    method = ", ".join(f"{key} {value}" for key, value in model.method_config().items())
    print(f"{name}: {type(model).__name__}, backbone of {parameters:.2f} M parameters, {method}")
    print(f"{len(images)} images of {images.image_size} px from {args.dataset}, {len(images.skipped)} skipped")
    if isinstance(images, ImageData) and images.whole is not None:
        print(f"random crops come from the whole images, whose shorter side is {images.whole.side} px")
    if config is not given:
        print(f"{len(images)} images do not fill a batch of {given.batch_size}: batches of {config.batch_size} instead")
    print(f"{min(steps, config.max_steps or steps)} steps of {per_step} images, peak lr {config.peak_lr:g}")
    if world_size() > 1:
        print(f"{world_size()} processes of {config.batch_size // world_size()} images, {config.negatives} negatives")
    print(f"output: {output}", flush=True)

    summary_file = output / "summary.json"
    written_before = summary_file.stat().st_mtime_ns if summary_file.is_file() else None
    try:
        folder = pretrain(
            model,
            images,
            test_images=test_images,
            output=output,
            config=config,
            resume=args.resume,
            tag=args.tag or dataset,
            on_start=lambda: write_settings(output / "config.yaml", args),
        )
    except Interrupted as error:
        print(
            f"interrupted; the run goes on with the same command, and {output / 'last'} can be loaded", file=sys.stderr
        )
        return error.exit_code
    if summary_file.stat().st_mtime_ns == written_before:
        print("this run is finished; --resume never or another --output starts it afresh")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    print(f"load it: simco_zoo.create_model('local-dir:{folder}', pretrained=True)")
    print(json.dumps(summary))
    return 0
