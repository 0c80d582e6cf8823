"""Compare finished and unfinished runs on one page: results, curves, nearest neighbors, a map, and the views.

    simco-zoo report runs/NAME
    simco-zoo report runs/NAME runs/OTHER runs/finetune-NAME --output runs/report.html

A run is a folder that pretrain or finetune wrote. The page is one HTML file with everything in it; the same pictures
are in a folder next to it, FILE_files. Images come from the data set that the run's config.yaml names; if it is not
there any more, the page says so. The last line printed is JSON.
"""

from __future__ import annotations

import importlib.util
import json
from datetime import datetime
from pathlib import Path

from simco_zoo.arguments import local_path, place
from simco_zoo.cli.run import build_command
from simco_zoo.distributed import pick_device
from simco_zoo.files import check_disk_space, write_text
from simco_zoo.report.drawing import run_colors
from simco_zoo.report.facts import setup
from simco_zoo.report.page import Table, render_page
from simco_zoo.report.runs import read_runs
from simco_zoo.report.sections import curves_section, results_section, run_section, slug
from simco_zoo.version import __version__


def main(argv: list[str] | None = None) -> int:
    parser = build_command("report", __doc__, "RUN [RUN ...]")
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN", help="a run's folder")
    parser.add_argument("--output", type=local_path, help="the page; default: RUN/report.html, or runs/report.html")
    parser.add_argument("--title", help="title of the page; default: Report on NAME")
    parser.add_argument("--dataset", type=place, help="folder or data set of images; default: the run's own")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps..., or auto: an accelerator if any")
    args = parser.parse_args(argv)
    for package in ("matplotlib", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'the pictures need {package}, which is not installed: pip install "simco-zoo[demo]".')
    device = pick_device(args.device)
    runs = read_runs(args.runs)
    output = (args.output or (runs[0].folder if len(runs) == 1 else Path("runs")) / "report.html").absolute()
    if output.suffix != ".html" or output.is_dir():
        raise ValueError(f"the output {output} has to be a file whose name ends in .html.")
    folder = output.with_name(f"{output.stem}_files")
    check_disk_space(output.parent, 0)
    folder.mkdir(exist_ok=True)
    print(f"{', '.join(run.name for run in runs)} -> {output}", flush=True)

    colors = run_colors([run.name for run in runs])
    sections = [results_section(runs), curves_section(runs, folder)]
    for number, run in enumerate(runs, start=1):
        stem = folder / f"{number}-{slug(run.name)}"
        section = run_section(run, args.dataset, stem, device, colors.get(run.name))
        print("; ".join([f"{run.name}: {len(section.pictures)} pictures", *section.texts]), flush=True)
        sections.append(section)

    title = args.title or (f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs")
    lead = f"Written by simco-zoo {__version__} on {datetime.now():%Y-%m-%d %H:%M}."
    write_text(output, render_page(title, lead, Table({run.name: setup(run) for run in runs}), sections, colors))
    pictures = [str(picture.path) for section in sections for picture in section.pictures]
    print(json.dumps({"report": str(output), "runs": [str(run.folder) for run in runs], "pictures": pictures}))
    return 0
