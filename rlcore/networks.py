"""The actor-critic network: observation parts → torso(s) → policy head and value head.

obs ─ Preprocess ─ torso ─┬─ policy head ─> distribution over actions     (shared=True: one torso)
                          └─ value head ──> V

obs ─ Preprocess ─ torso ─── policy head ─> distribution over actions     (shared=False: a torso each)
obs ─ Preprocess ─ torso ─── value head ──> V
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.distributions import Distribution, make_distribution
from rlcore.errors import UsageError
from rlcore.normalize import RunningNorm
from rlcore.spaces import ActionSpec, Obs, Part, action_spec, map_parts, observation_parts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
}


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Orthogonal weights (Saxe et al. 2014) scaled by `gain`, zero bias; changes and returns `layer`."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Flattens its input [B, ...] and applies Linear and activation for each of `hidden_sizes`; puts out [B, last]."""

    def __init__(self, in_features: int, hidden_sizes: Sequence[int], activation: str = "tanh"):
        super().__init__()
        sizes = [in_features, *hidden_sizes]
        self.layers = nn.ModuleList(orthogonal(nn.Linear(*pair), 2**0.5) for pair in pairwise(sizes))
        self.activation = ACTIVATIONS[activation]
        self._layers = list(self.layers)  # a plain list is faster to go through

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.ndim == 2 else x.flatten(1)
        for layer in self._layers:
            x = self.activation(F.linear(x, layer.weight, layer.bias))
        return x


