"""Action distributions over raw network outputs, as pure tensor programs.

Each class takes `params [..., P]`, what the policy head put out, and offers

    params            what it was made from
    noise_(out, gen)  fills `out [..., noise_size]` with the noise of one action each
    sample(noise)     actions; noise is drawn outside and passed in, so that eager and compiled programs agree
    mode()            the most probable action
    log_prob(actions) [...] log-probability, summed over the dimensions of the action
    entropy()         [...] in nats
    kl(other)         [...] KL(self ‖ other) in nats

`torch.distributions` validates and broadcasts on every call, which costs more than the arithmetic here, and draws its
own noise.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.spaces import ActionSpec
from rlcore.tracing import Constant

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def gumbel_noise(out: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill `out [...]` with standard Gumbel noise: adding it to logits and taking the argmax draws from the softmax."""
    return out.exponential_(generator=generator).log_().neg_()


class Categorical:
    """One choice out of P with probabilities softmax(params); actions are [...] of int64."""

    def __init__(self, params: Tensor):
        self.params = self.logits = params

    noise_ = staticmethod(gumbel_noise)

    @functools.cached_property
    def log_p(self) -> Tensor:
        """Normalised log-probabilities [..., P]; not computed where only a sample is wanted."""
        return F.log_softmax(self.logits, -1)

    def sample(self, noise: Tensor) -> Tensor:
        return (self.logits + noise).argmax(-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_p.exp() * self.log_p).sum(-1)

    def kl(self, other: Any) -> Tensor:
        return (self.log_p.exp() * (self.log_p - other.log_p)).sum(-1)


class MultiCategorical:
    """K independent choices, the k-th out of nvec[k]; params are their logits side by side; actions are [..., K]."""

    def __init__(self, params: Tensor, nvec: tuple[int, ...]):
        self.params, self.nvec = params, nvec
        self.parts = [Categorical(logits) for logits in params.split(nvec, -1)]

    noise_ = staticmethod(gumbel_noise)

    def sample(self, noise: Tensor) -> Tensor:
        pairs = zip(self.parts, noise.split(self.nvec, -1), strict=True)
        return torch.stack([part.sample(part_noise) for part, part_noise in pairs], -1)

    def mode(self) -> Tensor:
        return torch.stack([part.mode() for part in self.parts], -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        pairs = zip(self.parts, actions.unbind(-1), strict=True)
        return torch.stack([part.log_prob(action) for part, action in pairs]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def kl(self, other: Any) -> Tensor:
        return torch.stack([p.kl(q) for p, q in zip(self.parts, other.parts, strict=True)]).sum(0)


class Bernoulli:
    """P independent bits with probabilities sigmoid(params); actions are [..., P] of 0 and 1."""

    def __init__(self, params: Tensor):
        self.params = self.logits = params

    @staticmethod
    def noise_(out: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return out.uniform_(torch.finfo(out.dtype).tiny, 1.0, generator=generator).logit_()

    def sample(self, noise: Tensor) -> Tensor:
        return (self.logits + noise > 0).long()

    def mode(self) -> Tensor:
        return (self.logits > 0).long()

    def log_prob(self, actions: Tensor) -> Tensor:
        return -self._cross_entropy(actions.to(self.logits.dtype))

    def entropy(self) -> Tensor:
        return self._cross_entropy(self.logits.sigmoid())

    def kl(self, other: Any) -> Tensor:
        return other._cross_entropy(self.logits.sigmoid()) - self.entropy()

    def _cross_entropy(self, p: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logits, p, reduction="none").sum(-1)


class Gaussian:
    """Independent normals; params are [mean, log standard deviation] side by side; actions are [..., P/2]."""

    def __init__(self, params: Tensor):
        self.params = params
        self.mean, self.log_std = params.chunk(2, -1)

    @staticmethod
    def noise_(out: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return out.normal_(generator=generator)

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        z = (actions - self.mean) * (-self.log_std).exp()
        return -(0.5 * z * z + self.log_std + LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + (0.5 + LOG_SQRT_2PI)).sum(-1)

    def kl(self, other: Any) -> Tensor:
        log_ratio = other.log_std - self.log_std
        z = (self.mean - other.mean) * (-other.log_std).exp()
        return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + z * z) - 0.5).sum(-1)


class TanhGaussian(Gaussian):
    """A Gaussian squashed into finite bounds by a = low + (high − low)(tanh(u) + 1)/2, of `params [..., P]`.

    The buffer keeps u, where nothing is lost to rounding near the bounds; `log_prob` takes u and gives the log-density
    of a, the change of variables included (Haarnoja et al. 2018, appendix C). KL does not change under a bijection.
    `mode` is that of u. `half_range [P/2]` is (high − low)/2.
    """

    def __init__(self, params: Tensor, half_range: Tensor):
        super().__init__(params)
        self.half_range = half_range

    def _log_slope(self, u: Tensor) -> Tensor:
        """log(1 − tanh²u), written so that it does not underflow for large |u|; log da/du but for the half range."""
        return 2 * (math.log(2) - u - F.softplus(-2 * u))

    def log_prob(self, actions: Tensor) -> Tensor:
        return super().log_prob(actions) - (self._log_slope(actions) + self.half_range.log()).sum(-1)

    def entropy(self) -> Tensor:
        """H(u) + E[log da/du], the expectation by Gauss-Hermite quadrature: deterministic, with exact gradients."""
        nodes, weights = (constant.like(self.mean) for constant in _GAUSS_HERMITE)
        u = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * nodes
        return super().entropy() + ((self._log_slope(u) * weights).sum(-1) + self.half_range.log()).sum(-1)


_nodes, _weights = np.polynomial.hermite_e.hermegauss(32)  # Σ w f(x) / Σ w ≈ E[f(x)] for x ~ N(0, 1)
_GAUSS_HERMITE = Constant(torch.from_numpy(_nodes)), Constant(torch.from_numpy(_weights / _weights.sum()))

Distribution = Categorical | MultiCategorical | Bernoulli | Gaussian | TanhGaussian


def distribution_class(spec: ActionSpec) -> type[Distribution]:
    """The class for an action space."""
    return {
        "categorical": Categorical,
        "multi_categorical": MultiCategorical,
        "bernoulli": Bernoulli,
        "gaussian": Gaussian,
        "tanh_gaussian": TanhGaussian,
    }[spec.kind]


def make_distribution(spec: ActionSpec) -> Callable[[Tensor], Distribution]:
    """A function from raw network outputs `[..., P]` to the distribution over actions of this space."""
    kind = distribution_class(spec)
    if kind is MultiCategorical:
        return lambda params: MultiCategorical(params, spec.nvec)
    if kind is TanhGaussian:
        half_range = Constant(torch.from_numpy((spec.space.high - spec.space.low).ravel() / 2).float())
        return lambda params: TanhGaussian(params, half_range.like(params))
    return kind


def noise_size(spec: ActionSpec) -> int:
    """How many random numbers one action takes: P, or P/2 for the Gaussians."""
    return spec.num_params // 2 if spec.kind in ("gaussian", "tanh_gaussian") else spec.num_params
