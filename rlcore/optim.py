"""Parameters as one vector, and what works on it: optimisers and conjugate gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.storage.checkpoint import check_like

# What an optimiser remembers of each parameter beside the number of steps, tensors of its shape.
MOMENTS = {torch.optim.Adam: ["exp_avg", "exp_avg_sq"], torch.optim.RMSprop: ["square_avg"]}


def flatten_parameters(module: nn.Module) -> tuple[list[nn.Parameter], nn.Parameter]:
    """Move the trainable parameters of `module` into one vector, of which they become views.

    Clipping and the optimiser then work on one tensor instead of a dozen. Call it after the module is on its device.

    Returns:
        The parameters as before, and the vector.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    for parameter, part in zip(parameters, vector.detach().split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view_as(parameter)
    return parameters, vector


def make_optimizer(
    name: str, parameter: nn.Parameter, learning_rate: float, eps: float, alpha: float
) -> torch.optim.Optimizer:
    """Adam, or RMSprop with mean-square decay `alpha`, over one parameter vector."""
    if name == "rmsprop":
        return torch.optim.RMSprop([parameter], learning_rate, alpha, eps)
    return torch.optim.Adam([parameter], learning_rate, eps=eps, fused=True)


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> list[list[Tensor]]:
    """What the optimiser remembers of each parameter, made where it has not begun: first moments, second moments, and
    the number of steps, each a list over parameters; RMSprop has second moments and steps."""
    adam = isinstance(optimizer, torch.optim.Adam)
    names = [*MOMENTS[type(optimizer)], "step"]
    for parameter in parameters:
        if not optimizer.state[parameter]:
            state = {name: torch.zeros_like(parameter.detach()) for name in names[:-1]}
            optimizer.state[parameter] = {**state, "step": torch.zeros((), device=parameter.device if adam else "cpu")}
    return [[optimizer.state[parameter][name] for parameter in parameters] for name in names]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], state: dict[str, Any], name: str
) -> None:
    """Go on where `optimizer.state_dict()` was taken: moments, step counts and learning rate; all else is the
    configuration's, whatever the state says.

    Raises:
        ValueError: where the state is not one of this optimiser over these parameters.
    """
    moments, groups = state.get("state"), state.get("param_groups")
    rate = groups[0].get("lr") if isinstance(groups, list) and groups and isinstance(groups[0], dict) else None
    if not isinstance(moments, dict) or not isinstance(rate, float | int) or not math.isfinite(rate):
        raise ValueError(f"{name} has other parts than expected")
    if moments:  # none before the first step
        of_each = [{**dict.fromkeys(MOMENTS[type(optimizer)], x.detach()), "step": torch.zeros(())} for x in parameters]
        check_like(moments, dict(enumerate(of_each)), name)
    now = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": [{**group, "lr": float(rate)} for group in now]})


def clipped(gradient: Tensor, max_norm: float | None) -> tuple[Tensor, Tensor]:
    """A gradient `[P]` shortened to length `max_norm` where it is longer, and its length before."""
    norm = torch.linalg.vector_norm(gradient)
    if max_norm is None:
        return gradient, norm
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm


def adam_corrections(steps: Tensor, count: int) -> Tensor:
    """1 / (1 − β₁ᵗ) and 1 / (1 − β₂ᵗ), `[count, 2]`, for the `count` steps t that follow the first `steps []`."""
    t = steps + torch.arange(1, count + 1, device=steps.device)
    return 1 / (1 - torch.stack([0.9**t, 0.999**t], -1))


def adam_update(
    vector: Tensor, moments: list[Tensor], gradient: Tensor, learning_rate: Tensor, eps: float, corrections: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) as a pure function: the new vector and the new moments.

    Args:
        vector, gradient: `[P]`.
        moments: first and second, each `[P]`.
        learning_rate: `[]`.
        eps: ε beside the root of the corrected second moment.
        corrections: this step's row of `adam_corrections`, `[2]`.
    """
    first, second = moments
    first, second = first.lerp(gradient, 0.1), second.lerp(gradient * gradient, 0.001)
    root = (second * corrections[1]).sqrt() + eps
    return vector - learning_rate * corrections[0] * first / root, [first, second]


def rmsprop_update(
    vector: Tensor, moments: list[Tensor], gradient: Tensor, learning_rate: Tensor, eps: float, alpha: float
) -> tuple[Tensor, list[Tensor]]:
    """One step of RMSprop (Tieleman & Hinton 2012) as a pure function, like `adam_update`.

    Args:
        vector, gradient: `[P]`.
        moments: mean squares `[P]`.
        learning_rate: `[]`.
        eps: ε beside the root.
        alpha: decay of the mean square.
    """
    square = alpha * moments[0] + (1 - alpha) * gradient * gradient
    return vector - learning_rate * gradient / (square.sqrt() + eps), [square]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors side by side as one vector."""
    return torch.cat([t.flatten() for t in tensors])


@torch.no_grad()
def assign(parameters: list[Tensor], vector: Tensor) -> None:
    """The opposite of `flat`: write `vector [P]` into parameters."""
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x `[P]` with product(x) = `b [P]`, for a symmetric positive definite product (Hestenes & Stiefel 1952)."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual, residual @ residual
    for _ in range(iterations):
        image = product(direction)
        # A residual of 0 is the solution; the clamps then make every further step 0 instead of NaN.
        step = squared / (direction @ image).clamp(min=1e-30)
        x, residual = x + step * direction, residual - step * image
        following = residual @ residual
        direction, squared = residual + following / squared.clamp(min=1e-30) * direction, following
    return x
