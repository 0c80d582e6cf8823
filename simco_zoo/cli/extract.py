"""Write the features of images to a file.

    simco-zoo extract --model simco_r18_025 --images FOLDER --output features.parquet

Takes every readable image whatever its size; what cannot be read is listed and left out. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import add_device, add_images, add_model, source_options
from simco_zoo.distributed import is_main
from simco_zoo.evaluation.export import extract_to_file


def main(argv: list[str] | None = None) -> int:
    parser = build_command("extract", __doc__)
    add_model(parser)
    add_images(parser, flag="--images", required=True)
    parser.add_argument("--split", default="train", help="which part of the images")
    parser.add_argument("--output", required=True, type=Path, help="file: .safetensors, .npz or .parquet")
    add_device(parser)
    args = parser.parse_args(argv)
    print(f"features of {args.images} ({args.split}) by {args.model} -> {args.output}", file=sys.stderr, flush=True)
    result = extract_to_file(
        args.model,
        args.images,
        args.output,
        weights=args.weights,
        split=args.split,
        batch_size=args.batch_size,
        num_workers=args.workers,
        device=args.device,
        limit=args.limit,
        **source_options(args),
    )
    skipped = result.pop("skipped")
    if is_main():
        for name, reason in skipped:
            print(f"skipped {name}: {reason}", file=sys.stderr)
    print(json.dumps({**result, "skipped": len(skipped)}))
    return 0
