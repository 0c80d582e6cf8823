"""Turn other people's checkpoints of MoCo, SimMoCo and SimCo into a published folder.

    simco-zoo convert --checkpoint last.ckpt --method simco --stem-padding 2 --tag cifar100 --output FOLDER

Read are Lightning checkpoints of the paper's official code and of solo-learn (encoder.*, backbone.*, momentum_*), those
of the original MoCo (module.encoder_q.*, module.encoder_k.*), and lightly's (backbone.0.*, with torchvision's ResNet or
lightly's own). The file is opened with weights_only=True, so that no code in it runs. Every key is accounted for; the
last line printed is JSON that says which went where.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import simco_zoo
from simco_zoo.cli.run import build_command
from simco_zoo.models import ContrastiveModel
from simco_zoo.models.methods import METHODS

# where each code keeps backbone and projector, of the query encoder and of the key encoder
LAYOUTS = {
    "original MoCo": {"query": ("encoder_q.", "encoder_q.fc."), "key": ("encoder_k.", "encoder_k.fc.")},
    "solo-learn": {"query": ("backbone.", "projector."), "key": ("momentum_backbone.", "momentum_projector.")},
    "official": {"query": ("encoder.", "projector."), "key": ("momentum_encoder.", "momentum_projector.")},
    "lightly": {
        "query": ("backbone.", "projection_head.layers."),
        "key": ("backbone_momentum.", "projection_head_momentum.layers."),
    },
}
# lightly numbers the children of a ResNet: torchvision's has ReLU and max-pooling among them, its own has not
TORCHVISION_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
LIGHTLY_CHILDREN = {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}
DEPTHS = {(False, 2): 18, (False, 6): 34, (True, 6): 50}  # by bottleneck blocks, and blocks in the third stage


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of a checkpoint without running code from it."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # Lightning's hyperparameters
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} holds {named[1] if named else 'objects'} beside its tensors, which could run code, or is no "
            "checkpoint at all; where you trust it, save its state_dict alone: torch.save({'state_dict': ...}, FILE)."
        ) from error
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors; pass a training checkpoint.")
    return {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def find_layout(state: dict[str, Tensor]) -> str:
    """Names the code that wrote the keys."""
    if any(key.startswith("encoder_q.") for key in state):
        return "original MoCo"
    if any(re.match(r"backbone\.\d+\.", key) for key in state):
        return "lightly"
    if any(key.startswith("backbone.conv1.") for key in state):
        return "solo-learn"
    if any(key.startswith("encoder.conv1.") for key in state):
        return "official"
    raise ValueError(
        f"the keys ({', '.join(list(state)[:4])}...) are none of those known: encoder_q.*, encoder.conv1.*, "
        "backbone.conv1.*, backbone.0.*; rename them to one of these."
    )


def split_keys(state: dict[str, Tensor], layout: str, encoder: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns which keys are the backbone's and which the projector's: theirs -> ours."""
    body, head = LAYOUTS[layout][encoder]
    backbone = {key: key.removeprefix(body) for key in state if key.startswith(body) and not key.startswith(head)}
    projector = {key: key.removeprefix(head) for key in state if key.startswith(head)}
    if not backbone:
        raise ValueError(f"the checkpoint has no {encoder} encoder ({body}*); pass the other --encoder.")
    if layout == "lightly":
        children = (
            TORCHVISION_CHILDREN if any(name.startswith("7.") for name in backbone.values()) else LIGHTLY_CHILDREN
        )
        backbone = {key: _lightly_name(name, children) for key, name in backbone.items()}
    # a classifier trained beside the backbone is none of ours
    backbone = {key: name for key, name in backbone.items() if not name.startswith("fc.")}
    return backbone, {key: f"0.{name}" if name in ("weight", "bias") else name for key, name in projector.items()}


def _lightly_name(name: str, children: dict[str, str]) -> str:
    first, _, rest = name.partition(".")
    if first not in children:
        raise ValueError(f"lightly's backbone has a part {name!r} that no ResNet has; only ResNets are converted.")
    return f"{children[first]}.{rest}".replace(".shortcut.", ".downsample.")


def describe_network(weights: dict[str, Tensor]) -> tuple[int, bool]:
    """Returns a ResNet's depth, and whether it has the small-image stem."""
    bottleneck = "layer1.0.conv3.weight" in weights
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer3.")})
    if (bottleneck, blocks) not in DEPTHS or "conv1.weight" not in weights:
        raise ValueError(f"no ResNet-18, -34 or -50 has {blocks} blocks in its third stage; only these are converted.")
    return DEPTHS[bottleneck, blocks], weights["conv1.weight"].shape[-1] == 3


