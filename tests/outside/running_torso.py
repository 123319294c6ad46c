"""A torso with a running statistic of its own: it divides its input by a moving average of its size, which follows the
data of every gradient step and is frozen in acting."""

import torch
from torch import nn


class RunningTorso(nn.Module):
    decay = 0.99

    def __init__(self, inputs, hidden=16):
        super().__init__()
        self.layer = nn.Linear(inputs, hidden)
        self.register_buffer("size", torch.ones(inputs))

    def forward(self, x):
        if torch.is_grad_enabled() and x.ndim == 2:  # a loss is asking
            with torch.no_grad():
                self.size.copy_(self.decay * self.size + (1 - self.decay) * x.abs().mean(0))
        return torch.tanh(self.layer(x / (self.size + 1e-3)))


def torso(shape):
    return RunningTorso(shape[0])
