"""The actor-critic network and what it is made of: torsos, distributions over actions, running normalisation."""

from rlcore.networks.actor_critic import ActorCritic, Torso
from rlcore.networks.torsos import MLP, ImpalaCNN, NatureCNN

__all__ = ["MLP", "ActorCritic", "ImpalaCNN", "NatureCNN", "Torso"]
