"""Native tasks that cannot be solved without memory, with known answers; see `rlcore.envs.native` for what a task is.

| id | best return | best without memory |
| --- | --- | --- |
| rlcore/Repeat1-v0, rlcore/Repeat4-v0, rlcore/Repeat16-v0 | 32 | 8, whatever the policy |
| rlcore/TMaze-v0 | 1 | 1/2 |
| rlcore/CartPoleNoVel-v1 | 500 | unknown, far less |

Other sizes are registered by hand: `register_native(RepeatObservation("my/Repeat8-v0", delay=8))`.
"""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.envs.native import CartPole, NativeTask


class RepeatObservation(NativeTask):
    """Each step shows a random symbol; the action has to name the one of `delay` steps ago.

    Each right answer is worth 1 and each wrong one 0, from step `delay` on, until the episode ends after `answers` of
    them. Symbols are independent of each other, so whoever remembers nothing is right once in `symbols` times. All are
    drawn at the start: the state is (steps taken, symbol of step 0, of step 1, ...). RepeatPrevious of Morad et al.,
    POPGym: benchmarking partially observable reinforcement learning (2023), with other rewards.

    Args:
        id: its gymnasium id.
        delay: k, steps between a symbol and the answer; at 0 no memory is needed.
        symbols: how many there are, and actions.
        answers: asked for in an episode, which takes `delay + answers` steps.
    """

    max_episode_steps = None

    def __init__(self, id: str, delay: int, symbols: int = 4, answers: int = 32):
        self.id, self.delay, self.symbols = id, delay, symbols
        self.draws = self.steps = delay + answers
        self.observation_space = spaces.Discrete(symbols)
        self.action_space = spaces.Discrete(symbols)

    def initial(self, uniform: Tensor) -> Tensor:
        # A number just below 1 may have become 1 on its way to float32.
        shown = (uniform * self.symbols).floor().clamp(max=self.symbols - 1)
        return torch.cat((torch.zeros_like(shown[:, :1]), shown), 1)

    def observe(self, state: Tensor) -> Tensor:
        return self._shown(state, ago=0)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clock, shown = state[:, :1], state[:, 1:]
        right = (clock.squeeze(1) >= self.delay) & (action == self._shown(state, self.delay))
        clock = clock + 1
        return torch.cat((clock, shown), 1), right.float(), clock.squeeze(1) >= self.steps

    def _shown(self, state: Tensor, ago: int) -> Tensor:
        """The symbols `[N]` of `ago` steps before; the first one before it, and the last one after the end."""
        step = (state[:, :1].long() - ago).clamp(0, self.steps - 1)
        return state.gather(1, step + 1).squeeze(1).long()


class TMaze(NativeTask):
    """A corridor that ends in a junction; on which side the reward lies is told in the first step and never again.

    Actions are 0 forward, 1 left, 2 right; a move into a wall changes nothing. At the junction, `length` moves from the
    start, a turn ends the episode, with reward 1 to the side that was told; all other rewards are 0, so the return is
    success. Observations are 0 and 1, in the first step alone: turn left, turn right; 2: corridor; 3: junction. The
    state is (side, position, whether the first step is over).

    Bakker, Reinforcement learning with long short-term memory (2002), without its penalties, and with a time limit at
    which a random walker reaches the junction in half of the episodes: what is to be learned is to remember.

    Args:
        id: its gymnasium id.
        length: of the corridor; after 3 times as many steps the episode is cut.
    """

    draws = 1
    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(3)

    def __init__(self, id: str, length: int):
        self.id, self.length, self.max_episode_steps = id, length, 3 * length

    def initial(self, uniform: Tensor) -> Tensor:
        side = (uniform >= 0.5).to(uniform.dtype)
        return torch.cat((side, torch.zeros_like(side), torch.zeros_like(side)), 1)

    def observe(self, state: Tensor) -> Tensor:
        side, position, begun = state.unbind(1)
        place = 2 + (position == self.length).long()
        return torch.where(begun > 0, place, side.long())

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        side, position, _ = state.unbind(1)
        forward, at_junction = action == 0, position == self.length
        terminated = at_junction & ~forward
        right = terminated & (action == side.long() + 1)
        position = (position + forward.to(state.dtype)).clamp(max=self.length)
        return torch.stack((side, position, torch.ones_like(side)), 1), right.float(), terminated


class CartPoleNoVel(CartPole):
    """The cart pole of which only position and angle are seen, so that velocities have to be remembered differences.

    Wierstra et al., Solving deep memory POMDPs with recurrent policy gradients (2007).
    """

    id = "rlcore/CartPoleNoVel-v1"

    _high = np.array([2 * CartPole.MAX_X, 2 * CartPole.MAX_THETA], np.float32)
    observation_space = spaces.Box(-_high, _high, dtype=np.float32)

    def observe(self, state: Tensor) -> Tensor:
        x, _, theta, _ = state.unbind(1)
        return torch.stack((x, theta), 1).float()


MEMORY_TASKS: tuple[NativeTask, ...] = (
    RepeatObservation("rlcore/Repeat1-v0", delay=1),
    RepeatObservation("rlcore/Repeat4-v0", delay=4),
    RepeatObservation("rlcore/Repeat16-v0", delay=16),
    TMaze("rlcore/TMaze-v0", length=20),
    CartPoleNoVel(),
)
