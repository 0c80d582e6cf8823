"""Checkpoints, damaged at random: each is refused, or it is the state that was saved.

    pytest tests/fuzz/test_checkpoints.py                 # a bounded sample of each kind of damage
    pytest tests/fuzz/test_checkpoints.py --fuzz 5000 -s  # that many of each kind, and the counts; --fuzz 0: every bit

The damage is repeatable: it comes from a seeded generator.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from tests.training.test_pretrain import assert_equal, weights
from tests.training.test_run import last_state, rows, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run with two checkpoints."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def small(trained, tmp_path_factory) -> Path:
    """A checkpoint of a few kilobytes, with everything that a real one has but the tensors."""
    state = {key: value for key, value in last_state(trained).items() if key not in ("model", "optimizer", "processes")}
    tensors = {"optimizer": {"momentum": torch.arange(9.0)}, "model": {"weight": torch.randn(4, 4)}}
    state["processes"] = [{"rng": {}, "sums": {}, "buffers": {}}]
    return save_checkpoint(tmp_path_factory.mktemp("small"), 6, {**state, **tensors}, keep=1)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def flipped(content: bytes, count: int) -> Iterator[bytes]:
    """Yields the content with one bit changed, for ``count`` bits, or for all of them."""
    bits = range(8 * len(content))
    for bit in bits if count == 0 else sorted(random.Random(0).sample(bits, min(count, len(bits)))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def cut(content: bytes, count: int) -> Iterator[bytes]:
    """Yields the content without its end."""
    lengths = range(len(content))
    for length in lengths if count == 0 else random.Random(1).sample(lengths, min(count, len(lengths))):
        yield content[:length]


def mixed_up(content: bytes, count: int) -> Iterator[bytes]:
    """Yields the content with a stretch of zeros or of noise, as disks leave it, or with something behind it."""
    draw = random.Random(2)
    for i in range(count or 500):
        changed, start = bytearray(content), draw.randrange(len(content))
        end = min(len(content), start + draw.choice((1, 16, 512, 4096)))
        changed[start:end] = bytes(end - start) if i % 2 else draw.randbytes(end - start)
        yield bytes(changed) if i % 5 else content + draw.randbytes(end - start)


@pytest.mark.parametrize("damage", [flipped, cut, mixed_up])
def test_a_damaged_checkpoint_is_refused_or_right(damage, small, tmp_path, fuzz_count):
    content, expected = small.read_bytes(), load_checkpoint(small)
    path, refused, right = tmp_path / "step-00000006.pt", 0, 0
    for damaged in damage(content, fuzz_count):
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert equal(found, expected), "another state was loaded"
        right += 1
    print(f"{damage.__name__}: {refused} refused, {right} right of {len(content)} bytes, 0 wrong")
    assert refused > 0


WRONG = {
    "empty": b"",
    "text": b"epoch,step\n",
    "a pickle": pickle.dumps({"step": 6}),
    "another archive": "save",
}


@pytest.mark.parametrize("kind", [*WRONG, "flipped", "cut"])
def test_a_run_falls_back_to_the_checkpoint_before_and_says_so(kind, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "summary.json").unlink()
    newest = list_checkpoints(folder / "checkpoints")[-1]
    content = newest.read_bytes()
    if kind == "another archive":
        torch.save({"step": 6, "format": 2, "model": {}}, newest)
    else:
        damaged = {"flipped": next(flipped(content, 1)), "cut": content[: len(content) // 2]}
        newest.write_bytes({**WRONG, **damaged}[kind])
    with pytest.warns(UserWarning, match="step-00000006.pt .* The one before it is used"):
        run(folder)
    assert json.loads((folder / "summary.json").read_text())["start_step"] == 3
    assert_equal(weights(folder / "last"), weights(trained / "last"))
    assert rows(folder) == rows(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(folder)  # what was damaged has been replaced
