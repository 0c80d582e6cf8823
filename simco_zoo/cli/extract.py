"""Write the features of images to a file.

    simco-zoo extract --model simco_r18_025 --images FOLDER --output features.parquet

Takes every readable image of every split, whatever its size; what cannot be read is listed and left out. The file has
names, splits, labels and classes as far as they are known. Its suffix chooses the format: .parquet, .safetensors, .npz
or .csv. If it is interrupted, the same command continues. The last line printed is JSON.
"""

from __future__ import annotations

import json
import sys

from simco_zoo.arguments import local_path
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import (
    AMP,
    add_device,
    add_images,
    add_model,
    add_views,
    columns,
    load_model,
    say_side,
    seen_as,
)
from simco_zoo.data import load_images
from simco_zoo.distributed import init_distributed, is_main, pick_device
from simco_zoo.evaluation.resumable import check_output, extract_to_file


def main(argv: list[str] | None = None) -> int:
    parser = build_command("extract", __doc__)
    what = parser.add_argument_group("model and images")
    add_model(what)
    add_images(what, flag="--images", required=True)
    what.add_argument("--split", default="all", help="train, test, any other split, or all")
    what.add_argument("--output", required=True, type=local_path, metavar="FILE", help="file to write")
    how = parser.add_argument_group("features")
    add_views(how)
    add_device(how)
    args = parser.parse_args(argv)

    check_output(args.output.absolute())
    device = init_distributed(pick_device(args.device))
    model = load_model(args)
    note(f"features of {args.images} ({args.split}) by {args.model} -> {args.output}")
    note(say_side(model, args.image_size))
    images = load_images(args.images, args.split, **seen_as(model, args.image_size), **columns(args))
    info = {"model": args.model, "source": args.images, "split": args.split}
    result = extract_to_file(
        model,
        images,
        args.output,
        args.batch_size,
        flip=args.flip,
        amp=AMP[args.amp],
        info=info if args.weights is None else {**info, "weights_from": args.weights},
        device=device,
        num_workers=args.workers,
        progress_bar=True,
        across_processes=True,
    )
    skipped = result.pop("skipped")
    for name, reason in skipped:
        note(f"skipped {name}: {reason}")
    print(json.dumps({**result, "skipped": len(skipped)}))
    return 0


def note(text: str) -> None:
    """Prints a line of what is done on stderr, once; stdout has the JSON alone."""
    if is_main():
        print(text, file=sys.stderr, flush=True)
