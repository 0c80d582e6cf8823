"""Pictures of images, written as PNG: nearest neighbors, groups of images, a map of features, random views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.data import ImageData, TwoViews
from simco_zoo.report.drawing import DPI, new_figure, plain_text, save_figure

LEGEND_CLASSES = 20  # with more, nobody finds a color again
FEWEST_ON_A_MAP = 5
_RIGHT, _WRONG, _PLAIN = "#2a9d4a", "#d1242f", "#8a8a8a"
_CELL = 112  # pixels of an image in a grid, at most


def pick_images(images: ImageData, count: int, seed: int = 0) -> list[int]:
    """Picks images to look at, of as many classes as possible, and with something to see on them.

    Of images in memory, those with little contrast come last: a gray patch shows nothing.

    Args:
        images: With labels or without.
        count: Number of images; all of them if there are fewer.
        seed: Seed of the choice.

    Returns:
        Row numbers, ordered by class.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(len(images), dtype=torch.long) if images.labels is None else images.labels
    order = order[_is_flat(images, labels)[order].long().argsort(stable=True)]
    seen, turns = Counter[int](), []
    for row, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        turns.append((seen[label], row))
        seen[label] += 1
    # first one image of every class, then a second one...
    chosen = [row for _, row in sorted(turns, key=lambda turn: turn[0])[:count]]
    return sorted(chosen, key=lambda row: (int(labels[row]), row))


def _is_flat(images: ImageData, labels: Tensor) -> Tensor:
    """Returns which images have little contrast for their class, bool (N,); of those not in memory none."""
    flat = torch.zeros(len(images), dtype=torch.bool)
    if images.images is None:
        return flat
    contrast = torch.cat([part.float().mean(dim=1).flatten(1).std(dim=1) for part in images.images.split(1024)])
    for label in labels.unique().tolist():
        own = labels == label
        flat[own] = contrast[own] < 0.4 * contrast[own].max()
    return flat


