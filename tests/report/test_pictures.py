"""The pictures: what is drawn is what they say, for labels or none, images in memory or not, few classes or many."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from simco_zoo.data import PRESETS, ImageData, TwoViews, load_images
from simco_zoo.report.curves import draw_runs
from simco_zoo.report.drawing import RUN_COLORS
from simco_zoo.report.pictures import draw_map, draw_neighbors, draw_views, pick_images

GREEN, RED = (0x2A, 0x9D, 0x4A), (0xD1, 0x24, 0x2F)


def solid(colors: list[tuple[int, int, int]], labels: list[int] | None = None, names: list[str] | None = None, size=32):
    """Images of one color each."""
    images = torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, 3, size, size).contiguous()
    tensor = None if labels is None else torch.tensor(labels)
    return ImageData(images, tensor, [f"{i}.png" for i in range(len(colors))], names, image_size=size)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)


def count(path, color: tuple[int, int, int]) -> int:
    return int((pixels(path) == np.array(color)).all(axis=1).sum())


def test_pick_images_takes_one_of_every_class_first():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] + [3] * 7)
    images = ImageData(torch.zeros(61, 3, 8, 8, dtype=torch.uint8), labels, [str(i) for i in range(61)])
    chosen = pick_images(images, 4)
    assert labels[chosen].tolist() == [0, 1, 2, 3]
    assert labels[pick_images(images, 6)].bincount().tolist() == [2, 1, 1, 2] or len({*pick_images(images, 6)}) == 6
    assert chosen == pick_images(images, 4) and chosen != pick_images(images, 4, seed=1)
    assert sorted(pick_images(images, 100)) == list(range(61))  # no more than there are


@pytest.mark.parametrize("labeled", [True, False])
def test_pick_images_leaves_flat_ones_for_last(labeled):
    pixels = torch.full((40, 3, 8, 8), 128, dtype=torch.uint8)
    pixels[::4] = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)  # a quarter has something on it
    labels = torch.arange(40) // 8 if labeled else None  # two of eight in each class
    images = ImageData(pixels, labels, [str(i) for i in range(40)])
    for seed in range(5):
        assert all(row % 4 == 0 for row in pick_images(images, 5, seed=seed))
    assert len({*pick_images(images, 40)}) == 40


def test_neighbors_are_the_nearest(tmp_path):
    """Against plain loops in float64, lengths of the rows as they come."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(40, 6, generator=generator) * torch.rand(40, 1, generator=generator).mul(9).add(0.1)
    query = torch.randn(12, 6, generator=generator)
    images = solid([(i, 2 * i, 3 * i) for i in range(40)], labels=[i % 3 for i in range(40)])
    queries = solid([(200, i, i) for i in range(12)], labels=[i % 3 for i in range(12)])
    rows = [7, 0, 11]
    found = draw_neighbors(tmp_path / "n.png", images, bank, queries, query, rows=rows, neighbors=4, blocks=2)
    for row, nearest in zip(rows, found.tolist(), strict=True):
        q = query[row].double().numpy()
        cosines = [float(b @ q / np.sqrt(b @ b) / np.sqrt(q @ q)) for b in bank.double().numpy()]
        assert nearest == sorted(range(40), key=lambda i: -cosines[i])[:4]


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_neighbors_drawn_are_those(in_memory, tmp_path):
    """The picture shows the query's and the two neighbors' colors and no other image's."""
    colors = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)]
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1], [0.7, 0.7]])
    bank, path = solid(colors, size=200), tmp_path / "n.png"
    if not in_memory:
        pictures = [Image.new("RGB", (200, 200), color) for color in colors]
        bank = load_images(_Sequence(pictures), image_size=200, in_memory=False)
        assert bank.images is None
    found = draw_neighbors(
        path, bank, features, solid([(90, 0, 90)]), torch.tensor([[1.0, 0.2]]), rows=[0], neighbors=2
    )
    assert found.tolist() == [[0, 3]]
    shown = [count(path, color) > 1000 for color in [(90, 0, 90), *colors]]
    assert shown == [True, True, False, False, True]
    assert not count(path, GREEN) and not count(path, RED)  # nothing is right or wrong without labels


