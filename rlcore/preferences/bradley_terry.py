"""The model of choices behind preferences (Bradley & Terry 1952): P(first preferred) = σ(h), with h how much better the
first is said to be."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

BINS = 10


def cross_entropy(won: Tensor, lost: Tensor, label: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−log-likelihood `[P]` of labels.

    Args:
        won, lost: `[P]`, h where the first is preferred, and −h, or what stands for it, where the second is.
        label: `[P]`, 1 where the first is preferred, 0 where the second is, 0.5 where neither.
        label_smoothing: the probability that a label is wrong (cDPO, Mitchell 2023).
    """
    label = label + label_smoothing * (1 - 2 * label)
    return -label * logsigmoid(won) - (1 - label) * logsigmoid(lost)


def accuracy(h: Tensor, label: Tensor) -> Tensor:
    """The share of pairs whose better one is told by `h [P]`, of those that have one by their `label [P]`."""
    decided = label != 0.5
    return ((h * (label - 0.5) > 0) & decided).sum() / decided.sum().clamp(min=1)


@dataclass(frozen=True)
class Reliability:
    """How far probabilities can be believed: of pairs said to be won with probability p, a share p should be.

    Attributes:
        pairs: how many.
        accuracy, loss: see `accuracy` and `cross_entropy`.
        calibration_error: mean distance of what was said and what is, over bins, weighted by pairs (expected
            calibration error, Naeini et al. 2015).
        said, won, counts: of each bin with pairs, the mean probability, the mean label, and the number of pairs.
    """

    pairs: int
    accuracy: float
    loss: float
    calibration_error: float
    said: list[float]
    won: list[float]
    counts: list[int]


def reliability(h: Tensor, label: Tensor) -> Reliability:
    """Of what `h [P]` says of pairs with `label [P]`, see `Reliability`; bins are tenths of the probability."""
    said = h.double().sigmoid()
    bins = (said * BINS).long().clamp(max=BINS - 1)
    counts, sums, wins = torch.zeros(3, BINS, dtype=torch.float64, device=h.device).unbind()
    counts.index_add_(0, bins, torch.ones_like(said))
    sums.index_add_(0, bins, said)
    wins.index_add_(0, bins, label.double())
    there = counts > 0
    counts, means, rates = counts[there], sums[there] / counts[there], wins[there] / counts[there]
    error = ((means - rates).abs() * counts).sum() / max(len(h), 1)
    loss = cross_entropy(h, -h, label).mean()
    figures = float(accuracy(h, label)), float(loss), float(error)
    return Reliability(len(h), *figures, means.tolist(), rates.tolist(), counts.long().tolist())
