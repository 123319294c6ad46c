"""Policies that remember: a memory between torsos and heads, stepped row by row while acting and given whole sequences
while learning.

obs ─ Preprocess ─ torso ─ memory ─┬─ policy head        (shared=True; else actor and critic remember each for itself)
                     └─ carry ─┘   └─ value head

What is remembered is forgotten where an episode begins, also within a sequence, and gradients stop where a sequence
begins: what was remembered there is data (truncated backpropagation through time, Williams & Peng 1990).
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import gymnasium
import torch
from torch import Tensor, nn

from rlcore.errors import UsageError
from rlcore.networks.actor_critic import ActorCritic, Torso, Trunk
from rlcore.networks.distributions import Distribution
from rlcore.networks.recurrent import scan_gru, scan_lstm
from rlcore.programs.recurrent import is_there, kernel
from rlcore.spaces import ActionSpec, Field, Obs, Sequences
from rlcore.tracing import is_recording, is_twice_differentiated


class Memory(nn.Module):
    """What remembers; one of your own has `features`, `sizes` and `step`.

    Attributes:
        features: H, size of what it puts out.
        sizes: what it hands from one row to the next, as name and shape; zeros where an episode begins.
    """

    features: int
    sizes: dict[str, tuple[int, ...]]

    def step(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """One row, `x [N, F]` with the `carry [N, ...]` of the row before, to `[N, H]` and the carry after it."""
        raise NotImplementedError

    def forward(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> Tensor:
        """Sequences `x [L, S, F]`, with the `carry [S, ...]` before them, to `[L, S, H]`, the same as row by row;
        `first [L, S]` bool tells where episodes begin."""
        rows = []
        for x_t, first_t in zip(x.unbind(), first.unbind(), strict=True):
            y, carry = self.row(x_t, carry, first_t)
            rows.append(y)
        return torch.stack(rows)

    def row(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`step` with `x [N, F]` of those who go on and those who are `first [N]` and begin."""
        return self.step(x, self.begin(carry, first))

    def begin(self, carry: dict[str, Tensor], first: Tensor) -> dict[str, Tensor]:
        """The `carry [N, ...]`, forgotten by those who are `first [N]`."""
        return {name: torch.where(_beside(first, x), 0.0, x) for name, x in carry.items()}


