"""Training: from images to a published folder."""

from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.finetune_config import LINEAR_SGD, FinetuneConfig
from simco_zoo.training.finetuning import finetune
from simco_zoo.training.interruption import Interrupted
from simco_zoo.training.pretraining import TrainingError, pretrain

__all__ = [
    "LINEAR_SGD",
    "FinetuneConfig",
    "Interrupted",
    "TrainingConfig",
    "TrainingError",
    "finetune",
    "pretrain",
]
