"""The report's page: what its tables say of the runs, and the HTML around tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from simco_zoo.models.methods import METHODS
from simco_zoo.report.drawing import RUN_COLORS
from simco_zoo.report.runs import Run

_OWN_TO_A_RUN = {"output", "resume"}  # settings in which runs always differ

# What the tables say


def setup(run: Run) -> dict[str, Any]:
    """Returns when and with what a run was trained, by heading."""
    versions = run.section.get("versions", {})
    return {
        "kind": "fine-tuning" if run.supervised else "pretraining",
        "last epoch written": run.written.strftime("%Y-%m-%d %H:%M"),
        "hardware": run.section.get("hardware"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def results(run: Run) -> dict[str, Any]:
    """Returns the result of a run, by heading; None or nothing is what it does not have."""
    last, data, loss = run.rows[-1], run.section.get("data", {}), run.section.get("loss", {})
    knn, online = run.measured("knn_top1"), run.measured("online_top1")
    best_knn, tuned = run.best("knn_top1"), run.summary if run.supervised and run.finished else None
    linear = run.summary.get("linear_top1") if run.finished else None
    cells: dict[str, Any] = {
        "method": _method(run),
        "backbone": _backbone(run),
        "data": data.get("name") or run.settings.get("dataset"),
        "images": f"{data['images']:,} of {data['image_size']} px" if "images" in data else None,
        "epochs": _epochs(run),
        "batch": run.used("batch_size"),
    }
    if not run.supervised:
        temperatures = [loss[key] for key in ("tau_alpha", "tau_beta", "temperature") if key in loss]
        cells["temperature"] = " / ".join(f"{value:g}" for value in temperatures)
    return {
        **cells,
        "kNN, last": _measured(knn[-1], "knn_top1", tell=knn[-1] is not last) if knn else None,
        "kNN, best": _measured(best_knn, "knn_top1") if best_knn else None,
        "online": _measured(online[-1], "online_top1", tell=online[-1] is not last) if online else None,
        "linear": f"{linear:.2f}" if linear is not None else None,
        "fine-tuned": _measured(tuned, "top1") if tuned else None,
        "images/s": f"{last['images_per_second']:.0f}",
        "time": _duration(last["seconds"]),
    }


def differences(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Returns the settings that differ, by the run's name; a setting that one of the runs does not know is left out."""
    shared = sorted(set.intersection(*({*run.settings} for run in runs)) - _OWN_TO_A_RUN)
    # unlike both as they were given and as they were used: one may have spelled out the other's default
    differing = [
        key
        for key in shared
        if any(run.settings[key] != runs[0].settings[key] for run in runs)
        and any(run.used(key) != runs[0].used(key) for run in runs)
    ]
    values = {run.name: {key: run.used(key) for key in differing} for run in runs}
    return {name: {key: "not set" if v is None else v for key, v in cells.items()} for name, cells in values.items()}


def _method(run: Run) -> str | None:
    name = run.section.get("method") or str(run.settings.get("model")).split("_")[0]
    method = METHODS[name].title if name in METHODS else None
    if not run.supervised:
        return method
    begun = "not pretrained" if run.settings.get("weights") == "none" else method
    return ", ".join(filter(None, (begun, "classifier only" if run.used("freeze") else "fine-tuned")))


def _backbone(run: Run) -> str | None:
    if run.config.get("architecture") == "small_stem":
        return f"{run.config['model_args']['backbone']}, small stem"
    return run.config.get("architecture") or run.settings.get("backbone") or run.settings.get("model")


def _epochs(run: Run) -> str:
    done, planned = run.rows[-1]["epoch"], run.used("epochs")
    return str(done) if run.finished else f"{done} of {planned or '?'}, not finished"


def _measured(row: dict[str, Any], column: str, tell: bool = True) -> str:
    return f"{row[column]:.2f}" + (f" (epoch {row['epoch']})" if tell else "")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


# The page


def page(title: str, lead: str, overview: str, parts: Sequence[str]) -> str:
    """Returns a whole page that needs nothing else: no script, no link, pictures and style within.

    Args:
        title: Plain text.
        lead: Plain text below the title.
        overview: HTML below that.
        parts: HTML of the sections.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
{overview}</header>
{"".join(parts)}</body>
</html>
"""


