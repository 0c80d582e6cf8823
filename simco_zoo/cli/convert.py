"""Turn other people's checkpoints into a published folder: ResNets of MoCo, SimMoCo, SimCo, and plain timm weights.

    simco-zoo convert --checkpoint last.ckpt --method simco --stem-padding 2 --tag cifar100 --output FOLDER
    simco-zoo convert --checkpoint vit.pth --backbone vit_tiny_patch16_224 --license mit --output FOLDER

Read are Lightning checkpoints of the paper's official code and of solo-learn (encoder.*, backbone.*, momentum_*), those
of the original MoCo (module.encoder_q.*, module.encoder_k.*), lightly's (backbone.0.*, with torchvision's ResNet or
lightly's own), and plain state dicts with the keys of timm or torchvision (conv1.weight; any backbone with --backbone).
The file is opened with weights_only=True, so no code in it runs. Every key is accounted for; the last line printed is
JSON that says which went where. The folder states what the checkpoint says, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import simco_zoo
from simco_zoo.cli.run import build_command
from simco_zoo.hub import WeightsError
from simco_zoo.hub.checks import check_fit, check_tensors
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
    "timm or torchvision": {"query": ("", "no projector"), "key": ("no key encoder", "no projector")},
}
# lightly numbers the children of a ResNet, after the stem's convolution and batch norm: torchvision's has ReLU and
# max-pooling among them, one without pooling has the ReLU, and lightly's own ResNet has neither
CHILDREN = {
    7: {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"},
    6: {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"},
    5: {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"},
}
DEPTHS = {(False, 2): 18, (False, 6): 34, (True, 6): 50}  # by bottleneck blocks, and blocks in the third stage
IMAGENET_INPUT = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bilinear"}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of a checkpoint without running code from it."""
    run = path.resolve().parent.parent
    if path.resolve().parent.name == "checkpoints" and (run / "config.yaml").is_file():
        raise ValueError(
            f"{path} is a training checkpoint of simco-zoo; its weights are published already: "
            f"create_model('local-dir:{run / 'last'}', pretrained=True)."
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # Lightning's hyperparameters
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError) as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} holds {named[1] if named else 'objects'} besides its tensors, which could run code, or is not a "
            "checkpoint at all; where you trust it, save its state_dict alone: torch.save({'state_dict': ...}, FILE)."
        ) from error
    except Exception as error:  # bytes that are no checkpoint lead the unpickler to errors of any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason}).") from error
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors; pass a training checkpoint.")
    if isinstance(content, dict) and "settings" in content and "projector.0.weight" in state:
        raise ValueError(
            f"{path} is a training checkpoint of simco-zoo; its weights are published already, in the folder last/ of "
            "its run."
        )
    tensors = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    try:
        check_tensors(tensors, str(path))
    except WeightsError as error:
        raise ValueError(str(error)) from error
    return tensors


def find_layout(state: dict[str, Tensor], backbone: str | None = None) -> str:
    """Names the code that wrote the keys."""
    if backbone is not None or "conv1.weight" in state:
        return "timm or torchvision"
    if any(key.startswith("encoder_q.conv1.") for key in state):
        return "original MoCo"
    if any(re.match(r"backbone\.\d+\.", key) for key in state):
        return "lightly"
    if any(key.startswith("backbone.conv1.") for key in state):
        return "solo-learn"
    if any(key.startswith("encoder.conv1.") for key in state):
        return "official"
    raise ValueError(
        f"the keys ({', '.join(list(state)[:4])}...) are none of those known: encoder_q.conv1.*, encoder.conv1.*, "
        "backbone.conv1.*, backbone.0.*, conv1.*; rename them to one of these, or, if they are timm's, pass --backbone."
    )


