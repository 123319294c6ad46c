"""Declared state: all that training carries from one iteration to the next, registered by name.

Checkpoints, device moves and what programs take in and give back follow from the registration alone; with a module or a
tensor that is not declared no program can be recorded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.errors import UsageError
from rlcore.storage.checkpoint import check_like


class Place:
    """Where a declared tensor or number stands: `holder[key]`, and in `others` where it is tied to these. A program
    puts its inputs there while it is recorded, and what stands there afterwards are its outputs."""

    def __init__(self, name: str, holder: dict[Any, Any], key: Any):
        self.name, self.holder, self.key = name, holder, key
        self.others: list[tuple[dict[Any, Any], Any]] = []

    def get(self) -> Any:
        """What stands there now."""
        return self.holder[self.key]

    def put(self, value: Any) -> None:
        """Put something in its place."""
        self.holder[self.key] = value
        for holder, key in self.others:
            holder[key] = value

    def tensor(self, device: torch.device) -> Tensor:
        """What stands there, numbers as 0-dim float32."""
        value = self.holder[self.key]
        if not isinstance(value, Tensor):
            return torch.tensor(float(value), dtype=torch.float32, device=device)
        return value.detach() if value.requires_grad else value


@torch.no_grad()
def write_back(places: Sequence[Place], values: Sequence[Tensor]) -> None:
    """Take over what a program gave: into the tensors that stand in the places, or in the place of a number."""
    mine, new = [], []
    for place, value in zip(places, values, strict=True):
        old = place.get()
        if isinstance(old, Tensor) and old.shape == value.shape and not old.is_inference():
            mine.append(old)
            new.append(value)
        else:
            place.put(value.clone())  # a program's own tensors may be overwritten by its next call
    if mine:
        torch._foreach_copy_(mine, new)


def module_places(module: nn.Module, name: str, skip: Any = ()) -> list[Place]:
    """A module's parameters and buffers but those in `skip`, each tensor once, however often it is tied."""
    places: dict[int, Place] = {id(x): None for x in skip}
    for path, owner in module.named_modules():
        dotted = f"{name}.{path}" if path else name
        for holder in (owner._parameters, owner._buffers):
            for key, tensor in holder.items():
                if tensor is None:
                    continue
                if id(tensor) not in places:
                    places[id(tensor)] = Place(f"{dotted}.{key}", holder, key)
                elif (place := places[id(tensor)]) is not None:
                    place.others.append((holder, key))
    return [place for place in places.values() if place is not None]


class State:
    """Named things that are saved, restored and moved together, and are what programs know.

    A thing is a module, a tensor, a dict of numbers, or anything with `places(name)`, `state_dict()` and
    `load_state_dict(state)`, and an attribute of its `owner`.
    """

    def __init__(self, owner: Any):
        self.owner = owner
        self.names: list[str] = []

    def register(self, name: str, thing: Any) -> None:
        """Declare `owner.name`.

        Raises:
            UsageError: where the name is taken or the thing is of another kind.
        """
        if name in self.names or (hasattr(self.owner, name) and getattr(self.owner, name) is not None):
            raise UsageError(f"'{name}' cannot be registered, because the {type(self.owner).__name__} has it already")
        if not isinstance(thing, nn.Module | Tensor | dict) and not hasattr(thing, "places"):
            kind = type(thing).__name__
            raise UsageError(f"'{name}' is a {kind}, but must be a module, a tensor or a dict of numbers")
        self.names.append(name)
        setattr(self.owner, name, thing)

    def things(self) -> dict[str, Any]:
        """All that is declared, by name."""
        return {name: getattr(self.owner, name) for name in self.names}

    def modules(self) -> dict[str, nn.Module]:
        """The modules among it."""
        return {name: x for name in self.names if isinstance(x := getattr(self.owner, name), nn.Module)}

    def places(self, skip: Any = ()) -> list[Place]:
        """Where each tensor and number of it stands, but for the parameters in `skip`."""
        places: list[Place] = []
        for name, thing in self.things().items():
            if isinstance(thing, nn.Module):
                places += module_places(thing, name, skip=skip)
            elif isinstance(thing, Tensor):
                places.append(Place(name, vars(self.owner), name))
            elif isinstance(thing, dict):
                places += [Place(f"{name}.{key}", thing, key) for key in thing]
            else:
                places += thing.places(name)
        return places

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors, numbers and dicts of these."""
        return {name: _stored(thing) for name, thing in self.things().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: names the first part that differs.
        """
        for name, thing in self.things().items():
            check_like(state.get(name), _stored(thing), name)
            if isinstance(thing, Tensor):
                with torch.no_grad():
                    thing.copy_(state[name])
            elif isinstance(thing, dict):
                thing.update(state[name])
            else:
                thing.load_state_dict(state[name])


def _stored(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.detach().clone()
    if isinstance(thing, dict):
        return {name: float(value) for name, value in thing.items()}
    if isinstance(thing, nn.Module):  # copies: they may be parts of something larger, which would be stored whole
        return {name: x.detach().clone() for name, x in thing.state_dict().items()}
    return thing.state_dict()
