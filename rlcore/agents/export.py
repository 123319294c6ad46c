"""A policy as one file that runs without rlcore: from observations as the environment gives them to the most probable
actions as it takes them, of any number N of environments at once.

    policy.pt2     action = torch.export.load("policy.pt2").module()(obs)                       needs torch
    policy.onnx    action = onnxruntime.InferenceSession("policy.onnx").run(["action"], {"obs": obs})[0]

Inputs and outputs, where there are more than these two; of ONNX by the names in brackets:

    obs            tensors `[N, ...]` in the types of the observation space, in its nested dicts and tuples where it
                   has any [obs, or obs/camera, obs/robot/joints, obs/0]
    action_mask    `[N, P]` bool, which choices are allowed, where the agent masks actions and the environment tells the
                   masks beside its observations; of a dimension that allows nothing, the first choice is taken
    carry          of a policy with memory, a dict of float32 `[N, ...]`: what was remembered in the row before, zeros
                   where an episode begins [carry/memory_h]; the call gives (action, carry) [next_carry/memory_h]

What wrappers do to observations, such as the frames of Atari, belongs to the environment and is not in the file.
"""

from __future__ import annotations

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from rlcore.agents.evaluation import Actor
from rlcore.envs.adapter import VectorAdapter
from rlcore.envs.envpool import needed
from rlcore.envs.masks import MaskedVectorEnv
from rlcore.errors import RlcoreError, UsageError, one_line
from rlcore.networks import ActorCritic, RecurrentActorCritic
from rlcore.spaces import ACTION_MASK, ActionSpec, Obs, map_parts, split_observation
from rlcore.storage.files import write_atomically
from rlcore.tracing import leaves_of

if TYPE_CHECKING:
    from rlcore.agents.agent import Agent

SUFFIXES = {".pt2": (), ".onnx": ("onnx", "onnxscript", "onnxruntime")}  # and the packages that each needs
TOLERANCE = 1e-5  # of actions that are real numbers; relative where they or their bounds are larger than 1
CHECKED, ROWS = (4, 1), 3  # numbers of environments, other than the one exported with, and steps of each
EXAMPLE = 3  # environments of the example: 1 could be taken for a dimension that is always 1
LARGEST = 1e3  # of observations drawn from a space, whose bounds may be those of its type

Inputs = dict[str, Any]
"""`obs`, and where there are such, `action_mask` and `carry`; tensors in dicts and tuples."""