def build_model(
    method: str, weights: dict[str, Tensor], head: dict[str, Tensor], stem_padding: int | None
) -> tuple[ContrastiveModel, bool]:
    """Builds the model the weights belong to; tells whether its projector is one of ours (linear, or two layers)."""
    depth, small = describe_network(weights)
    widths: dict[str, Any] = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    if set(shapes) == {"0.weight", "0.bias"}:
        widths = {"proj_hidden_dim": None, "proj_dim": shapes["0.weight"][0]}
    elif set(shapes) == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        widths = {"proj_hidden_dim": shapes["0.weight"][0], "proj_dim": shapes["2.weight"][0]}
    if not small:
        if stem_padding is not None:
            raise ValueError(
                "--stem-padding goes with the 3x3 stem, but the first convolution is larger; leave it out."
            )
        return simco_zoo.create_model(method, backbone=f"resnet{depth}", **widths), bool(widths)
    if stem_padding is None:
        raise ValueError(
            "the first convolution is 3x3, and its padding is not in the weights: pass --stem-padding 2 for the "
            "official code and solo-learn, 1 for lightly and MoCo's own CIFAR demo."
        )
    arguments: dict[str, Any] = {"stem_padding": stem_padding} if stem_padding != 1 else {}
    return simco_zoo.create_model(f"{method}_r{depth}", **widths, **arguments), bool(widths)


def convert(
    checkpoint: Path,
    output: Path,
    method: str,
    encoder: str = "query",
    stem_padding: int | None = None,
    tag: str | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Writes the published folder and returns what went where."""
    state = read_checkpoint(checkpoint)
    layout = find_layout(state)
    backbone, projector = split_keys(state, layout, encoder)
    weights = {ours: state[theirs] for theirs, ours in backbone.items()}
    head = {ours: state[theirs] for theirs, ours in projector.items()}
    model, has_projector = build_model(method, weights, head, stem_padding)

    try:
        model.backbone.load_state_dict(weights)  # strict: all keys or none
        if has_projector:
            model.projector.load_state_dict(head)
    except RuntimeError as error:
        problems = " ".join(str(error).split())
        raise ValueError(
            f"{checkpoint} does not fit a {model.architecture} ({problems}); nothing was written."
        ) from error
    cfg = {**model.pretrained_cfg, "num_classes": 0}
    if image_size is not None:
        cfg["input_size"] = (3, image_size, image_size)
    model.backbone.pretrained_cfg = model.backbone.default_cfg = cfg
    taken = {**{k: f"model.safetensors: {v}" for k, v in backbone.items()}}
    if has_projector:
        taken |= {k: f"projector.safetensors: {v}" for k, v in projector.items()}
    left_out = sorted(set(state) - set(taken))
    folder = simco_zoo.save_pretrained(
        model,
        output,
        recipe={"converted_from": layout, "encoder": encoder, "checkpoint": checkpoint.name},
        tag=tag,
        projector=has_projector,
    )
    return {
        "folder": str(folder),
        "layout": layout,
        "architecture": model.architecture,
        "model_args": model.model_args,
        "projector": has_projector,
        "taken": taken,
        "left_out": left_out,
    }


def main(argv: list[str] | None = None) -> int:
    parser = build_command("convert", __doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the training checkpoint (.ckpt, .pth, .pth.tar)"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--method", choices=METHODS, required=True, help="what it was trained with")
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help="key: the momentum encoder")
    parser.add_argument(
        "--stem-padding",
        type=int,
        choices=(1, 2),
        help="padding of a 3x3 stem: 2 official and solo-learn, else 1",
    )
    parser.add_argument("--image-size", type=int, help="side of the images it was trained on; default: 32 or 224")
    parser.add_argument("--tag", help="tag of the weights, e.g. the data set")
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        raise ValueError(f"there is no file {args.checkpoint}; pass a training checkpoint.")
    result = convert(
        args.checkpoint, args.output, args.method, args.encoder, args.stem_padding, args.tag, args.image_size
    )
    for theirs, ours in result["taken"].items():
        print(f"  {theirs} -> {ours}")
    for theirs in result["left_out"]:
        print(f"  {theirs} -> left out")
    if not result["projector"]:
        print("its projector is none that the zoo has (batch norm, or another depth): the folder gives features only")
    print(f"load it: simco_zoo.create_model('local-dir:{result['folder']}', pretrained=True)")
    print(json.dumps(result))
    return 0
