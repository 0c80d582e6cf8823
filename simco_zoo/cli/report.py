"""Compare finished and unfinished runs on one page: results, curves, nearest neighbors, a map, and the views.

    simco-zoo report runs/NAME
    simco-zoo report runs/NAME runs/OTHER runs/finetune-NAME --output runs/report.html

A run is a folder that pretrain.py or finetune.py wrote. The page is one HTML file with everything in it; the same
pictures are in a folder beside it, FILE_files. Images come from the data set that the run's config.yaml names; where it
is not there any more, the page says so. The last line printed is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import re
from datetime import datetime
from pathlib import Path

import torch

import simco_zoo
from simco_zoo.arguments import local_path, place
from simco_zoo.cli.run import build_command
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation import extract_features
from simco_zoo.files import check_disk_space, write_text
from simco_zoo.report.curves import PANELS as RUN_PANELS
from simco_zoo.report.curves import draw_runs
from simco_zoo.report.page import differences, grid, page, paragraph, part, picture, results, run_colors, setup, table
from simco_zoo.report.pictures import draw_map, draw_neighbors, draw_views, pick_images
from simco_zoo.report.runs import Run, Sample, load_sample, read_runs, views_of

BANK, TEST = 2000, 500  # images of which neighbors are looked for, and of the map
QUERIES, SHOWN = 8, 6

# column of the log and title; the loss of fine-tuning is another than that of pretraining, so it has its own panel
PANELS = {
    "loss": "loss",
    "cross_entropy": "loss of fine-tuning (cross-entropy)",
    **dict(RUN_PANELS),
    "alignment": "alignment (lower: views closer)",
}


def compare(runs: list[Run], colors: dict[str, str]) -> str:
    """Returns the results of all runs, and the settings in which runs of a kind differ."""
    content = [
        table({run.name: results(run) for run in runs}, colors),
        paragraph(
            "kNN, online, linear and fine-tuned are top-1 accuracies in percent on the run's test images; images/s and "
            "time are the training's. Two temperatures are those of the dual temperature loss, τα / τβ."
        ),
    ]
    for name, supervised in (("pretraining", False), ("fine-tuning", True)):
        alike = [run for run in runs if run.supervised is supervised and run.settings]
        if len(alike) > 1:
            listed = table(differences(alike), colors)
            content += [f"<h3>Settings in which the {name} runs differ</h3>\n", listed or paragraph("None.")]
    return part("Results", *content)


def draw_curves(runs: list[Run], folder: Path) -> dict[Path, str]:
    """Draws every panel that has data; returns the files and what they show."""
    logs = {
        run.name: [{**row, "cross_entropy": row["loss"], "loss": None} for row in run.rows]
        if run.supervised
        else run.rows
        for run in runs
    }
    drawn = {}
    for column, title in PANELS.items():
        if any(row.get(column) is not None for rows in logs.values() for row in rows):
            path = folder / f"curves-{column}.png"
            draw_runs(path, logs, column, title=title)
            drawn[path] = f"{title}, over the epochs"
    return drawn


def draw_run(run: Run, sample: Sample, stem: Path, device: torch.device) -> tuple[dict[Path, str], str]:
    """Draws neighbors, views and the map of a run; returns the files with their captions, and what could not be."""
    model = simco_zoo.create_model(f"local-dir:{run.published}", pretrained=True)
    bank, test = (extract_features(model, images, device=device).features for images in (sample.bank, sample.test))
    others = "test images" if sample.held_out else "training images (the run had no test images)"
    labeled = sample.test.labels is not None
    neighbors, views, map_ = (stem.with_name(f"{stem.name}-{what}.png") for what in ("neighbors", "views", "map"))

    draw_neighbors(neighbors, sample.bank, bank, sample.test, test, rows=pick_images(sample.test, QUERIES))
    draw_views(views, sample.bank, pick_images(sample.bank, SHOWN), views_of(run))
    captions = {
        neighbors: f"Nearest neighbors: some {others}, framed in black, each with the nearest of {len(bank):,} "
        f"training images.{' Thick red frames: another class.' if labeled else ''}",
        views: "What the network saw: some training images, each with random views as in this run's training.",
    }
    try:
        draw_map(map_, sample.test, test, size=(6, 6.6), legend="below")
    except ValueError as error:  # too few images, or a network that gives all of them the same features
        return captions, f"There is no map of the features: {error}"
    captions[map_] = f"t-SNE map of the features of {len(test):,} {others}{', colored by class' if labeled else ''}."
    return captions, ""


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

    colors, curves = run_colors(runs), draw_curves(runs, folder)
    pictures = [*curves]
    parts = [
        compare(runs, colors),
        part("Curves", grid("curves", [picture(path, "", text) for path, text in curves.items()])),
    ]
    for number, run in enumerate(runs, start=1):
        captions, note = draw_run_or_say_why(run, args.dataset, folder / f"{number}-{slug(run.name)}", device)
        print(f"{run.name}: {len(captions)} pictures{'; ' if note else ''}{note}", flush=True)
        pictures += captions
        images = [picture(path, text, f"{run.name}: {text}") for path, text in captions.items()]
        content = [paragraph(note)] if note else []
        content += [grid("images", images)] if images else []
        parts.append(part(run.name, *content, color=colors.get(run.name)))

    title = args.title or (f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs")
    lead = f"Written by simco-zoo {simco_zoo.__version__} on {datetime.now():%Y-%m-%d %H:%M}."
    write_text(output, page(title, lead, table({run.name: setup(run) for run in runs}, colors), parts))
    found = {"report": str(output), "runs": [str(run.folder) for run in runs], "pictures": [*map(str, pictures)]}
    print(json.dumps(found))
    return 0


def draw_run_or_say_why(run: Run, dataset: str | None, stem: Path, device: torch.device) -> tuple[dict[Path, str], str]:
    """Draws a run's pictures, if it has weights and its images are there; otherwise says in a sentence what is not."""
    if run.published is None:
        return {}, "No pictures of features: nothing is published yet (neither last/ nor best/)."
    try:
        sample = load_sample(run, dataset, BANK, TEST)
    except (ValueError, OSError, ImportError) as error:
        if dataset is not None:
            raise
        return {}, f"No neighbors, views and map: the run's images cannot be read here: {error}"
    return draw_run(run, sample, stem, device)


def slug(name: str) -> str:
    """Makes a name a file's."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")[:60]
