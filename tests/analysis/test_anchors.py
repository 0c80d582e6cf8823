"""``simco-zoo analyze strength``: tables, figure and caption say what was measured."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from simco_zoo.analysis import anchors
from simco_zoo.cli.analyze import main


def test_strength_of_the_shipped_weights(tmp_path, capsys):
    assert main(["strength", "--quick", "--anchors", "300", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["anchors"] == 300 and result["folder"] == str(tmp_path)
    with (tmp_path / "strength.csv").open() as file:
        rows = list(csv.DictReader(file))
    cv = {(r["network"], int(r["negatives"]), float(r["temperature"])): float(r["strength_cv"]) for r in rows}
    assert {size for _, size, _ in cv} == {15, 63, 255}
    # the paper's claim, and that an untrained network's anchors are all alike
    assert cv["trained", 15, 0.1] > cv["trained", 63, 0.1] > cv["trained", 255, 0.1] > 5 * cv["untrained", 255, 0.1]
    assert cv["trained", 15, 0.05] > cv["trained", 15, 0.2] > cv["trained", 15, 1.0]
    assert f"| 15 | {cv['trained', 15, 0.05]:.2f} (" in out
    caption = (tmp_path / "strength.txt").read_text()
    assert caption.strip() in out and "The paper expects" in caption and "Found: At temperature 0.1" in caption
    assert f"from {cv['trained', 15, 0.1]:.2f} with 15 negatives to {cv['trained', 255, 0.1]:.2f} with 255" in caption
    assert (tmp_path / "strength.png").stat().st_size > 10_000


def test_caption_without_a_reference_or_gradients():
    z = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = anchors.caption(anchors.measure(z, z)[0], [], "mine", "photos")
    assert text.startswith("mine on photos, two random views of 16 images.") and "untrained" not in text


def test_a_cosine_below_one_does_not_read_as_one():
    rows = [{"network": "trained", "batch_size": 16, "dt_m": 10.0, "batches": 1, "cosine": 0.99996}]
    assert "| 16 | 0.9999 |" in anchors.as_text([], rows)


def test_too_few_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="photos has 10 images; the study needs 16 or more"):
        main(["strength", "--limit", "10", "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
