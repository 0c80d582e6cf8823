"""Find the images most similar to a photo, or near-duplicates, in a file of features.

    simco-zoo search --features features.parquet --query photo.jpg -k 5
    simco-zoo search --features features.parquet --duplicates --threshold 0.98

The file is one that simco-zoo extract wrote. Similarity is the cosine of the features, at most 1. Prints a table, draws
the images next to the file (FILE-search.png or FILE-duplicates.png) if they can still be read, and ends with a line of
JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import Any

import torch

import simco_zoo
from simco_zoo.arguments import add_import, local_path, place
from simco_zoo.cli.run import build_command
from simco_zoo.cli.sources import add_device, note, seen_as
from simco_zoo.data import ImageData, load_images
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation import Features, extract_features, read_features
from simco_zoo.evaluation.neighbors import find_duplicates
from simco_zoo.evaluation.resumable import hash_weights
from simco_zoo.report.pictures import draw_groups, draw_neighbors

MOST_DRAWN = 20  # queries or groups on a picture
TILE = 112  # px


def main(argv: list[str] | None = None) -> int:
    parser = build_command("search", __doc__)
    what = parser.add_argument_group("what to find")
    what.add_argument("--features", required=True, type=local_path, metavar="FILE", help="written by simco-zoo extract")
    what.add_argument(
        "--query", nargs="+", type=local_path, metavar="PHOTO", help="image files, or one folder of images"
    )
    what.add_argument("-k", type=int, default=5, help="how many images to find for each query")
    what.add_argument("--duplicates", action="store_true", help="find near-duplicates among the images instead")
    what.add_argument("--threshold", type=float, default=0.98, help="smallest similarity of near-duplicates, up to 1")
    model = parser.add_argument_group("model and images")
    model.add_argument(
        "--model", type=place, help="model of the queries' features; default: the one that the file names"
    )
    model.add_argument("--images", type=place, help="where the images are now; default: where the file says")
    model.add_argument("--picture", type=local_path, metavar="FILE", help="default: next to the features")
    add_import(model)
    add_device(parser.add_argument_group("computing"))
    args = parser.parse_args(argv)
    if (args.query is None) != args.duplicates:
        raise ValueError("pass --query PHOTO to find similar images, or --duplicates.")
    features = read_features(args.features)
    if features.names is None:
        raise ValueError(f"{args.features} has no names of images; write it with simco-zoo extract.")
    result = list_duplicates(features, args) if args.duplicates else list_neighbors(features, args)
    print(json.dumps(result))
    return 0


def list_neighbors(features: Features, args: argparse.Namespace) -> dict[str, Any]:
    """Prints and draws the neighbors of the queries; returns them."""
    model = load_model(features, args)
    flip, image_size = bool(features.info.get("flip")), features.info.get("image_size")
    query = args.query[0] if len(args.query) == 1 and args.query[0].is_dir() else args.query
    missing = [str(path) for path in args.query if not path.exists()]
    if missing:
        raise ValueError(f"there is no file {missing[0]} to look for.")
    images = load_images(query, "all", **seen_as(model, image_size), label_column="none")
    device = pick_device(args.device)
    queries = extract_features(model, images, args.batch_size, flip=flip, device=device, num_workers=args.workers)
    indices, similarities = features.search(queries.features, args.k)
    assert features.names is not None and queries.names is not None
    found = []
    for name, rows, values in zip(queries.names, indices.tolist(), similarities.tolist(), strict=True):
        note(name)
        neighbors = []
        for place_, (row, value) in enumerate(zip(rows, values, strict=True), start=1):
            entry = {"name": features.names[row], "similarity": round(value, 4), **class_of(features, row)}
            neighbors.append(entry)
            note(f"  {place_:>2}  {value:.4f}  {entry['name']}  {entry.get('class', '')}".rstrip())
        found.append({"query": name, "neighbors": neighbors})

    path = args.picture or args.features.with_name(f"{args.features.stem}-search.png")
    shown = indices[:MOST_DRAWN]
    rows = shown.unique().tolist()
    bank = load_found(features, rows, args)
    if bank is None:
        return {"queries": found, "picture": None}
    # of the images found alone the neighbors are the same
    drawn = load_images(query, "all", image_size=TILE, label_column="none").subset(range(len(shown)))
    draw_neighbors(
        path,
        bank,
        features.features[rows],
        drawn,
        queries.features[: len(shown)],
        rows=range(len(shown)),
        neighbors=args.k,
        similarities=True,
    )
    note(f"picture: {path}")
    return {"queries": found, "picture": str(path.absolute())}


def list_duplicates(features: Features, args: argparse.Namespace) -> dict[str, Any]:
    """Prints and draws groups of near-duplicates; returns them."""
    groups = find_duplicates(features.features, args.threshold)
    assert features.names is not None
    found_groups = f"{len(groups)} group{'s' * (len(groups) != 1)} of near-duplicates in {len(features)} images"
    note(f"{found_groups} (similarity of at least {args.threshold:g})")
    found = []
    for group in groups:
        names = [features.names[row] for row in group.rows]
        found.append({"names": names, "similarity": round(group.similarity, 4)})
        note(f"  {group.similarity:.4f}  {', '.join(names)}")
    path = args.picture or args.features.with_name(f"{args.features.stem}-duplicates.png")
    shown = groups[:MOST_DRAWN]
    rows = sorted({row for group in shown for row in group.rows})
    images = load_found(features, rows, args) if rows else None
    if images is None:
        return {"groups": found, "picture": None}
    where = {row: number for number, row in enumerate(rows)}
    captions = [f"{group.similarity:.4f}: {', '.join(features.names[row] for row in group.rows)}" for group in shown]
    draw_groups(path, images, [[where[row] for row in group.rows] for group in shown], captions)
    note(f"picture: {path}")
    return {"groups": found, "picture": str(path.absolute())}


def load_model(features: Features, args: argparse.Namespace) -> Any:
    """Returns the model that made the features."""
    name = args.model or features.info.get("model")
    if name is None:
        raise ValueError(f"{args.features} does not say which model made it; pass --model.")
    weights = features.info.get("weights_from") if args.model is None else None
    if weights == "none":
        raise ValueError(f"{args.features} is by an untrained network, which cannot be built again; extract it anew.")
    model = simco_zoo.create_model(name, pretrained=True, weights=weights)
    made_by = features.info.get("weights")
    if made_by is not None and hash_weights(model) != made_by:
        raise ValueError(f"{args.features} was made by other weights than those of {name}; extract it anew.")
    return model


def class_of(features: Features, row: int) -> dict[str, str]:
    """Returns the class of an image, if it is known."""
    if features.labels is None or not features.class_names or features.labels[row] < 0:
        return {}
    return {"class": features.class_names[int(features.labels[row])]}


def load_found(features: Features, rows: list[int], args: argparse.Namespace) -> ImageData | None:
    """Returns the images of some rows to look at, or None (and says why) if they cannot be read or drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        note('no picture: matplotlib is not installed (pip install "simco-zoo[demo]")')
        return None
    source = args.images or features.info.get("source")
    if source is None:
        note("no picture: the file does not say where its images are; pass --images")
        return None
    try:
        images = load_images(source, features.info.get("split", "all"), image_size=TILE, in_memory=False)
    except (ValueError, OSError) as error:
        note(f"no picture: {error}")
        return None
    known = {name: row for row, name in enumerate(images.names)}
    assert features.names is not None
    missing = [features.names[row] for row in rows if features.names[row] not in known]
    if missing:
        note(f"no picture: {source} does not hold {missing[0]} any more")
        return None
    subset = images.subset(torch.tensor([known[features.names[row]] for row in rows]))
    return ImageData(subset.sample(len(rows)), subset.labels, subset.names, subset.class_names, image_size=TILE)
