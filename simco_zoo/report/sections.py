"""The sections of the report: results, curves, and for each run what its features are like."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import simco_zoo.models as models
from simco_zoo.evaluation import extract_features, knn
from simco_zoo.evaluation.baselines import raw_pixels, shrink_images
from simco_zoo.report.charts import draw_bars
from simco_zoo.report.curves import PANELS as RUN_PANELS
from simco_zoo.report.curves import draw_runs
from simco_zoo.report.facts import differences, results
from simco_zoo.report.page import Picture, Section, Table
from simco_zoo.report.pictures import draw_map, draw_neighbors, draw_views, pick_images
from simco_zoo.report.runs import Run, Sample, load_sample, views_of

BANK, TEST = 2000, 500  # images of which neighbors are looked for, and of the map
QUERIES, SHOWN = 8, 6
SHIPPED = "simco_r18_025"  # the weights that a run has to beat

# column of the log and title; the loss of fine-tuning is another than that of pretraining, so it has its own panel
PANELS = {
    "loss": "loss",
    "cross_entropy": "loss of fine-tuning (cross-entropy)",
    **dict(RUN_PANELS),
    "alignment": "alignment (lower: views closer)",
}


def results_section(runs: list[Run]) -> Section:
    """Returns the results of all runs, and the settings in which runs of a kind differ."""
    note = (
        "kNN, online, linear and fine-tuned are top-1 accuracies in percent on the run's test images; images/s and "
        "time are the training's. Two temperatures are those of the dual temperature loss, τα / τβ."
    )
    tables = [Table({run.name: results(run) for run in runs}, note=note)]
    for name, supervised in (("pretraining", False), ("fine-tuning", True)):
        alike = [run for run in runs if run.supervised is supervised and run.settings]
        if len(alike) > 1:
            tables.append(Table(differences(alike), f"Settings in which the {name} runs differ"))
    return Section("Results", tables)


def curves_section(runs: list[Run], folder: Path) -> Section:
    """Draws every panel that has data, into a folder."""
    logs = {
        run.name: [{**row, "cross_entropy": row["loss"], "loss": None} for row in run.rows]
        if run.supervised
        else run.rows
        for run in runs
    }
    drawn = []
    for column, title in PANELS.items():
        if any(row.get(column) is not None for rows in logs.values() for row in rows):
            path = folder / f"curves-{column}.png"
            draw_runs(path, logs, column, title=title)
            drawn.append(Picture(path, f"{title}, over the epochs"))
    return Section("Curves", pictures=drawn, layout="curves")


def run_section(run: Run, dataset: str | None, stem: Path, device: torch.device, color: str | None = None) -> Section:
    """Draws what a run's features are like, if it has weights and its images are there; otherwise says what is not.

    Args:
        run: The run.
        dataset: Another data set than the run's, or None.
        stem: Path of the pictures without "-neighbors.png" and so on.
        device: Device to compute on.
        color: The run's color in the curves, or None.

    Raises:
        ValueError: If ``dataset`` is given and cannot be read.
    """
    if run.published is None:
        text = "No pictures of features: nothing is published yet (neither last/ nor best/)."
        return Section(run.name, texts=[text], color=color)
    try:
        sample = load_sample(run, dataset, BANK, TEST)
    except (ValueError, OSError, ImportError) as error:
        if dataset is not None:
            raise
        text = f"No neighbors, views and map: the run's images cannot be read here: {error}"
        return Section(run.name, texts=[text], color=color)
    captions, note = draw_run(run, sample, stem, device)
    pictures = [Picture(path, f"{run.name}: {text}", text) for path, text in captions.items()]
    return Section(run.name, texts=[note] if note else [], pictures=pictures, color=color)


def draw_run(run: Run, sample: Sample, stem: Path, device: torch.device) -> tuple[dict[Path, str], str]:
    """Draws neighbors, views, map and baselines; returns the files with their captions, and what could not be drawn."""
    model = models.create_model(f"local-dir:{run.published}", pretrained=True)
    bank, test = (extract_features(model, images, device=device).features for images in (sample.bank, sample.test))
    others = "test images" if sample.held_out else "training images (the run had no test images)"
    labeled = sample.test.labels is not None
    neighbors, views, bars, map_ = (
        stem.with_name(f"{stem.name}-{what}.png") for what in ("neighbors", "views", "knn", "map")
    )
    title = f"Neighbors by {run.name} ({model.architecture})"
    rows = pick_images(sample.test, QUERIES)
    draw_neighbors(neighbors, sample.bank, bank, sample.test, test, rows=rows, title=title)
    draw_views(views, sample.bank, pick_images(sample.bank, SHOWN), views_of(run))
    captions = {
        neighbors: f"Nearest neighbors: some {others}, framed in black, each with the nearest of {len(bank):,} "
        f"training images.{' Thick red frames: another class.' if labeled else ''}",
        views: "What the network saw: some training images, each with random views as in this run's training.",
    }
    accuracies = measure_baselines(run, sample, device)
    if accuracies is not None:
        captions[bars] = (
            f"kNN of {len(test):,} {others} among {len(bank):,} training images: this run next to raw pixels, an "
            "untrained network and the weights that ship with simco-zoo. With all images the figures are higher."
        )
        draw_bars(bars, {**accuracies, run.name: accuracy_of(bank, test, sample)}, highlight=[run.name], title="kNN")
    try:
        draw_map(map_, sample.test, test, size=(6, 6.6), legend="below")
    except ValueError as error:  # too few images, or a network that gives all of them the same features
        return captions, f"There is no map of the features: {error}"
    captions[map_] = f"t-SNE map of the features of {len(test):,} {others}{', colored by class' if labeled else ''}."
    return captions, ""


def measure_baselines(run: Run, sample: Sample, device: torch.device) -> dict[str, float] | None:
    """Returns the kNN accuracy, in percent, of raw pixels, the untrained network and the shipped weights.

    None without labels.
    """
    parts = [sample.bank, sample.test]
    if any(part.labels is None or (part.labels < 0).any() for part in parts):
        return None
    torch.manual_seed(0)
    untrained = models.create_model(f"local-dir:{run.published}")
    shipped = models.create_model(SHIPPED, pretrained=True)
    small = [shrink_images(part, shipped.pretrained_cfg["input_size"][-1]) for part in parts]
    features = {
        "raw pixels": [raw_pixels(part) for part in parts],
        "untrained": [extract_features(untrained, part, device=device).features for part in parts],
        f"shipped {SHIPPED}": [extract_features(shipped, part, device=device).features for part in small],
    }
    return {name: accuracy_of(bank, test, sample) for name, (bank, test) in features.items()}


def accuracy_of(bank: torch.Tensor, test: torch.Tensor, sample: Sample) -> float:
    """Returns the kNN accuracy of a sample's test images, in percent."""
    labels, truth = (torch.as_tensor(part.labels) for part in (sample.bank, sample.test))
    return knn(bank, labels, test, truth, k=min(200, len(bank)))["top1"]


def slug(name: str) -> str:
    """Makes a name a file's."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")[:60]
