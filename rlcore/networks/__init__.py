"""The actor-critic network and what it is made of: torsos, distributions over actions, running normalisation."""

from rlcore.networks.actor_critic import ActorCritic, Torso
from rlcore.networks.memory import GRU, LSTM, Memory, RecurrentActorCritic
from rlcore.networks.text import TextActorCritic
from rlcore.networks.torsos import MLP, ImpalaCNN, NatureCNN
from rlcore.networks.transformer import Transformer

__all__ = [
    "GRU", "LSTM", "MLP", "ActorCritic", "ImpalaCNN", "Memory", "NatureCNN", "RecurrentActorCritic", "TextActorCritic",
    "Torso", "Transformer",
]  # fmt: skip
