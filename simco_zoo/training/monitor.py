"""What is measured during training: kNN, linear probes, diagnostics; all on clean images, in percent."""

from __future__ import annotations

from typing import Any

from simco_zoo.data import ImageData
from simco_zoo.data.streaming import StreamedImages
from simco_zoo.distributed import is_main
from simco_zoo.evaluation import Features, diagnose, extract_features, knn, linear_probe
from simco_zoo.models import ContrastiveModel
from simco_zoo.training.config import TrainingConfig
from simco_zoo.training.online_probe import OnlineProbe


class Monitor:
    """Measures a model that is being trained; without labels only the diagnostics.

    Args:
        model: The model.
        images: Training images, the bank of the kNN.
        test_images: Images that the accuracies are measured on, or None.
        config: Settings of the run.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        images: ImageData | StreamedImages,
        test_images: ImageData | None,
        config: TrainingConfig,
    ) -> None:
        self.model, self.images, self.test_images, self.config = model, images, test_images, config
        if isinstance(images, ImageData) and test_images is not None and self.has_labels:
            self.bank, self.test_images = images.labeled(), test_images.labeled()
        self.online_probe: OnlineProbe | None = None
        self._extracted: tuple[int, Features, Features] | None = None

    @property
    def has_labels(self) -> bool:
        """Whether accuracies can be measured."""
        test = self.test_images
        return test is not None and self.images.labels is not None and test.labels is not None

    def accuracies(self, step: int) -> dict[str, float]:
        """Measures the kNN and the online linear accuracy after a step; every process has to call it."""
        if not self.has_labels:
            return {}
        bank, test = self._features(step)
        if not is_main():
            return {}
        assert bank.labels is not None and test.labels is not None
        k = min(self.config.knn_k, len(bank))
        result = knn(bank.features, bank.labels, test.features, test.labels, k=k, device=self._device)
        found = {f"knn_{key}": round(result[key], 3) for key in ("top1", "top5")}
        return found if self.online_probe is None else {**found, **self.online_probe.accuracy(test)}

    def linear(self, step: int) -> dict[str, float]:
        """Measures a linear probe on the features after a step; every process has to call it."""
        if not (self.config.linear and self.has_labels):
            return {}
        bank, test = self._features(step)
        if not is_main():
            return {}
        assert bank.labels is not None and test.labels is not None
        result = linear_probe(bank.features, bank.labels, test.features, test.labels, device=self._device)
        return {f"linear_{key}": round(result[key], 3) for key in ("top1", "top5")}

    def diagnostics(self) -> dict[str, Any]:
        """Measures alignment, uniformity, rank and the anchors' weights on as many images as a batch has."""
        limit = max(2, min(self.config.batch_size, 512))
        found = diagnose(self.model, self.images, views=self.config.view_preset, limit=limit, seed=self.config.seed)
        return {name: round(value, 4) for name, value in found.items()}

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device

    def _features(self, step: int) -> tuple[Features, Features]:
        """Extracts the features of both parts, once per step."""
        if self._extracted is None or self._extracted[0] != step:
            bank, test = (
                extract_features(self.model, images, num_workers=self.config.workers, across_processes=True)
                for images in (self.bank, self.test_images)
            )
            self._extracted = step, bank, test
        return self._extracted[1:]
