"""Evaluation: features, and what they are worth."""

from simco_zoo.evaluation.diagnostics import alignment, diagnose, effective_rank, uniformity
from simco_zoo.evaluation.export import write_features
from simco_zoo.evaluation.features import Features, extract_features
from simco_zoo.evaluation.knn import knn
from simco_zoo.evaluation.linear import linear_probe

__all__ = [
    "Features",
    "alignment",
    "diagnose",
    "effective_rank",
    "extract_features",
    "knn",
    "linear_probe",
    "uniformity",
    "write_features",
]
