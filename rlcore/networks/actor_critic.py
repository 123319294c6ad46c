"""The actor-critic network: observation parts → torso(s) → policy head and value head.

obs ─ Preprocess ─ torso ─┬─ policy head ─> distribution over actions     (shared=True: one torso)
                          └─ value head ──> V

obs ─ Preprocess ─ torso ─── policy head ─> distribution over actions     (shared=False: a torso each)
obs ─ Preprocess ─ torso ─── value head ──> V
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from rlcore.errors import UsageError
from rlcore.networks.distributions import Distribution, make_distribution
from rlcore.networks.normalize import RunningNorm
from rlcore.networks.torsos import ACTIVATIONS, check_torso, is_channels_last, is_image, make_torso, orthogonal
from rlcore.spaces import ACTION_MASK, ActionSpec, Field, Obs, Part, action_spec, map_parts, observation_parts

# The logit of a forbidden action: its probability is exactly 0, and p log p, being finite, is 0 with gradient 0 too.
FORBIDDEN = -1e9


def one_hot(x: Tensor, categories: Sequence[int]) -> Tensor:
    """Choices `x [B, ...]` out of so many `categories` each, as `[B, their sum]`."""
    columns = zip(x.reshape(x.shape[0], -1).split(1, 1), categories, strict=True)
    # torch's own one-hot looks at the data, which a recording cannot.
    return torch.cat([(c == torch.arange(n, device=x.device)).float() for c, n in columns], 1)


class Preprocess(nn.Module):
    """One observation part [B, *shape] as float [B, *out_shape]: normalised, scaled from bytes, or one-hot."""

    def __init__(self, part: Part, norm: bool):
        super().__init__()
        self.part = part
        self.out_shape = (sum(part.categories),) if part.categories else part.shape or (1,)  # 1 for a lone number
        self.norm = RunningNorm(part.shape) if norm and part.floating else None
        # Convolutions are faster with the channels innermost, and reordering is cheap while the dtype changes anyway.
        reorder = is_image(part) and not is_channels_last(part.shape)
        self.layout = torch.channels_last if reorder else torch.preserve_format

    def forward(self, x: Tensor) -> Tensor:
        part = self.part
        if part.categories:
            return one_hot(x, part.categories)
        if part.image:
            x = x.to(torch.float32, memory_format=self.layout).mul_(1 / 255)  # bytes, so `to` has made a copy
        x = x if x.is_floating_point() else x.float()
        x = x if self.norm is None else self.norm(x)
        return x if part.shape else x.unsqueeze(-1)


class Trunk(nn.Module):
    """Parts of an observation, each through its own torso, as one feature vector `[B, features]`.

    Args:
        preprocess, torsos: one of each part.
        names: of the parts; one that an observation has beside these is left out.
    """

    def __init__(self, preprocess: nn.ModuleList, torsos: Sequence[nn.Module], names: Sequence[str] = ("",)):
        super().__init__()
        self.preprocess, self.torsos = preprocess, nn.ModuleList(torsos)
        # A plain list is faster to go through.
        self._branches: list[Any] = list(zip(names, preprocess, torsos, strict=True))
        self.features = sum(_features(torso, pre.out_shape) for _, pre, torso in self._branches)

    def forward(self, obs: Obs) -> Tensor:
        if not isinstance(obs, dict):
            ((_, preprocess, torso),) = self._branches
            return torso(preprocess(obs))
        return torch.cat([torso(preprocess(obs[name])) for name, preprocess, torso in self._branches], -1)


class BFloat16Trunk(Trunk):
    """One whose torsos work in bfloat16; features are float32 all the same."""

    def forward(self, obs: Obs) -> Tensor:
        with torch.autocast(next(self.parameters()).device.type, torch.bfloat16):
            return super().forward(obs).float()


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

    Observations are one tensor or a dict of parts, with any number of leading dimensions. Where actions are masked, the
    part `action_mask [..., P]` says which are allowed: others have probability 0. No torso sees it.

    Args:
        observation_space, action_space: of a single environment; `action_space` may be an ActionSpec.
        hidden_sizes: widths of the MLP torso's layers.
        activation: of the MLP torso: tanh, relu, elu, gelu or silu.
        shared: one torso for actor and critic instead of one each.
        torso: mlp, nature or impala (convolutions, for image parts), or auto: nature for images, mlp for all else; a
            module of your own, for actor and critic both; or a function `shape -> module`, called for each observation
            part and each of actor and critic (once where `shared`).
        log_std_init: initial log standard deviation of a Gaussian policy.
        state_dependent_std: log standard deviation from a head of the network instead of free parameters.
        norm_obs: running normalisation of the real-valued observation parts.
        precision: float32, or bfloat16 for the torsos' arithmetic; weights, heads and losses stay float32.

    Raises:
        UsageError: for an unknown activation, a space without tensor form, or a torso that does not fit.
    """

    remembers = False  # whether observations come as `Sequences`
    reads_first = False  # whether it has to read something before it acts where an episode begins, see `read_first`

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space | ActionSpec,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared: bool = False,
        torso: Torso | str = "auto",
        log_std_init: float = 0.0,
        state_dependent_std: bool = False,
        norm_obs: bool = False,
        precision: str = "float32",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UsageError(f"activation is '{activation}', but may be one of {', '.join(ACTIVATIONS)}")
        spec = action_space if isinstance(action_space, ActionSpec) else action_spec(action_space)
        self.spec, self.parts, self.masked = spec, observation_parts(observation_space), spec.masked
        self.shared = shared or isinstance(torso, nn.Module)
        self.distribution = make_distribution(spec)
        self.seen = self._parts_seen()
        parts = list(self.seen.values())
        if isinstance(torso, nn.Module) and len(parts) > 1:
            raise UsageError(
                f"torso is one module, but the observation has {len(parts)} parts ({', '.join(self.seen)}); "
                "pass a function that makes a module from a part's shape"
            )
        check_torso(torso, parts)
        # One Preprocess per part, whoever reads it: actor and critic share their statistics.
        self.preprocess: Any = nn.ModuleList(Preprocess(part, norm_obs) for part in parts)
        self.actor = self._trunk(torso, hidden_sizes, activation, precision)
        self.critic = self.actor if self.shared else self._trunk(torso, hidden_sizes, activation, precision)

        is_gaussian = spec.kind in ("gaussian", "tanh_gaussian")
        self.state_dependent_std = is_gaussian and state_dependent_std
        self.free_std = is_gaussian and not state_dependent_std
        head_size = spec.num_params // 2 if self.free_std else spec.num_params
        # A small last layer makes the first policy nearly uniform (Andrychowicz et al. 2021, section 3.2).
        self.policy_head = orthogonal(nn.Linear(self.actor.features, head_size), 0.01)
        self.value_head = orthogonal(nn.Linear(self.critic.features, 1), 1.0)
        if self.free_std:
            self.log_std = nn.Parameter(torch.full((head_size,), float(log_std_init)))
        elif self.state_dependent_std:
            nn.init.constant_(self.policy_head.bias[head_size // 2 :], log_std_init)

    def _parts_seen(self) -> dict[str, Part]:
        """The parts that torsos see, by name; one of no name where the observation has no parts."""
        parts = self.parts if isinstance(self.parts, dict) else {"": self.parts}
        if not self.masked:
            return parts
        if ACTION_MASK not in parts or len(parts) == 1:
            needed = f"'{ACTION_MASK}' and one beside it"
            raise UsageError(f"actions are masked, so the observation needs a part {needed}, but has {list(parts)}")
        return {name: part for name, part in parts.items() if name != ACTION_MASK}

    def _trunk(self, torso: Any, hidden_sizes: Sequence[int], activation: str, precision: str) -> Trunk:
        if isinstance(torso, str):
            torsos = [make_torso(torso, pre.part, pre.out_shape, hidden_sizes, activation) for pre in self.preprocess]
        else:
            torsos = [torso if isinstance(torso, nn.Module) else torso(pre.out_shape) for pre in self.preprocess]
        return (BFloat16Trunk if precision == "bfloat16" else Trunk)(self.preprocess, torsos, list(self.seen))

    def forward(self, obs: Obs) -> tuple[Distribution, Tensor]:
        """The policy and the value `[...]` at `obs [..., *shape]`; a shared torso runs once."""
        obs, lead = self._flatten(obs)
        features = self.actor(obs)
        policy = self._distribution(features, lead, obs)
        return policy, self._values(features if self.shared else self.critic(obs), lead)

    def policy(self, obs: Obs) -> Distribution:
        """The distribution over actions at `obs [..., *shape]`, without the critic's work."""
        obs, lead = self._flatten(obs)
        return self._distribution(self.actor(obs), lead, obs)

    def value(self, obs: Any) -> Tensor:
        """V(obs) `[...]` at `obs [..., *shape]`."""
        obs, lead = self._flatten(obs)
        return self._values(self.critic(obs), lead)

    def fields(self) -> list[Field]:
        """What a transition holds because of this policy, beside what all have; `act` fills it."""
        return []

    def initial_carry(self, num_envs: int) -> dict[str, Tensor]:
        """What acting hands from one row to the next, `[N, ...]` each, at the beginning; nothing without memory."""
        return {}

    def read_first(self, obs: Obs, carry: dict[str, Tensor]) -> dict[str, Tensor]:
        """The carry, where all episodes begin with `obs [N, ...]` and were read so far; rows with `first` None may
        follow."""
        return carry

    def act(
        self, obs: Obs, carry: dict[str, Tensor], first: Tensor | None, noise: Tensor, with_values: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One row of a rollout: its fields, `actions` and `dist_params` among them, and the carry.

        Args:
            obs, noise: `[N, ...]`; the noise of the actions, see rlcore.networks.distributions.
            carry: of the row before, `initial_carry` at the beginning.
            first: `[N]` bool, whose row begins an episode after another; may be None where there is no carry.
            with_values: whether values are wanted, where these come with acting.
        """
        policy, values, carry = self.step(obs, carry, first, with_values)
        row = {"actions": policy.sample(noise), "dist_params": policy.params}
        return row if values is None else {**row, "values": values}, carry

    def step(
        self, obs: Obs, carry: dict[str, Tensor], first: Tensor | None, with_values: bool = False
    ) -> tuple[Distribution, Tensor | None, dict[str, Tensor]]:
        """The policy at one row, `obs [N, ...]`, the values where they come with it, and the carry; `carry` and
        `first [N]` as for `act`."""
        policy, values = self(obs) if with_values and self.shared else (self.policy(obs), None)
        return policy, values, carry

    @property
    def acts_with_values(self) -> bool:
        """Whether values come with acting: for free from a shared torso."""
        return self.shared

    def evaluate(self, obs: Obs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of `actions`, entropies and values, each `[...]`, at `obs [..., *shape]`."""
        policy, values = self(obs)
        return policy.log_prob(actions), policy.entropy(), values

    def policy_parameters(self) -> list[nn.Parameter]:
        """The parameters that `policy` depends on."""
        free_std = [self.log_std] if self.free_std else []
        return [*self.actor.parameters(), *self.policy_head.parameters(), *free_std]

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that `value` depends on."""
        return [*self.critic.parameters(), *self.value_head.parameters()]

    def update_normalizer(self, obs: Any, mask: Tensor) -> None:
        """Merge the real rows of a rollout, `obs [T, N, ...]` with `mask [T, N]`, into the statistics."""
        for name, pre in zip(self.seen, self.preprocess, strict=True):
            if pre.norm is not None:
                pre.norm.update(obs[name] if isinstance(obs, dict) else obs, mask)

    def _flatten(self, obs: Obs) -> tuple[Obs, torch.Size]:
        """Observations as [B, ...] and the leading dimensions they had."""
        first, part = obs, self.parts
        if isinstance(obs, dict):  # any part will do
            name, part = next(iter(part.items()))
            first = obs[name]
        lead = first.shape[: first.ndim - len(part.shape)]
        if len(lead) == 1:
            return obs, lead
        return map_parts(lambda x: x.reshape(-1, *x.shape[len(lead) :]), obs), lead

    def _distribution(self, features: Tensor, lead: torch.Size, obs: Obs) -> Distribution:
        params = self.policy_head(features)
        if self.masked:
            params = torch.where(self._allowed(obs), params, FORBIDDEN)
        if self.free_std:
            params = torch.cat([params, self.log_std.expand_as(params)], -1)
        elif self.state_dependent_std:
            mean, log_std = params.chunk(2, -1)
            params = torch.cat([mean, log_std.clamp(-20, 2)], -1)
        return self.distribution(params if len(lead) == 1 else params.reshape(*lead, -1))

    def _allowed(self, obs: Any) -> Tensor:
        """`[B, P]` bool, which choices are allowed at `obs [B, ...]`."""
        return obs[ACTION_MASK].bool()

    def _values(self, features: Tensor, lead: torch.Size) -> Tensor:
        values = self.value_head(features).squeeze(-1)
        return values if len(lead) == 1 else values.reshape(lead)
