"""What the tables of the report say about runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simco_zoo.models.methods import METHODS
from simco_zoo.report.runs import Run

_OWN_TO_A_RUN = {"output", "resume"}  # settings in which runs always differ


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