class _Sequence:
    """A torch data set without labels."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index].copy()


@pytest.mark.parametrize(
    ("bank_names", "label", "right"),
    [
        (["cat", "dog"], 1, True),
        (["cat", "dog"], 0, False),
        (["ant", "cat", "dog"], 2, True),  # another numbering, as of folders with other classes: the name counts
        (["ant", "cat", "dog"], 1, False),
        (None, 1, False),
    ],
)
def test_frames_say_whether_the_class_is_the_same(bank_names, label, right, tmp_path):
    bank = solid([(0, 0, 255)], labels=[label], names=bank_names)
    queries = solid([(0, 255, 255)], labels=[1], names=["cat", "dog"])
    draw_neighbors(tmp_path / "n.png", bank, torch.ones(1, 2), queries, torch.ones(1, 2), rows=[0])
    assert (count(tmp_path / "n.png", GREEN) > 50, count(tmp_path / "n.png", RED) > 50) == (right, not right)


def test_features_have_to_fit_the_images(tmp_path):
    images = solid([(0, 0, 0)] * 6)
    with pytest.raises(ValueError, match="6 images, but features of shape"):
        draw_neighbors(tmp_path / "n.png", images, torch.ones(5, 2), images, torch.ones(6, 2), rows=[0])
    with pytest.raises(ValueError, match="6 images, but features of shape"):
        draw_map(tmp_path / "m.png", images, torch.ones(5, 2))
    with pytest.raises(ValueError, match="at least 5"):
        draw_map(tmp_path / "m.png", solid([(0, 0, 0)] * 4), torch.randn(4, 3))
    parallel, tiny = torch.arange(1.0, 7)[:, None].expand(6, 2), 1e-30 * torch.randn(6, 2)
    for bad in (torch.ones(6, 2), torch.full((6, 2), float("nan")), parallel, tiny):
        with pytest.raises(ValueError, match="finite features that differ"):
            draw_map(tmp_path / "m.png", images, bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("classes", [None, 3, 24])
def test_map_keeps_groups_together(classes, tmp_path):
    """Three far groups: each image's nearest on the map is of its own group; dots are drawn in the classes' colors."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(3, (48,), generator=generator)
    features = 8 * torch.eye(3)[groups] + 0.1 * torch.randn(48, 3, generator=generator)
    labels = None if classes is None else [i % classes for i in range(48)]
    images = solid([(255, 255, 255)] * 48, labels=labels)
    places = draw_map(tmp_path / "m.png", images, features, size=(5, 6), legend="below")
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(48)
    assert torch.equal(groups[distances.argmin(axis=1)], groups)
    assert Image.open(tmp_path / "m.png").size == (500, 600)
    colorful = np.ptp(pixels(tmp_path / "m.png").astype(int), axis=1) > 60
    assert (colorful.sum() > 100) == (classes is not None)


def test_views_are_what_the_network_is_shown(tmp_path):
    """The same generator through TwoViews itself; normalization undone in float64."""
    generator = torch.Generator().manual_seed(1)
    images = ImageData(
        torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator), None, list("abcde"), image_size=32
    )
    preset, rows = PRESETS["cifar"], [3, 1]
    drawn = draw_views(tmp_path / "v.png", images, rows, TwoViews("cifar", size=24), per_image=3, seed=5)
    assert drawn.shape == (2, 3, 3, 24, 24)
    again, generator = TwoViews("cifar", size=24), torch.Generator().manual_seed(5)
    assert images.images is not None
    views = [v for _ in range(2) for v in again(images.images[rows], generator=generator)][:3]
    for i, view in enumerate(views):
        for channel in range(3):
            expected = view[:, channel].double() * preset.std[channel] + preset.mean[channel]
            torch.testing.assert_close(drawn[:, i, channel].double(), expected.clamp(0, 1), atol=1e-6, rtol=0)
    assert drawn.std() > 0.1
    # the blur's weights add up to a little more than 1
    white = draw_views(tmp_path / "w.png", solid([(255, 255, 255)] * 9), range(9), TwoViews("imagenet", size=24))
    assert white.max() == 1
    assert Image.open(tmp_path / "v.png").size[0] == 420


def curve(epochs: int, **columns: float) -> list[dict]:
    return [{"epoch": e + 1, **{name: value + e for name, value in columns.items()}} for e in range(epochs)]


def rgb(color: str) -> tuple[int, int, int]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]


def test_runs_are_drawn_in_their_colors(tmp_path):
    logs = {"one": curve(3, loss=4.0), "none": curve(3, other=1.0), "still going": curve(1, loss=5.0)}
    draw_runs(tmp_path / "c.png", logs, "loss", title="loss")
    drawn = [count(tmp_path / "c.png", rgb(color)) > 20 for color in RUN_COLORS[:4]]
    assert drawn == [True, False, True, False]


@pytest.mark.parametrize("epochs", [1, 4])
def test_bands_of_the_weights(epochs, tmp_path):
    quantiles = {f"log_w_q{q}": float(i) for i, q in enumerate(("05", "25", "50", "75", "95"))}
    draw_runs(tmp_path / "with.png", {"a": curve(epochs, **quantiles)}, "log_w_q50", title="log w")
    draw_runs(tmp_path / "without.png", {"a": curve(epochs, loss=2.0)}, "loss", title="log w")
    # tinted areas (or bars, of one epoch) next to the line
    tinted = [
        ((np.ptp(pixels(tmp_path / f"{name}.png").astype(int), axis=1)) > 15).sum() for name in ("with", "without")
    ]
    assert tinted[0] > tinted[1] + 1000


def test_names_are_no_formulas(tmp_path):
    """A dollar, an underscore first (matplotlib leaves such names out of a legend), a very long name, many runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs = {name: curve(2, loss=1.0) for name in (r"$\frac{$", "_hidden", "x" * 300, *map(str, range(12)))}
        draw_runs(tmp_path / "c.png", logs, "loss", title="$x")
        draw_runs(tmp_path / "plain.png", {"hidden": curve(2, loss=1.0), "b": []}, "loss", title="")
        draw_runs(tmp_path / "underscore.png", {"_hidden": curve(2, loss=1.0), "b": []}, "loss", title="")
        bank = solid([(0, 0, 0)] * 6, labels=[0, 1, 0, 1, 0, 1], names=["$a$ $b", "_b"])
        draw_neighbors(tmp_path / "n.png", bank, torch.randn(6, 2), bank, torch.randn(6, 2), rows=[0, 1])
    dark = [(pixels(tmp_path / f"{name}.png").sum(axis=1) < 200).sum() for name in ("plain", "underscore")]
    assert abs(dark[0] - dark[1]) < 100  # the legend's letters are there
