"""What all pictures share: colors, text, and how a figure becomes a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simco_zoo.files import atomic_write

# told apart with any color vision (after Okabe & Ito 2008); after ten runs they start again with another line style
RUN_COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#6a3d9a",
    "#7f7f7f",
    "#8c564b",
    "#111111",
)
DPI = 100


def run_colors(names: Sequence[str]) -> dict[str, str]:
    """Returns the color of each run in curves and tables; none for a single run."""
    if len(names) == 1:
        return {}
    return {name: RUN_COLORS[number % len(RUN_COLORS)] for number, name in enumerate(names)}


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure of a size in inches; not pyplot's, so no global state and no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_text(text: str, longest: int = 200) -> str:
    """Returns a text that matplotlib shows as it is: no formulas, no line breaks, and not left out of legends."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    text = text.replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + text if text.startswith("_") else text


def save_figure(figure: Any, path: Path, dpi: int = DPI) -> None:
    """Writes a figure as PNG, under a temporary name first."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi)
