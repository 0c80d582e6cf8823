"""The model card states what config.json says, in words that fit what was done, and nothing else."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from simco_zoo.publishing.card import card_as_written, card_for_repository, kind_of, model_card
from tests.hub.folders import read_config, shaken

import simco_zoo  # isort: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict[str, Any]:
    """A pretrained model's config.json."""
    model = shaken("simco", backbone="test_resnet", small_stem=True)
    recipe = {
        "epochs": 3, "batch_size": 64, "lr": 0.06, "views": "cifar", "views_per_image": 4, "sizes": "16:0.5,32:0.5",
        "seconds": 7200.0, "started_from": "", "steps": 100, "decay_share": 0.3,
    }  # fmt: skip
    data = {"name": "uoft-cs/cifar100", "split": "train", "images": 50_000, "image_size": 32}
    folder = simco_zoo.save_pretrained(
        model, tmp_path_factory.mktemp("card") / "m", recipe=recipe, data=data, metrics={"knn_top1": 38.0},
        hardware="x86_64 cpu, 2 threads", tag="c100",
    )  # fmt: skip
    return read_config(folder)


def changed(config: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A config with other entries; ``data`` and the like go into the section simco_zoo."""
    config = copy.deepcopy(config)
    for name, entries in sections.items():
        part = config if name == "top" else config["simco_zoo"].setdefault(name, {})
        part = config["pretrained_cfg"] if name == "pretrained_cfg" else part
        part.update(entries)
    return config


def test_a_pretrained_model(config):
    card = ModelCard(model_card(config))
    assert card.data.datasets == ["uoft-cs/cifar100"] and card.data.license is None and card.data.base_model is None
    assert card.data.pipeline_tag == "image-feature-extraction" and "self-supervised-learning" in card.data.tags
    assert card.data.model_name == "simco-test_resnet.c100"
    assert "# test_resnet with the small-image stem, SimCo on uoft-cs/cifar100" in card.text
    for fact in (
        "trained by SimCo on uoft-cs/cifar100 without labels", "crops of 8 to 100 % of the area", "color jitter 80 %",
        "| views per image | 4 |", "16 px for 50 % of the steps, 32 px for 50 % of the steps",
        "| training time | 2.0 hours (4.0 core-hours) |", "| hardware | x86_64 cpu, 2 threads |",
        "Images are resized to 32 px",
        "| views through the network | 12,800 at 16 px, 12,800 at 32 px |", "over the last 30 % of the steps",
        "No license was stated", "dual temperature, tau_alpha 0.1, tau_beta 1",
    ):  # fmt: skip
        assert fact in card.text, fact
    assert not re.search(r"\bNone\b|[{}]|FOLDER_OR", card.text.replace("[None]", ""))


@pytest.mark.parametrize(("argument", "values"), [
    ("license", ["MIT", "Apache 2.0", "a: b", "mit\n"]),
    ("tag", ["my photos", "a/b", "..", ".hidden", "é", "-x", "tag\n", "x" * 200]),
])  # fmt: skip
def test_names_that_are_not_written_as_such_are_refused(argument, values, tmp_path):
    model = simco_zoo.create_model("simco", backbone="test_resnet")
    for value in values:
        with pytest.raises(ValueError, match=f"the {argument} {re.escape(repr(value))}"):
            simco_zoo.save_pretrained(model, tmp_path / "m", **{argument: value})
        assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="the tag 'a b' cannot"):
        simco_zoo.training.pretrain(model, "photos", tag="a b", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_license_is_stated_only_if_it_was_given(config, tmp_path):
    model = shaken("simco", backbone="test_resnet", small_stem=True)
    card = ModelCard.load(simco_zoo.save_pretrained(model, tmp_path / "m", license="cc-by-nc-4.0") / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and "licensed under cc-by-nc-4.0" in card.text
    for text in (model_card(config), (simco_zoo.save_pretrained(model, tmp_path / "n") / "README.md").read_text()):
        assert "license:" not in text and "apache" not in text.lower()


KINDS = {
    "fine-tuned": ({"finetuned_from": "x", "started_from": "hf-hub:org/base@abc"}, "backbone and classifier together"),
    "probe": ({"finetuned_from": "x", "freeze": True}, "The backbone stayed as it was"),
    "from scratch": ({"finetuned_from": "x", "started_from": ""}, "from random weights, without pretraining"),
    "converted": ({"converted_from": "solo-learn", "encoder": "query"}, "converted from a solo-learn checkpoint"),
    "pretrained": ({"started_from": "hf-hub:timm/resnet18.a1_in1k"}, "starting from timm/resnet18.a1_in1k"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_wording_follows_what_was_done(kind, config):
    recipe, sentence = KINDS[kind]
    config = changed(config, data={"name": "my_images"}, metrics={"finetune_top1": 80.0})
    config["simco_zoo"]["recipe"] = {"epochs": 3, **recipe}
    assert kind_of(config) == kind
    card = ModelCard(model_card(config))
    assert sentence in " ".join(card.text.split())
    assert card.data.datasets is None and card.data.eval_results is None  # a folder's name is nothing on the Hub
    base = {"fine-tuned": "org/base", "pretrained": "timm/resnet18.a1_in1k"}
    assert card.data.base_model == base.get(kind)
    labeled = kind in ("fine-tuned", "probe", "from scratch")
    assert ("cross-entropy" in card.text) == labeled
    assert ("without labels" in card.text) == (kind in ("fine-tuned", "probe", "pretrained"))
    assert ("self-supervised-learning" in card.data.tags) == (kind != "from scratch")
    if kind == "converted":
        assert "tau_alpha" not in card.text and "not in the checkpoint" in card.text
    if kind == "probe":
        assert "backbone and classifier trained" not in card.text


@pytest.mark.parametrize("name", ["my images", "train", "a/b/c", "/home/me/images", "-x/y", 3, None, ""])
def test_only_ids_of_the_hub_stand_in_the_header(name, config):
    card = ModelCard(model_card(changed(config, data={"name": name, "images": None, "split": None})))
    assert card.data.datasets is None and card.data.eval_results is None


def test_classes_are_listed(config):
    names = [f"class {i}" for i in range(60)]
    config = changed(config, top={"num_classes": 60}, pretrained_cfg={"label_names": names})
    text = model_card(config)
    assert "60 classes: class 0, class 1," in text and "and 10 more" in text and "class 55" not in text
    assert "AutoModelForImageClassification" in text and "one of its 60 classes" in text


def test_own_views_are_described_by_their_values(config):
    views = {"scale": [0.5, 1.0], "flip": 0.5, "jitter": 0.0, "blur": 0.25}
    text = model_card(changed(config, recipe={"views": views}))
    assert "| views | crops of 50 to 100 % of the area, horizontal flip 50 %, blur 25 % |" in text


def test_a_tag_of_a_labeled_model_is_one_of_its_own(tmp_path):
    model = simco_zoo.create_model("simco_r18_025", pretrained=True, num_classes=2)
    folder = simco_zoo.save_pretrained(model, tmp_path / "m", recipe={"finetuned_from": "simco_r18_025.cifar100"})
    assert read_config(folder)["pretrained_cfg"]["tag"] == "cifar100-ft"
    folder = simco_zoo.save_pretrained(model, tmp_path / "m", recipe={"finetuned_from": "x"}, tag="mine-ft")
    assert read_config(folder)["pretrained_cfg"]["tag"] == "mine-ft"


def test_the_card_of_a_repository_can_be_traced_back(config):
    card = model_card(config).encode()
    published = card_for_repository(card, "org/name")
    assert b"FOLDER" not in published and published.count(b"org/name") == card.count(b"FOLDER") == 3
    assert card_as_written(published) == card == card_as_written(card)
