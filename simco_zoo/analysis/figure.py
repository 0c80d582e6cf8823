"""A figure with its caption: what the paper expects, and what was found."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simco_zoo.files import write_text
from simco_zoo.report.drawing import new_figure, save_figure

_LINE = 0.19  # inches of a caption's line
_CHARACTERS = 12.5  # of a caption's line, per inch


def write_figure(
    path: Path, draw: Callable[[Any], None], caption: str, *, width: float = 9.0, height: float = 4.2
) -> bool:
    """Draws a figure with a caption below and writes the caption as text next to it.

    Args:
        path: The file, ``.png``; the text gets the suffix ``.txt``.
        draw: Called with the subfigure above the caption.
        caption: Sentences; a line break starts a paragraph.
        width: Width in inches.
        height: Height in inches without the caption.

    Returns:
        Whether there is a picture: without matplotlib only the text is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".txt"), caption + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        return False
    lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, int(width * _CHARACTERS)) or [""]]
    below = _LINE * len(lines) + 0.25
    figure = new_figure(width, height + below)
    halves: Any = figure.subfigures(2, 1, height_ratios=(height, below))
    top, bottom = halves
    draw(top)
    bottom.text(0.02, 0.92, "\n".join(lines), fontsize=9, va="top", ha="left", linespacing=1.35, parse_math=False)
    save_figure(figure, path, dpi=130)
    return True


def finish_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Gives axes their title, their labels and a light grid."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
