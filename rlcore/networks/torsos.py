"""Torsos: from one preprocessed observation part to a feature vector; an MLP for numbers, convolutions for images."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.errors import UsageError
from rlcore.spaces import Part

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
}
TorsoName = Literal["auto", "mlp", "nature", "impala"]
L = TypeVar("L", nn.Linear, nn.Conv2d)
SMALLEST_IMAGE = 36  # below, nothing is left after the three convolutions of the Nature CNN


def orthogonal(layer: L, gain: float) -> L:
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
        self._layers: list[Any] = list(self.layers)  # a plain list is faster to go through

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.ndim == 2 else x.flatten(1)
        for layer in self._layers:
            x = self.activation(F.linear(x, layer.weight, layer.bias))
        return x


class NatureCNN(nn.Module):
    """The convolutional network of Mnih et al. 2015 (methods): [B, C, H, W] or [B, H, W, C] in [0, 1], to [B, 512]."""

    def __init__(self, shape: Sequence[int], features: int = 512):
        super().__init__()
        self.channels_last = is_channels_last(shape)
        channels, height, width = image_size(shape)
        self.conv1 = orthogonal(nn.Conv2d(channels, 32, 8, 4), 2**0.5)
        self.conv2 = orthogonal(nn.Conv2d(32, 64, 4, 2), 2**0.5)
        self.conv3 = orthogonal(nn.Conv2d(64, 64, 3, 1), 2**0.5)
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.linear = orthogonal(nn.Linear(64 * height * width, features), 2**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.channels_last else x
        x = self.conv1(x).relu_()  # in place: a convolution's backward does not read its output
        x = self.conv2(x).relu_()
        x = self.conv3(x).relu_()
        return self.linear(x.flatten(1)).relu_()


class ImpalaCNN(nn.Module):
    """The residual network of Espeholt et al. 2018 (figure 3, right): [B, C, H, W] or [B, H, W, C] to [B, 256]; better
    than the Nature CNN on many games, and several times as much work."""

    def __init__(self, shape: Sequence[int], channels: Sequence[int] = (16, 32, 32), features: int = 256):
        super().__init__()
        self.channels_last = is_channels_last(shape)
        planes, height, width = image_size(shape)
        self.stages = nn.ModuleList()
        for out in channels:
            self.stages.append(ImpalaStage(planes, out))
            planes, height, width = out, (height + 1) // 2, (width + 1) // 2
        self.linear = orthogonal(nn.Linear(planes * height * width, features), 2**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.channels_last else x
        for stage in self.stages:
            x = stage(x)
        return F.relu(self.linear(F.relu(x).flatten(1)))


class ImpalaStage(nn.Module):
    """A convolution, max pooling to half the size, and two residual blocks."""

    def __init__(self, planes: int, out: int):
        super().__init__()
        self.first = nn.Conv2d(planes, out, 3, padding=1)
        self.blocks: Any = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in range(2)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 3, 2, padding=1)
        for one, two in self.blocks:
            x = x + two(F.relu(one(F.relu(x))))
        return x


def is_image(part: Part) -> bool:
    """Whether an observation part is bytes of three dimensions, large enough for convolutions."""
    return part.image and len(part.shape) == 3 and min(image_size(part.shape)[1:]) >= SMALLEST_IMAGE


def is_channels_last(shape: Sequence[int]) -> bool:
    """Whether an image is stored as [H, W, C]: its last dimension is smaller than its first."""
    return shape[-1] < shape[0]


def image_size(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of an image stored either way."""
    return (shape[2], shape[0], shape[1]) if is_channels_last(shape) else (shape[0], shape[1], shape[2])


def make_torso(name: str, part: Part, shape: Sequence[int], hidden_sizes: Sequence[int], activation: str):
    """The torso of an observation part with `shape` after preprocessing; auto is nature for images, mlp for all else,
    and what is no image has an MLP in any case."""
    if name == "mlp" or not is_image(part):
        return MLP(int(np.prod(shape)), hidden_sizes, activation)
    return ImpalaCNN(shape) if name == "impala" else NatureCNN(shape)


def check_torso(name: Any, parts: Sequence[Part]) -> None:
    """Refuse our convolutions where no part of the observation is an image; a torso of one's own passes."""
    if name in ("nature", "impala") and not any(map(is_image, parts)):
        shapes = ", ".join(f"{str(part.dtype).removeprefix('torch.')} of shape {list(part.shape)}" for part in parts)
        raise UsageError(
            f"torso is '{name}', which needs an image (uint8, three dimensions, at least "
            f"{SMALLEST_IMAGE} × {SMALLEST_IMAGE}), but the observation is {shapes}; it may be auto or mlp"
        )
