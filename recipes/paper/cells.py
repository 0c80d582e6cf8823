"""The paper's table: its methods, settings and figures, and the controls that it lacks. See reproduce.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BATCH_SIZES = (64, 128, 256, 512, 1024)
EPOCHS = 200
IMAGES = {"cifar100": 50_000, "cifar10": 50_000}  # training images of a full-length run
HUB_IDS = {"cifar100": "uoft-cs/cifar100", "cifar10": "uoft-cs/cifar10"}

# top-1 in percent, ResNet-18, 200 epochs, from the official code's README. It does not name the data set; its scripts
# are for CIFAR-100 only
PAPER: dict[str, dict[int, float]] = {
    "mocov2": {64: 52.58, 128: 54.40, 256: 53.28, 512: 51.47, 1024: 48.90},
    "simmoco": {64: 54.02, 128: 54.93, 256: 54.11, 512: 52.45, 1024: 49.70},
    "simco": {64: 58.04, 128: 58.29, 256: 58.35, 512: 57.08, 1024: 55.34},
}

# what each method passes to pretrain.py, written out although most are the defaults; separate forwards for the views
# (joint_bn off) as in the official code
_HEAD: dict[str, Any] = {"temperature": 0.1, "joint_bn": False, "proj_hidden_dim": 128, "proj_dim": 128}
_MOCOV2 = {"model": "mocov2", **_HEAD, "momentum": 0.99, "queue_size": 65_536, "bn_splits": 1, "symmetric": False}
_SIMMOCO = {"model": "simmoco", **_HEAD, "momentum": 0.99, "dt_m": 10.0, "symmetric": False}
_SIMCO = {"model": "simco", **_HEAD, "dt_m": 10.0, "symmetric": True}

METHODS: dict[str, dict[str, Any]] = {
    "mocov2": _MOCOV2,
    "simmoco": _SIMMOCO,
    "simco": _SIMCO,
    # the controls: is it symmetry, the queue's length, leaking batch norm, or the second temperature?
    "mocov2-symmetric": {**_MOCOV2, "symmetric": True},
    "simmoco-symmetric": {**_SIMMOCO, "symmetric": True},
    "mocov2-q4096": {**_MOCOV2, "queue_size": 4096},
    "mocov2-q4096-split": {**_MOCOV2, "queue_size": 4096, "bn_splits": 8},
    "simco-infonce": {**_SIMCO, "dt_m": 1.0},
    "simco-onesided": {**_SIMCO, "symmetric": False},
}

TRAINING: dict[str, Any] = {
    "lr": 0.03,  # for a batch of 256; pretrain scales it with the batch
    "opt": "momentum",
    "opt_momentum": 0.9,
    "weight_decay": 5e-4,
    "filter_bias_and_norm": False,
    "accumulate": 1,
    "warmup_epochs": 10,
    "views": "cifar",
    "linear": True,
    "online_linear": True,
}

DEVIATIONS = """\
Where these runs differ from the official code (github.com/ChaoningZhang/Dual-temperature):
- Stem. A 3x3 convolution with padding 1. The official code has padding 2, which widens the maps from 32 to 34 px and
  costs 27 % more; --stem-padding 2 runs that. The stem's weights start as timm starts a ResNet's, not as torch starts
  a single convolution.
- Precision. fp32, or what --amp says (in the table); the official runs are fp16 (--amp fp16).
- Schedule. Warm-up and cosine move with each step, the official ones with each epoch. The warm-up starts at a tenth of
  the scaled rate, the official one at 0.003 for every batch size. Runs below 100 epochs warm up for a tenth of them.
- Forwards. Each view has a forward of its own, as in the official code, so batch norm sees one view at a time. Forwards
  that the loss does not use are left out: the running statistics of one-sided MoCo v2 and SimMoCo come from view 1, the
  official ones from both views (which have the same distribution).
- Online classifier. It sees the features of those forwards, so view 1 alone for one-sided MoCo v2 and SimMoCo; the
  official one sees both views, and there is a second one on the key encoder. Its rate warms up from 0.03, not 0.003.
