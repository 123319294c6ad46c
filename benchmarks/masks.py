"""Taxi with action masks and without, and MaskablePPO of sb3-contrib beside: steps and seconds until it is solved.

    python benchmarks/masks.py                         seeds 0 to 4
    python benchmarks/masks.py --seeds 5-9 --total-steps 300000
    python benchmarks/masks.py --cases masked free     some of the cases

    masked     rlcore's PPO with the preset for Taxi-v4, which keeps to the actions that the environment's masks allow
    free       the same without masks
    maskable   sb3-contrib's MaskablePPO with the preset's values under its own names
    sb3        Stable-Baselines3's PPO with the same, without masks

Solved means a mean return of at least 7.5 over 100 greedy episodes, with masks where there are masks in training. All
are judged by one loop of this file, in environments made one by one, on the same seeds, after every `--every` steps and
at the end; seconds are those of training alone, on one thread. The cases take turns, seed by seed, each in a process of
its own. Runs that are in the result file already, of the same values, are left out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import harness
import machine
import numpy as np

ENV_ID, SOLVED, EPISODES, JUDGE_SEED = "Taxi-v4", 7.5, 100, 1_000_000
CASES = {"masked": None, "free": None, "maskable": "sb3_contrib", "sb3": "sb3_contrib"}
NAME = f"masks_{ENV_ID}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--total-steps", type=int, help="of training (default: the preset's)")
    parser.add_argument("--every", type=int, default=10_000, help="steps between evaluations")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    from rlcore.presets import find_preset

    preset = find_preset("ppo", ENV_ID)
    total = options.total_steps or preset["total_steps"]
    values = {key: value for key, value in preset.items() if key not in ("total_steps", "mask_actions")}
    asked = {"values": values, "total_steps": total, "every": options.every}
    rows = stored(asked)

    def measure(case: str, repetition: int) -> dict[str, Any]:
        key = f"{case} {first + repetition}"
        if key not in rows:
            task = {"case": case, "seed": first + repetition, **asked}
            rows[key] = harness.worker(__file__, task, CASES[case])
            machine.write(NAME, result(asked, rows))
        return rows[key]

    harness.alternate(options.cases, last - first + 1, measure, told)
    report(result(asked, rows)["summary"])


def stored(asked: dict[str, Any]) -> dict[str, Any]:
    """The runs in the result file, where they were asked for with the same values."""
    path = machine.RESULTS / f"{NAME}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["runs"] if found and found["asked"] == asked else {}


def told(row: dict[str, Any]) -> str:
    solved = f"solved after {row['solved_at']:,} steps" if row["solved_at"] else "not solved"
    return f"{solved}, {row['final']:.2f} after {row['seconds']:.0f} s"


def result(asked: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """All that is stored."""
    about = {"env_id": ENV_ID, "solved_return": SOLVED, "episodes": EPISODES, "judge_seed": JUDGE_SEED, "asked": asked}
    cases = {case: [row for key, row in rows.items() if key.split()[0] == case] for case in CASES}
    summary = {case: summarize(runs) for case, runs in cases.items() if runs}
    return {**about, "summary": summary, "runs": dict(sorted(rows.items()))}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a case's seeds: how many were solved, and medians; a run that was not solved counts with all its steps."""
    steps = [run["solved_at"] or run["steps"] for run in runs]
    seconds = [run["solved_seconds"] or run["seconds"] for run in runs]
    return {
        "solved": sum(run["solved_at"] is not None for run in runs),
        "of": len(runs),
        **harness.with_median("steps", steps),
        **harness.with_median("seconds", seconds),
        **harness.with_median("seconds_in_all", [run["seconds"] for run in runs]),
        **harness.with_median("final", [run["final"] for run in runs]),
    }


def report(summary: dict[str, Any]) -> None:
    cells = [["case", "solved", "steps until", "seconds until", "final mean return", "seconds in all"]]
    for case, row in summary.items():
        names = (("steps", ",.0f"), ("seconds", ".0f"), ("final", ".2f"), ("seconds_in_all", ".0f"))
        cells.append([case, f"{row['solved']} of {row['of']}", *(harness.spread(row[n], form) for n, form in names)])
    harness.table(cells)


# In processes of their own.


class Judged:
    """A run under way, whose policy is judged from time to time while its clock stands.

    Args:
        act: observations `[N]` and masks `[N, 6]` to actions `[N]`, greedily.
        every: steps between judgements.
    """

    def __init__(self, act: Callable[[np.ndarray, np.ndarray], np.ndarray], every: int):
        self.act, self.every, self.curve, self.seconds = act, every, [], 0.0
        self.start = time.perf_counter()

    def reached(self, steps: int) -> None:
        """The run has taken so many steps."""
        if steps // self.every > (self.curve[-1][0] // self.every if self.curve else 0):
            self.judge(steps)

    def judge(self, steps: int) -> None:
        """Note steps, seconds of training and mean return."""
        self.seconds += time.perf_counter() - self.start
        self.curve.append([steps, round(self.seconds, 3), play(self.act)])
        self.start = time.perf_counter()

    def result(self, steps: int) -> dict[str, Any]:
        """What is to be stored at the end."""
        self.judge(steps)
        solved = next((row for row in self.curve if row[2] >= SOLVED), (None, None))
        ends = {"steps": steps, "seconds": self.curve[-1][1], "final": self.curve[-1][2]}
        return {"solved_at": solved[0], "solved_seconds": solved[1], **ends, "curve": self.curve}


