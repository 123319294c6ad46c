"""Connect four by self-play: PPO against a pool of frozen copies of itself, judged in PettingZoo's connect_four_v3.

Training takes minutes on one core, in a vector environment of this file: N games as arrays, in which the opponent moves
inside `step`, so that all moves of one are a batch. Each game draws its opponent from the pool and who begins. Stones
are `[N, 6, 7, 2]` as PettingZoo shows them to a player: rows from above, its own stones before those of the other.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import rlcore

sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

SPACE = spaces.Dict(observation=spaces.Box(0, 1, (6, 7, 2), np.int8), action_mask=spaces.Box(0, 1, (7,), np.int8))
COLUMNS, MOST = spaces.Discrete(7), 20  # players in the pool, after which a new copy takes the place of any before
STARTS = [(7 * r + c, 7 * a + b) for r in range(6) for c in range(7) for a, b in ((0, 1), (1, 0), (1, 1), (1, -1))
          if r + 3 * a < 6 and 0 <= c + 3 * b < 7]  # fmt: skip
LINES = np.array([np.isin(np.arange(42), at + by * np.arange(4)) for at, by in STARTS], np.float32).T  # [42, 69]
HYPERPARAMETERS = dict(num_steps=32, num_minibatches=8, learning_rate=1e-3, ent_coef=0.01, hidden_sizes=(128, 128),
                       activation="relu", compile="record")  # fmt: skip


def legal(stones):
    """`[N, 7]`, the columns that are not full."""
    return ~stones[:, 0].any(-1)


def drop(stones, games, columns, side):
    """Let `side` play a column in each of the `games`; whether it has won there."""
    stones[games, 5 - stones[games, :, columns].sum((1, 2)), columns, side] = 1
    return (stones[games, ..., side].reshape(-1, 42) @ LINES == 4).any(1)


def chance(stones, rng):
    """Columns `[N]` at random."""
    return (rng.random((len(stones), 7)) * legal(stones)).argmax(1)


def lookahead(stones, rng):
    """Columns that win at once, else those with which the other would, else any."""
    columns = chance(stones, rng)
    for side in (1, 0):
        for column in range(7):
            games = np.flatnonzero(legal(stones)[:, column])
            columns[games[drop(stones.copy(), games, np.full(len(games), column), side)]] = column
    return columns


def frozen(agent, generator):
    """The agent as it plays now."""
    network = agent.frozen_copy()

    @torch.inference_mode()
    def play(stones, rng):
        seen = {"observation": torch.tensor(stones, dtype=torch.float32), "action_mask": torch.tensor(legal(stones))}
        return network.policy(seen).params.softmax(-1).multinomial(1, generator=generator)[:, 0].numpy()

    return play


class ConnectFour(VectorEnv):
    """N games of a learner against players of the `pool`: +1 for a win, −1 for a loss, 0 for a draw."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    single_observation_space, single_action_space = SPACE, COLUMNS

    def __init__(self, num_envs, pool):
        self.num_envs, self.pool, self.rng = num_envs, pool, np.random.default_rng()
        self.observation_space, self.action_space = batch_space(SPACE, num_envs), batch_space(COLUMNS, num_envs)
        self.stones, self.opponents = np.zeros((num_envs, 6, 7, 2), np.int8), np.zeros(num_envs, np.int64)

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        games = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        self.stones[games], self.opponents[games] = 0, self.rng.integers(len(self.pool), size=len(games))
        self.reply(games[self.rng.random(len(games)) < 0.5])
        return self.seen(), {}

    def step(self, actions):
        won, rewards = drop(self.stones, np.arange(self.num_envs), actions, 0), np.zeros(self.num_envs)
        others = np.flatnonzero(~won & legal(self.stones).any(1))
        lost = others[self.reply(others)]
        rewards[won], rewards[lost] = 1, -1
        return self.seen(), rewards, (rewards != 0) | ~legal(self.stones).any(1), np.zeros_like(won), {}

    def reply(self, games):
        """The opponents play in `games`, where it is their turn; whether they have won there."""
        columns = np.zeros(len(games), np.int64)
        for number in np.unique(self.opponents[games]):
            own = self.opponents[games] == number
            columns[own] = self.pool[number](self.stones[games[own]][..., ::-1].copy(), self.rng)
        return drop(self.stones, games, columns, 1)

    def seen(self):
        return {"observation": self.stones.copy(), "action_mask": legal(self.stones).astype(np.int8)}


def judge(agent, opponent, games):
    """Wins, draws and losses in PettingZoo's own environment, beginning in every other game."""
    from pettingzoo.classic import connect_four_v3

    env, rng, results = connect_four_v3.env(), np.random.default_rng(10**6), {1: 0, 0: 0, -1: 0}
    for own in ["player_0", "player_1"] * (games // 2):
        env.reset()
        while not any(env.terminations.values()):
            seen = {name: x[None] for name, x in env.observe(env.agent_selection).items()}
            acts = env.agent_selection == own
            env.step(int((agent.act(seen, True) if acts else opponent(seen["observation"], rng))[0]))
        results[int(env.rewards[own])] += 1
    return {"wins": results[1], "draws": results[0], "losses": results[-1], "win_rate": results[1] / games}


def train(seed, total_steps, games, every):
    """The agent, and how its games against the pool went, a row for each copy that was added to it."""
    pool, generator, curve = [chance], torch.Generator().manual_seed(seed), []
    agent = rlcore.PPO(ConnectFour(games, pool), **HYPERPARAMETERS, seed=seed, device="cpu")
    for _, episodes in agent.iterations(total_steps):
        if agent.iteration % every == 0:
            place = len(pool) if len(pool) < MOST else int(agent.envs.rng.integers(1, MOST))
            pool[place : place + 1] = [frozen(agent, generator)]
            curve.append([agent.global_step, len(pool), round(float(np.mean(episodes.returns)), 3)])
            print("step {:,}: {} players in the pool, mean return {}".format(*curve[-1]))
    return agent, curve


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("seed", 0), ("total-steps", 2_500_000), ("games", 256), ("every", 5), ("judged", 1000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked, start = vars(parser.parse_args()), time.perf_counter()
    torch.set_num_threads(1)
    agent, curve = train(*(asked[name] for name in ("seed", "total_steps", "games", "every")))
    result = {"asked": asked, "hyperparameters": HYPERPARAMETERS, "seconds": round(time.perf_counter() - start, 1)}
    result["against"] = {player.__name__: judge(agent, player, asked["judged"]) for player in (chance, lookahead)}
    print(result["against"])
    machine.write("self_play_connect_four", {**result, "curve": curve})


if __name__ == "__main__":
    main()
