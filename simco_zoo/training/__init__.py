"""Training: from images to a published folder."""

from simco_zoo.training.callbacks import Callback
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import LINEAR_SGD, FinetuneConfig
from simco_zoo.training.finetuning import Finetuning, finetune
from simco_zoo.training.interruption import Interrupted
from simco_zoo.training.pretraining import Pretraining, pretrain
from simco_zoo.training.state import TrainState
from simco_zoo.training.trainer import CollapseError, TrainingError

__all__ = [
    "LINEAR_SGD",
    "Callback",
    "CollapseError",
    "FinetuneConfig",
    "Finetuning",
    "Interrupted",
    "Pretraining",
    "TrainState",
    "TrainingConfig",
    "TrainingError",
    "finetune",
    "pretrain",
]
