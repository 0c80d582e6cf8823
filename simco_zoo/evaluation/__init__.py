"""Evaluation: features, and what they are worth."""

from simco_zoo.evaluation.diagnostics import (
    alignment,
    center_and_residual,
    diagnose,
    effective_rank,
    off_diagonal_covariance,
    uniformity,
)
from simco_zoo.evaluation.export import read_features, write_features
from simco_zoo.evaluation.features import Features, extract_features
from simco_zoo.evaluation.linear import linear_probe
from simco_zoo.evaluation.neighbors import knn

__all__ = [
    "Features",
    "alignment",
    "center_and_residual",
    "diagnose",
    "effective_rank",
    "extract_features",
    "knn",
    "linear_probe",
    "off_diagonal_covariance",
    "read_features",
    "uniformity",
    "write_features",
]
