"""An auxiliary loss that reads `dones`: the value head tells, from the same features, whether an episode just began."""

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from rlcore.agents import A2C, A2CConfig


@dataclass(frozen=True)
class FirstStepsConfig(A2CConfig):
    first_coef: float = 0.1  # weight of the auxiliary loss


class FirstSteps(A2C):
    Config = FirstStepsConfig

    def __init__(self, env, **hyperparameters):
        super().__init__(env, **hyperparameters)
        self.register("first_head", nn.Linear(self.network.critic.features, 1, device=self.device))
        nn.init.zeros_(self.first_head.weight)
        nn.init.zeros_(self.first_head.bias)

    def estimate(self, buffer):
        advantages, returns = super().estimate(buffer)
        return advantages + 0.01 * buffer.dones.float(), returns  # read in the estimator too

    def loss(self, network, batch):
        loss, metrics = super().loss(network, batch)
        logits = self.first_head(network.critic(batch.obs)).squeeze(-1)
        first = F.binary_cross_entropy_with_logits(logits, batch.dones.float(), reduction="none")
        share = batch.mean(batch.dones.float())
        return loss + self.config.first_coef * batch.mean(first), {
            **metrics,
            "first": batch.mean(first),
            "share": share,
        }