def split_keys(
    state: dict[str, Tensor], layout: str, encoder: str, stem_relu: bool = False
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns which keys are the backbone's and which the projector's: theirs -> ours."""
    body, head = LAYOUTS[layout][encoder]
    backbone = {key: key.removeprefix(body) for key in state if key.startswith(body) and not key.startswith(head)}
    projector = {key: key.removeprefix(head) for key in state if key.startswith(head)}
    if not backbone:
        raise ValueError(f"the checkpoint has no {encoder} encoder ({body}*); pass the other --encoder.")
    if layout == "lightly":
        last = max(int(name.split(".")[0]) for name in backbone.values() if name.split(".")[0].isdigit())
        if last == 5 and not stem_relu:
            raise ValueError(
                "lightly's ResNetGenerator, cut up as nn.Sequential(*list(resnet.children())[:-1]), has lost the ReLU "
                "after its stem, and is another network than any registered one; pass --stem-relu if your code applied "
                "the ReLU after all."
            )
        backbone = {key: _lightly_name(name, CHILDREN.get(last, {})) for key, name in backbone.items()}
    backbone = {key: name.replace(".shortcut.", ".downsample.") for key, name in backbone.items()}
    # a classifier trained alongside the backbone is not part of it
    classifiers = ("fc.", "linear.", "head.", "classifier.")
    backbone = {key: name for key, name in backbone.items() if not name.startswith(classifiers)}
    return backbone, {key: f"0.{name}" if name in ("weight", "bias") else name for key, name in projector.items()}


def _lightly_name(name: str, children: dict[str, str]) -> str:
    first, _, rest = name.partition(".")
    if first not in children:
        raise ValueError(f"lightly's backbone has a part {name!r} that no ResNet has; only ResNets are converted.")
    return f"{children[first]}.{rest}"


def describe_network(weights: dict[str, Tensor]) -> tuple[str, bool]:
    """Returns a ResNet's size as in the registered names ("18", "18_025"), and whether it has the small-image stem."""
    bottleneck = "layer1.0.conv3.weight" in weights
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer3.")})
    if (bottleneck, blocks) not in DEPTHS or "conv1.weight" not in weights:
        raise ValueError(f"no ResNet-18, -34 or -50 has {blocks} blocks in its third stage; only these are converted.")
    depth, small = DEPTHS[bottleneck, blocks], weights["conv1.weight"].shape[-1] == 3
    width = len(weights["conv1.weight"])
    if width != 64 and (width, depth, small) != (16, 18, True):
        raise ValueError(f"the stem has {width} channels; ResNets of the full width (64) are converted, no others.")
    return f"{depth}{'' if width == 64 else '_025'}", small


def build_model(
    method: str,
    weights: dict[str, Tensor],
    head: dict[str, Tensor],
    stem_padding: int | None,
    backbone: str | None = None,
) -> tuple[ContrastiveModel, bool]:
    """Builds the model the weights belong to; tells whether its projector is one of ours (linear, or two layers)."""
    if backbone is not None:
        return simco_zoo.create_model(method, backbone=backbone, small_stem=False), False
    size, small = describe_network(weights)
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
        return simco_zoo.create_model(method, backbone=f"resnet{size}", **widths), bool(widths)
    if stem_padding is None:
        raise ValueError(
            "the first convolution is 3x3, and its padding is not in the weights: pass --stem-padding 2 for the "
            "official code and solo-learn, 1 for lightly."
        )
    arguments: dict[str, Any] = {"stem_padding": stem_padding} if stem_padding != 1 else {}
    return simco_zoo.create_model(f"{method}_r{size}", **widths, **arguments), bool(widths)


def convert(
    checkpoint: Path,
    output: Path,
    method: str | None,
    encoder: str = "query",
    stem_padding: int | None = None,
    tag: str | None = None,
    image_size: int | None = None,
    *,
    backbone: str | None = None,
    stem_relu: bool = False,
    license: str | None = None,
) -> dict[str, Any]:
    """Writes the published folder and returns what went where."""
    state = read_checkpoint(checkpoint)
    layout = find_layout(state, backbone)
    if method is None and layout != "timm or torchvision":
        raise ValueError(f"the checkpoint is one of {layout}: pass --method, what it was trained with.")
    ours, projector = split_keys(state, layout, encoder, stem_relu)
    weights = {name: state[theirs] for theirs, name in ours.items()}
    head = {name: state[theirs] for theirs, name in projector.items()}
    model, has_projector = build_model(method or "simco", weights, head, stem_padding, backbone)
    try:
        check_fit(weights, model.backbone, str(checkpoint))
        if has_projector:
            check_fit(head, model.projector, str(checkpoint))
    except WeightsError as error:
        raise ValueError(f"{error} Nothing was written.") from error
    model.backbone.load_state_dict(weights)
    if has_projector:
        model.projector.load_state_dict(head)
    _describe_input(model, image_size)
    taken = {**{k: f"model.safetensors: {v}" for k, v in ours.items()}}
    if has_projector:
        taken |= {k: f"projector.safetensors: {v}" for k, v in projector.items()}
    left_out = sorted(set(state) - set(taken))
    recipe = {"converted_from": layout, "encoder": encoder, "checkpoint": checkpoint.name}
    folder = simco_zoo.save_pretrained(
        model,
        output,
        recipe=recipe if method else {**recipe, "declared_method": False},
        tag=tag,
        license=license,
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


def _describe_input(model: ContrastiveModel, image_size: int | None) -> None:
    """Replaces what timm says about weights of its own: nothing about these weights' input is in a checkpoint."""
    keys = ("first_conv", "classifier", "fixed_input_size", "pool_size", "mean", "std", "input_size")
    cfg = {key: model.pretrained_cfg[key] for key in keys if key in model.pretrained_cfg}
    if model.architecture.startswith("resnet"):
        cfg |= IMAGENET_INPUT
    if image_size is not None:
        cfg["input_size"] = (3, image_size, image_size)
    small = cfg["input_size"][-1] <= 64
    cfg = {"crop_pct": 1.0 if small else 0.875, "crop_mode": "center", "interpolation": "bicubic", **cfg}
    model.set_pretrained_cfg({**cfg, "num_classes": 0})


def main(argv: list[str] | None = None) -> int:
    parser = build_command("convert", __doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the training checkpoint (.ckpt, .pth, .pth.tar)"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--method", choices=METHODS, help="what it was trained with; default: not stated (plain weights)"
    )
    parser.add_argument("--backbone", help="timm's name of the network, for plain state dicts with timm's keys")
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help="key: the momentum encoder")
    parser.add_argument(
        "--stem-padding",
        type=int,
        choices=(1, 2),
        help="padding of a 3x3 stem: 2 official and solo-learn, else 1",
    )
    parser.add_argument("--image-size", type=int, help="side of the images it was trained on; default: 32 or 224")
    parser.add_argument("--stem-relu", action="store_true", help="lightly's own ResNet had its ReLU after the stem")
    parser.add_argument("--tag", help="tag of the weights, e.g. the data set")
    parser.add_argument("--license", help="license of the checkpoint, as the Hub names it; default: none is claimed")
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        raise ValueError(f"there is no file {args.checkpoint}; pass a training checkpoint.")
    result = convert(
        args.checkpoint,
        args.output,
        args.method,
        args.encoder,
        args.stem_padding,
        args.tag,
        args.image_size,
        backbone=args.backbone,
        stem_relu=args.stem_relu,
        license=args.license,
    )
    for theirs, ours in result["taken"].items():
        print(f"  {theirs} -> {ours}")
    for theirs in result["left_out"]:
        print(f"  {theirs} -> left out")
    if not result["projector"]:
        print("no projector that simco-zoo knows (batch norm, another depth, or none): the folder gives features only")
    print(f"load it: simco_zoo.create_model('local-dir:{result['folder']}', pretrained=True)")
    print(json.dumps(result))
    return 0
