"""Search for the hyperparameters of a preset with Optuna.

    python benchmarks/tune.py ppo Acrobot-v1 --total-steps 200000 --minutes 10
    python benchmarks/tune.py a2c Pendulum-v1 --total-steps 1000000 --fixed gamma=0.9 norm_obs=true

Each trial trains on a few seeds from 100 up, none of which any reported table uses, and scores mean − standard
deviation over them of the greedy return, so that a setting that fails now and then loses. The first trial is the preset
as it stands, with `--fixed` values; trials behind the median after their first seed are stopped. What was found is
printed as TOML, to be put into rlcore/presets/ by hand, and all trials go to results/tune_ALGO_ENV.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import machine
import numpy as np
import optuna
import torch

from rlcore.agents import AGENTS
from rlcore.agents.config import field_types, parse_value
from rlcore.errors import DivergenceError, RlcoreError
from rlcore.presets import find_preset

FAILED = -1e6
COMMON: dict[str, list[Any]] = {
    "gamma": [0.9, 0.95, 0.98, 0.99, 0.999],
    "norm_obs": [False, True],
    "activation": ["tanh", "relu"],
}
SEGMENTS = {"gae_lambda": [0.8, 0.9, 0.95, 0.98, 1.0], "norm_reward": [False, True], **COMMON}
SPACES: dict[str, dict[str, list[Any]]] = {
    "ppo": {
        "num_envs": [4, 8, 16],
        "num_steps": [32, 64, 128, 256, 512],
        "num_minibatches": [1, 4, 8, 16],
        "update_epochs": [4, 10, 20],
        "ent_coef": [0.0, 0.001, 0.01],
        "clip_coef": [0.1, 0.2, 0.3],
        **SEGMENTS,
    },
    "a2c": {
        "num_envs": [4, 8, 16],
        "num_steps": [5, 8, 16, 32, 64, 128],
        "optimizer": ["rmsprop", "adam"],
        "norm_adv": [False, True],
        "ent_coef": [0.0, 0.001, 0.01, 0.03, 0.1],
        **SEGMENTS,
    },
    "trpo": {
        "num_envs": [2, 4, 8],
        "num_steps": [128, 256, 512, 1024],
        "max_kl": [0.01, 0.02, 0.03, 0.05],
        "update_epochs": [5, 10, 20],
        "cg_damping": [0.001, 0.01, 0.1],
        **SEGMENTS,
    },
    "reinforce": {
        "num_envs": [4, 8, 16],
        "psi": ["baseline", "total_return"],
        "norm_adv": [False, True],
        "ent_coef": [0.0, 0.001, 0.01],
        **COMMON,
        "gamma": [0.95, 0.98, 0.99, 0.999, 1.0],
    },
    "grpo": {
        "num_envs": [16, 32, 64],
        "group_size": [4, 8, 16],
        "supervision": ["outcome", "aligned"],
        "update_epochs": [2, 4, 8],
        "clip_coef": [0.1, 0.2, 0.3],
        "length_norm": ["episode", "token", "constant"],
        **COMMON,
        "gamma": [0.98, 0.99, 0.999, 1.0],
    },
}
CONTINUOUS = {"noise_correlation": [0.0, 0.6, 0.9, 0.98], "log_std_init": [-1.0, 0.0, 0.7], "squash": [False, True]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algo", choices=SPACES)
    parser.add_argument("env_id")
    parser.add_argument("--total-steps", type=int, required=True)
    parser.add_argument("--seeds", default="100-102", help="first-last")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for the search")
    parser.add_argument("--trials", type=int, default=1000, help="at most")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trainings at a time")
    parser.add_argument("--fixed", nargs="*", default=[], metavar="NAME=VALUE", help="values that are not searched")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    seeds = list(range(first, last + 1))
    fixed = fixed_values(options.algo, options.fixed)
    study = search(options, seeds, fixed)
    best = {**fixed, **study.best_params}
    preset = {"total_steps": options.total_steps, **best}
    print(f"\n[{options.algo}.{options.env_id}]  # mean - std over seeds {options.seeds}: {study.best_value:.1f}")
    print("\n".join(f"{name} = {toml(value)}" for name, value in preset.items()))
    trials = [{"value": t.value, "params": t.params, **t.user_attrs} for t in study.trials]
    env = options.env_id.replace("/", "-")
    machine.write(
        f"tune_{options.algo}_{env}",
        {"algo": options.algo, "env_id": options.env_id, "seeds": seeds, "best": preset, "trials": trials},
    )


def search(options: argparse.Namespace, seeds: list[int], fixed: dict[str, Any]) -> optuna.Study:
    """Run trials until the time is over; seeds of a trial run side by side after the first."""
    space = {
        **SPACES[options.algo],
        **(CONTINUOUS if "Continuous" in options.env_id or "Pendulum" in options.env_id else {}),
    }
    space = {name: choices for name, choices in space.items() if name not in fixed}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=8)
    )
    defaults = {field.name: field.default for field in dataclasses.fields(AGENTS[options.algo].Config)}
    start = {**defaults, **(find_preset(options.algo, options.env_id) or {})}
    study.enqueue_trial(
        {name: value for name, value in start.items() if name == "learning_rate" or value in space.get(name, [])}
    )
    deadline = time.monotonic() + 60 * options.minutes
    with ProcessPoolExecutor(options.jobs) as pool:
        while time.monotonic() < deadline and len(study.trials) < options.trials:
            trial = study.ask()
            values = {name: trial.suggest_categorical(name, choices) for name, choices in space.items()}
            values["learning_rate"] = fixed.get("learning_rate") or trial.suggest_float(
                "learning_rate", 1e-4, 2e-2, log=True
            )
            values = {**values, **fixed}
            returns = scores(pool, options, values, seeds, median_first(study))
            trial.set_user_attr("returns", returns)
            value = float(np.mean(returns) - np.std(returns)) if len(returns) == len(seeds) else min(returns)
            study.tell(trial, value)
            shown = ", ".join(f"{r:.1f}" for r in returns)
            print(f"{trial.number:3} {value:10.1f} (best {study.best_value:.1f})  [{shown}]  {values}", flush=True)
    return study


def scores(
    pool: ProcessPoolExecutor, options: argparse.Namespace, values: dict[str, Any], seeds: list[int], bar: float
):
    """The greedy return of each seed; only of the first where that is behind `bar`."""
    jobs = [(options.algo, options.env_id, options.total_steps, values, seed) for seed in seeds]
    returns = [pool.submit(train, *jobs[0]).result()]
    if returns[0] < bar:
        return returns
    return returns + [job.result() for job in [pool.submit(train, *job) for job in jobs[1:]]]


def median_first(study: optuna.Study) -> float:
    """The median over trials of the first seed's return."""
    firsts = [t.user_attrs["returns"][0] for t in study.trials if t.user_attrs.get("returns")]
    return float(np.median(firsts)) if len(firsts) >= 5 else -np.inf


def train(algo: str, env_id: str, total_steps: int, values: dict[str, Any], seed: int) -> float:
    """Greedy return of one training; a setting that is refused or diverges has failed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        agent = AGENTS[algo](env_id, seed=seed, device="cpu", **values)
        try:
            return agent.learn(total_steps).evaluate(50, seed=seed).mean
        finally:
            agent.close()
    except (DivergenceError, RlcoreError):
        return FAILED


def fixed_values(algo: str, pairs: list[str]) -> dict[str, Any]:
    kinds = field_types(AGENTS[algo].Config)
    known = {f.name for f in dataclasses.fields(AGENTS[algo].Config)}
    values = dict(pair.split("=", 1) for pair in pairs)
    if set(values) - known:
        raise SystemExit(f"not hyperparameters of {algo}: {', '.join(set(values) - known)}")
    return {name: parse_value(name, text, kinds[name]) for name, text in values.items()}


def toml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


if __name__ == "__main__":
    main()
