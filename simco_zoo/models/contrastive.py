"""A timm backbone with a projector: what all methods have in common."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from simco_zoo.distributed import gather_rows, rank
from simco_zoo.hub.checks import input_channels
from simco_zoo.losses.inputs import check_settings
from simco_zoo.models.inputs import check_images
from simco_zoo.models.projector import build_projector, unit_rows
from simco_zoo.models.signatures import method_arguments
from simco_zoo.models.timm_interface import TimmInterface, pooled_features

Query = TypeVar("Query")
Key = TypeVar("Key")


class ContrastiveModel(TimmInterface):
    """A timm backbone and a projector, with timm's interface; a method adds ``contrast``.

    Called on images it gives pooled features, and after ``reset_classifier`` class scores, exactly as the bare
    backbone does. The projector takes part in ``project`` and ``contrast`` only.

    Args:
        backbone: A timm model whose pooled features are a vector per image (``global_pool`` not empty).
        temperature: Temperature tau_alpha of the loss, > 0.
        symmetric: Whether both views serve as query in turn and the loss is the mean of both directions.
        joint_bn: Whether several views pass an encoder in one forward, so that batch norm sees them together;
            otherwise each view has a forward of its own.
        proj_hidden_dim: Width of the projector's hidden layer; ``None`` or 0 for a linear projector.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If the temperature is below 1e-6 or infinite, a width is below 1 or the backbone does not pool.

    Example:
        >>> import simco_zoo
        >>> model = simco_zoo.create_model("simco", backbone="test_resnet").eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> model(images).shape, model.project(images).shape
        (torch.Size([2, 96]), torch.Size([2, 128]))
    """

    method: ClassVar[str] = ""
    unpublished: ClassVar[tuple[str, ...]] = ()  # modules that belong to the training, not to a published model
    projector: nn.Sequential

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.1,
        symmetric: bool = False,
        joint_bn: bool = True,
        proj_hidden_dim: int | None = 128,
        proj_dim: int = 128,
    ) -> None:
        super().__init__()
        check_settings(temperature)
        self.backbone = backbone
        self.temperature = temperature
        self.symmetric = symmetric
        self.joint_bn = joint_bn
        self.proj_hidden_dim = proj_hidden_dim
        self.proj_dim = proj_dim
        self.projector = build_projector(self.num_features, proj_hidden_dim, proj_dim)
        # what the weights were loaded from: "hf-hub:org/name", a model's name, or "" for random ones
        self.loaded_from = ""
        # why the projector is random although weights were loaded; empty where it is not, or is being trained
        self.missing_projector = ""
        self.register_load_state_dict_pre_hook(_note_projector)
        self.in_chans = input_channels(backbone)
        self.set_architecture((getattr(backbone, "pretrained_cfg", None) or {}).get("architecture") or "")

    # The method

    def contrast(
        self,
        view1: Tensor,
        view2: Tensor,
        *more: Tensor,
        generator: torch.Generator | None = None,
        across_processes: bool = False,
        hold_key_encoder: bool = False,
        report_features: bool = False,
    ) -> dict[str, Tensor]:
        """Computes the method's loss on two or more views of the same images.

        A method of your own may leave out the options that it does not use.

        Args:
            view1: Images (N, C, H, W), normalized; those of this process.
            view2: The same images in another view.
            *more: Further views of the same images.
            generator: Source of random numbers; torch's default generator if None.
            across_processes: Compare with the keys of all processes of torch.distributed.
            hold_key_encoder: Leave the key encoder as it is: the query encoder has not moved since its last update.
            report_features: Add the query encoder's features to the report, for a classifier trained alongside.

        Returns:
            ``loss``, a differentiable scalar, and detached scalars to log. With ``report_features`` also ``features``
            (V * N, num_features), detached, of the V views that went through the query encoder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss; use a method's class, e.g. SimCo.")

    def method_config(self) -> dict[str, Any]:
        """Returns the method's arguments as plain values, enough to build it again on the same backbone.

        They are those of the signatures of ``__init__``; each is read from the attribute of the same name.
        """
        arguments = method_arguments(type(self))
        missing = [name for name in arguments if not hasattr(self, name)]
        if missing:
            raise AttributeError(
                f"{type(self).__name__} keeps no attribute {missing[0]}; its __init__ has to set "
                f"self.{missing[0]} = {missing[0]}, so that the argument is published with the model."
            )
        return {name: getattr(self, name) for name in arguments}

    def loss_config(self) -> dict[str, float | str]:
        """Returns the loss's name and temperatures, for config.json and the model card."""
        return {"name": "InfoNCE", "temperature": self.temperature}

    def project(self, x: Tensor) -> Tensor:
        """Maps images to unit vectors, the space in which the loss compares views.

        Args:
            x: Images (B, C, H, W), normalized.

        Returns:
            Projections (B, proj_dim) of unit length, in fp32 at least.

        Raises:
            RuntimeError: If the weights that were loaded have no projector, so that this one is random.
        """
        if self.missing_projector:
            raise RuntimeError(
                f"{self.missing_projector}, so the model gives features but no projections; load a projector with "
                "load_state_dict, or call model.set_missing_projector('') to use the random one."
            )
        return unit_rows(self.projector(pooled_features(self.backbone, check_images(x, self.in_chans))))

    def embed(
        self, encoder: Any, *views: Tensor, normalize: bool = True
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Embeds views with an encoder that has ``backbone`` and ``projector``: this model, or its key encoder.

        One forward for all views with ``joint_bn``, otherwise one for each.

        Args:
            encoder: The encoder.
            *views: V tensors (N, C, H, W).
            normalize: Whether to scale the projections to unit length.

        Returns:
            Projections (N, proj_dim), and the features (N, num_features) that entered the projector; of each view.
        """
        if self.training and self.missing_projector:
            self.set_missing_projector("")  # it is being trained
        batches = (torch.cat(views),) if self.joint_bn and len(views) > 1 else views
        features = [pooled_features(encoder.backbone, batch) for batch in batches]
        rows = [encoder.projector(f) for f in features]
        if normalize:
            rows = [unit_rows(r) for r in rows]
        return torch.cat(rows).chunk(len(views)), torch.cat(features).chunk(len(views))

    @property
    def head(self) -> nn.Module:
        """What is published apart from the backbone: the projector's layers, and a method's further modules by name.

        Its state dict is the content of ``projector.safetensors``. The tensors are the model's own.
        """
        skipped = ("backbone", "projector", *self.unpublished)
        modules = {name: child for name, child in self.named_children() if name not in skipped}
        parameters = dict(self.named_parameters(recurse=False))
        if not modules and not parameters:
            return self.projector
        head = nn.Module()
        for name, module in {**dict(self.projector.named_children()), **modules}.items():
            head.add_module(name, module)
        for name, parameter in {**dict(self.projector.named_parameters(recurse=False)), **parameters}.items():
            head.register_parameter(name, parameter)
        return head

    # What config.json says of the backbone

    def set_architecture(self, architecture: str, model_args: dict[str, Any] | None = None) -> None:
        """Sets how config.json names the backbone, so that timm builds the same one again.

        Args:
            architecture: A name of timm.
            model_args: Arguments that ``timm.create_model`` needs with it.
        """
        self.architecture = architecture
        self.model_args = dict(model_args or {})

    def set_loaded_from(self, source: str) -> None:
        """Sets what the weights were loaded from: "hf-hub:org/name", a model's name, or "" for random ones."""
        self.loaded_from = source

    def set_missing_projector(self, reason: str) -> None:
        """Sets why the projector is random although weights were loaded; ``project`` then raises with that reason."""
        self.missing_projector = reason


def _note_projector(model: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Takes note of a projector among the tensors that are about to be loaded."""
    if any(name.startswith(f"{prefix}projector.") for name in state_dict):
        model.set_missing_projector("")


def gather_keys(*keys: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Gathers the keys of all processes of torch.distributed; without several processes these are the keys given.

    Args:
        *keys: Unit rows (N, D), one tensor per view, N the same on every process.

    Returns:
        Rows (M, D) in rank order per view, and where this process's own begin: ``positive_offset`` of the loss.
    """
    gathered = gather_rows(torch.stack(keys, dim=1))  # one exchange for all views
    return gathered.unbind(dim=1), rank() * len(keys[0])


def known_options(model: ContrastiveModel, options: dict[str, Any]) -> dict[str, Any]:
    """Keeps those options of ``contrast`` that a model's own ``contrast`` takes; a method may leave out any of them."""
    parameters = inspect.signature(type(model).contrast).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def takes_more_views(model: ContrastiveModel) -> bool:
    """Whether a model's ``contrast`` takes more than two views."""
    parameters = inspect.signature(type(model).contrast).parameters
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())


def contrast_report(
    loss: Tensor, query: Tensor, key: Tensor, features: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """Collects the step's loss and the detached scalars to log, left on the device.

    Args:
        loss: Differentiable scalar.
        query: Unit rows (N, D).
        key: Unit rows (N, D), the positives of ``query``.
        features: The query encoder's features of each view, if they are to be reported.

    Returns:
        ``loss``; ``positive_similarity``, the mean cosine of the positive pairs; ``proj_std``, the standard deviation
        of a coordinate of the queries times sqrt(D), about 1 for a uniform sphere and 0 for a collapse; and, if given,
        ``features`` (V * N, num_features) of the V views.
    """
    query, key = query.detach(), key.detach()
    return {
        **({} if features is None else {"features": torch.cat(tuple(features)).detach()}),
        "loss": loss,
        "positive_similarity": (query * key).sum(dim=1).mean(),
        "proj_std": query.std(dim=0, correction=0).mean() * math.sqrt(query.shape[1]),
    }


def mean_over_pairs(
    loss: Callable[[Query, Key], Tensor],
    queries: Sequence[Query],
    keys: Sequence[Key],
    *,
    same_views: bool = True,
) -> Tensor:
    """Averages a loss over all pairs of a query's view and another view's keys.

    Args:
        loss: Called with queries, e.g. (N, D), and keys, e.g. (M, D); returns a scalar.
        queries: What the loss takes of each view that serves as query, from the first view on.
        keys: What it takes of each view that serves as keys.
        same_views: Whether ``queries[i]`` and ``keys[i]`` are of the same view; such pairs are left out.

    Returns:
        The mean over the pairs, a scalar.
    """
    losses = [loss(q, k) for i, q in enumerate(queries) for j, k in enumerate(keys) if not (same_views and i == j)]
    return sum(losses[1:], losses[0]) / len(losses)
