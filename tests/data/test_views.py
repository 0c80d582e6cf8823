"""The views against PIL and torchvision: each operation exactly, the whole as a distribution."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torchvision import transforms
from torchvision.transforms import functional as TF

from simco_zoo.data import PRESETS, TwoViews, ViewPreset, load_images
from simco_zoo.data.augment import (
    ViewParameters,
    color_jitter,
    crop_resize,
    gaussian_blur,
    resampling_matrix,
    to_gray,
)
from simco_zoo.data.rectangles import Rectangles

PIL_MODE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 6, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator(seed))


def photographs(n: int) -> Tensor:
    pytest.importorskip("skimage", reason="the built-in photographs need scikit-image")
    images = load_images("photos").images
    return images[torch.randperm(len(images), generator=generator())[:n]]


def parameters(n: int, **given) -> ViewParameters:
    """Parameters of a view that changes nothing, except for what is given."""
    off = torch.zeros(n, dtype=torch.bool)
    neutral = {
        "top": torch.zeros(n),
        "left": torch.zeros(n),
        "height": torch.full((n,), 32.0),
        "width": torch.full((n,), 32.0),
        "flip": off,
        "jitter": off,
        "factors": torch.ones(n, 3),
        "hue": torch.zeros(n),
        "order": torch.arange(4).expand(n, 4),
        "grayscale": off,
        "blur": off,
        "sigma": torch.ones(n),
        "solarize": off,
    }
    return ViewParameters(**{**neutral, **given})


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 20, 48])
@pytest.mark.parametrize("box", [(0, 0, 32, 32), (3, 5, 20, 13), (10, 2, 9, 30), (0, 31, 1, 1), (7, 7, 8, 8)])
def test_crop_resize_equals_pil(interpolation, size, box):
    top, left, height, width = box
    width = min(width, 32 - left)
    images = noise(3)
    p = parameters(
        3,
        top=torch.full((3,), float(top)),
        left=torch.full((3,), float(left)),
        height=torch.full((3,), float(height)),
        width=torch.full((3,), float(width)),
        flip=torch.tensor([False, True, False]),
    )
    ours = crop_resize(images.float(), p, size, interpolation)
    for i, image in enumerate(images):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        pil = pil.resize((size, size), PIL_MODE[interpolation])
        if p.flip[i]:
            pil = pil.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1).float()
        # PIL rounds to 8 bits after each of its two passes
        assert (ours[i] - expected).abs().max() <= 2.0


def test_resampling_weights_sum_to_one_and_stay_inside_the_crop():
    start, length = torch.tensor([4.0, 0.0, 30.0]), torch.tensor([7.0, 32.0, 2.0])
    matrix = resampling_matrix(start, length, 16, 32, "bicubic")
    torch.testing.assert_close(matrix.sum(dim=2), torch.ones(3, 16))
    for i in range(3):
        outside = torch.ones(32, dtype=torch.bool)
        outside[int(start[i]) : int(start[i] + length[i])] = False
        assert (matrix[i][:, outside] == 0).all()


@pytest.mark.parametrize(("name", "column", "value", "reference"), [
    ("brightness", 0, 1.3, TF.adjust_brightness),
    ("contrast", 1, 0.7, TF.adjust_contrast),
    ("saturation", 2, 1.35, TF.adjust_saturation),
    ("hue", None, 0.08, TF.adjust_hue),
    ("hue", None, -0.1, TF.adjust_hue),
])  # fmt: skip
def test_color_operations_equal_torchvisions(name, column, value, reference):
    x = noise(5).float() / 255
    x[2] = x[2, :1]  # gray
    x[3, 1], x[4, 2] = x[3, 0], x[4, 1]  # two channels are equal: on the corners and edges of the color hexagon
    factors = torch.ones(5, 3)
    hue = torch.zeros(5)
    if column is None:
        hue += value
    else:
        factors[:, column] = value
    p = parameters(5, jitter=torch.ones(5, dtype=torch.bool), factors=factors, hue=hue)
    expected = torch.stack([reference(image, value) for image in x])
    torch.testing.assert_close(color_jitter(x.clone(), p), expected, atol=2e-3, rtol=0)


def test_color_operations_run_in_the_drawn_order():
    x = noise(4).float() / 255
    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [0, 1, 2, 3]])
    factors = torch.tensor([[1.3, 0.7, 1.4]]).repeat(4, 1)
    jitter = torch.tensor([True, True, True, False])
    p = parameters(4, jitter=jitter, order=orders, factors=factors, hue=torch.full((4,), 0.05))
    ours = color_jitter(x.clone(), p)
    adjust = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]
    values = [1.3, 0.7, 1.4, 0.05]
    for i in range(4):
        expected = x[i]
        for operation in orders[i].tolist() if jitter[i] else []:
            expected = adjust[operation](expected, values[operation])
        torch.testing.assert_close(ours[i], expected, atol=3e-3, rtol=0)


def test_grayscale_equals_torchvisions():
    x = noise(3).float() / 255
    torch.testing.assert_close(to_gray(x), TF.rgb_to_grayscale(x), atol=1e-3, rtol=0)


def test_blur_equals_pils_with_each_images_own_sigma():
    """MoCo v2 blurs with PIL's filter; PIL rounds to 8 bits after each of its six passes: at most half a level each."""
    images = noise(5, size=40)
    sigma = torch.tensor([0.1, 0.45, 0.7, 1.3, 2.0])
    ours = gaussian_blur(images.float(), sigma, largest=2.0)
    for i in range(5):
        pil = Image.fromarray(images[i].permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(sigma[i].item()))
        difference = ours[i] - torch.from_numpy(np.array(pil)).permute(2, 0, 1).float()
        assert difference[:, 6:-6, 6:-6].abs().max() <= 3.0, sigma[i]
        assert difference.abs().mean() <= 1.5  # PIL repeats the edge in every pass, we do once


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 60), (200, 20)])
def test_crop_parameters_have_torchvisions_distribution(height, width):
    n = 4000
    p = TwoViews("cifar").draw(n, height, width, generator())
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    reference = torch.tensor([
        transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)
    ]).float()  # fmt: skip
    for name, ours, theirs in zip(
        ("top", "left", "height", "width"), (p.top, p.left, p.height, p.width), reference.T, strict=True
    ):
        assert ks_distance(ours, theirs) < critical(n), name
    assert (p.top + p.height <= height).all() and (p.left + p.width <= width).all()


