"""Connect four by self-play: PPO against a pool of frozen copies of itself, judged in PettingZoo's connect_four_v3.

    python benchmarks/examples/self_play.py                     minutes on one core; writes the result file
    python benchmarks/examples/self_play.py --seed 1 --total-steps 500000

Training is in a vector environment of this file, in which the opponent moves inside `step`: N games as arrays, so that
all moves of an opponent are one batch. Each game draws its opponent from the pool and who begins. Stones are `[N, 6, 7,
2]` as PettingZoo shows them to a player: rows from above, its own stones before those of the other.
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
CELLS, ALONG = np.indices((6, 7)).reshape(2, -1).T, [(0, 1), (1, 0), (1, 1), (1, -1)]
FOURS = [[(r + i * a, c + i * b) for i in range(4)] for r, c in CELLS for a, b in ALONG]
LINES = np.array([np.isin(np.arange(42), [7 * r + c for r, c in four]) for four in FOURS
                  if all(0 <= r < 6 and 0 <= c < 7 for r, c in four)]).T.astype(np.float32)  # [42, 69]  # fmt: skip


def legal(stones):
    """`[N, 7]`, the columns that are not full."""
    return ~stones[:, 0].any(-1)


def drop(stones, games, columns, side):
    """Let `side` play a column in each of the `games`; whether it has won there."""
    rows = 5 - stones[games, :, columns].sum((1, 2))
    stones[games, rows, columns, side] = 1
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
            won = drop(stones.copy(), games, np.full(len(games), column), side)
            columns[games[won]] = column
    return columns


def frozen(agent, generator):
    """The agent as it plays now."""
    network = agent.frozen_copy()

    @torch.inference_mode()
    def play(stones, rng):
        seen = {"observation": torch.tensor(stones, dtype=torch.float32), "action_mask": torch.tensor(legal(stones))}
        return torch.multinomial(network.policy(seen).params.softmax(-1), 1, generator=generator)[:, 0].numpy()

    return play


class ConnectFour(VectorEnv):
    """N games of a learner against players of the `pool`: +1 for a win, −1 for a loss, 0 for a draw."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    single_observation_space, single_action_space = SPACE, spaces.Discrete(7)

    def __init__(self, num_envs, pool):
        self.num_envs, self.pool, self.rng = num_envs, pool, np.random.default_rng()
        self.observation_space = batch_space(SPACE, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
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
        rewards[won], rewards[others[self.reply(others)]] = 1, -1
        over = (rewards != 0) | ~legal(self.stones).any(1)
        return self.seen(), rewards, over, np.zeros_like(over), {}

    def reply(self, games):
        """The opponents play in `games`, where it is their turn; whether they have won there."""
        columns = np.zeros(len(games), np.int64)
        for number in np.unique(self.opponents[games]):
            own = self.opponents[games] == number
            columns[own] = self.pool[number](self.stones[games[own]][..., ::-1].copy(), self.rng)
        return drop(self.stones, games, columns, 1)

    def seen(self):
        return {"observation": self.stones.copy(), "action_mask": legal(self.stones).astype(np.int8)}


def judge(agent, opponent, games, seed):
    """Wins, draws and losses in PettingZoo's own environment, beginning in every other game."""
    from pettingzoo.classic import connect_four_v3

    env, rng, results = connect_four_v3.env(), np.random.default_rng(seed), {1: 0, 0: 0, -1: 0}
    for game in range(games):
        env.reset(seed=seed + game)
        own = env.possible_agents[game % 2]
        while not any(env.terminations.values()):
            seen, *_ = env.last()
            if env.agent_selection == own:
                action = agent.act({name: x[None] for name, x in seen.items()}, deterministic=True)
            else:
                action = opponent(seen["observation"][None], rng)
            env.step(int(action[0]))
        results[int(env.rewards[own])] += 1
    return {"wins": results[1], "draws": results[0], "losses": results[-1], "win_rate": results[1] / games}


def train(seed, total_steps, games, every):
    """The agent, and how its games against the pool went, a row for each copy that was added to it."""
    pool, generator, curve = [chance], torch.Generator().manual_seed(seed), []
    agent = rlcore.PPO(ConnectFour(games, pool), num_steps=32, num_minibatches=8, update_epochs=4, learning_rate=1e-3,
                       gamma=0.99, ent_coef=0.01, hidden_sizes=(128, 128), activation="relu", seed=seed, device="cpu",
                       compile="record")  # fmt: skip
    for _, episodes in agent.iterations(total_steps):
        if agent.iteration % every == 0:
            pool.append(frozen(agent, generator))
            curve.append([agent.global_step, len(pool), round(float(np.mean(episodes.returns)), 3)])
            print(f"step {curve[-1][0]:,}: mean return {curve[-1][2]:.3f}, {curve[-1][1]} players in the pool")
    return agent, curve


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("seed", 0), ("total-steps", 3_000_000), ("games", 256), ("every", 20), ("judged", 1000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = vars(parser.parse_args())
    torch.set_num_threads(1)
    start = time.perf_counter()
    agent, curve = train(*(asked[name] for name in ("seed", "total_steps", "games", "every")))
    seconds = round(time.perf_counter() - start, 1)
    against = {player.__name__: judge(agent, player, asked["judged"], 10**6) for player in (chance, lookahead)}
    for name, result in against.items():
        print(f"against {name}: {result}")
    machine.write("self_play_connect_four", {"asked": asked, "seconds": seconds, "against": against, "curve": curve})


if __name__ == "__main__":
    main()
