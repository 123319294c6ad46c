"""Parameters as one vector, and what works on it: optimisers and conjugate gradient."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlcore.state import Place, module_places
from rlcore.tracing import is_recording


class Parameters:
    """The trainable parameters of modules as one `vector [P]`, of which they are views, so that clipping and the
    optimiser work on one tensor. What breaks the views (a copy of the agent, `load_state_dict(assign=True)`, another
    dtype, `requires_grad_`) is mended by `refresh`."""

    def __init__(self, modules: Callable[[], dict[str, nn.Module]]):
        self.modules = modules
        self.refresh()

    def __iter__(self) -> Iterator[Tensor]:
        return (place.holder[place.key] for place in self.places)

    def is_whole(self) -> bool:
        """Whether the parameters that may learn are still the vector's views."""
        return self._lie == [(x.data_ptr(), x.requires_grad) for x in map(Place.get, self._all)]

    def are_others(self) -> bool:
        """Whether modules have been put in the place of others."""
        found = [p for module in self.modules().values() for p in module.parameters()]
        return set(map(id, found)) != set(map(id, map(Place.get, self._all)))

    def refresh(self) -> None:
        """Move the trainable parameters, as they are now, into one vector."""
        modules = self.modules()
        places = {id(x.get()): x for name, module in modules.items() for x in module_places(module, name)}
        self._all = [place for place in places.values() if isinstance(place.get(), nn.Parameter)]  # frozen ones too
        self.places = [place for place in self._all if place.get().requires_grad]
        tensors = [*self]
        self.lie_in(flat(x.detach().float() for x in tensors))

    def lie_in(self, vector: Tensor) -> None:
        """Let the parameters be views of `vector [P]`, which has their values."""
        self.vector, tensors = vector, [*self]
        for x, part in zip(tensors, self.parts(vector, tensors), strict=True):
            x.data = part
        self._lie = [(x.data_ptr(), x.requires_grad) for x in map(Place.get, self._all)]

    def hold(self, vector: Tensor) -> None:
        """While a program is recorded: let the parameters be parts of another `vector [P]`."""
        self.vector = vector
        for place, part in zip(self.places, self.parts(vector.detach(), self), strict=True):
            place.put(part.requires_grad_())

    def release(self, vector: Tensor, tensors: list[nn.Parameter]) -> None:
        """The end of `hold`: `vector [P]` and the parameters that were there before."""
        self.vector = vector
        for place, x in zip(self.places, tensors, strict=True):
            place.put(x)

    def runs(self, which: Iterable[Tensor]) -> list[tuple[int, int]]:
        """Where some of the parameters stand in the vector: where each run of neighbours begins and ends."""
        ends = dict(zip(map(id, self), itertools.accumulate(x.numel() for x in self), strict=True))
        runs: list[tuple[int, int]] = []
        for x in which:
            end = ends[id(x)]
            neighbour = runs and runs[-1][1] == end - x.numel()
            runs.append((runs.pop()[0] if neighbour else end - x.numel(), end))
        return runs

    def write(self, vector: Tensor, which: Iterable[Tensor]) -> None:
        """Let `vector [Q]` be the values of some of the parameters, one after the other."""
        self._write(vector, self.runs(which))

    @torch.no_grad()
    def move(self, change: Tensor, runs: list[tuple[int, int]] | None = None) -> None:
        """Take `change [P]` away from all parameters, or `[Q]` from some `runs` of them, one after the other."""
        if runs is not None:
            self._write(torch.cat([self.vector[start:end] for start, end in runs]) - change, runs)
        elif is_recording():
            self.hold(self.vector - change)
        else:
            self.vector.sub_(change)

    @torch.no_grad()
    def _write(self, vector: Tensor, runs: list[tuple[int, int]]) -> None:
        new = self.vector
        for (start, end), part in zip(runs, vector.split([end - start for start, end in runs]), strict=True):
            if is_recording():
                new = new.slice_scatter(part, 0, start, end)
            else:
                new[start:end] = part
        if is_recording():
            self.hold(new)

    def parts(self, vector: Tensor, which: Iterable[Tensor]) -> list[Tensor]:
        """`vector [Q]` cut into tensors of the forms of these parameters."""
        which = list(which)
        parts = vector.split([x.numel() for x in which])
        return [part.view(x.shape) for x, part in zip(which, parts, strict=True)]