class Preprocess(nn.Module):
    """One observation part [B, *shape] as float [B, *out_shape]: normalised, scaled from bytes, or one-hot."""

    def __init__(self, part: Part, norm: bool):
        super().__init__()
        self.part = part
        self.norm = RunningNorm(part.shape) if norm and part.floating else None

    def forward(self, x: Tensor) -> Tensor:
        part = self.part
        if part.categories:
            columns = x.reshape(len(x), -1).unbind(1)
            return torch.cat([F.one_hot(c, n) for c, n in zip(columns, part.categories, strict=True)], 1).float()
        x = x / 255 if part.image else x if x.is_floating_point() else x.float()
        x = x if self.norm is None else self.norm(x)
        return x if part.shape else x.unsqueeze(-1)

    def out_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed observation; a lone number counts as a vector of one."""
        return (sum(self.part.categories),) if self.part.categories else self.part.shape or (1,)


class Trunk(nn.Module):
    """All parts of an observation, each through its own torso, as one feature vector `[B, features]`."""

    def __init__(self, preprocess: nn.ModuleList, torsos: Sequence[nn.Module]):
        super().__init__()
        self.preprocess, self.torsos = preprocess, nn.ModuleList(torsos)
        self._branches = list(zip(preprocess, torsos, strict=True))  # a plain list is faster to go through
        self.features = sum(_features(torso, pre.out_shape()) for pre, torso in zip(preprocess, torsos, strict=True))

    def forward(self, obs: Obs) -> Tensor:
        if not isinstance(obs, dict):
            ((preprocess, torso),) = self._branches
            return torso(preprocess(obs))
        branches = zip(self._branches, obs.values(), strict=True)
        return torch.cat([torso(preprocess(x)) for (preprocess, torso), x in branches], -1)


@torch.no_grad()
def _features(torso: nn.Module, shape: tuple[int, ...]) -> int:
    out = torso(torch.zeros(2, *shape))
    if out.ndim != 2 or len(out) != 2:
        raise UsageError(
            f"the torso turns a batch of shape {[2, *shape]} into {list(out.shape)}, but must put out [batch, features]"
        )
    return out.shape[1]


Torso = nn.Module | Callable[[tuple[int, ...]], nn.Module]
"""A module [B, *shape] → [B, features], or a function that makes one from the shape of a (preprocessed) part."""


class ActorCritic(nn.Module):
    """Policy and value function over one observation.

    Observations are one tensor or a dict of parts with any number of leading dimensions, `[B, ...]` or `[T, N, ...]`.

    Args:
        observation_space, action_space: of a single environment; `action_space` may be an ActionSpec.
        hidden_sizes: widths of the MLP torso's layers.
        activation: of the MLP torso: tanh, relu, elu, gelu or silu.
        shared: one torso for actor and critic instead of one each.
        torso: a module of your own in place of the MLP, then used by actor and critic both; or a function
            `shape -> module`, called for each observation part and each of actor and critic (once where `shared`).
        log_std_init: initial log standard deviation of a Gaussian policy.
        state_dependent_std: log standard deviation from a head of the network instead of free parameters.
        norm_obs: running normalisation of the real-valued observation parts.

    Raises:
        UsageError: for an unknown activation, a space without tensor form, or a torso that does not fit.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space | ActionSpec,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared: bool = False,
        torso: Torso | None = None,
        log_std_init: float = 0.0,
        state_dependent_std: bool = False,
        norm_obs: bool = False,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UsageError(f"activation is '{activation}', but may be one of {', '.join(ACTIVATIONS)}")
        spec = action_space if isinstance(action_space, ActionSpec) else action_spec(action_space)
        self.spec, self.parts = spec, observation_parts(observation_space)
        self.shared = shared or isinstance(torso, nn.Module)
        self.distribution = make_distribution(spec)
        parts = list(self.parts.values()) if isinstance(self.parts, dict) else [self.parts]
        if isinstance(torso, nn.Module) and len(parts) > 1:
            raise UsageError(
                f"torso is one module, but the observation has {len(parts)} parts ({', '.join(self.parts)}); "
                "pass a function that makes a module from a part's shape"
            )
        # One Preprocess per part, whoever reads it: actor and critic share their statistics.
        self.preprocess = nn.ModuleList(Preprocess(part, norm_obs) for part in parts)
        make = torso if torso is not None else lambda shape: MLP(int(np.prod(shape)), hidden_sizes, activation)
        self.actor = self._trunk(make)
        self.critic = self.actor if self.shared else self._trunk(make)

        # A small last layer makes the first policy nearly uniform (Andrychowicz et al. 2021, section 3.2).
        self.gaussian = spec.kind in ("gaussian", "tanh_gaussian")
        self.state_dependent_std = self.gaussian and state_dependent_std
        head_size = spec.num_params // 2 if self.gaussian and not state_dependent_std else spec.num_params
        self.policy_head = orthogonal(nn.Linear(self.actor.features, head_size), 0.01)
        self.value_head = orthogonal(nn.Linear(self.critic.features, 1), 1.0)
        if self.state_dependent_std:
            nn.init.constant_(self.policy_head.bias[head_size // 2 :], log_std_init)
        elif self.gaussian:
            self.log_std = nn.Parameter(torch.full((head_size,), float(log_std_init)))

    def _trunk(self, make: Torso) -> Trunk:
        return Trunk(
            self.preprocess, [make if isinstance(make, nn.Module) else make(p.out_shape()) for p in self.preprocess]
        )

    def forward(self, obs: Obs) -> tuple[Distribution, Tensor]:
        """The policy and the value `[...]` at `obs [..., *shape]`; a shared torso runs once."""
        obs, lead = self._flatten(obs)
        features = self.actor(obs)
        policy = self._distribution(features, lead)
        return policy, self._values(features if self.shared else self.critic(obs), lead)

    def policy(self, obs: Obs) -> Distribution:
        """The distribution over actions at `obs [..., *shape]`, without the critic's work."""
        obs, lead = self._flatten(obs)
        return self._distribution(self.actor(obs), lead)

    def value(self, obs: Obs) -> Tensor:
        """V(obs) `[...]` at `obs [..., *shape]`."""
        obs, lead = self._flatten(obs)
        return self._values(self.critic(obs), lead)

    def evaluate(self, obs: Obs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of `actions`, entropies and values, each `[...]`, at `obs [..., *shape]`."""
        policy, values = self(obs)
        return policy.log_prob(actions), policy.entropy(), values

    def policy_parameters(self) -> list[nn.Parameter]:
        """The parameters that `policy` depends on."""
        free_std = [self.log_std] if self.gaussian and not self.state_dependent_std else []
        return [*self.actor.torsos.parameters(), *self.policy_head.parameters(), *free_std]

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that `value` depends on."""
        return [*self.critic.torsos.parameters(), *self.value_head.parameters()]

    def update_normalizer(self, obs: Obs, mask: Tensor) -> None:
        """Merge the real observations of a rollout, `obs [T, N, ...]` with `mask [T, N]`, into the statistics."""
        for pre, x in zip(self.preprocess, obs.values() if isinstance(obs, dict) else [obs], strict=True):
            if pre.norm is not None:
                pre.norm.update(x, mask)

    def _flatten(self, obs: Obs) -> tuple[Obs, torch.Size]:
        """Observations as [B, ...] and the leading dimensions they had."""
        if isinstance(obs, dict):
            name, part = next(iter(self.parts.items()))
            lead = obs[name].shape[: obs[name].ndim - len(part.shape)]
        else:
            lead = obs.shape[: obs.ndim - len(self.parts.shape)]
        if len(lead) == 1:
            return obs, lead
        return map_parts(lambda x: x.reshape(-1, *x.shape[len(lead) :]), obs), lead

    def _distribution(self, features: Tensor, lead: torch.Size) -> Distribution:
        params = self.policy_head(features)
        if self.state_dependent_std:
            mean, log_std = params.chunk(2, -1)
            params = torch.cat([mean, log_std.clamp(-20, 2)], -1)
        elif self.gaussian:
            params = torch.cat([params, self.log_std.expand_as(params)], -1)
        return self.distribution(params if len(lead) == 1 else params.reshape(*lead, -1))

    def _values(self, features: Tensor, lead: torch.Size) -> Tensor:
        values = self.value_head(features).squeeze(-1)
        return values if len(lead) == 1 else values.reshape(lead)