def part(heading: str, *content: str, color: str | None = None) -> str:
    """Returns a section; heading is plain text, content HTML."""
    return f"<section>\n<h2>{_dot(color)}{escape(heading)}</h2>\n{''.join(content)}</section>\n"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def table(rows: Mapping[str, Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    """Returns a table with a row per run; columns that no run fills are left out, and so is a table without columns.

    Args:
        rows: Cells of each run by heading, by the run's name.
        colors: Of the runs' dots.
    """
    headings = list(dict.fromkeys(key for cells in rows.values() for key in cells))
    headings = [key for key in headings if any(cells.get(key) not in (None, "") for cells in rows.values())]
    if not headings:
        return ""
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in ("run", *headings))
    lines = []
    for name, cells in rows.items():
        line = f'<th scope="row">{_dot(colors.get(name))}{escape(name)}</th>'
        for key in headings:
            value = cells.get(key)
            if value in (None, ""):
                line += '<td class="empty">–</td>'
            else:
                text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
                line += f'<td data-label="{escape(key)}">{escape(text)}</td>'
        lines.append(f"<tr>{line}</tr>\n")
    body = "".join(lines)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def picture(path: Path, caption: str, description: str) -> str:
    """Returns a PNG file as a figure; caption and description (for those who do not see it) are plain text."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(description)}">{below}</figure>\n'


def grid(kind: str, pictures: Sequence[str]) -> str:
    """Returns pictures side by side as far as there is room; kind is "curves" or "images"."""
    return f'<div class="{kind}">\n{"".join(pictures)}</div>\n'


def run_colors(runs: Sequence[Run]) -> dict[str, str]:
    """Returns each run's color, as in the curves; none for a single run."""
    if len(runs) == 1:
        return {}
    return {run.name: RUN_COLORS[number % len(RUN_COLORS)] for number, run in enumerate(runs)}


def _dot(color: str | None) -> str:
    return f'<span class="dot" style="background:{color}"></span>' if color else ""


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 48px; max-width: 1240px; background: #fff; color: #1f2328;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 1.3rem; line-height: 1.3; overflow-wrap: anywhere; }
h3 { margin: 20px 0 8px; font-size: 1rem; }
p { margin: 4px 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
header p { color: #59636e; }
section { margin-top: 24px; padding-top: 20px; border-top: 1px solid #d1d9e0; }
.dot { display: inline-block; width: .7em; height: .7em; margin-right: .45em; border-radius: 50%;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
th .dot { position: absolute; left: 0; margin-top: .35em; }
tbody th:has(.dot) { position: relative; padding-left: 1.2em; }
table { width: 100%; margin: 4px 0 16px; border-collapse: collapse; font-size: .875rem; line-height: 1.35; }
.table { overflow-x: auto; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid #d1d9e0; text-align: left; vertical-align: top;
  font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #59636e; color: #59636e; font-weight: 600; }
tbody th { min-width: 6em; font-weight: 600; overflow-wrap: anywhere; }
td.empty { color: #9aa3ad; }
figure { margin: 0; break-inside: avoid; }
img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 6px; color: #59636e; font-size: .875rem; line-height: 1.4; }
.curves { display: grid; gap: 20px; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.images { display: grid; gap: 28px 32px; grid-template-columns: 1fr 1fr; align-items: start; }
.images figure:first-child { grid-row: span 2; }
@media (max-width: 680px) {
  body { padding: 16px 14px 32px; }
  h1 { font-size: 1.5rem; }
  .images { display: block; }
  .images figure { margin-bottom: 28px; }
  table, tbody, tr, tbody th, td { display: block; }
  thead, td.empty { display: none; }
  tr { padding: 8px 0; border-bottom: 1px solid #d1d9e0; }
  tr:last-child { border: 0; }
  tbody th, td { padding-top: 2px; padding-bottom: 2px; border: 0; overflow-wrap: anywhere; }
  td { display: grid; grid-template-columns: 8.5em 1fr; gap: 8px; }
  td::before { content: attr(data-label); color: #59636e; }
}
@media print {
  @page { margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding-right: 8px; }
  tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .curves { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 10px; }
}
"""