def test_other_parameters_have_their_distributions():
    n = 20_000
    preset = PRESETS["imagenet"]
    p = TwoViews(preset).draw(n, 64, 64, generator(1))
    for name, probability in (("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.5), ("solarize", 0.0)):
        share = getattr(p, name).float().mean().item()
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / n), name
    uniform = torch.linspace(0, 1, n)
    for column in range(3):
        assert ks_distance(p.factors[:, column], 0.6 + 0.8 * uniform) < critical(n)
    assert ks_distance(p.hue, -0.1 + 0.2 * uniform) < critical(n)
    assert ks_distance(p.sigma, 0.1 + 1.9 * uniform) < critical(n)
    # each of the 24 orders alike often
    codes = (p.order * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = torch.unique(codes, return_counts=True)[1].float()
    assert len(counts) == 24
    chi_square = ((counts - n / 24) ** 2 / (n / 24)).sum().item()
    assert chi_square < 54  # 23 degrees of freedom: exceeded once in 3,000 times


def test_pixels_have_torchvisions_distribution():
    """Moments and quantiles of whole views of the same photographs, ours against torchvision's PIL pipeline."""
    images = photographs(400)
    mean, std = PRESETS["cifar"].mean, PRESETS["cifar"].std
    pipeline = transforms.Compose([
        transforms.RandomResizedCrop(32, scale=(0.08, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ])  # fmt: skip
    torch.manual_seed(0)
    pils = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    theirs = torch.stack([pipeline(pil) for pil in pils for _ in range(2)])
    ours = torch.stack(TwoViews("cifar")(images, generator=generator(2)), dim=1).flatten(0, 1)

    def per_image(x: Tensor) -> dict[str, Tensor]:
        gray = to_gray(x * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1))
        return {
            "red": x[:, 0].mean(dim=(1, 2)),
            "green": x[:, 1].mean(dim=(1, 2)),
            "blue": x[:, 2].mean(dim=(1, 2)),
            "contrast": x.std(dim=(1, 2, 3)),
            "sharpness": (gray[:, :, 1:] - gray[:, :, :-1]).abs().mean(dim=(1, 2, 3)),
            "color": (x[:, 0] - x[:, 2]).abs().mean(dim=(1, 2)),
            "dark": gray.flatten(1).quantile(0.05, dim=1),
            "bright": gray.flatten(1).quantile(0.95, dim=1),
        }

    for name, values in per_image(ours).items():
        reference = per_image(theirs)[name]
        # the same images on both sides: the difference has the standard error of the paired differences
        difference = (values - reference).view(400, 2).mean(dim=1)
        error = difference.std() / math.sqrt(400)
        assert abs(difference.mean()) < 4 * error + 1e-3, name
        assert ks_distance(values, reference) < critical(400), name


def ks_distance(a: Tensor, b: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of two samples."""
    grid = torch.cat([a, b]).sort().values
    cdf = [torch.searchsorted(x.sort().values, grid, right=True) / len(x) for x in (a, b)]
    return (cdf[0] - cdf[1]).abs().max().item()


def critical(n: int) -> float:
    """Two samples of n from one distribution exceed this distance about once in 1,000 times."""
    return 1.95 * math.sqrt(2 / n)


def test_same_generator_same_views():
    images = noise(8)
    first, second = TwoViews()(images, generator=generator(3)), TwoViews()(images, generator=generator(3))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    other = TwoViews()(images, generator=generator(4))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_each_image_has_parameters_of_its_own():
    image = noise(1).expand(64, -1, -1, -1)
    view = TwoViews()(image, generator=generator())[0]
    assert len({tuple(v.flatten()[:50].tolist()) for v in view}) == 64


def test_parameters_depend_on_place_and_not_on_content_or_share():
    """A process that draws for the global batch and takes its rows makes the views that one process would."""
    views, images = TwoViews(), noise(8)
    whole = views(images, generator=generator(5))[0]
    drawn = views.draw(8, 32, 32, generator(5))
    shares = torch.cat([views.apply(images[:4], drawn[:4]), views.apply(images[4:], drawn[4:])])
    torch.testing.assert_close(shares, whole, atol=1e-5, rtol=0)


def test_size_type_and_memory_format():
    images = noise(4, size=40)
    a, b = TwoViews(size=24, dtype=torch.bfloat16, channels_last=True)(images, generator=generator())
    assert a.shape == b.shape == (4, 3, 24, 24) and a.dtype == torch.bfloat16
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert TwoViews("imagenet")(images, generator=generator())[0].shape == (4, 3, 224, 224)
    laid_out = images.contiguous(memory_format=torch.channels_last)
    same = [TwoViews()(x, generator=generator())[0] for x in (images, laid_out)]
    torch.testing.assert_close(*same)


@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_the_accelerators_path_waits_for_no_value(source, monkeypatch):
    """A pretended GPU, whose tensors have shapes and no values: whatever has to know a value fails there."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    views = TwoViews(replace(PRESETS["imagenet"], solarize=0.2), size=32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with pytest.raises(DynamicOutputShapeException):
            torch.ones(4, device="cuda").nonzero()
        drawn = ViewParameters(**{
            field.name: getattr(views.draw(4, 40, 40), field.name).to(source) for field in fields(ViewParameters)
        })  # fmt: skip
        view = views.apply(torch.empty(4, 3, 40, 40, dtype=torch.uint8, device="cuda"), drawn)
    assert view.shape == (4, 3, 32, 32) and view.device.type == "cuda"


def test_parameters_move_unchanged():
    drawn = TwoViews("imagenet").draw(5, 32, 40, generator())
    with pytest.MonkeyPatch.context() as patch:  # the same device under another name: the move is really made
        patch.setattr(torch.Tensor, "device", property(lambda _: torch.device("meta")))
        moved = drawn.to(torch.device("cpu"))
    for field in fields(drawn):
        before, after = getattr(drawn, field.name), getattr(moved, field.name)
        assert before.dtype == after.dtype and torch.equal(before, after), field.name


def test_autocast_changes_nothing():
    images = noise(4)
    expected = TwoViews()(images, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TwoViews()(images, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_preset_without_chances_is_the_normalized_image():
    still = ViewPreset(
        scale=(1.0, 1.0), ratio=(1.0, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3, jitter=0.0, grayscale=0.0, flip=0.0
    )
    images = noise(4)
    for view in TwoViews(still)(images, generator=generator()):
        torch.testing.assert_close(view, (images.float() / 255 - 0.5) / 0.25, atol=1e-5, rtol=0)


def test_solarize_inverts_what_is_bright():
    preset = replace(PRESETS["cifar"], scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, grayscale=0.0, flip=0.0)
    views = TwoViews(replace(preset, solarize=1.0, mean=(0.0,) * 3, std=(1.0,) * 3))
    images = noise(3)
    expected = TF.solarize(images, 128).float() / 255
    torch.testing.assert_close(views(images, generator=generator())[0], expected, atol=1e-5, rtol=0)


def test_the_accelerators_path_gives_the_same_views():
    """There every image is computed and chosen afterwards; on the CPU only the chosen ones are."""
    from simco_zoo.data import augment, views

    def everywhere(chosen, x, operation, *parameters):
        return torch.where(chosen.view(-1, 1, 1, 1), operation(x, *parameters), x)

    images = noise(16)
    expected = TwoViews("imagenet", size=32)(images, generator=generator())
    with pytest.MonkeyPatch.context() as patch:
        for module in (augment, views):
            patch.setattr(module, "on_chosen_rows", everywhere)
        found = TwoViews("imagenet", size=32)(images, generator=generator())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_one_image_at_a_time_gives_the_same_views(name):
    """As a CPU makes large views; only the crop differs, by PIL's rounding to 8 bits."""
    images = photographs(24)
    views = TwoViews(replace(PRESETS[name], solarize=0.2, mean=(0.0,) * 3, std=(1.0,) * 3), size=48)
    expected = views(images, generator=generator())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simco_zoo.data.views._LARGE", 1)
        found = views(images, generator=generator())
    for ours, batched in zip(found, expected, strict=True):
        difference = (ours - batched).abs()
        # what lies at a half is solarized or not, and a hue of nearly gray pixels turns far
        assert difference.mean() < 2e-3 and difference.quantile(0.995) < 4 / 255
    assert TwoViews(size=64)(noise(2), generator=generator())[0].shape == (2, 3, 64, 64)


@pytest.mark.parametrize("large", [1, 1000])
def test_views_of_images_of_different_sizes(large, monkeypatch):
    monkeypatch.setattr("simco_zoo.data.views._LARGE", large)
    images = [
        noise(1, size=64, seed=i)[0, :, :height, :width] for i, (height, width) in enumerate([(32, 64), (48, 32)])
    ]
    batch, views = Rectangles.from_images(images), TwoViews("imagenet", size=40)
    found = views(batch, generator=generator(3))
    drawn = views.draw(2, *batch.sizes.unbind(dim=1), generator(3))
    for i, image in enumerate(images):
        alone = views.draw(2, image.shape[1], image.shape[2], generator(3))  # what is drawn depends on the place alone
        for field in fields(ViewParameters):
            assert torch.equal(getattr(alone, field.name)[i], getattr(drawn, field.name)[i]), field.name
        single = views.apply(image[None], drawn[i : i + 1])
        torch.testing.assert_close(found[0][i : i + 1], single, atol=1e-4, rtol=0)
    halves = [views(part, generator=generator(3), share=(i, 2))[0] for i, part in enumerate(batch.chunk(2))]
    torch.testing.assert_close(torch.cat(halves), found[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: TwoViews()(noise().float()), "torch.float32"),
    (lambda: TwoViews()(noise()[0]), r"uint8 \(N, 3, H, W\)"),
    (lambda: TwoViews()(noise()[:, :1]), r"uint8 \(N, 3, H, W\)"),
    (lambda: TwoViews(size=32)(noise()[..., :0]), r"uint8 \(N, 3, H, W\)"),
    (lambda: TwoViews("cifr"), "no preset 'cifr'"),
    (lambda: TwoViews(interpolation="cubic"), "interpolation is 'cubic'"),
    (lambda: TwoViews(size=0), "size is 0"),
    (lambda: TwoViews().apply(noise(6), TwoViews().draw(5, 32, 32)), "6 images, but parameters of 5"),
    (lambda: replace(PRESETS["cifar"], jitter=1.5), "jitter is 1.5"),
    (lambda: replace(PRESETS["cifar"], brightness=-0.4), "brightness is -0.4"),
    (lambda: replace(PRESETS["cifar"], hue=0.6), "hue is 0.6"),
    (lambda: replace(PRESETS["cifar"], scale=(0.0, 1.0)), r"scale is \(0.0, 1.0\)"),
    (lambda: replace(PRESETS["cifar"], blur_sigma=(2.0, 0.1)), "blur_sigma is"),
])  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