def play(act: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Mean return of one episode in each of `EPISODES` environments."""
    envs = _envs()
    begun = [env.reset(seed=JUDGE_SEED + n) for n, env in enumerate(envs)]
    obs, masks = np.array([obs for obs, _ in begun]), np.array([info["action_mask"] for _, info in begun])
    returns, running = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
    while running.any():
        which = np.flatnonzero(running)
        for n, action in zip(which, act(obs[which], masks[which]), strict=True):
            obs[n], reward, terminated, truncated, info = envs[n].step(int(action))
            masks[n], returns[n], running[n] = info["action_mask"], returns[n] + reward, not (terminated or truncated)
    return float(returns.mean())


@functools.cache
def _envs() -> list[Any]:
    import gymnasium

    return [gymnasium.make(ENV_ID, disable_env_checker=True) for _ in range(EPISODES)]


def work(case: str, **task: Any) -> dict[str, Any]:
    """One run."""
    import torch

    torch.set_num_threads(1)
    train = train_sb3 if CASES[case] else train_rlcore
    return {**train(case in ("masked", "maskable"), **task), "versions": machine.describe()["versions"]}


def train_rlcore(masked: bool, values: dict[str, Any], total_steps: int, every: int, seed: int) -> dict[str, Any]:
    import rlcore

    options = {"seed": seed, "device": "cpu", "mask_actions": masked}
    agent = rlcore.PPO(ENV_ID, **values, **options)
    judged = Judged(lambda obs, masks: agent.act(obs, True, action_mask=masks if masked else None), every)
    for _ in agent.iterations(total_steps):
        judged.reached(agent.global_step)
    return {**judged.result(agent.global_step), "engine": agent.engine.how}


def train_sb3(masked: bool, values: dict[str, Any], total_steps: int, every: int, seed: int) -> dict[str, Any]:
    import gymnasium
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.wrappers import ActionMasker
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    def make() -> Any:
        env = gymnasium.make(ENV_ID, disable_env_checker=True)
        env = gymnasium.wrappers.RecordEpisodeStatistics(env)
        return ActionMasker(env, lambda e: e.unwrapped.action_mask(e.unwrapped.s)) if masked else env

    class Judging(BaseCallback):
        def _on_rollout_start(self) -> None:
            judged.reached(self.num_timesteps)

        def _on_step(self) -> bool:
            return True

    envs: Any = DummyVecEnv([make] * values["num_envs"])
    if values.get("norm_reward"):
        envs = VecNormalize(envs, norm_obs=False, gamma=values.get("gamma", 0.99))
    kind = MaskablePPO if masked else PPO
    model = kind("MlpPolicy", envs, seed=seed, device="cpu", **names_of_sb3(values))

    def act(obs: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return model.predict(obs, deterministic=True, **({"action_masks": masks} if masked else {}))[0]

    judged = Judged(act, every)
    model.learn(total_steps, callback=Judging())
    return judged.result(model.num_timesteps)


def names_of_sb3(values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters under the names of Stable-Baselines3; where the preset says nothing, rlcore's defaults."""
    v = {
        "num_steps": 128, "num_minibatches": 4, "update_epochs": 4, "learning_rate": 2.5e-4, "anneal_lr": True,
        "gamma": 0.99, "gae_lambda": 0.95, "clip_coef": 0.2, "clip_vloss": True, "ent_coef": 0.01, "vf_coef": 0.5,
        "max_grad_norm": 0.5, "hidden_sizes": [64, 64], **values,
    }  # fmt: skip
    rate, sizes = v["learning_rate"], list(v["hidden_sizes"])
    return {
        "n_steps": v["num_steps"], "n_epochs": v["update_epochs"], "gamma": v["gamma"], "gae_lambda": v["gae_lambda"],
        "batch_size": v["num_envs"] * v["num_steps"] // v["num_minibatches"], "clip_range": v["clip_coef"],
        "clip_range_vf": v["clip_coef"] if v["clip_vloss"] else None, "ent_coef": v["ent_coef"],
        "learning_rate": (lambda left: rate * left) if v["anneal_lr"] else rate, "max_grad_norm": v["max_grad_norm"],
        "vf_coef": v["vf_coef"] / 2,  # of an error that rlcore halves
        "policy_kwargs": {"net_arch": {"pi": sizes, "vf": sizes}},
    }  # fmt: skip


if __name__ == "__main__":
    harness.start(main, work)
