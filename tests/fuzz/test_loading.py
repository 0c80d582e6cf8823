"""Published folders, damaged at random: each loads as the model that was published, or is a named error.

    pytest tests/fuzz                 # a bounded sample of each kind of damage
    pytest tests/fuzz --fuzz 5000 -s  # that many of each kind, and the counts; --fuzz 0: every byte, every value

The damage is repeatable: sample and bits come from a seeded generator.
"""

from __future__ import annotations

import collections
import copy
import json
import os
import random
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import simco_zoo
from simco_zoo.hub import WeightsError
from simco_zoo.hub.config import CONFIG_HASH, seal
from simco_zoo.publishing import save_pretrained
from simco_zoo.publishing.verify import verify
from tests.hub.folders import shaken

TINY = {"backbone": "resnet18", "small_stem": True, "backbone_kwargs": {"channels": (2, 2, 4, 4)}}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A complete folder of a few kilobytes: projector, classifier with names, log."""
    model = shaken("simmoco", **TINY, num_classes=3, proj_hidden_dim=4, proj_dim=4)
    model.backbone.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["ant", "bee", "cat"]}
    root = tmp_path_factory.mktemp("fuzz")
    (root / "log.csv").write_text("epoch,loss\n1,2.5\n")
    return save_pretrained(model, root / "model", log=root / "log.csv", metrics={"knn_top1": 50.0}, tag="toy")


@pytest.fixture
def folder(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "model"))


def identity(model: Any) -> list[Any]:
    """All that makes two loaded models the same: tensors, settings of the method, what they say of their input."""
    backbone = getattr(model, "backbone", model)
    said = {k: v for k, v in backbone.pretrained_cfg.items() if k not in ("file", "source", "url", "hf_hub_id")}
    settings = model.method_config() if hasattr(model, "method_config") else {}
    return [type(model).__name__, settings, said, {k: v.clone() for k, v in model.state_dict().items()}]


def equal(one: list[Any], other: list[Any]) -> bool:
    tensors, others = one[-1], other[-1]
    return (
        one[:-1] == other[:-1]
        and tensors.keys() == others.keys()
        and all(torch.equal(tensors[key], others[key]) for key in tensors)
    )


WAYS: dict[str, Callable[[Path], Any]] = {
    "simco_zoo": lambda f: simco_zoo.create_model(f"local-dir:{f}", pretrained=True),
    "weights=": lambda f: simco_zoo.create_model("simmoco", weights=f),
    "timm": lambda f: timm.create_model(f"local-dir:{f}", pretrained=True),
}


def outcome(way: str, folder: Path, *expected: list[Any]) -> str:
    """Loads a damaged folder; says what came of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = WAYS[way](folder)
    except WeightsError as error:
        return "refused" if "\n" not in str(error) else "error of several lines"
    except Exception as error:
        if way == "timm":  # it reads config.json first, by its own code
            return "refused by timm"
        return f"unnamed error: {type(error).__name__}: {str(error)[:200]}"
    found = identity(model)
    return "same" if any(equal(found, one) for one in expected) else "wrong model"


def report(kind: str, counts: collections.Counter[str]) -> None:
    print(f"\n{kind}: {sum(counts.values())} inputs: {dict(counts)}")
    bad = {name: count for name, count in counts.items() if name not in ("refused", "refused by timm", "same")}
    assert not bad, f"{kind}: {bad}"


def sample(places: list[Any], count: int, seed: int = 0) -> list[Any]:
    return places if count == 0 else random.Random(seed).sample(places, min(count, len(places)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "projector.safetensors"])
