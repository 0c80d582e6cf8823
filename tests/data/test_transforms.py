"""The transform that a model was evaluated with, against timm's own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import simco_zoo
from simco_zoo.data import resolve_transform
from simco_zoo.data.transforms import unwrap
from tests.data.pictures import picture, pixels


def small(**cfg) -> nn.Module:
    """A timm model whose pretrained_cfg says something else."""
    model = timm.create_model("test_resnet")
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    return model


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("input_size", "crop_pct"), [((3, 64, 64), 0.875), ((3, 64, 64), 1.0), ((3, 48, 96), 0.9)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_timms_own_transform(crop_mode, input_size, crop_pct, interpolation):
    model = small(crop_mode=crop_mode, input_size=input_size, crop_pct=crop_pct, interpolation=interpolation)
    timms = create_transform(**resolve_model_data_config(model), is_training=False)
    for size in ((200, 150), (90, 333), (64, 64), (20, 31)):
        image = picture(1, size)
        assert torch.equal(resolve_transform(model)(image), timms(image)), size


def test_of_a_zoo_model():
    model = simco_zoo.create_model("simco_r18_025")
    tensor = resolve_transform(model)(picture(0))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(tensor, (pixels(picture(0)).float() / 255 - mean) / std)
    assert resolve_transform(model)(picture(0, (50, 70)).convert("LA")).shape == (3, 32, 32)


def test_another_image_size():
    model = small()
    assert resolve_transform(model, image_size=96)(picture(0, (200, 100))).shape == (3, 96, 96)
    assert resolve_transform(model, image_size=(40, 80))(picture(0, (200, 100))).shape == (3, 40, 80)
    timms = create_transform(**{**resolve_model_data_config(model), "input_size": (3, 96, 96)})
    assert torch.equal(resolve_transform(model, image_size=96)(picture(0, (200, 100))), timms(picture(0, (200, 100))))
    with pytest.raises(ValueError, match="image_size is 0"):
        resolve_transform(model, image_size=0)


def test_can_be_pickled():
    transform = resolve_transform(small(crop_mode="border"))
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform and torch.equal(again(picture(0, (99, 50))), transform(picture(0, (99, 50))))


@pytest.mark.parametrize("create", [simco_zoo.create_model, timm.create_model])
def test_gray_models_get_gray_images(create):
    model = create("simco_r18_025", pretrained=True, in_chans=1).eval()
    image = picture(0, (32, 32))
    tensor = resolve_transform(model)(image)
    mean, std = (sum(model.pretrained_cfg[key]) / 3 for key in ("mean", "std"))
    gray = torch.from_numpy(np.array(image.convert("L"))).float()[None] / 255
    torch.testing.assert_close(tensor, (gray - mean) / std)
    expected = model(tensor[None])
    for images in (pixels(image)[None], [image], [image.convert("L")]):
        torch.testing.assert_close(simco_zoo.extract_features(model, images).features, expected)


@pytest.mark.parametrize("wide", [True, False])
def test_a_network_that_was_built_for_another_size_gets_images_of_that_size(wide):
    size = (32, 64) if wide else 48
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=size).eval()  # timm's description says 224 px
    tensor = resolve_transform(model)(picture(0, (90, 70)))
    assert tensor.shape == ((3, 32, 64) if wide else (3, 48, 48))
    found = simco_zoo.extract_features(model, [picture(0, (90, 70))])
    assert found.info["image_size"] == size
    # a large image is resized in the same way for both
    torch.testing.assert_close(
        found.features, model.forward_head(model.forward_features(tensor[None]), pre_logits=True)
    )


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, Wrapper, lambda m: nn.DataParallel(Wrapper(m))])
def test_wrapped_models(wrap):
    model = simco_zoo.create_model("simco_r18_025").eval()
    wrapped = wrap(model)
    assert resolve_transform(wrapped) == resolve_transform(model)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    if wrap is not torch.compile:  # compiling takes its time; nothing of it is ours
        found = simco_zoo.extract_features(wrapped, images)
        torch.testing.assert_close(found.features, simco_zoo.extract_features(model, images).features)


def test_unwrap_keeps_a_model_of_parts():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert unwrap(model) is model and unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model


def test_a_model_that_does_not_say_its_input_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    for call in (
        resolve_transform,
        lambda m: simco_zoo.extract_features(m, torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
    ):
        with pytest.raises(ValueError, match="this Sequential does not say what images it expects"):
            call(model)
    assert simco_zoo.extract_features(model, torch.zeros(2, 3, 8, 8)).features.shape == (2, 5)  # floats are ready
    for not_a_model in (None, "simco_r18", lambda images: images):
        with pytest.raises(ValueError, match="has to be a module of PyTorch"):
            simco_zoo.extract_features(not_a_model, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="takes 4 channels"):
        resolve_transform(simco_zoo.create_model("simco_r18_025", in_chans=4))


@pytest.mark.parametrize("shape", [(2, 4, 32, 32), (2, 32, 32, 3)])
def test_tensors_of_other_channels_are_named(shape):
    model = simco_zoo.create_model("simco_r18_025")
    with pytest.raises(ValueError, match=rf"the images have {shape[1]} channels \(N, C, H, W\), but the model takes 3"):
        simco_zoo.extract_features(model, torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = picture(3, (40, 30))
    # how a camera stores what a viewer shows upright, by the EXIF standard
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright.copy()
    stored.getexif()[0x0112] = orientation
    model = small()
    assert torch.equal(resolve_transform(model)(stored), resolve_transform(model)(upright))


def test_damaged_exif_leaves_the_image_as_it_is():
    image = picture(3)
    image.info["exif"] = b"Exif\0\0II*\0\xff\xff"
    model = small()
    assert torch.equal(resolve_transform(model)(image), resolve_transform(model)(picture(3)))


def test_numbers_beyond_a_type_are_cut():
    from simco_zoo.data.transforms import to_rgb

    values = np.array([[-5, 0, 257, 65535, 10**6]], dtype=np.int32)
    assert np.array(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 1, 255, 255]
    scan = np.array([[0, 16, 2048, 4095]], dtype=np.uint16)  # 12 bits
    assert np.array(to_rgb(Image.fromarray(scan)))[0, :, 0].tolist() == [0, 1, 128, 255]
    floats = np.array([[np.nan, -1, 0.5, np.inf, 300]], dtype=np.float32)
    assert np.array(to_rgb(Image.fromarray(floats)))[0, :, 0].tolist() == [0, 0, 0, 255, 255]
