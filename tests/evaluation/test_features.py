"""Features of every kind of input equal those of the plain loop."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import simco_zoo
from simco_zoo.data import load_images, resolve_transform
from simco_zoo.evaluation import Features, extract_features, write_features


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return simco_zoo.create_model("simco_r18_025")


def uint8(n: int = 7, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def plain(model, images: torch.Tensor) -> torch.Tensor:
    """What a timm user writes."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    model.eval()
    with torch.no_grad():
        return model((images.float() / 255 - mean) / std)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_tensors(model, batch_size):
    images = uint8()
    expected = plain(model, images)
    found = extract_features(model, images, batch_size)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    assert found.features.dtype == torch.float32 and found.labels is None
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    ready = extract_features(model, (images.float() / 255 - mean) / std)
    torch.testing.assert_close(ready.features, expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_images_of_every_size(model, tmp_path):
    expected = []
    transform = resolve_transform(model)
    for i, size in enumerate([(32, 32), (100, 40), (7, 9)]):
        values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / str(i % 2) / f"{i}.png")
        expected.append(transform(Image.fromarray(values)))
    (tmp_path / "0" / "bad.png").write_text("nothing")
    found = extract_features(model, tmp_path)
    assert found.names == ["0/0.png", "0/2.png", "1/1.png"] and found.labels.tolist() == [0, 0, 1]
    assert [name for name, _ in found.skipped] == ["0/bad.png"]
    with torch.no_grad():
        reference = model.eval()(torch.stack([expected[0], expected[2], expected[1]]))
    torch.testing.assert_close(found.features, reference, rtol=1e-4, atol=1e-4)
    streamed = extract_features(model, tmp_path, in_memory=False)
    torch.testing.assert_close(streamed.features, found.features)


def test_plain_timm_models_and_the_mode_they_were_in(model):
    bare = timm.create_model("test_resnet", num_classes=0).train()
    found = extract_features(bare, uint8(3, 64))
    assert found.features.shape == (3, bare.num_features) and bare.training
    assert all(m.training for m in bare.modules())
    before = {name: value.clone() for name, value in bare.state_dict().items()}
    extract_features(bare, uint8(3, 64))
    assert all(torch.equal(before[name], value) for name, value in bare.state_dict().items())


def test_parts_that_were_frozen_in_evaluation_mode_stay_there():
    bare = timm.create_model("test_resnet", num_classes=0).train()
    bare.bn1.eval()
    extract_features(bare, uint8(3, 64))
    assert bare.training and not bare.bn1.training


def test_the_model_is_left_bit_by_bit_as_it_was(model, tmp_path):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.no_grad():
        before = model(x)
    strides = [p.stride() for p in model.parameters()]
    extract_features(model, uint8())
    assert [p.stride() for p in model.parameters()] == strides
    with torch.no_grad():
        assert torch.equal(model(x), before)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")  # refuses other layouts


def test_a_model_that_fails_is_put_back_too():
    bare = timm.create_model("test_resnet", global_pool="").train()
    strides = [p.stride() for p in bare.parameters()]
    with pytest.raises(ValueError, match="no vector per image"):
        extract_features(bare, uint8())
    assert bare.training and [p.stride() for p in bare.parameters()] == strides


def test_features_are_what_enters_the_classifier(model):
    expected = extract_features(model, uint8()).features
    classifier = simco_zoo.create_model("simco_r18_025", num_classes=10)
    classifier.backbone.load_state_dict(model.backbone.state_dict(), strict=False)
    assert classifier.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert torch.equal(extract_features(classifier, uint8()).features, expected)
    assert torch.equal(extract_features(classifier.backbone, uint8()).features, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_floats_of_any_type(model, dtype):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = extract_features(model, images).features
    found = extract_features(model, images.to(dtype)).features
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_half_precision(model):
    expected = extract_features(model, uint8()).features
    cast = copy.deepcopy(model).to(torch.bfloat16)
    for found in (extract_features(cast, uint8()), extract_features(model, uint8(), amp=torch.bfloat16)):
        assert found.features.dtype == torch.float32 and not torch.equal(found.features, expected)
        torch.testing.assert_close(found.features, expected, rtol=0.05, atol=0.05)


def test_features_can_be_trained_on(model):
    weight = torch.zeros(model.num_features, requires_grad=True)
    (extract_features(model, uint8()).features @ weight).sum().backward()  # inference tensors would refuse
    assert weight.grad is not None


def test_data_sets_of_pil_images(model):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in uint8()]
    expected = extract_features(model, uint8()).features
    table = datasets.Dataset.from_dict({"img": pictures, "label": [0, 1, 2, 0, 1, 2, 0]})
    table = table.cast_column("img", datasets.Image())
    pairs = [(picture, i % 3) for i, picture in enumerate(pictures)]
    for source in (table, pairs):
        found = extract_features(model, source)
        torch.testing.assert_close(found.features, expected)
        assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_workers_keep_the_order(model, tmp_path):
    for i, image in enumerate(uint8()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    found = extract_features(model, tmp_path, 2, in_memory=False, num_workers=2)
    assert found.names == [f"{i}.png" for i in range(7)] and found.labels is None
    torch.testing.assert_close(found.features, extract_features(model, uint8()).features, rtol=1e-4, atol=1e-5)


def test_photos_carry_labels(model):
    pytest.importorskip("skimage")
    data = load_images("photos", limit=20)
    found = extract_features(model, data)
    assert len(found) == 20 and torch.equal(found.labels, data.labels) and found.names == data.names


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet"])
@pytest.mark.parametrize("labeled", [True, False])
def test_files(tmp_path, suffix, labeled):
    features = Features(
        torch.randn(3, 4),
        torch.tensor([2, 0, 1]) if labeled else None,
        ["a.png", "b.png", "ç.png"],
        [],
        ["x", "y", "z"],
    )
    path = write_features(features, tmp_path / "new" / f"f{suffix}")
    if suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            values, names = file.get_tensor("features"), json.loads(file.metadata()["names"])
            labels = file.get_tensor("labels").tolist() if labeled else None
            assert labeled == ("labels" in file.keys())  # noqa: SIM118 (safe_open is no mapping)
    elif suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            values, names = torch.from_numpy(file["features"]), file["names"].tolist()
            labels = file["labels"].tolist() if labeled else None
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        table = pq.read_table(path)
        values, names = torch.tensor(table["features"].to_pylist()), table["name"].to_pylist()
        labels = table["label"].to_pylist() if labeled else None
    assert torch.equal(values, features.features) and names == features.names
    assert labels == ([2, 0, 1] if labeled else None)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_errors(model, tmp_path):
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract_features(model, uint8(), 0)
    with pytest.raises(ValueError, match="no vector per image"):
        extract_features(timm.create_model("simco_r18_025", global_pool=""), uint8())
    with pytest.raises(ValueError, match=r"images has shape \(3, 32, 32\)"):
        extract_features(model, uint8()[0])
    with pytest.raises(ValueError, match=r"images is torch\.int64"):
        extract_features(model, uint8().long())
    with pytest.raises(ValueError, match="has to end in one of"):
        write_features(Features(torch.zeros(1, 1)), tmp_path / "f.csv")
