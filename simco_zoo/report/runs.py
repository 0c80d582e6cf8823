"""Runs as report.py finds them: the folder, its log and settings, and a sample of its images."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from simco_zoo.data import PRESETS, ImageData, TwoViews, ViewPreset, load_images, stream_images
from simco_zoo.data.transforms import Size, image_side
from simco_zoo.hub.config import CONFIG_FILE, MODEL_FILE, parse_config, section

_MEASURED = {"steps", "total_steps", "seconds"}  # what a published recipe holds besides settings


# A run


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: Absolute path.
        name: What the report calls it; no two runs have the same.
        rows: Its log, one row per epoch; a value not measured is None.
        written: When the last row was.
        settings: config.yaml; where there is none (a run from Python), the published recipe.
        published: ``last/``, else ``best/``, else None.
        config: config.json of that.
        summary: What a finished run ended with; empty where none has.
    """

    folder: Path
    name: str
    rows: list[dict[str, Any]]
    written: datetime
    settings: dict[str, Any]
    published: Path | None
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def supervised(self) -> bool:
        """Whether it is a run of finetune.py (or of linear_probe.py by SGD)."""
        return bool({"val_top1", "top1"} & self.rows[0].keys())

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, and was not begun anew since."""
        if self.supervised and "steps" not in self.summary:  # of an earlier version
            return bool(self.summary) and self.rows[-1]["epoch"] >= self.used("epochs", 0)
        return self.summary.get("steps") == self.rows[-1]["step"]

    def used(self, setting: str, default: Any = None) -> Any:
        """Returns a setting as the training used it: config.yaml may leave it to a default."""
        published = {**self.section.get("recipe", {}), **self.section.get("method_config", {})}
        return published.get(setting, self.settings.get(setting, default))

    @property
    def section(self) -> dict[str, Any]:
        """simco_zoo's part of config.json."""
        return section(self.config)

    def best(self, column: str) -> dict[str, Any] | None:
        """Returns the row with the highest value of a column, the first of equals."""
        return max(self.measured(column), key=lambda row: row[column], default=None)

    def measured(self, column: str) -> list[dict[str, Any]]:
        """Returns the rows that have a value in a column."""
        return [row for row in self.rows if row.get(column) is not None]


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Reads the folders of runs.

    Raises:
        ValueError: If a folder is not a run, has no epoch yet or holds a damaged file, or the same run is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"the run {path} is given twice; name each run once.")
    names = [path.name for path in paths]
    if len({*names}) < len(names):  # as much of the paths as tells them apart
        common = os.path.commonpath([path.parent for path in paths])
        names = [str(path.relative_to(common)) for path in paths]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    log, settings_file, summary_file = (folder / file for file in ("log.csv", "config.yaml", "summary.json"))
    if (folder / MODEL_FILE).is_file():
        raise ValueError(f"{folder} is a published folder; pass the run that it belongs to, e.g. {folder.parent}.")
    if not log.is_file():
        if settings_file.is_file():
            raise ValueError(f"the run {folder} has no {log.name} yet; wait for its first epoch.")
        raise ValueError(f"{folder} is not a run (it has no {log.name}); pass the --output of pretrain or finetune.")
    rows = _read_log(log)
    published = next((folder / part for part in ("last", "best") if (folder / part / CONFIG_FILE).is_file()), None)
    config = {}
    if published is not None:
        config = parse_config((published / CONFIG_FILE).read_bytes(), str(published / CONFIG_FILE))
    if settings_file.is_file():
        settings = _parse(settings_file, yaml.safe_load)
    else:  # a run of Python's
        settings = {key: value for key, value in section(config).get("recipe", {}).items() if key not in _MEASURED}
    summary = _parse(summary_file, json.loads) if summary_file.is_file() else {}
    return Run(
        folder,
        name,
        rows,
        datetime.fromtimestamp(log.stat().st_mtime),
        settings,
        published,
        config,
        summary,
    )


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        rows: list[dict[str, Any]]
        rows = [{key: float(value) if value else None for key, value in row.items()} for row in found]
        rows = [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not the log of a run, or is damaged ({type(error).__name__}: {error}).") from error
    if not rows:
        raise ValueError(f"{path} has no epoch yet; wait for the first one, or leave the run out.")
    return rows


def _parse(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no settings by name.")
    return found


# A run's images


@dataclass(frozen=True)
class Sample:
    """Some of a run's images, in memory or not.

    Attributes:
        bank: Training images.
        test: Images of the test split; of the training split, but not in ``bank``, where the run had none.
        held_out: Whether ``test`` is from the test split.
    """

    bank: ImageData
    test: ImageData
    held_out: bool


def load_sample(run: Run, dataset: str | None, bank: int, test: int) -> Sample:
    """Draws a sample of the images that a run was trained and measured on.

    Args:
        run: With a published model, which says what size the images had.
        dataset: Another data set than the run's.
        bank: Number of training images, at most.
        test: Number of others, at most.

    Raises:
        ValueError: If the images cannot be read, or are too few.
    """
    if dataset is None and "dataset" not in run.settings:
        raise ValueError("the run has no config.yaml that names them; pass --dataset.")
    return _load_sample(
        dataset or str(run.settings["dataset"]),
        run.settings.get("train_split") or "train",
        run.settings.get("test_split") or "test",
        bool(run.settings.get("streaming")),
        bank,
        test,
        image_size=image_side(run.config["pretrained_cfg"]["input_size"]),
        **{key: run.settings.get(key) for key in _LOADING},
    )


_LOADING = ("image_column", "label_column", "dataset_config", "revision", "val_fraction", "limit", "epoch_images")


@lru_cache(maxsize=1)  # runs that are compared mostly have the same images
def _load_sample(
    dataset: str,
    train_split: str,
    test_split: str,
    streaming: bool,
    bank: int,
    test: int,
    *,
    image_size: Size,
    image_column: str | None,
    label_column: str | None,
    dataset_config: str | None,
    revision: str | None,
    val_fraction: float | None,
    limit: int | None,
    epoch_images: int | None,
) -> Sample:
    load: dict[str, Any] = {"image_size": image_size, "image_column": image_column}
    load.update(dataset_config=dataset_config, revision=revision)
    if streaming:
        stream = stream_images(dataset, train_split, length=epoch_images, **load)
        images = load_images(next(stream.epoch(0, min(bank + test, len(stream)))), split=train_split)
    else:
        load.update(label_column=label_column, val_fraction=val_fraction)
        # a limit's images are evenly spaced over the split, and no others are decoded
        images = load_images(dataset, split=train_split, limit=min(limit or bank + test, bank + test), **load)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: bank + test]
    if test_split != "none" and images.labels is not None:  # as pretrain.py has it
        others = load_images(dataset, split=test_split, limit=min(limit or test, test), **load)
        return Sample(images.subset(order[:bank]), others, True)
    if len(images) < 10:
        raise ValueError(f"{dataset} has only {len(images)} images.")
    cut = min(test, len(order) // 5)
    return Sample(images.subset(order[cut:]), images.subset(order[:cut]), False)


def views_of(run: Run) -> TwoViews:
    """Returns what made the run's training views: its preset, or fine-tuning's crops and flips."""
    recipe, cfg = run.section["recipe"], run.config["pretrained_cfg"]
    if "view_preset" in recipe:  # JSON has lists for tuples
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in recipe["view_preset"].items()
        }
        preset: ViewPreset | None = ViewPreset(**values)
    else:
        preset = PRESETS.get(recipe.get("views"))
    if preset is None:
        scale = (recipe["min_scale"], 1.0)
        preset = ViewPreset(scale=scale, mean=cfg["mean"], std=cfg["std"], jitter=0.0, grayscale=0.0)
    return TwoViews(preset, size=cfg["input_size"][-1])