def test_a_flipped_bit(file, way, folder, fuzz_count):
    expected = identity(WAYS[way](folder))
    content = (folder / file).read_bytes()
    bits = random.Random(1)
    # of the config every bit, of the tensors one bit of every byte
    places = [(i, bit) for i in range(len(content)) for bit in (range(8) if "json" in file else [bits.randrange(8)])]
    counts: collections.Counter[str] = collections.Counter()
    for position, bit in sample(places, fuzz_count):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        (folder / file).write_bytes(damaged)
        found = outcome(way, folder, expected)
        counts[found if found != "wrong model" else f"wrong model: byte {position}, bit {bit}"] += 1
    if file != "config.json" and (way, file) != ("timm", "projector.safetensors"):
        assert counts["same"] == 0
    report(f"bit flips in {file}, {way}", counts)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "projector.safetensors"])
def test_a_file_that_is_cut_or_longer(file, folder, fuzz_count):
    expected = identity(WAYS["simco_zoo"](folder))
    content = (folder / file).read_bytes()
    counts: collections.Counter[str] = collections.Counter()
    for length in sample(list(range(len(content))), fuzz_count):
        (folder / file).write_bytes(content[:length])
        counts[outcome("simco_zoo", folder, expected)] += 1
    (folder / file).write_bytes(content + b"\0")
    counts[outcome("simco_zoo", folder, expected)] += 1
    report(f"cuts of {file}", counts)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a JSON document, each as the keys that lead there."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


OTHER_VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "../x", [], [1], ["a", None], {}, {"a": {}}, float("inf"),
]  # fmt: skip


@pytest.mark.parametrize("honest", [False, True], ids=["hash kept", "hash renewed"])
def test_a_value_of_another_type(honest, folder, fuzz_count):
    """With the hash kept nothing loads; with a renewed one it is a valid config or a named error, verify included."""
    expected = identity(WAYS["simco_zoo"](folder))
    config = json.loads((folder / "config.json").read_text())
    changes = [(path, value) for path in places(config) if path[-1] != CONFIG_HASH for value in [*OTHER_VALUES, "GONE"]]
    counts: collections.Counter[str] = collections.Counter()
    for path, value in sample(changes, fuzz_count * 3):
        changed = copy.deepcopy(config)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        if value == "GONE":
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        if honest and isinstance(changed.get("simco_zoo"), dict):
            changed = seal(changed)
        (folder / "config.json").write_text(json.dumps(changed))
        found = outcome("simco_zoo", folder, expected)
        if honest and found == "wrong model":
            found = "another model, as its hash says"
        where = f"{'.'.join(map(str, path))} = {value!r}"
        counts[f"{found} ({where})" if found.startswith(("wrong", "unnamed", "error")) else found] += 1
        if honest and found != "refused":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    verify(folder)
            except WeightsError:
                pass
            except Exception as error:
                counts[f"verify: unnamed error {type(error).__name__}: {error} ({where})"] += 1
    counts.pop("another model, as its hash says", None)
    report(f"changed values, {'hash renewed' if honest else 'hash kept'}", counts)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_swapped_during_a_load(way, published, tmp_path, fuzz_count):
    """Two publications take turns in one folder, file by file; what loads is one of them, whole."""
    other = save_pretrained(shaken("simmoco", seed=1, **TINY, num_classes=3, proj_hidden_dim=4, proj_dim=4, dt_m=3.0),
                            tmp_path / "other")  # fmt: skip
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    expected = [identity(WAYS[way](source)) for source in (published, other)]
    stop = threading.Event()

    def swap() -> None:
        turn = random.Random(2)
        while not stop.is_set():
            source, name = turn.choice((published, other)), turn.choice(
                ["model.safetensors", "projector.safetensors", "config.json"])  # fmt: skip
            shutil.copy(source / name, tmp_path / "next")
            os.replace(tmp_path / "next", folder / name)

    thread = threading.Thread(target=swap)
    thread.start()
    counts: collections.Counter[str] = collections.Counter()
    try:
        for _ in range(fuzz_count or 5000):
            counts[outcome(way, folder, *expected)] += 1
    finally:
        stop.set()
        thread.join()
    report(f"swapped files, {way}", counts)
