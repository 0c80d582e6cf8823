"""Bars and confusion matrices show the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from simco_zoo.report.charts import draw_bars, draw_confusion
from simco_zoo.report.drawing import RUN_COLORS
from simco_zoo.report.pictures import draw_groups
from tests.report.test_pictures import count, rgb, solid


def widths(path, color) -> list[int]:
    """Lengths in pixels of the bars of a color, from top to bottom."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    mask = (abs(picture - np.array(color)) < 6).all(axis=2).sum(axis=1)
    starts = [i for i in range(1, len(mask)) if mask[i] > 5 and mask[i - 1] <= 5]
    return [int(mask[i : i + 8].max()) for i in starts]


def test_bars_are_as_long_as_the_values(tmp_path):
    values = {"raw pixels": 20.0, "untrained $x": 10.0, "this model": 40.0}
    draw_bars(tmp_path / "b.png", values, highlight=["this model"], title="kNN")
    gray, blue = widths(tmp_path / "b.png", rgb("#b8bfc6")), widths(tmp_path / "b.png", rgb(RUN_COLORS[0]))
    assert len(gray) == 2 and len(blue) == 1
    assert gray[0] / gray[1] == pytest.approx(2, rel=0.05) and blue[0] / gray[0] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("classes", [2, 20, 100])
def test_confusion_is_dark_where_the_images_are(classes, tmp_path):
    diagonal = torch.eye(classes, dtype=torch.long) * 50
    shifted = diagonal.roll(1, dims=1)
    names = [f"class {i}" for i in range(classes)]
    for name, matrix in (("diagonal", diagonal), ("shifted", shifted), ("empty", 0 * diagonal)):
        draw_confusion(tmp_path / f"{name}.png", matrix, names, title=name)
    dark = {name: count(tmp_path / f"{name}.png", (8, 48, 107)) for name in ("diagonal", "shifted", "empty")}
    assert dark["diagonal"] > dark["empty"] + 100 and dark["shifted"] > dark["empty"] + 100
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("diagonal", "shifted"))
    assert (one != other).any()


def test_groups_show_their_images(tmp_path):
    colors = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (200, 200, 10)]
    draw_groups(tmp_path / "g.png", solid(colors), [[0, 2], [1]], ["a, b", "c"])
    shown = [count(tmp_path / "g.png", color) > 500 for color in colors]
    assert shown == [True, True, True, False]