def draw_neighbors(
    path: Path,
    bank: ImageData,
    bank_features: Tensor,
    queries: ImageData,
    query_features: Tensor,
    *,
    rows: Sequence[int],
    neighbors: int = 5,
    blocks: int = 1,
    title: str = "",
    similarities: bool = False,
) -> Tensor:
    """Draws some queries, each with its nearest images by cosine similarity.

    With labels a query bears its class's name, and its neighbors have a thin green frame, or a thick red one where
    their class is another.

    Args:
        path: The file, ``.png``.
        bank: Images among which the neighbors are looked for.
        bank_features: Their features (N, D), of any length per row.
        queries: Images of which some are the queries.
        query_features: Their features (M, D).
        rows: Row numbers of the queries to draw.
        neighbors: Number of neighbors of each image, at most N.
        blocks: Blocks side by side, into which the queries are parted.
        title: Above everything.
        similarities: Write each neighbor's similarity and name above it, and the query's name above that; a name comes
            with the folder that the file lies in.

    Returns:
        Row numbers of the neighbors in ``bank``, (len(rows), neighbors), nearest first.

    Raises:
        ValueError: If there is not one row of features per image.
    """
    _check_rows(bank, bank_features)
    _check_rows(queries, query_features)
    similarity = F.normalize(query_features[list(rows)].double(), dim=1) @ F.normalize(bank_features.double(), dim=1).T
    nearest = similarity.topk(min(neighbors, len(bank)), dim=1).indices
    shown = _pixels(queries, rows, _CELL)
    found = _pixels(bank, nearest.flatten().tolist(), _CELL).unflatten(0, nearest.shape)

    labeled = queries.labels is not None or similarities
    lines, width = -(-len(rows) // blocks), nearest.shape[1] + 1
    pitch, above = (1.3, 0.3) if labeled else (1.03, 0.05)
    top = above + (0.35 if title else 0)
    figure, axes = _sheet(blocks * (width + 1) - 1, top + (lines - 1) * pitch + 1)  # an empty column between blocks
    if title:
        figure.suptitle(plain_text(title), y=1 - 0.08 / figure.get_figheight())
    for place, query in enumerate(rows):
        block, line = divmod(place, lines)
        left, y, name = block * (width + 1), top + line * pitch, _class_of(queries, query)
        _tile(axes, shown[place], left, y, "black", 2.5)
        if similarities or name is not None:
            caption = _file_name(queries.names[query], 16) if similarities else plain_text(str(name), 44)
            axes.text(left + 0.04, y - 0.03, caption, fontsize=8 if similarities else 11, va="bottom")
        for column, row in enumerate(nearest[place].tolist()):
            other = _class_of(bank, row)
            frame = (_PLAIN, 0.8) if name is None or other is None else (_RIGHT, 1.5) if name == other else (_WRONG, 3)
            _tile(axes, found[place, column], left + column + 1, y, *frame)
            if similarities:
                caption = f"{similarity[place, row]:.3f}\n{_file_name(bank.names[row], 16)}"
                axes.text(left + column + 1.04, y - 0.03, caption, fontsize=8, va="bottom")
    save_figure(figure, path)
    return nearest


def _file_name(path: str, longest: int) -> str:
    """Returns the end of a path with its parent folder, short enough to stand above a picture.

    Example:
        >>> _file_name("train/cat/14.jpg", 16), _file_name("train/a_long_folder/14.jpg", 13)
        ('cat/14.jpg', 'a_lon…/14.jpg')
    """
    folder, _, name = path.rpartition("/")
    folder = folder.rpartition("/")[2]
    room = longest - len(name) - 1
    if not folder or room < 2:
        return plain_text(name, longest)
    return f"{plain_text(folder, room)}/{plain_text(name)}"


def draw_groups(path: Path, images: ImageData, groups: Sequence[Sequence[int]], captions: Sequence[str]) -> None:
    """Draws groups of images, a row each, with a caption above it; of a large group the first eight.

    Args:
        path: The file, ``.png``.
        images: Where the images come from.
        groups: Row numbers of each group.
        captions: What stands above each group.
    """
    shown = [list(group[:8]) for group in groups]
    pitch = 1.3
    figure, axes = _sheet(max(4, *(len(rows) for rows in shown)), pitch * len(shown))
    for line, (rows, caption) in enumerate(zip(shown, captions, strict=True)):
        y = pitch * line + 0.3
        axes.text(0.04, y - 0.03, plain_text(caption, 60), fontsize=11, va="bottom")
        for column, tile in enumerate(_pixels(images, rows, _CELL)):
            _tile(axes, tile, column, y, _PLAIN, 0.8)
    save_figure(figure, path)


def draw_map(
    path: Path,
    images: ImageData,
    features: Tensor,
    *,
    title: str = "",
    size: tuple[float, float] = (13, 9.5),
    legend: str = "right",
    seed: int = 0,
) -> np.ndarray:
    """Draws a t-SNE map (van der Maaten & Hinton 2008) of features: a dot per image, and some of the images themselves.

    With labels the dots and frames have their class's color, explained by a legend for up to 20 classes.

    Args:
        path: The file, ``.png``.
        images: What to draw.
        features: Their features (N, D).
        title: Above the map.
        size: Width and height in inches, legend included; 100 pixels each.
        legend: "right" of the map or "below" it.
        seed: Seed of the map and of the choice of images.

    Returns:
        The places (N, 2).

    Raises:
        ValueError: If there are fewer than 5 images, not one row of features per image, or the features are all alike
            or not finite.
    """
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from sklearn.manifold import TSNE

    _check_rows(images, features)
    if len(images) < FEWEST_ON_A_MAP:
        raise ValueError(f"a map needs at least {FEWEST_ON_A_MAP} images, but there are {len(images)}.")
    unit = F.normalize(features.double(), dim=1)
    if not unit.std(dim=0).max() > 1e-6:  # of points without a spread scikit-learn's t-SNE ends the process
        raise ValueError(
            "a map needs finite features that differ; the model has diverged, or is blind to these images."
        )
    perplexity = min(30.0, (len(images) - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", random_state=seed, perplexity=perplexity)
    places = tsne.fit_transform(unit.numpy())

    figure = new_figure(*size)
    axes = figure.subplots()
    colors = _class_colors(figure, images, legend)
    axes.scatter(places[:, 0], places[:, 1], s=14, color=colors, alpha=0.7, linewidths=0)
    axes.margins(0.06)
    axes.set(xticks=[], yticks=[], title=plain_text(title))
    figure.draw_without_rendering()  # now the places are known in pixels

    side = 40  # pixels of an image on the map
    pixels = axes.transData.transform(places)
    chosen: list[int] = []
    for index in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        # only where no other image would be covered
        if all((abs(pixels[index] - pixels[other]) > side + 6).any() for other in chosen):
            chosen.append(index)
    for index, image in zip(chosen, _pixels(images, chosen, side, exactly=True), strict=True):
        box = OffsetImage(_hwc(image), zoom=72 / DPI, interpolation="nearest")
        frame = {"edgecolor": colors[index], "linewidth": 4}  # of which the image hides half
        axes.add_artist(AnnotationBbox(box, places[index], pad=0, bboxprops=frame))
    save_figure(figure, path)
    return places


def _class_colors(figure: Any, images: ImageData, legend: str) -> list[Any]:
    """Returns the color of each image's class, and explains up to ``LEGEND_CLASSES`` of them in a legend."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    if images.labels is None:
        return [_PLAIN] * len(images)
    present = images.labels.unique().tolist()
    few = len(present) <= LEGEND_CLASSES
    palette = [
        colormaps["tab20"](i) if few else colormaps["turbo"](i / (len(present) - 1)) for i in range(len(present))
    ]
    if few:
        handles = [Line2D([], [], marker="o", linestyle="", color=color) for color in palette]
        first = [int((images.labels == label).nonzero()[0]) for label in present]
        names = [plain_text(str(_class_of(images, row)), 24) for row in first]
        where: dict[str, Any] = {"loc": "outside right center"}
        if legend == "below":
            columns = max(1, int(figure.get_figwidth() // 1.9))
            where = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1}
        figure.legend(handles, names, frameon=False, handletextpad=0.2, **where)
    return [palette[present.index(label)] for label in images.labels.tolist()]


def draw_views(
    path: Path, images: ImageData, rows: Sequence[int], views: TwoViews, *, per_image: int = 6, seed: int = 0
) -> Tensor:
    """Draws some images, each next to several of the random views that a network sees of it.

    Args:
        path: The file, ``.png``.
        images: Where the images come from.
        rows: Row numbers of the images to draw.
        views: What makes the views; its normalization is undone for display.
        per_image: Views of each image.
        seed: Seed of the views.

    Returns:
        The views as drawn (len(rows), per_image, 3, S, S), in [0, 1].
    """
    originals = _pixels(images, rows)
    generator = torch.Generator().manual_seed(seed)
    made: list[Tensor] = []
    while len(made) < per_image:
        made += views(originals, generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (views.preset.mean, views.preset.std))
    shown = (torch.stack(made[:per_image], dim=1).float() * std + mean).clamp(0, 1)

    small = _resized((shown * 255).round().byte().flatten(0, 1), _CELL).unflatten(0, shown.shape[:2])
    top = 0.32
    figure, axes = _sheet(per_image + 1.2, top + 1.03 * len(rows))
    for line, original in enumerate(_resized(originals, _CELL)):
        y = top + 1.03 * line
        _tile(axes, original, 0, y, "black", 2.5)
        for column in range(per_image):
            _tile(axes, small[line, column], column + 1.2, y, _PLAIN, 0.8)
    axes.text(0.04, top - 0.03, "image", fontsize=12, va="bottom")
    axes.text(1.24, top - 0.03, "random views", fontsize=12, va="bottom")
    save_figure(figure, path)
    return shown


# Parts


def _check_rows(images: ImageData, features: Tensor) -> None:
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(f"there are {len(images)} images, but features of shape {tuple(features.shape)}.")


def _pixels(images: ImageData, rows: Sequence[int], side: int | None = None, exactly: bool = False) -> Tensor:
    """Returns images of some rows, uint8 (n, 3, S, S), in memory or not, resized if a side is given."""
    batch = next(iter(images.batches([torch.as_tensor(rows, dtype=torch.long)])))
    return batch if side is None else _resized(batch, side, exactly)


def _resized(batch: Tensor, side: int, exactly: bool = False) -> Tensor:
    """Shrinks uint8 images to a side in pixels, without aliasing; smaller ones are only enlarged if ``exactly``."""
    if batch.shape[-1] == side or (batch.shape[-1] < side and not exactly):
        return batch
    resized = F.interpolate(batch.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).byte()


def _hwc(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _class_of(images: ImageData, row: int) -> str | None:
    """Returns the name of an image's class, its number where there are no names, or None without labels."""
    if images.labels is None:
        return None
    label, names = int(images.labels[row]), images.class_names
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"


def _sheet(width: float, height: float) -> tuple[Any, Any]:
    """Returns a figure and axes over all of it whose units are inches, from the upper left corner."""
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    return figure, axes


def _tile(axes: Any, image: Tensor, left: float, top: float, color: str, linewidth: float) -> None:
    """Draws a framed image, a little less than an inch wide, onto a sheet."""
    from matplotlib.patches import Rectangle

    side, left = 0.92, left + 0.04
    extent = (left, left + side, top + side, top)
    axes.imshow(_hwc(image), extent=extent, aspect="auto", interpolation="bicubic")
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=color, linewidth=linewidth))