class Policy(nn.Module):
    """The most probable actions of a network, as a function of what the environment shows.

    Args:
        network: of the agent; the critic is taken out of it.
        adapter: of the agent's environments, which knows their spaces and where masks are told.
    """

    def __init__(self, network: ActorCritic, adapter: VectorAdapter):
        super().__init__()
        self.network, self.adapter, self.spec = network, adapter, adapter.action_spec
        del network.value_head
        if not network.shared:
            del network.critic

    def forward(
        self, obs: Any, action_mask: Tensor | None = None, carry: dict[str, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Actions `[N, ...]` in the action space at `obs [N, ...]`, with `action_mask [N, P]` and `carry [N, ...]` as
        told above; with a carry, also the one after it."""
        parts = self._parts(obs, action_mask)
        begins = torch.zeros(leaves_of(parts)[0].shape[0], dtype=torch.bool)  # a carry of zeros says it
        policy, _, after = self.network.step(parts, carry or {}, begins)
        action = _to_env(policy.mode(), self.spec)
        return (action, after) if carry else action

    def _parts(self, obs: Any, action_mask: Tensor | None) -> Obs:
        """As `VectorAdapter.given`, for tensors, in the types that the network takes."""
        adapter = self.adapter
        if isinstance(adapter.stepped, MaskedVectorEnv):
            told: Any = _side_by_side(obs[ACTION_MASK]) if action_mask is None else action_mask
            obs = adapter.stepped.join(obs, told != 0)
        obs = split_observation(adapter.observation_space, obs)
        return map_parts(lambda x, part: _shifted(x.to(part.dtype), -np.asarray(part.start)), obs, adapter.parts)


def _side_by_side(masks: Tensor | tuple[Tensor, ...]) -> Tensor:
    masks = masks if isinstance(masks, tuple) else (masks,)
    return torch.cat([x.reshape(x.shape[0], -1) for x in masks], 1)


def _shifted(x: Tensor, by: np.ndarray) -> Tensor:
    return x + torch.as_tensor(by) if by.any() else x


def _to_env(actions: Tensor, spec: ActionSpec) -> Tensor:
    """As `ActionSpec.to_env`, for tensors."""
    space = spec.space
    if spec.kind == "categorical":
        return actions + int(space.start)
    actions = spec.to_env_tensor(actions).reshape(-1, *space.shape)
    actions = _shifted(actions, np.asarray(getattr(space, "start", 0)))
    return actions.to(torch.from_numpy(np.zeros((), space.dtype)).dtype)


# Gradients are enabled, though none is taken: recurrent memories leave our own kernels for torch's operations then.
@torch.enable_grad()
def export_policy(agent: Agent, path: str | Path) -> None:
    """Write the policy of an agent to `path`, which takes its name, and the place of an older file, only when it has
    been read back and found to act as `agent.act(obs, deterministic=True)` does.

    Raises:
        UsageError: where the suffix is another than .pt2 or .onnx, the extra `onnx` is missing, the agent has no
            policy or one that reads texts, torch cannot export its network, or the file cannot be written.
        RlcoreError: where the exported policy acts otherwise.
    """
    path, network = Path(path), agent.network
    if path.suffix not in SUFFIXES:
        raise UsageError(f"the policy file is {path}, but its name must end in {' or '.join(SUFFIXES)}")
    if not isinstance(network, ActorCritic):
        raise UsageError(f"a {type(agent).__name__} has no policy to export")
    if network.reads_first:
        raise UsageError("a policy over texts cannot be exported: it reads a prompt before it acts")
    for package in SUFFIXES[path.suffix]:
        needed(package, "export to ONNX", package, extra="onnx")
    runs_with = _Onnx if path.suffix == ".onnx" else _Torch
    own = copy.deepcopy(network).cpu().requires_grad_(False)  # on a GPU the rounding is another
    try:
        data = runs_with.write(*_exported(agent, copy.deepcopy(own)))
        _check(agent, own, runs_with(data))
    except RlcoreError:
        raise
    except Exception as error:  # torch has no base of what its exporters raise, and a torso may be anyone's
        reason = one_line(error)[:300] or type(error).__name__
        raise UsageError(f"torch cannot export this policy to {path.suffix}: {reason}") from error
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UsageError(f"the policy file {path} cannot be written: {error.strerror or error}") from error


def _exported(agent: Agent, network: ActorCritic) -> tuple[torch.export.ExportedProgram, Inputs]:
    """The program of a policy, and the inputs that it was exported with."""
    inputs = _inputs(*_sampled(agent, EXAMPLE, seed=0), _initial_carry(network, EXAMPLE))
    policy, batch = Policy(network, agent.adapter), torch.export.Dim("batch")
    args, kwargs, dynamic = (inputs["obs"],), _beside_obs(inputs), _mapped(lambda _: {0: batch}, inputs)
    policy(*args, **kwargs)  # with real tensors, or constants would be made, and kept for good, as the exporter's fakes
    return torch.export.export(policy, args, kwargs, dynamic_shapes=dynamic, strict=False), inputs


def _initial_carry(network: ActorCritic, count: int) -> dict[str, Tensor]:
    """Without what the critic remembers."""
    carry = network.initial_carry(count)
    names = network.actor.names if isinstance(network, RecurrentActorCritic) else carry
    return {name: carry[name] for name in names}


def _inputs(obs: Any, action_mask: np.ndarray | None, carry: dict[str, Tensor]) -> Inputs:
    inputs = {"obs": _mapped(lambda x: torch.from_numpy(np.array(x)), obs)}
    if action_mask is not None:
        inputs["action_mask"] = torch.from_numpy(action_mask)
    return {**inputs, "carry": carry} if carry else inputs


def _beside_obs(inputs: Inputs) -> Inputs:
    return {name: x for name, x in inputs.items() if name != "obs"}


class _Torch:
    """A policy as torch.export writes it."""

    def __init__(self, data: bytes):
        self.module = torch.export.load(io.BytesIO(data)).module()

    @staticmethod
    def write(program: torch.export.ExportedProgram, inputs: Inputs) -> bytes:
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue()

    def __call__(self, inputs: Inputs) -> tuple[np.ndarray, dict[str, Tensor]]:
        out = self.module(inputs["obs"], **_beside_obs(inputs))
        action, carry = out if "carry" in inputs else (out, {})
        return action.numpy(), carry


class _Onnx:
    """The same as ONNX."""

    def __init__(self, data: bytes):
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    @staticmethod
    def write(program: torch.export.ExportedProgram, inputs: Inputs) -> bytes:
        carry = [f"next_carry/{name}" for name in inputs.get("carry", {})]
        logger = logging.getLogger("torch.onnx._internal.exporter._registration")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it misses torchvision, which nothing here is of
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                names = list(_named(inputs))
                written = torch.onnx.export(program, input_names=names, output_names=["action", *carry], verbose=False)
        finally:
            logger.setLevel(level)
        model = written.model_proto
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del model.graph.value_info[:]  # where it has torch's own name
        return model.SerializeToString()

    def __call__(self, inputs: Inputs) -> tuple[np.ndarray, dict[str, Tensor]]:
        action, *carry = self.session.run(None, {name: x.numpy() for name, x in _named(inputs).items()})
        return action, dict(zip(inputs.get("carry", ()), map(torch.from_numpy, carry), strict=True))


def _check(agent: Agent, network: ActorCritic, policy: _Torch | _Onnx) -> None:
    """Refuse, as an RlcoreError, what acts otherwise than the agent, whose `network` on the CPU this is; in several
    steps, since a memory is seen only then, of which the last begins an episode in the first environment."""
    twin = copy.copy(agent)
    for count in CHECKED:
        twin._actor = Actor(network, agent.adapter, torch.Generator())  # the agent's own goes on remembering
        start = carry = _initial_carry(network, count)
        for row in range(ROWS):
            first = np.full(count, row == 0) | ((np.arange(count) == 0) & (row == ROWS - 1))
            begins = torch.from_numpy(first)
            carry = {name: _chosen(begins, start[name], x) for name, x in carry.items()}
            obs, action_mask = _sampled(agent, count, seed=1 + row)
            action, carry = policy(_inputs(obs, action_mask, carry))
            expected = twin.act(obs, deterministic=True, first=first, action_mask=action_mask)
            _compare(action, expected, agent.adapter.action_spec)


def _chosen(which: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`x [N, ...]` where `which [N]`, else `y [N, ...]`."""
    return torch.where(which.view(-1, *(1 for _ in x.shape[1:])), x, y)


def _compare(action: np.ndarray, expected: np.ndarray, spec: ActionSpec) -> None:
    if (action.shape, action.dtype) != (expected.shape, expected.dtype):
        kinds = [f"{x.dtype} of shape {list(x.shape)}" for x in (action, expected)]
        raise RlcoreError(f"the exported policy gives {kinds[0]} where the agent's actions are {kinds[1]}")
    if not np.issubdtype(expected.dtype, np.floating):
        if not np.array_equal(action, expected):
            n = int((action != expected).reshape(len(action), -1).any(1).sum())
            raise RlcoreError(f"the exported policy chooses other actions than the agent in {n} of {len(action)} rows")
        return
    size = max(1.0, float(np.abs(expected).max()), float((spec.space.high - spec.space.low).max()) * spec.squash)
    if not np.allclose(action, expected, rtol=0, atol=max(TOLERANCE, np.finfo(expected.dtype).eps) * size):
        off = float(np.abs(action.astype(np.float64) - expected).max())
        raise RlcoreError(f"actions of the exported policy are off by {off:.1e} from those of the agent")


def _sampled(agent: Agent, count: int, seed: int) -> tuple[Any, np.ndarray | None]:
    """Observations of so many environments as these give them, and the masks `[count, P]` that do not stand in them."""
    spec, adapter = agent.adapter.action_spec, agent.adapter
    space = batch_space(adapter.envs.single_observation_space, count)
    space.seed(seed)
    obs = _mapped(_tamed, space.sample())
    if not spec.masked:
        return obs, None
    rng = np.random.default_rng(seed)
    masks = rng.random((count, spec.num_params)) < 0.5
    for n, end in zip(spec.nvec, np.cumsum(spec.nvec), strict=True):
        masks[np.arange(count), end - n + rng.integers(n, size=count)] = True  # something is always allowed
    if adapter.stepped.source != "observation":
        return obs, masks
    return {**obs, ACTION_MASK: _in_form_of(obs[ACTION_MASK], masks)}, None


def _tamed(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -LARGEST, LARGEST) if np.issubdtype(x.dtype, np.floating) else x


def _in_form_of(like: Any, masks: np.ndarray) -> Any:
    if not isinstance(like, tuple):
        return masks.reshape(like.shape).astype(like.dtype)
    ends = np.cumsum([x[0].size for x in like])[:-1]
    return tuple(_in_form_of(x, part) for x, part in zip(like, np.split(masks, ends, 1), strict=True))


def _mapped(function: Callable, tree: Any) -> Any:
    """`function` of each array in nested dicts and tuples."""
    if isinstance(tree, dict):
        return {name: _mapped(function, x) for name, x in tree.items()}
    return tuple(_mapped(function, x) for x in tree) if isinstance(tree, tuple) else function(tree)


def _named(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in nested dicts and tuples by the way there, as torch goes through them."""
    if isinstance(tree, Tensor):
        return {name: tree}
    found: dict[str, Tensor] = {}
    for key, x in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found |= _named(x, f"{name}/{key}" if name else str(key))
    return found
