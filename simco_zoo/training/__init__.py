"""Training: from images to a published folder."""

from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.interruption import Interrupted
from simco_zoo.training.loop import TrainingError, pretrain

__all__ = ["Interrupted", "TrainingConfig", "TrainingError", "pretrain"]
