"""The losses as modules, which keep the settings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from simco_zoo.losses.contrastive import dual_temperature, info_nce
from simco_zoo.losses.inputs import InBatch, check_settings


class _Loss(nn.Module):
    """The settings that both losses have."""

    def __init__(
        self, in_batch: InBatch, hardness: float, class_prior: float, detach_importance: bool, check: bool | None
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "in_batch": in_batch,
            "hardness": hardness,
            "class_prior": class_prior,
            "detach_importance": detach_importance,
            "check": check,
        }

    def describe(self, **settings: Any) -> str:
        """Lists settings and those of the others that are not at their default."""
        plain = {name: value.item() if isinstance(value, Tensor) else value for name, value in settings.items()}
        changed = {name: value for name, value in self.settings.items() if value}
        return ", ".join(f"{name}={value!r}" for name, value in {**plain, **changed}.items())


class InfoNCELoss(_Loss):
    """``info_nce`` as a module.

    >>> import torch
    >>> loss = InfoNCELoss(temperature=torch.nn.Parameter(torch.tensor(0.1)))  # a temperature that is learned
    >>> loss(torch.eye(4), torch.eye(4)).backward()
    >>> loss.temperature.grad is not None
    True

    Args:
        temperature: tau, at least 1e-6; a parameter becomes one of the module.
        in_batch: As in ``info_nce``.
        hardness: As in ``info_nce``.
        class_prior: As in ``info_nce``.
        detach_importance: As in ``info_nce``.
        check: As in ``info_nce``.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        in_batch: InBatch = None,
        hardness: float = 0.0,
        class_prior: float = 0.0,
        detach_importance: bool = False,
        check: bool | None = None,
    ) -> None:
        check_settings(temperature, 1.0, in_batch, hardness, class_prior)
        super().__init__(in_batch, hardness, class_prior, detach_importance, check)
        self.temperature = temperature

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Returns the loss of query (N, D), key (N, D) and negatives (K, D), (N, S, D) or None.

        Further arguments are ``scalar_negatives``, ``positive_offset`` and ``all_queries`` of ``info_nce``.
        """
        return info_nce(query, key, negatives, self.temperature, **{**self.settings, **kwargs})

    def extra_repr(self) -> str:
        return self.describe(temperature=self.temperature)


class DualTemperatureLoss(_Loss):
    """``dual_temperature`` as a module.

    >>> import torch
    >>> loss = DualTemperatureLoss(temperature=0.1, dt_m=10.0)
    >>> loss
    DualTemperatureLoss(temperature=0.1, dt_m=10.0)
    >>> loss(torch.eye(4), torch.eye(4)).shape
    torch.Size([])

    Args:
        temperature: tau_alpha, at least 1e-6; a parameter becomes one of the module.
        dt_m: tau_beta / tau_alpha, > 0.
        in_batch: As in ``info_nce``.
        hardness: As in ``info_nce``.
        class_prior: As in ``info_nce``.
        detach_importance: As in ``info_nce``.
        check: As in ``info_nce``.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        dt_m: float = 10.0,
        *,
        in_batch: InBatch = None,
        hardness: float = 0.0,
        class_prior: float = 0.0,
        detach_importance: bool = False,
        check: bool | None = None,
    ) -> None:
        check_settings(temperature, dt_m, in_batch, hardness, class_prior)
        super().__init__(in_batch, hardness, class_prior, detach_importance, check)
        self.temperature, self.dt_m = temperature, dt_m

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Returns the loss of query (N, D), key (N, D) and negatives (K, D), (N, S, D) or None.

        Further arguments are ``scalar_negatives``, ``positive_offset`` and ``all_queries`` of ``dual_temperature``.
        """
        return dual_temperature(query, key, negatives, self.temperature, self.dt_m, **{**self.settings, **kwargs})

    def extra_repr(self) -> str:
        return self.describe(temperature=self.temperature, dt_m=self.dt_m)
