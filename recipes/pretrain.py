"""Pretrain a backbone on images without labels, and leave a folder that loads in one line.

    python recipes/pretrain.py --model simco_r18_025 --dataset photos --epochs 5
    python recipes/pretrain.py --config recipes/configs/cifar100/simco_r18.yaml
    python recipes/pretrain.py --model simco --backbone convnext_atto --dataset FOLDER --image-size 64
    torchrun --nproc-per-node 2 recipes/pretrain.py --model simco_r18_025 --dataset photos

Every setting is a flag and a key of the config file; a flag goes before the file. The last line printed is JSON.

Exit status: 0 done (or done before), 1 an error, 130 after Ctrl-C and 143 after SIGTERM, both with a checkpoint from
which the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from _common import run
from timm.models import get_pretrained_cfg
from timm.utils import ParseKwargs

import simco_zoo
from simco_zoo.arguments import add_settings, read_settings, write_settings
from simco_zoo.data import load_images, stream_images
from simco_zoo.distributed import init_distributed, pick_device, world_size
from simco_zoo.models.factory import METHODS
from simco_zoo.training import Interrupted, TrainingConfig, pretrain

METHOD_SETTINGS = ("temperature", "dt_m", "momentum", "queue_size", "symmetric", "joint_bn", "bn_splits")
METHOD_SETTINGS += ("proj_hidden_dim", "proj_dim")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("model and data")
    what.add_argument("--config", type=Path, help="YAML file with any of these settings (underscores for dashes)")
    what.add_argument("--model", default="simco_r18", help="a name of the zoo, or a method (simco, simmoco...)")
    what.add_argument("--backbone", help="timm's name of the backbone, where --model is a method")
    what.add_argument("--backbone-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE")
    what.add_argument(
        "--small-stem",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="adapt a free backbone to small images; default: for images up to 64 px",
    )
    what.add_argument("--dataset", default="photos", help="Hub id, folder, or photos (built in)")
    what.add_argument("--train-split", default="train")
    what.add_argument("--test-split", default="test", help="split for the kNN accuracy; none to go without")
    what.add_argument("--image-column")
    what.add_argument("--label-column")
    what.add_argument("--image-size", type=int, help="side in pixels; default: the images' own")
    what.add_argument("--limit", type=int, help="use only so many images of each split")
    what.add_argument("--streaming", action="store_true", help="read the data set as it comes (needs --image-size)")
    what.add_argument("--epoch-images", type=int, help="images per epoch of a stream that does not say how many it has")
    what.add_argument("--output", type=Path, help="the run's folder; default runs/MODEL-DATASET")
    what.add_argument("--tag", help="tag of the published weights; default: the data set's name")
    what.add_argument("--resume", default="auto", help="auto, never, or a checkpoint's path")

    method = parser.add_argument_group("method (defaults: the paper's)")
    method.add_argument("--temperature", type=float)
    method.add_argument("--dt-m", type=float, help="ratio of the second temperature to the first")
    method.add_argument("--momentum", type=float, help="of the key encoder")
    method.add_argument("--queue-size", type=int, help="default: largest power of two up to a tenth of the images")
    method.add_argument("--symmetric", action=argparse.BooleanOptionalAction, default=None)
    method.add_argument("--joint-bn", action=argparse.BooleanOptionalAction, default=None)
    method.add_argument("--bn-splits", type=int)
    method.add_argument("--proj-hidden-dim", type=int)
    method.add_argument("--proj-dim", type=int)

    add_settings(parser.add_argument_group("training"), TrainingConfig)
    return parser


def build_model(args: argparse.Namespace, image_size: int, images: int) -> torch.nn.Module:
    method_settings = {name: getattr(args, name) for name in METHOD_SETTINGS if getattr(args, name) is not None}
    if args.model.startswith("moco"):
        method_settings.setdefault("queue_size", 2 ** max((images // 10).bit_length() - 1, 0))
    if args.model not in METHODS:
        return simco_zoo.create_model(args.model, backbone_kwargs=args.backbone_kwargs, **method_settings)

    small_stem = image_size <= 64 if args.small_stem is None else args.small_stem
    cfg = get_pretrained_cfg(args.backbone) if args.backbone else None
    if cfg is not None and cfg.fixed_input_size:
        args.backbone_kwargs.setdefault("img_size", image_size)
    if small_stem:
        print(f"{args.backbone} gets the small-image stem for images of {image_size} px (--no-small-stem keeps timm's)")
    return simco_zoo.create_model(
        args.model,
        backbone=args.backbone,
        backbone_kwargs=args.backbone_kwargs,
        small_stem=small_stem,
        **method_settings,
    )


def main(argv: list[str] | None = None) -> int:
    args, config = read_settings(build_parser(), TrainingConfig, argv)
    init_distributed(pick_device(config.device))
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    load = {"image_size": args.image_size, "limit": args.limit, **columns}
    test_images = None
    if args.streaming:
        if args.image_size is None:
            raise ValueError(
                "a stream's images are not looked at beforehand; say what size they get with --image-size."
            )
        options = {"image_size": args.image_size, "image_column": args.image_column, "length": args.epoch_images}
        images = stream_images(args.dataset, args.train_split, **options)
    else:
        images = load_images(args.dataset, split=args.train_split, **load)
    if args.test_split != "none" and images.labels is not None:
        test_images = load_images(args.dataset, split=args.test_split, **load)

    torch.manual_seed(config.seed)  # the initial weights
    model = build_model(args, images.image_size, len(images))
    name = args.model if args.model not in METHODS else f"{args.model}-{args.backbone}"
    dataset = Path(args.dataset).name
    output = args.output or Path("runs") / f"{name.replace('/', '-')}-{dataset}"

    per_step = config.batch_size * config.accumulate
    steps = len(images) // per_step * config.epochs
    parameters = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    print(f"{name}: {type(model).__name__}, backbone of {parameters:.2f} M parameters, {model.method_config()}")
    print(f"{len(images)} images of {images.image_size} px from {args.dataset}, {images.skipped or 'none'} skipped")
    print(f"{min(steps, config.max_steps or steps)} steps of {per_step} images, peak lr {config.peak_lr:g}")
    if world_size() > 1:
        print(f"{world_size()} processes of {config.batch_size // world_size()} images, {config.negatives} negatives")
    print(f"output: {output}", flush=True)

    finished_before = args.resume == "auto" and (output / "summary.json").is_file()
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
    if finished_before:
        print("this run is finished; --resume never or another --output starts it afresh")
    summary = json.loads((folder.parent / "summary.json").read_text(encoding="utf-8"))
    print(f"load it: simco_zoo.create_model('local-dir:{folder}', pretrained=True)")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    run(main)
