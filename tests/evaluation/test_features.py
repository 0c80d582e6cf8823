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
from simco_zoo.evaluation import Features, extract_features, read_features, resumable, write_features
from simco_zoo.evaluation import features as features_module
from simco_zoo.evaluation.neighbors import find_duplicates
from simco_zoo.lock import locked


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
    with pytest.raises(ValueError, match=r"images has shape \(2, 3, 0, 0\)"):
        extract_features(model, torch.zeros(2, 3, 0, 0, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images is torch\.int64"):
        extract_features(model, uint8().long())
    with pytest.raises(ValueError, match="has to end in one of"):
        write_features(Features(torch.zeros(1, 1)), tmp_path / "f.txt")
    with pytest.raises(ValueError, match="loaded already, at 32 px; load them with image_size=64"):
        extract_features(model, load_images(uint8()), image_size=64)
    with pytest.raises(ValueError, match="image_size is 0"):
        extract_features(model, tmp_path, image_size=0)
    with pytest.raises(ValueError, match="takes images of 160 px only, so leave out image_size=64"):
        extract_features(timm.create_model("test_vit", num_classes=0), "photos", image_size=64, limit=2)


def test_flip_is_the_mean_with_the_mirror_image(model):
    images = uint8()
    expected = (plain(model, images) + plain(model, images.flip(-1))) / 2
    found = extract_features(model, images, 3, flip=True)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    assert found.info["flip"] is True


def test_images_are_seen_at_another_side(model, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    with torch.no_grad():
        expected = model.eval()(resolve_transform(model, image_size=48)(Image.fromarray(values))[None])
    found = extract_features(model, tmp_path, image_size=48)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-4)
    assert found.info["image_size"] == 48 and extract_features(model, tmp_path).info["image_size"] == 32


class Wrapper(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Scaled(torch.nn.Module):
    """Says nothing about its input."""

    def __init__(self, net):
        super().__init__()
        self.net, self.scale = net, torch.nn.Linear(128, 4)

    def forward(self, x):
        return self.scale(self.net(x))


def test_wrapped_models_see_what_the_model_sees(model):
    images = uint8()
    expected = extract_features(model, images).features
    for wrapped in (torch.nn.DataParallel(model), Wrapper(model), Wrapper(torch.nn.DataParallel(model))):
        assert torch.equal(extract_features(wrapped, images).features, expected)
    with pytest.raises(ValueError, match="does not say what images it expects"):
        extract_features(Scaled(model), images)
    assert extract_features(Scaled(model), torch.randn(2, 3, 32, 32)).features.shape == (2, 4)


def test_all_splits_of_a_folder(model, tmp_path):
    for split, number in (("train", 3), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (20, 20), (40 * i, 90, 10)).save(tmp_path / split / label / f"{i}.png")
    found = extract_features(model, tmp_path, split="all")
    assert len(found) == 10 and sorted(found.splits) == ["test"] * 4 + ["train"] * 6
    assert found.class_names == ["a", "b"] and sorted(found.labels.tolist()) == [0] * 5 + [1] * 5


def test_damaged_images_that_are_decoded_on_the_way_leave_no_row(model, tmp_path):
    """Its header is whole, so it is found out only when it is decoded, in the middle of a batch."""
    for i in range(5):
        values = np.random.default_rng(i).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    whole = extract_features(model, tmp_path, in_memory=False)
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 2])
    found = extract_features(model, tmp_path, 2, in_memory=False)
    assert found.names == ["0.png", "1.png", "3.png", "4.png"] and [name for name, _ in found.skipped] == ["2.png"]
    torch.testing.assert_close(found.features, whole.features[[0, 1, 3, 4]])


def some_features(**changes) -> Features:
    values = {
        "features": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) / 3,
        "labels": torch.tensor([1, 0, -1, 1]),
        "names": ["train/a, b.png", "train/ü.png", 'test/"x".png', "test/d.png"],
        "class_names": ["cat", "dog"],
        "splits": ["train", "train", "test", "test"],
        "info": {"model": "m", "flip": True},
    }
    return Features(**{**values, **changes})


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet", ".csv"])
@pytest.mark.parametrize(
    "changes", [{}, {"labels": None, "class_names": None}, {"splits": None}, {"class_names": None}]
)
def test_what_is_written_is_read_again(suffix, changes, tmp_path):
    written = some_features(**changes)
    read = read_features(write_features(written, tmp_path / f"f{suffix}"))
    assert torch.equal(read.features, written.features) and read.features.dtype == torch.float32
    assert read.names == written.names and read.splits == written.splits and read.class_names == written.class_names
    assert (read.labels is None) == (written.labels is None)
    assert written.labels is None or torch.equal(read.labels, written.labels)
    assert read.info == ({} if suffix == ".csv" else written.info)