class Optimizer:
    """What turns gradients into steps of parameters; its moments, step count and learning rate are declared state.

    Args:
        parameters: where all parameters are.
        learning_rate, eps: of the next step, may be set between steps; ε in a step's denominator.
        which: the parameters that are moved, where these are not all.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ()  # further state, which `begin` sets

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float,
        eps: float,
        which: Callable[[], Sequence[Tensor]] | None = None,
    ):
        self.parameters, self.which = parameters, which
        self.learning_rate, self.eps = learning_rate, eps
        self.step_count: float | Tensor = 0.0
        self._choose()
        self.begin()
        for name in self.moments:
            setattr(self, name, parameters.vector.new_zeros(sum(self._chosen.values())))

    def begin(self) -> None:
        """The steps of an iteration follow."""

    def _choose(self) -> None:
        """Find where the parameters stand that are moved, and how many elements each has."""
        every = {id(place.get()): place for place in self.parameters.places}
        chosen = [every[id(x)] for x in self.which() if id(x) in every] if self.which else every.values()
        self._chosen = {place: place.get().numel() for place in chosen}
        self._runs = None if self.which is None else self.parameters.runs(self.moved())

    def moved(self) -> list[Tensor]:
        """The parameters that are moved, as they are now."""
        return [place.get() for place in self._chosen]

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One step along `gradient [P]`."""
        self.step_count = self.step_count + 1
        self.parameters.move(self.change(gradient), self._runs)

    def change(self, gradient: Tensor) -> Tensor:
        """What to take away from the parameters, `[P]`, for `gradient [P]`; updates the moments."""
        raise NotImplementedError

    def places(self, name: str) -> list[Place]:
        """Where its state stands."""
        keys = ("learning_rate", "step_count", *self.moments, *self.numbers)
        return [Place(f"{name}.{key}", vars(self), key) for key in keys]

    def state_dict(self) -> dict[str, Any]:
        """Moments, number of steps and learning rate."""
        numbers = {"learning_rate": float(self.learning_rate), "step_count": torch.tensor(float(self.step_count))}
        return {**numbers, **{name: getattr(self, name).clone() for name in self.moments}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; a ValueError where the learning rate is no finite number."""
        if not math.isfinite(state["learning_rate"]):
            raise ValueError(f"its learning rate is {state['learning_rate']}")
        for name in self.moments:
            getattr(self, name).copy_(state[name])
        self.learning_rate, self.step_count = state["learning_rate"], float(state["step_count"])
        self.begin()

    def follow(self) -> None:
        """After the vector was laid out anew: keep the moments of the parameters that are still there."""
        before = self._chosen
        self._choose()
        for name in self.moments:
            parts = getattr(self, name).split(list(before.values()))
            parts = dict(zip((place.name for place in before), parts, strict=True))
            zeros = self.parameters.vector.new_zeros
            new = [parts[place.name] if place.name in parts else zeros(n) for place, n in self._chosen.items()]
            setattr(self, name, flat(new))


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1). Its corrections 1 − βᵗ go on from step to step, which costs a program less
    than their formula, and begin each iteration from that, so that no rounding piles up."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    moments = ("exp_avg", "exp_avg_sq")
    numbers = ("first_correction", "second_correction")

    def begin(self) -> None:
        self.first_correction, self.second_correction = self._correction(0.9), self._correction(0.999)

    def change(self, gradient: Tensor) -> Tensor:
        self.exp_avg = self.exp_avg.lerp(gradient, 0.1)
        self.exp_avg_sq = self.exp_avg_sq.lerp(gradient * gradient, 0.001)
        self.first_correction = 0.9 * self.first_correction + 0.1
        self.second_correction = 0.999 * self.second_correction + 0.001
        root = self.exp_avg_sq.sqrt() / self.second_correction**0.5 + self.eps
        return self.exp_avg * (self.learning_rate / self.first_correction) / root

    def _correction(self, beta: float) -> float | Tensor:
        x = self.step_count * math.log(beta)  # 1 − βᵗ as such would have few digits left in float32
        return -torch.expm1(x) if isinstance(x, Tensor) else -math.expm1(x)


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012); `alpha` is the decay of the mean square."""

    square_avg: Tensor
    moments = ("square_avg",)
    alpha = 0.99

    def change(self, gradient: Tensor) -> Tensor:
        self.square_avg = self.alpha * self.square_avg + (1 - self.alpha) * gradient * gradient
        return gradient * self.learning_rate / (self.square_avg.sqrt() + self.eps)


def make_optimizer(parameters: Parameters, name: str, learning_rate: float, eps: float, alpha: float) -> Optimizer:
    """Adam, or RMSprop with mean-square decay `alpha`."""
    if name == "adam":
        return Adam(parameters, learning_rate, eps)
    optimizer = RMSprop(parameters, learning_rate, eps)
    optimizer.alpha = alpha
    return optimizer


def clipped(gradient: Tensor, max_norm: float | None) -> tuple[Tensor, Tensor]:
    """A gradient `[P]` shortened to length `max_norm` where it is longer, and its length before."""
    norm = torch.linalg.vector_norm(gradient)
    if max_norm is None:
        return gradient, norm
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors side by side as one vector."""
    return torch.cat([t.flatten() for t in tensors])


def gradient_of(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """∂loss/∂parameters as one vector `[P]`, of `loss []`; 0 where it does not depend on one."""
    return flat(torch.autograd.grad(loss, [*parameters], allow_unused=True, materialize_grads=True))


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
