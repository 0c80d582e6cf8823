"""See it work, offline, in about two minutes on two cores: load, extract, compare, train, draw.

    python recipes/quickstart.py

Loads the shipped weights, measures the kNN accuracy of raw pixels, an untrained and the shipped network on the built-in
photographs, trains the untrained one for about a minute, and draws two pictures: nearest neighbors, and a map of the
features. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import simco_zoo
from simco_zoo.data import ImageData, load_images, normalize
from simco_zoo.evaluation import extract_features, knn
from simco_zoo.training import pretrain

MODEL = "simco_r18_025"


def measure(train: Tensor, test: Tensor, images: ImageData, test_images: ImageData) -> float:
    return knn(train, images.labels, test, test_images.labels)["top1"]


def draw_neighbors(path: Path, images: ImageData, features: Tensor, queries: ImageData, query_features: Tensor) -> None:
    """Draws a query of each photograph and its five nearest training patches; a wrong photograph is framed in red."""
    from matplotlib.figure import Figure

    rows = [int((queries.labels == label).nonzero()[7]) for label in range(len(queries.class_names))]
    similarity = F.normalize(query_features[rows], dim=1) @ F.normalize(features, dim=1).T
    nearest = similarity.topk(5, dim=1).indices
    figure = Figure(figsize=(13, 12.5), layout="constrained")
    figure.suptitle("Queries (test patches) and their five nearest training patches; red: from another photograph")
    half = len(rows) // 2
    for row, query in enumerate(rows):
        for column in range(6):
            # two blocks of eight queries side by side, an empty column between them
            axes = figure.add_subplot(half, 13, (row % half) * 13 + (row // half) * 7 + column + 1)
            source, index = (queries, query) if column == 0 else (images, int(nearest[row, column - 1]))
            axes.imshow(source.images[index].permute(1, 2, 0).numpy(), interpolation="bicubic")
            axes.set(xticks=[], yticks=[])
            right = bool(source.labels[index] == queries.labels[query])
            color, width = ("black", 2.5) if column == 0 else ("#2a9d4a", 1.5) if right else ("#d1242f", 3)
            for spine in axes.spines.values():
                spine.set(edgecolor=color, linewidth=width)
            if column == 0:
                name = queries.class_names[int(queries.labels[query])]
                axes.set_title(name.replace("immunohistochemistry", "immunohisto."), fontsize=9, loc="left")
    figure.savefig(path, dpi=100)


def draw_map(path: Path, images: ImageData, features: Tensor) -> None:
    """Draws a t-SNE map of the test patches: each photograph a color, and a sample of the patches themselves."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from sklearn.manifold import TSNE

    places = TSNE(metric="cosine", init="pca", random_state=0, perplexity=30).fit_transform(features.numpy())
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["tab20"]
    for label, name in enumerate(images.class_names):
        points = places[(images.labels == label).numpy()]
        axes.scatter(points[:, 0], points[:, 1], s=14, color=colors(label), label=name, alpha=0.7, linewidths=0)
    shown: list[int] = []
    spread = places.max(axis=0) - places.min(axis=0)
    for index in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist():
        # only where no other patch would be covered
        if all((abs(places[index] - places[other]) / spread > 0.045).any() for other in shown):
            shown.append(index)
            patch = OffsetImage(images.images[index].permute(1, 2, 0).numpy(), zoom=0.9, interpolation="bicubic")
            frame = {"edgecolor": colors(int(images.labels[index])), "linewidth": 2}
            axes.add_artist(AnnotationBbox(patch, places[index], pad=0.1, bboxprops=frame))
    axes.set(xticks=[], yticks=[], title=f"Features of {len(images)} test patches by the shipped {MODEL} (t-SNE)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--epochs", type=int, default=10, help="of the training from scratch")
    parser.add_argument("--limit", type=int, help="use only so many patches of each photograph's")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    args.output.mkdir(parents=True, exist_ok=True)

    print("1. load the shipped weights, and the built-in photographs (16, cut into patches of 32 px)")
    shipped = simco_zoo.create_model(MODEL, pretrained=True)
    torch.manual_seed(0)
    scratch = simco_zoo.create_model(MODEL)
    images, test_images = load_images("photos"), load_images("photos", split="test")
    if args.limit:
        images, test_images = (
            part.subset(torch.cat([(part.labels == label).nonzero()[: args.limit, 0] for label in range(16)]))
            for part in (images, test_images)
        )
    print(f"   {len(images)} training and {len(test_images)} test patches; a label is the photograph of a patch")

    print("2. extract features, and classify the test patches by their nearest training patches", flush=True)
    top1: dict[str, float] = {}
    pixels = [normalize(part.images, shipped.pretrained_cfg).flatten(1) for part in (images, test_images)]
    top1["raw pixels"] = measure(*pixels, images, test_images)
    untrained = [extract_features(scratch, part).features for part in (images, test_images)]
    top1["untrained network"] = measure(*untrained, images, test_images)
    features, test_features = (extract_features(shipped, part).features for part in (images, test_images))
    top1["shipped weights"] = measure(features, test_features, images, test_images)

    print("3. train the untrained network with SimCo, about a minute", flush=True)
    folder = pretrain(
        scratch,
        images,
        test_images=test_images,
        output=args.output / "pretrain",
        resume="never",
        epochs=args.epochs,
        batch_size=min(256, len(images)),
        lr=0.06,
        knn_every=2,
        linear=False,
        tag="photos",
    )
    trained = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    trained_features = [extract_features(trained, part).features for part in (images, test_images)]
    top1[f"trained here, {args.epochs} epochs"] = measure(*trained_features, images, test_images)

    print("4. draw", flush=True)
    draw_neighbors(args.output / "neighbors.png", images, features, test_images, test_features)
    draw_map(args.output / "map.png", test_images, test_features)

    print(f"\n{'features':<28}kNN top-1 on photos (%)")
    for name, value in top1.items():
        print(f"{name:<28}{value:>6.1f}")
    print(f"\npictures: {args.output / 'neighbors.png'}, {args.output / 'map.png'}")
    print(f"load what was trained: simco_zoo.create_model('local-dir:{folder}', pretrained=True)")
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"knn_top1": top1, "folder": str(folder), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
