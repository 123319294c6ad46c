"""Rock, paper, scissors against an opponent that notices habits: where only a stochastic policy does not lose.

    reward = PAYOFF[action, opponent],  +1 for a win, 0 for a draw, −1 for a loss
    opponent = a best response to the frequencies of the agent's latest `memory` plays; ties are drawn

The agent sees nothing of the past: the observation is always 0, so a policy is one distribution over three actions. A
deterministic one always plays the same and loses every round after the first. Against (1/3, 1/3, 1/3), the equilibrium
of the game (von Neumann 1928), no opponent wins anything on average.
"""

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlcore.errors import UsageError

NAMES = ("rock", "paper", "scissors")
PAYOFF = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])  # [agent, opponent], the agent's reward
ROUNDS = 100


class RockPaperScissors(gymnasium.Env):
    """`rlcore/RockPaperScissors-v0`: episodes of 100 rounds, ended by truncation.

    Observation `Discrete(1)`, actions `Discrete(3)`: 0 rock, 1 paper, 2 scissors. Each step's `info` names the
    opponent's play. The opponent chooses before it sees the agent's play, and forgets everything at a reset.

    Args:
        memory: how many of the agent's latest plays the opponent counts, at least 1. A long memory makes out a weak
            habit, a short one mistakes chance for habit.

    Raises:
        UsageError: where `memory` is not a whole number of at least 1.
    """

    metadata = {"render_modes": []}
    observation_space = spaces.Discrete(1)
    action_space = spaces.Discrete(3)

    def __init__(self, memory: int = 20):
        if not isinstance(memory, int) or memory < 1:
            raise UsageError(f"memory is {memory!r}, but must be a whole number of at least 1")
        self.plays: deque[int] = deque(maxlen=memory)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.plays.clear()
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        opponent = self.respond()
        self.plays.append(int(action))
        return 0, float(PAYOFF[action, opponent]), False, False, {"opponent": opponent}

    def respond(self) -> int:
        """A best response to the plays remembered; drawn where several are equally good, as at the start."""
        gains = -np.bincount(self.plays, minlength=3) @ PAYOFF  # [3], of each of the opponent's actions
        best = np.flatnonzero(gains == gains.max())
        return int(best[0] if len(best) == 1 else self.np_random.choice(best))


def exploitability(probabilities: Any) -> float:
    """What the best opponent wins per round, on average, against a policy of fixed probabilities; 0 is the equilibrium.

    Args:
        probabilities: `[3]`, of rock, paper and scissors.

    Returns:
        max_b E_a[−reward(a, b)], from 0 for (1/3, 1/3, 1/3) to 1 for a deterministic policy (the NashConv of Lanctot
        et al. 2017, section 3, for one player).

    >>> round(exploitability([0.5, 0.3, 0.2]), 9)
    0.3
    """
    return float((-np.asarray(probabilities, dtype=np.float64) @ PAYOFF).max())


gymnasium.register(
    "rlcore/RockPaperScissors-v0", "rlcore.envs.rock_paper_scissors:RockPaperScissors", max_episode_steps=ROUNDS
)
