"""The report's page: tables and pictures in one HTML file. Its markup is in page.html.jinja."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2


@dataclass(frozen=True)
class Table:
    """A table with a row per run.

    Attributes:
        rows: Cells by heading, of each run by its name; columns that no run fills are left out.
        title: Above it.
        note: A sentence below it.
    """

    rows: Mapping[str, Mapping[str, Any]]
    title: str = ""
    note: str = ""

    @property
    def headings(self) -> list[str]:
        """The columns that some run fills; without any there is no table."""
        keys = dict.fromkeys(key for cells in self.rows.values() for key in cells)
        return [key for key in keys if any(cells.get(key) not in (None, "") for cells in self.rows.values())]


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        path: A PNG file.
        description: Alternative text for readers who do not see the picture.
        caption: Below it.
    """

    path: Path
    description: str
    caption: str = ""

    @property
    def base64(self) -> str:
        """The file, as a page holds it."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        heading: Its title.
        tables: First the tables,
        texts: then paragraphs,
        pictures: then pictures, side by side as far as there is room.
        layout: "curves" for small pictures, "images" for large ones.
        color: Color of the dot before the heading, or None.
    """

    heading: str
    tables: Sequence[Table] = ()
    texts: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    layout: str = "images"
    color: str | None = None


def render_page(
    title: str,
    lead: str,
    overview: Table,
    sections: Sequence[Section],
    colors: Mapping[str, str] | None = None,
) -> str:
    """Returns a whole page that needs nothing else: no script, no link, pictures and style within.

    Args:
        title: Title of the page; all texts are plain and become escaped.
        lead: Below the title.
        overview: Below that.
        sections: The rest.
        colors: Color of the dot of each run, by its name.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files(__package__).joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(title=title, lead=lead, overview=overview, sections=sections, colors=colors or {})
