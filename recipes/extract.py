"""Write the features of images to a file.

    python recipes/extract.py --model simco_r18_025 --images FOLDER --output features.parquet

Takes every readable image whatever its size; what cannot be read is listed and left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

from _common import run

from simco_zoo.evaluation.export import add_arguments, extract_by_arguments


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    print(f"features of {args.images} ({args.split}) by {args.model} -> {args.output}", flush=True)
    print(json.dumps(extract_by_arguments(args)))
    return 0


if __name__ == "__main__":
    run(main)
