"""Write the features of images to a file.

    python recipes/extract.py --model simco_r18_025 --images FOLDER --output features.parquet

Takes every readable image whatever its size; what cannot be read is listed and left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

from _run import run

from simco_zoo.evaluation.export import extract_to_file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="simco_r18_025", help="name, local-dir:PATH or hf-hub:org/name")
    parser.add_argument("--weights", help="file or folder of weights; none for an untrained network")
    parser.add_argument("--images", required=True, help="folder, data set of the Hub, or photos")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image-column")
    parser.add_argument("--label-column")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", required=True, help="file: .safetensors, .npz or .parquet")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    print(f"features of {args.images} ({args.split}) by {args.model} -> {args.output}", flush=True)
    result = extract_to_file(
        args.model,
        args.images,
        args.output,
        weights=args.weights,
        split=args.split,
        batch_size=args.batch_size,
        num_workers=args.workers,
        device=args.device,
        image_column=args.image_column,
        label_column=args.label_column,
        limit=args.limit,
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    run(main)
