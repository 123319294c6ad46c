"""The policy's part of one row of a rollout as a program: for environments in host memory, where Python must come back
after every row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcore.networks import ActorCritic
from rlcore.programs.program import Piece, Program, buffer_slots, held, holding, parameter_slots
from rlcore.spaces import Obs


def act(network: ActorCritic, obs: Obs, noise: Tensor, with_values: bool) -> list[Tensor]:
    """Actions and parameters of their distribution for one row `obs [N, ...]`, and values `[N]` where these are wanted
    and come for free from a shared torso."""
    if network.shared and with_values:
        policy, values = network(obs)
        return [policy.sample(noise), policy.params, values]
    policy = network.policy(obs)
    return [policy.sample(noise), policy.params]


class ActProgram(Program):
    """`(tensors, obs, noise) ->` what `act` gives.

    Args:
        network: whose parameters and buffers `tensors` take the place of.
        with_values: whether values are wanted.
    """

    stays = True  # the network learns in place

    def __init__(self, network: ActorCritic, with_values: bool):
        super().__init__()
        self.__dict__["network"] = network  # not a submodule: its parameters are inputs here
        self.slots = parameter_slots(network) + buffer_slots(network)
        self.with_values = with_values
        self.act = Piece(self._act)

    def tensors(self) -> list[Tensor]:
        """The network's parameters and buffers: views, so good for as long as these are changed in place."""
        return [x.detach() for x in held(self.slots)]

    def forward(self, tensors: list[Tensor], obs: Obs, noise: Tensor) -> list[Tensor]:
        return self.act(tensors, obs, noise)

    def record(self, tensors: list[Tensor], obs: Obs, noise: Tensor) -> None:
        self.act.record(tensors, obs, noise)

    @torch.no_grad()
    def _act(self, tensors: list[Tensor], obs: Obs, noise: Tensor) -> list[Tensor]:
        with holding(self.slots, tensors):
            return act(self.network, obs, noise, self.with_values)


class ActUnit:
    """Acts by a program: `unit(obs, noise)` gives what `act` gives.

    Args:
        program: what to build; its network is the one that acts from then on.
        obs, noise: examples of one row, `[N, ...]`.
        key, compiled: as for `Program.make_runner`.
    """

    def __init__(self, program: ActProgram, obs: Obs, noise: Tensor, key: dict[str, Any], compiled: bool):
        self.tensors = program.tensors()
        runner = program.make_runner((self.tensors, obs, noise), key, compiled)
        # A row takes microseconds, so nested inputs are laid flat here and not by the runner.
        self.run = runner.flat if compiled else lambda leaves: program.act.graph.forward(*leaves)

    def __call__(self, obs: Obs, noise: Tensor) -> list[Tensor]:
        parts = obs.values() if isinstance(obs, dict) else (obs,)
        return self.run([*self.tensors, *parts, noise])