def test_other_tools_read_the_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_features(some_features(), tmp_path / "f.csv")
    table = pandas.read_csv(tmp_path / "f.csv", keep_default_na=False)
    assert list(table.columns) == ["name", "split", "label", "class", "f0", "f1", "f2"]
    assert table["class"].tolist() == ["dog", "cat", "", "dog"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("f.csv", b"a,b\n1,2\n", "f.csv holds no features, or is damaged"),
    ("f.safetensors", b"12345678nothing", "f.safetensors holds no features"),
    ("f.npz", b"nothing", "f.npz holds no features"),
    ("f.parquet", b"nothing", "f.parquet holds no features"),
    ("f.txt", b"", "has to end in one of"),
    (None, b"", "there is no file"),
])  # fmt: skip
def test_files_without_features(name, content, message, tmp_path):
    if name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path / (name or "missing.csv"))


def test_duplicates_against_plain_loops():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=generator)
    features[30:] = features[:10] + 0.05 * torch.randn(10, 5, generator=generator)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    groups = [{i} for i in range(40)]
    for i in range(40):
        for j in range(i):
            if unit[i] @ unit[j] >= 0.97:
                joined = groups[i] | groups[j]
                for member in joined:
                    groups[member] = joined
    expected = sorted({tuple(sorted(group)) for group in groups if len(group) > 1})
    found = find_duplicates(features, 0.97)
    assert sorted(tuple(group.rows) for group in found) == expected and len(expected) >= 8
    assert [group.similarity for group in found] == sorted((group.similarity for group in found), reverse=True)
    assert all(group.similarity >= 0.97 - 1e-5 for group in found)
    same = torch.ones(4, 2)
    assert [group.rows for group in find_duplicates(same, 1.0)] == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="threshold is 0"):
        find_duplicates(same, 0)


class TestResumable:
    @pytest.fixture
    def images(self):
        return load_images("photos", limit=40)

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch):
        monkeypatch.setattr(resumable, "PART_IMAGES", 8)

    def stop(self, monkeypatch, after: int) -> list[int]:
        """Interrupts the call after some forwards; the list counts the images that were computed."""
        whole, seen = features_module.build_forward, []

        def build(*args, **kwargs):
            forward = whole(*args, **kwargs)

            def counted(batch):
                if len(seen) == after:
                    raise KeyboardInterrupt
                seen.append(len(batch))
                return forward(batch)

            return counted

        monkeypatch.setattr(features_module, "build_forward", build)
        return seen

    def test_an_interrupted_call_continues(self, model, images, tmp_path, monkeypatch):
        expected = extract_features(model, images)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            self.stop(patch, after=6)
            resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)
        assert not (tmp_path / "f.npz").exists() and len(list((tmp_path / "f.npz.parts").glob("*.safetensors"))) == 2
        with monkeypatch.context() as patch:
            seen = self.stop(patch, after=-1)
            result = resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)
        assert sum(seen) == 40 - 16  # what was there is not computed again
        assert result == {"count": 40, "dim": 128, "output": str(tmp_path / "f.npz"), "skipped": []}
        found = read_features(tmp_path / "f.npz")
        torch.testing.assert_close(found.features, expected.features, rtol=1e-5, atol=1e-6)
        assert found.names == expected.names and torch.equal(found.labels, expected.labels)
        assert not (tmp_path / "f.npz.parts").exists()

    @pytest.mark.parametrize("how", ["cut", "flipped"])
    def test_a_damaged_part_is_computed_again(self, how, model, images, tmp_path, monkeypatch):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            self.stop(patch, after=8)
            resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)
        second = sorted((tmp_path / "f.npz.parts").glob("*.safetensors"))[1]
        content = second.read_bytes()
        damaged = content[:50] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1])
        second.write_bytes(damaged)
        resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)
        torch.testing.assert_close(read_features(tmp_path / "f.npz").features, extract_features(model, images).features)

    def test_parts_of_another_extraction_are_refused(self, model, images, tmp_path, monkeypatch):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            self.stop(patch, after=6)
            resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)
        torch.manual_seed(1)
        other = simco_zoo.create_model("simco_r18_025")
        for change, message in (
            ({"flip": True}, "flip"),
            ({"images": load_images("photos", limit=41)}, "images"),
            ({"images": type(images)(**{**vars(images), "images": images.images.flip(3)})}, "images"),
            ({"model": other}, "weights"),
        ):
            arguments = {"model": model, "images": images, "output": tmp_path / "f.npz", **change}
            with pytest.raises(ValueError, match=f"another extraction \\(other {message}\\); delete it, or choose"):
                resumable.extract_to_file(**arguments)

    def test_two_processes_do_not_write_the_same_parts(self, model, images, tmp_path):
        (tmp_path / "f.npz.parts").mkdir()
        with locked(tmp_path / "f.npz.parts"), pytest.raises(OSError, match="is being written to by process"):
            resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)
        resumable.extract_to_file(model, images, tmp_path / "f.npz", 4)

    def test_paths_are_checked_first(self, model, images, tmp_path):
        (tmp_path / "folder.npz").mkdir()
        (tmp_path / "file").write_text("")
        for output, error, message in (
            ("folder.npz", ValueError, "is a folder; name a file"),
            ("f.txt", ValueError, "has to end in one of"),
            ("file/f.npz", OSError, "nothing can be written to"),
        ):
            with pytest.raises(error, match=message):
                resumable.extract_to_file(None, images, tmp_path / output)
