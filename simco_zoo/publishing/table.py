"""The table of models: what the cards say, a row for each name and tag."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag

from simco_zoo.files import write_text
from simco_zoo.hub.registry import published
from simco_zoo.models.methods import method_of
from simco_zoo.publishing.card_training import markdown_table

HEADER = ("name", "tag", "method", "data", "params", "kNN", "linear", "size", "where")
NOWHERE = "not published"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def model_rows(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the rows of ``HEADER``: for a bare name one per tag that can be loaded, or one that says there is none.

    Args:
        names: Registered names, with or without a tag.

    Returns:
        Texts; accuracies in percent, "-" for what is not known.
    """
    known = published()
    rows = []
    for name in names:
        tagged = [name] if name in known else [n for n in known if split_model_name_tag(n)[0] == name]
        rows += [_row(n, known[n].config, "ships" if known[n].folder else known[n].repo_id or "") for n in tagged]
        if not tagged:
            rows.append(_row(name, None, NOWHERE))
    return rows


def _row(name: str, config: dict[str, Any] | None, where: str) -> tuple[str, ...]:
    architecture, tag = split_model_name_tag(name)
    with torch.device("meta"):  # counted, not filled
        backbone: torch.nn.Module = timm.create_model(architecture)
    parameters = sum(p.numel() for p in backbone.parameters())
    section = (config or {}).get("simco_zoo", {})
    metrics = section.get("metrics", {})
    size = sum(file["size"] for file in section.get("files", {}).values())
    return (
        architecture,
        tag or "-",
        method_of(architecture).title,
        section.get("data", {}).get("name") or "-",
        f"{parameters / 1e6:.2f} M",
        f"{metrics['knn_top1']:.2f}" if "knn_top1" in metrics else "-",
        f"{metrics['linear_top1']:.2f}" if "linear_top1" in metrics else "-",
        f"{size / 1e6:.1f} MB" if size else "-",
        where,
    )


def as_text(rows: Sequence[tuple[str, ...]]) -> str:
    """Lays rows out in columns for a terminal."""
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) for row in [HEADER, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """Lays out the rows with weights as a table of Markdown, and names the models without weights below it."""
    loadable = [(f"`{row[0]}`", *row[1:]) for row in rows if row[-1] != NOWHERE]
    without = [f"`{row[0]}`" for row in rows if row[-1] == NOWHERE]
    parts = [markdown_table(HEADER, loadable)] if loadable else []
    if without:
        names = textwrap.fill(", ".join(without), 120, break_long_words=False, break_on_hyphens=False)
        parts.append(f"Without published weights so far:\n{names}.")
    return "\n\n".join(parts)


def write_into(path: Path, table: str) -> bool:
    """Puts the table between the two marks in a file; returns whether that changed it.

    Raises:
        ValueError: If the file has not exactly one of each mark.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} needs one line {BEGIN} and, after the table's place, one line {END}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    changed = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if changed == text:
        return False
    write_text(path, changed)
    return True