- Views. The same distribution, computed in float for a whole batch; the official ones pass 8-bit images.
- Accuracy. The paper does not say which its table shows: online or momentum classifier, kNN, last or best epoch. Here
  *_last is the last epoch, *_best the best measured one (linear_best: the probe of the epoch with the best kNN; picking
  by test accuracy flatters). kNN is cosine with k = 200 on clean images, the official one Euclidean with k = 20 on
  augmented ones.
- Seeds. As given; the official scripts fix 15, and how many runs are behind a figure is not known.
- CIFAR-10. There is no official script; it gets CIFAR-100's settings.
Kept, although it surprises: MoCo v2's queue of 65,536 keys is longer than CIFAR, and its batch norm is neither split
nor shuffled (the controls mocov2-q4096 and mocov2-q4096-split change that). That the paper's table is CIFAR-100 is
inferred from its scripts.
"""


@dataclass(frozen=True)
class Cell:
    """One run of the table.

    Attributes:
        dataset: "cifar100", "cifar10" or another name.
        data: Where its images are: a Hub id, a folder, or "photos".
        method: One of ``METHODS``.
        batch_size: Images per step.
        seed: Seed of the weights, the order of the images and the views.
        backbone: "r18" (the paper's), "r18_025", or a name of timm.
        epochs: Passes over the images.
        limit: Use at most this many images of each split.
        stem_padding: Padding of the small-image stem.
        amp: "none", "bf16" or "fp16".
    """

    dataset: str
    data: str
    method: str
    batch_size: int
    seed: int
    backbone: str = "r18"
    epochs: int = EPOCHS
    limit: int | None = None
    stem_padding: int = 1
    amp: str = "none"

    @property
    def folder(self) -> str:
        """The run's folder below the output: all that tells this cell from another, and so its row's key."""
        parts = [self.method, f"b{self.batch_size}", f"s{self.seed}", f"e{self.epochs}"]
        parts += [f"n{self.limit}"] if self.limit is not None else []
        parts += [f"p{self.stem_padding}"] if self.stem_padding != 1 else []
        parts += [self.amp] if self.amp != "none" else []
        return f"{self.dataset}/{self.backbone}/{'-'.join(parts)}"

    def settings(self) -> dict[str, Any]:
        """Returns what pretrain.py gets, the output aside."""
        method = METHODS[self.method]
        zoo = {"r18": f"{method['model']}_r18", "r18_025": "simco_r18_025"}  # these have the small-image stem
        settings = {**method, "backbone": zoo.get(self.backbone, self.backbone), "small_stem": self.backbone not in zoo}
        if self.stem_padding != 1:
            settings["backbone_kwargs"] = f"stem_padding={self.stem_padding}"
        settings.update({"dataset": self.data, "limit": self.limit, "tag": self.dataset})
        settings.update({**TRAINING, "epochs": self.epochs, "batch_size": self.batch_size})
        return {**settings, "seed": self.seed, "amp": self.amp}

    def order(self) -> tuple[Any, ...]:
        """Sorts cells: the headline of CIFAR-100, of CIFAR-10, symmetric controls, other controls, other batches."""
        paper, headline = self.method in PAPER, self.batch_size == 256
        if paper and headline:
            stage = 0 if self.dataset == "cifar100" else 1
        elif headline:
            stage = 2 if self.method.endswith("-symmetric") else 3
        else:
            stage = 4 if paper else 5
        dataset = (self.dataset != "cifar100", self.dataset)
        return stage, *dataset, self.seed, self.batch_size, list(METHODS).index(self.method)


def flags(settings: dict[str, Any]) -> list[str]:
    """Writes settings as flags of a recipe; None is left out."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def paper_figure(row: dict[str, Any]) -> float | None:
    """Returns the paper's figure for a row of the table, if it is a full-length run of a cell that the paper has."""
    if not is_full_length(row) or row["dataset"] != "cifar100":
        return None
    return PAPER.get(row["method"], {}).get(int(row["batch_size"]))


def is_full_length(row: dict[str, Any]) -> bool:
    """Whether a row is a run of the paper's length: its backbone, its epochs, every training image of CIFAR."""
    images = IMAGES.get(row["dataset"])
    return row["backbone"] == "r18" and int(row["epochs"]) == EPOCHS and int(row["images"]) == images
