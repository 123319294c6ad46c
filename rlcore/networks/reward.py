"""What a step is worth, r(s, a), told by an ensemble of networks that differ by their first weights.

obs ─ Preprocess ─ torso (─ memory) ─┬─ linear ─ tanh ─ linear ─> r
action ──────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.buffer import RolloutBuffer
from rlcore.networks.actor_critic import ActorCritic, one_hot
from rlcore.networks.torsos import orthogonal
from rlcore.spaces import ActionSpec, Field, Obs, Sequences, map_parts
from rlcore.tracing import leaves_of

if TYPE_CHECKING:
    from rlcore.preferences.data import Segments


class RewardNetwork(nn.Module):
    """M estimates of the reward of a step (Christiano et al. 2017, section 2.2, arXiv:1706.03741). Other first weights
    are enough for members to differ where they know little (Lakshminarayanan et al. 2017, arXiv:1612.01474).

    Args:
        make_network: makes an ActorCritic, of which the actor's torso is taken, and its memory where it has one.
        ensemble: M.
    """

    def __init__(self, make_network: Callable[[], ActorCritic], ensemble: int):
        super().__init__()
        self._networks = [make_network() for _ in range(ensemble)]  # in a list, so that their heads are not ours
        like = self._networks[0]
        self.spec, self.remembers, self.reads_first, self.shared = like.spec, like.remembers, like.reads_first, True
        width = like.actor.features
        self.trunks = nn.ModuleList(network.actor for network in self._networks)
        self.heads = nn.ModuleList(_head(width + _width(like.spec), width) for _ in self.trunks)

    def begun_from(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of this network where each torso begins as that of the actor in a policy's `state`, which has read
        its observations before; that of a reward network as it is."""
        torso = {name.removeprefix("actor."): x for name, x in state.items() if name.startswith("actor.")}
        if not torso:
            return state
        own = {f"trunks.{m}.{name}": x for m in range(len(self.trunks)) for name, x in torso.items()}
        return {**self.state_dict(), **own}

    def fields(self) -> list[Field]:
        """What a memory has before the first step of a segment."""
        return self._networks[0].fields()

    def forward(self, obs: Obs | Sequences, actions: Tensor) -> Tensor:
        """r(s, a) `[M, B]` at `obs [B, ...]` and `actions [B, ...]` as a policy draws them."""
        action = _as_features(actions, self.spec)
        members = zip(self.trunks, self.heads, strict=True)
        return torch.stack([head(torch.cat([trunk(obs), action], 1)).squeeze(1) for trunk, head in members])

    @torch.no_grad()
    def of_rollout(self, buffer: RolloutBuffer) -> Tensor:
        """r(s, a) `[M, T, N]` of each step of a rollout, 0 where masked; a memory begins with its first row."""
        obs = buffer.observations()
        obs = obs.obs if isinstance(obs, Sequences) else obs
        rows = len(leaves_of(obs)[0]) // buffer.num_envs
        rewards = self._of_columns(obs, buffer.actions[:rows], buffer.dones[:rows])
        rewards = F.pad(rewards, (0, 0, 0, buffer.num_steps - rows))
        return torch.where(buffer.mask, rewards, 0.0)

    @torch.no_grad()
    def of_segments(self, segments: Segments) -> Tensor:
        """Σ_t r(s_t, a_t) `[M, K]` over each of K segments."""
        obs = map_parts(lambda x: x.transpose(0, 1).flatten(0, 1), segments.obs)
        mask = segments.mask.T
        rewards = self._of_columns(obs, segments.actions.transpose(0, 1), torch.zeros_like(mask))
        return torch.where(mask, rewards, 0.0).sum(1)

    def _of_columns(self, obs: Any, actions: Tensor, first: Tensor) -> Tensor:
        """r(s, a) `[M, L, K]` at `obs [L · K, ...]`, `actions [L, K, ...]`; `first [L, K]` where episodes begin."""
        L, K = first.shape
        if self.remembers:
            carry = {x.name: torch.zeros(K, *x.shape, device=first.device) for x in self.fields()}
            obs = Sequences(obs, first.flatten(), carry, L, K)
        return self(obs, actions.flatten(0, 1)).unflatten(1, (L, K))

    def update_normalizer(self, obs: Any, mask: Tensor) -> None:
        """Merge the real rows of segments, `obs [L, K, ...]` with `mask [L, K]`, into the statistics."""
        for network in self._networks:
            network.update_normalizer(obs, mask)


def _head(in_features: int, width: int) -> nn.Sequential:
    last = orthogonal(nn.Linear(width, 1), 0.01)  # at first nothing is preferred
    return nn.Sequential(orthogonal(nn.Linear(in_features, width), 2**0.5), nn.Tanh(), last)


def _width(spec: ActionSpec) -> int:
    return sum(spec.nvec) or spec.shape[0]


def _as_features(actions: Tensor, spec: ActionSpec) -> Tensor:
    """`actions [B, ...]` as `[B, A]`: choices one-hot, numbers as the environment takes them."""
    return one_hot(actions, spec.nvec) if spec.nvec else spec.to_env_tensor(actions).float()
