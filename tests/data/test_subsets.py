"""Balanced parts of the labels, and classes that are too small."""

from __future__ import annotations

import warnings

import pytest
import torch

from simco_zoo.data import load_images
from simco_zoo.data.subsets import balanced_subset, warn_of_small_classes


def test_every_class_gives_its_share():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)[torch.randperm(153)]
    rows = balanced_subset(labels, 0.1, seed=3)
    assert labels[rows].bincount().tolist() == [10, 5, 1]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, balanced_subset(labels, 0.1, seed=3))
    assert not torch.equal(rows, balanced_subset(labels, 0.1, seed=4))
    assert torch.equal(balanced_subset(labels, 1.0), torch.arange(153))


def test_a_class_draws_alike_whatever_the_others_have():
    labels = torch.tensor([0] * 20 + [1] * 20)
    more = torch.cat([labels, torch.tensor([1] * 30)])
    first = [rows[rows < 20].tolist() for rows in (balanced_subset(labels, 0.5), balanced_subset(more, 0.5))]
    assert first[0] == first[1]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_shares_out_of_range(fraction):
    with pytest.raises(ValueError, match="has to lie in"):
        balanced_subset(torch.zeros(3, dtype=torch.long), fraction)


def test_a_class_with_one_image_is_named():
    images = load_images(torch.zeros(5, 3, 4, 4, dtype=torch.uint8))
    images = type(images)(**{**vars(images), "labels": torch.tensor([0, 0, 1, 2, 2]), "class_names": ["a", "b", "c"]})
    with pytest.warns(UserWarning, match="the class b of tensor has one image"):
        warn_of_small_classes(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_small_classes(images.subset([0, 1, 3, 4]))