class GRU(Memory):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) in torch's form: `[L, S, in_features]` to
    `[L, S, size]`."""

    _parts: tuple[str, ...]
    _hands_on: tuple[int, ...]
    _scan: Any
    _parts, _gates, _scan, _kernel = ("h",), 3, staticmethod(scan_gru), "gru_row"
    _hands_on = 1, -1, 0  # which gates are open for what was before to move on, and which closed

    def __init__(self, in_features: int, size: int = 64):
        super().__init__()
        self.features, self.sizes = size, dict.fromkeys(self._parts, (size,))
        self.weight_x = nn.Parameter(torch.empty(self._gates * size, in_features))
        self.weight_h = nn.Parameter(torch.empty(self._gates * size, size))
        self.bias_x, self.bias_h = (nn.Parameter(torch.zeros(self._gates * size)) for _ in "xh")
        for gate in (*self.weight_x.split(size), *self.weight_h.split(size)):
            nn.init.orthogonal_(gate)

    def handing_on(self) -> Self:
        """The same, beginning as h' ≈ tanh(W h + x) of small x, with W orthogonal: what was seen many rows ago is still
        there, turned as often, so that a policy soon tells apart how long ago it was (orthogonal networks on copying
        tasks, Henaff et al. 2016, arXiv:1602.06662)."""
        with torch.no_grad():
            for gate, sign in zip(self.bias_x.split(self.features), self._hands_on, strict=True):
                gate.fill_(3.0 * sign)
            self.weight_x.mul_(0.3)
        return self

    def _weights(self) -> tuple[Tensor, ...]:
        """In the order in which torch takes them."""
        return self.weight_x, self.weight_h, self.bias_x, self.bias_h

    def step(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.gru_cell(x, carry["h"], *self._weights())
        return h, {"h": h}

    def row(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        n = first.shape[0]  # of any size where it is exported; a kernel does not look
        fits = first.dtype == torch.bool and x.shape == (n, self.weight_x.shape[1])
        fits = fits and all(state.shape == (n, self.features) for state in carry.values())
        if torch.is_grad_enabled() or not fits or not is_there(x):
            return super().row(x, carry, first)
        run = getattr(torch.ops.rlcore, self._kernel) if is_recording() else kernel(self._kernel)
        after = run(x, *carry.values(), first, *self._weights())
        carry = dict(zip(self._parts, after if len(self._parts) > 1 else [after], strict=True))
        return carry["h"], carry

    def forward(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> Tensor:
        if is_twice_differentiated():
            if is_recording():
                raise UsageError("a recurrent memory is differentiated twice, which only Python does here")
            return super().forward(x, carry, first)
        if is_recording() or not self._has_fused(x):
            return self._scan(x, *carry.values(), first, *self._weights())
        if first[1:].any():
            return self._by_episode(x, carry, first)
        return self._fused(x, self.begin(carry, first[0]))

    def _has_fused(self, x: Tensor) -> bool:
        """Whether torch has a kernel for whole sequences that is faster; on the CPU its GRU is a loop of operations."""
        return x.is_cuda

    def _fused(self, x: Tensor, carry: dict[str, Tensor]) -> Tensor:
        return torch.gru(x, carry["h"].unsqueeze(0), self._weights(), True, 1, 0.0, False, False, False)[0]

    def _by_episode(self, x: Tensor, carry: dict[str, Tensor], first: Tensor) -> Tensor:
        """Each stretch within an episode as a sequence of its own, so that the fused kernel need not stop; row by row
        where that were mostly padding."""
        L, S = first.shape
        begins = first.clone()
        begins[0] = True
        steps = torch.arange(L, device=x.device).unsqueeze(1)
        place = steps - torch.where(begins, steps, 0).cummax(0)[0]  # of each row within its stretch
        number = (begins.T.flatten().cumsum(0) - 1).view(S, L).T  # of its stretch
        longest, count = int(place.max()) + 1, int(number.max()) + 1
        if longest * count > 2 * L * S:
            return self._scan(x, *carry.values(), first, *self._weights())
        stretches = x.new_zeros(longest, count, x.shape[-1]).index_put((place, number), x)
        carry = self.begin(carry, first[0])
        own = {name: x.new_zeros(count, self.features).index_put((number[0],), old) for name, old in carry.items()}
        return self._fused(stretches, own)[place, number]


class LSTM(GRU):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) in torch's form, with forget gates open at first
    (Jozefowicz et al. 2015); `[L, S, in_features]` to `[L, S, size]`."""

    _parts, _gates, _scan, _kernel = ("h", "c"), 4, staticmethod(scan_lstm), "lstm_row"
    _hands_on = 1, -1, 0, 1

    def __init__(self, in_features: int, size: int = 64):
        super().__init__(in_features, size)
        with torch.no_grad():
            self.bias_x[size : 2 * size] = 1.0

    def step(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, c = torch.lstm_cell(x, (carry["h"], carry["c"]), *self._weights())
        return h, {"h": h, "c": c}

    def _has_fused(self, x: Tensor) -> bool:
        return not is_there(x)

    def _fused(self, x: Tensor, carry: dict[str, Tensor]) -> Tensor:
        state = carry["h"].unsqueeze(0), carry["c"].unsqueeze(0)
        return torch.lstm(x, state, self._weights(), True, 1, 0.0, False, False, False)[0]


class MemoryTrunk(nn.Module):
    """A trunk whose features pass a memory: `Sequences` to `[B, features]`; a UsageError where there are none, or
    `make_memory` makes something else."""

    def __init__(self, trunk: Trunk, make_memory: Callable[[int], Memory]):
        super().__init__()
        if not trunk.features:
            raise UsageError("the torso puts out no features, so there is nothing for a memory to remember")
        self.trunk, self.memory = trunk, make_memory(trunk.features)
        if not isinstance(self.memory, Memory):
            kind = type(self.memory).__name__
            raise UsageError(f"memory made a {kind}, but must make a rlcore.networks.Memory from a number of features")
        self.features = self.memory.features
        self.names: dict[str, str] = {}  # in the policy's carry, of what the memory hands on

    def forward(self, obs: Sequences) -> Tensor:
        if obs.length == 1:
            return self.step(obs.obs, obs.carry, obs.first)[0]
        carry = {part: obs.carry[name] for name, part in self.names.items()}
        x = obs.by_sequence(self.trunk(obs.obs))
        return obs.by_row(self.memory(x, carry, obs.by_sequence(obs.first)))

    def step(self, obs: Obs, carry: dict[str, Tensor], first: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """One row: `obs [N, ...]`, which is the `first [N]` of some episodes (None: of none), with the policy's
        `carry`, to features `[N, H]` and the trunk's part of the carry after."""
        own = {part: carry[name] for name, part in self.names.items()}
        y, own = self.memory.row(self.trunk(obs), own, first)
        return y, {name: own[part] for name, part in self.names.items()}


class RecurrentActorCritic(ActorCritic):
    """An ActorCritic that remembers. Where one observation stands alone, it is the first of an episode.

    Args:
        memory: makes a `Memory` from the number of features that go in.
        observation_space, action_space, options: as for `ActorCritic`.

    Raises:
        UsageError: where `memory` makes something else, or as `ActorCritic` does.
    """

    actor: Any
    critic: Any
    make_memory: Callable[[int], Memory]
    sizes: dict[str, tuple[int, ...]]
    remembers = True

    def __init__(
        self, observation_space: gymnasium.Space, action_space: gymnasium.Space | ActionSpec,
        memory: Callable[[int], Memory], **options: Any,
    ):  # fmt: skip
        vars(self)["make_memory"] = memory
        super().__init__(observation_space, action_space, **options)
        trunks: dict[str, Any] = {"memory": self.actor} if self.shared else {"actor": self.actor, "critic": self.critic}
        for name, trunk in trunks.items():
            trunk.names = {f"{name}_{part}": part for part in trunk.memory.sizes}
        self.sizes = {name: trunk.memory.sizes[part] for trunk in trunks.values() for name, part in trunk.names.items()}

    def _trunk(self, torso: Torso | str, hidden_sizes: Sequence[int], activation: str, precision: str) -> MemoryTrunk:
        return MemoryTrunk(super()._trunk(torso, hidden_sizes, activation, precision), self.make_memory)

    def fields(self) -> list[Field]:
        return [Field(name, shape, per_sequence=True) for name, shape in self.sizes.items()]

    def initial_carry(self, num_envs: int) -> dict[str, Tensor]:
        device = self.value_head.weight.device
        return {name: torch.zeros(num_envs, *shape, device=device) for name, shape in self.sizes.items()}

    @property
    def acts_with_values(self) -> bool:
        """They do: what the critic remembers goes on row by row as well."""
        return True

    def step(
        self, obs: Obs, carry: dict[str, Tensor], first: Tensor | None, with_values: bool = False
    ) -> tuple[Distribution, Tensor | None, dict[str, Tensor]]:
        features, after = self.actor.step(obs, carry, first)
        lead, values = features.shape[:1], None
        if with_values and not self.shared:
            own, more = self.critic.step(obs, carry, first)
            values, after = self._values(own, lead), {**after, **more}
        elif with_values:
            values = self._values(features, lead)
        return self._distribution(features, lead, obs), values, {**carry, **after}

    def _allowed(self, obs: Obs | Sequences) -> Tensor:
        return super()._allowed(obs.obs if isinstance(obs, Sequences) else obs)

    def _flatten(self, obs: Obs | Sequences) -> tuple[Sequences, torch.Size]:
        if isinstance(obs, Sequences):
            return obs, obs.first.shape
        obs, lead = super()._flatten(obs)
        n = lead.numel()
        first = torch.zeros(n, dtype=torch.bool, device=self.value_head.weight.device)
        return Sequences(obs, first, self.initial_carry(n), 1, n), lead


def _beside(first: Tensor, x: Tensor) -> Tensor:
    """`first [N]` with as many dimensions as `x [N, ...]`."""
    return first.view(-1, *(1 for _ in x.shape[1:]))
