"""What to look at while an agent learns; all of it respects the mask."""

import torch
from torch import Tensor

from rlcore.tracing import reduce_each


def masked_mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `x [...]` over the slots where `mask [...]` is True (broadcast to x), of all processes together; 0 where
    there is none."""
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
    total, count = reduce_each([torch.where(mask, x, 0.0).sum(), mask.sum()])
    return total / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Population variance of `x [...]` over the slots where `mask [...]` is True; 0 where there is none."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 − Var[returns − values] / Var[returns]: 1 is perfect, 0 as good as a constant, NaN where returns are equal.

    Args:
        values, returns: `[T, N]`.
        mask: `[T, N]` of bool, False for padding; None where every slot counts.
    """
    total = masked_var(returns, mask)
    return torch.where(total > 0, 1 - masked_var(returns - values, mask) / total, torch.nan)


def approx_kl(logratio: Tensor) -> Tensor:
    """Elementwise k3 estimate of KL(old ‖ new) from `logratio [...]`, log(new/old) at actions of the old policy.

    (r − 1) − log r is unbiased and never negative (Schulman 2020, "Approximating KL divergence").
    """
    return logratio.expm1() - logratio


def clip_fraction(logratio: Tensor, clip_coef: float | Tensor) -> Tensor:
    """Elementwise 1 where the ratio exp(`logratio [...]`) lies outside 1 ± ε, else 0."""
    return (logratio.expm1().abs() > clip_coef).to(logratio.dtype)
