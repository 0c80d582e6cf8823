"""Fine-tune a pretrained backbone with labels, and leave a classifier that loads in one line.

    simco-zoo finetune --model simco_r18_025 --dataset photos
    simco-zoo finetune --model local-dir:runs/NAME/best --dataset FOLDER --label-fraction 0.1
    simco-zoo finetune --model simco_r18_025 --weights none --dataset photos   # from scratch, to compare

The best epoch is in OUTPUT/best: a published folder with classifier and label names. OUTPUT also gets the accuracy of
each class (per_class.csv) and the confusion matrix (confusion.csv, confusion.png). Every setting is a flag and a key of
the config file; a flag takes precedence over the file. The last line printed is JSON, accuracies in percent.

Exit status: 0 done; 130 after Ctrl-C and 143 after SIGTERM, after which the same command continues; anything else is an
error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from simco_zoo.arguments import add_config, add_settings, local_path, read_settings, write_settings
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import (
    add_images,
    add_model,
    add_splits,
    default_output,
    describe,
    load_labeled,
    load_model,
    say_side,
)
from simco_zoo.data.transforms import image_side, input_config
from simco_zoo.distributed import init_distributed, pick_device
from simco_zoo.training import FinetuneConfig, Interrupted, finetune


def main(argv: list[str] | None = None) -> int:
    parser = build_command("finetune", __doc__)
    what = parser.add_argument_group("model and data")
    add_config(what)
    add_model(what)
    add_images(what)
    add_splits(what)
    text = "side in pixels; default: what the model was trained on"
    what.add_argument("--image-size", type=int, metavar="PX", help=text)
    run = parser.add_argument_group("run")
    run.add_argument("--output", type=local_path, help="the run's folder; default: runs/finetune-MODEL-DATASET")
    run.add_argument("--tag", help="tag of the published weights; default: the data set's name")
    run.add_argument("--resume", default="auto", help="auto, never, or a checkpoint's path")
    add_settings(parser.add_argument_group("training"), FinetuneConfig)
    args, config = read_settings(parser, FinetuneConfig, argv)

    init_distributed(pick_device(args.device))
    model = load_model(args)
    print(f"{describe(args)} on {args.dataset}: {args.train_split} -> {args.test_split}")
    print(say_side(model, args.image_size), flush=True)
    own = image_side(input_config(model)["input_size"])
    images, test_images = load_labeled(args, image_size=args.image_size or own)
    dataset = Path(args.dataset).name
    output = args.output or default_output("finetune", args)
    print(f"{len(images)} labeled images of {images.image_size} px, {len(images.skipped)} skipped; output: {output}")
    try:
        result = finetune(
            model,
            images,
            test_images,
            output=output,
            config=config,
            resume=args.resume,
            name=None if args.model.startswith("local-dir:") else args.model.removeprefix("hf-hub:"),
            tag=args.tag or dataset,
            on_start=lambda: write_settings(output / "config.yaml", args),
        )
    except Interrupted as error:
        print(f"interrupted; the same command continues the run in {output}", file=sys.stderr)
        return error.exit_code
    print(f"load it: simco_zoo.create_model('local-dir:{result['folder']}', pretrained=True)")
    print(json.dumps(result))
    return 0
