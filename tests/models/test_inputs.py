"""What a model is given: images of the wrong kind, misspelled arguments; and how it leaves Python."""

from __future__ import annotations

import pytest
import torch

import simco_zoo

GRAY = {"in_chans": 1}


@pytest.mark.parametrize(("arguments", "images", "message"), [
    ({}, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "images are torch.uint8, but the model takes normalized"),
    ({}, torch.zeros(2, 32, 32, 3), "takes 3 channels"),
    ({}, torch.zeros(2, 4, 32, 32), "takes 3 channels"),
    ({}, torch.zeros(3, 32, 32), "one image is image"),
    (GRAY, torch.zeros(2, 3, 32, 32), "takes 1 channel: .N, 1, H, W.; .* a gray model takes"),
])  # fmt: skip
def test_images_that_do_not_fit_are_one_sentence(arguments, images, message):
    for name in ("simco_r18_025", "simco"):
        backbone = {"backbone": "vit_tiny_patch16_224", "small_stem": True} if name == "simco" else {}
        model = simco_zoo.create_model(name, **backbone, **arguments)
        for call in (model, model.forward_features, model.project, lambda x, m=model: m.contrast(x, x)):
            with pytest.raises(ValueError, match=message):
                call(images)


def test_gray_images_pass_through_a_model_that_takes_them():
    model = simco_zoo.create_model("simco_r18_025", in_chans=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_a_misspelled_argument_names_the_one_that_was_meant(backbone):
    with pytest.raises(ValueError, match=r"simco has no argument temprature \(did you mean temperature\?\)"):
        simco_zoo.create_model("simco", backbone=backbone, temprature=3)
    with pytest.raises(ValueError, match=r"simco has no argument foo \(nor has its backbone\); its arguments are"):
        simco_zoo.create_model("simco", backbone=backbone, foo=3)
    with pytest.raises(ValueError, match="simco has no argument momentun"):
        simco_zoo.create_model("simco_r18_025", momentun=0.9)


def test_a_model_is_exported_and_its_backbone_scripted():
    model = simco_zoo.create_model("simco_r18_025").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
        torch.testing.assert_close(torch.jit.script(model.backbone)(images), expected)
        torch.testing.assert_close(torch.jit.trace(model, images)(images), expected)
