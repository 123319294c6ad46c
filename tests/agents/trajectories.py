"""How agents of every kind trained, step by step, before learning had one implementation.

`trajectories.npz` was made from commit 2e745ff, the last one that had an agent's learning twice, in Python and as
programs; it holds what its Python did (compile=False, on one thread of a CPU), and the versions it ran with. Only the
public interface is used here, so that the code stays the same whatever becomes of the package:

    python -m tests.agents.trajectories FILE.npz

writes such a file anew from the rlcore that is imported. It also measures how far rounding takes each case: the case is
replayed with weights moved by about a rounding error before and after every iteration. `MARGIN` times the largest
distance that was seen is what a test may allow.
"""

import sys
import warnings

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import rlcore
from tests.environments import Echo, vectorize

ITERATIONS = 20
SMALL = dict(hidden_sizes=(16,), seed=3, device="cpu")
NOISE = 2e-7  # by which each output of a layer is moved: some rounding errors of a number of about 1
REPLAYS = 4  # with noise, to see what rounding does
MARGIN = 10  # times the largest distance seen
LEAST = {"weights": 1e-5, "returns": 1e-6}  # what is allowed in any case; of metrics, which may be small
LEAST_OF_METRICS = 5e-5  # differences of larger numbers, more
MOST_WEIGHTS = 400  # of one tensor that are kept, at equal distances


def stacked_catch(num_envs, **_):
    """Catch with the latest 3 images in one observation, which the buffer stores once each; same-step autoreset."""

    def one(n):
        env = gymnasium.make("rlcore/Catch-v0", disable_env_checker=True)
        single = spaces.Box(0, 255, env.observation_space.shape[1:], np.uint8)
        env = gymnasium.wrappers.TransformObservation(env, lambda obs: obs[0], single)
        return gymnasium.wrappers.FrameStackObservation(env, 3, padding_type="zero")

    envs = vectorize(one, num_envs, AutoresetMode.SAME_STEP)
    envs.metadata = {**envs.metadata, "frame_stack": 3}
    return envs


def echo(**_):
    """Parts of many kinds, whose values are random; a whole number for each of two actions."""
    parts = {
        "place": spaces.Box(-1, 1, (2,)),
        "kind": spaces.Discrete(3, start=1),
        "pair": spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])]),
    }
    return Echo(spaces.Dict(parts), spaces.MultiDiscrete([2, 3]))


ECHO, FRAMES = "rlcore-trajectories/Echo-v0", "rlcore-trajectories/Frames-v0"
gymnasium.register(ECHO, echo)
gymnasium.register(FRAMES, vector_entry_point=stacked_catch)

# Steps are so long, and ε so small, that ratios and values do leave their bounds.
_PPO = dict(num_envs=3, num_steps=16, num_minibatches=3, learning_rate=3e-3, clip_coef=0.05)
_TRPO = dict(num_envs=3, num_steps=24, num_minibatches=2, update_epochs=3, cg_iterations=4, line_search_steps=4)
_EPISODES = dict(num_envs=4, num_steps=40)
_GRPO = dict(
    num_envs=6, group_size=3, num_steps=40, num_minibatches=2, update_epochs=3, learning_rate=5e-3, clip_coef=0.05
)
CASES = {
    # Proximal policy optimisation.
    "ppo": ("PPO", "CartPole-v1", dict(_PPO, anneal_clip=True)),
    "ppo_sync": ("PPO", "CartPole-v1", dict(_PPO, backend="sync")),
    "ppo_native": ("PPO", "CartPole-v1", dict(_PPO, backend="native", target_kl=4e-5)),
    "ppo_normalised": ("PPO", "CartPole-v1", dict(_PPO, norm_obs=True, norm_reward=True)),
    "ppo_target_kl": ("PPO", "CartPole-v1", dict(_PPO, target_kl=1e-4)),
    "ppo_kl_adapted": ("PPO", "CartPole-v1", dict(_PPO, objective="kl", target_kl=1e-4, shared=True)),
    "ppo_kl_fixed": ("PPO", "Acrobot-v1", dict(_PPO, objective="kl", kl_coef=0.5)),
    "ppo_plain": (
        "PPO", "CartPole-v1",
        dict(_PPO, clip_vloss=False, norm_adv=False, anneal_lr=False, max_grad_norm=None, ent_coef=0.0, vf_coef=1.0),
    ),
    "ppo_shared_rmsprop": (
        "PPO", "CartPole-v1",
        dict(_PPO, shared=True, optimizer="rmsprop", hidden_sizes=(12, 8), activation="elu", gae_lambda=0.8),
    ),
    "ppo_mountain": ("PPO", "MountainCar-v0", dict(_PPO, norm_obs=True, backend="native", gamma=0.9)),
    "ppo_pendulum": (
        "PPO", "Pendulum-v1",
        dict(_PPO, num_envs=6, num_steps=8, learning_rate=1e-3, clip_coef=0.02, norm_obs=True, norm_reward=True,
             squash=True, noise_correlation=0.9, backend="native"),
    ),
    "ppo_clipped_rewards": ("PPO", "Pendulum-v1", dict(_PPO, seed=5, clip_reward=True, state_dependent_std=True)),
    "ppo_car": (
        "PPO", "MountainCarContinuous-v0",
        dict(_PPO, squash=True, state_dependent_std=True, log_std_init=-0.5, noise_correlation=0.5, norm_obs=True),
    ),
    "ppo_lake": ("PPO", "FrozenLake-v1", dict(_PPO)),
    "ppo_blackjack": ("PPO", "Blackjack-v1", dict(_PPO)),
    "ppo_dict": ("PPO", ECHO, dict(_PPO, norm_obs=True)),
    "ppo_catch": (
        "PPO", "rlcore/Catch-v0",
        dict(_PPO, torso="mlp", hidden_sizes=(8,), clip_coef=0.01, backend="native"),
    ),
    "ppo_frames": ("PPO", FRAMES, dict(_PPO, torso="mlp", hidden_sizes=(8,))),
    "ppo_pixels": (
        "PPO", "rlcore/CatchPixels-v0",
        dict(num_envs=2, num_steps=11, num_minibatches=2, update_epochs=2, backend="native", optimizer_eps=1e-2,
             learning_rate=1e-3, seed=4),
    ),
    # Advantage actor-critic.
    "a2c": ("A2C", "CartPole-v1", dict(num_envs=4)),
    "a2c_adam": ("A2C", "CartPole-v1", dict(num_envs=3, num_steps=12, optimizer="adam", norm_adv=True, shared=True)),
    "a2c_q": ("A2C", "Acrobot-v1", dict(num_envs=3, psi="q", norm_reward=True, backend="native")),
    "a2c_td_error": ("A2C", "Taxi-v4", dict(num_envs=3, psi="td_error", num_steps=8)),
    "a2c_pendulum": ("A2C", "Pendulum-v1", dict(num_envs=3, gae_lambda=0.9, squash=True, norm_obs=True)),
    # Trust region policy optimisation.
    "trpo": ("TRPO", "CartPole-v1", dict(_TRPO, backend="native")),
    "trpo_refused": ("TRPO", "CartPole-v1", dict(_TRPO, num_steps=12, line_search_steps=1, max_kl=0.3, cg_damping=1.0)),
    "trpo_part": ("TRPO", "CartPole-v1", dict(_TRPO, fisher_fraction=0.25, cg_damping=0.5, norm_obs=True)),
    "trpo_blackjack": ("TRPO", "Blackjack-v1", dict(_TRPO, norm_adv=False, max_kl=0.002, cg_damping=1.0)),
    "trpo_pendulum": (
        "TRPO", "Pendulum-v1",
        dict(_TRPO, num_envs=4, num_steps=12, norm_obs=True, norm_reward=True, squash=True, cg_damping=1.0,
             cg_iterations=3, max_kl=0.003),
    ),
    # REINFORCE.
    "reinforce": ("REINFORCE", "CartPole-v1", dict(_EPISODES, critic_updates=3, norm_obs=True)),
    "reinforce_total_return": ("REINFORCE", "CartPole-v1", dict(_EPISODES, psi="total_return", ent_coef=0.01)),
    "reinforce_to_go": (
        "REINFORCE", "CartPole-v1",
        dict(_EPISODES, psi="reward_to_go", discount_steps=True, gamma=0.9, backend="sync"),
    ),
    "reinforce_mean": (
        "REINFORCE", "CartPole-v1",
        dict(_EPISODES, baseline="mean", baseline_decay=0.7, optimizer="rmsprop", learning_rate=1e-3),
    ),
    "reinforce_pendulum": (
        "REINFORCE", "Pendulum-v1",
        dict(_EPISODES, norm_obs=True, norm_reward=True, norm_adv=True, critic_updates=2, backend="native"),
    ),
    # Group relative policy optimisation.
    "grpo": ("GRPO", "CartPole-v1", dict(_GRPO)),
    "grpo_reference": ("GRPO", "CartPole-v1", dict(_GRPO, kl_coef=0.1, reference_every=3, backend="native")),
    "grpo_process": (
        "GRPO", "Pendulum-v1",
        dict(_GRPO, supervision="process", ent_coef=0.01, kl_coef=0.05, backend="native"),
    ),
    "grpo_aligned": ("GRPO", "CartPole-v1", dict(_GRPO, supervision="aligned", gamma=0.9, backend="native")),
    "grpo_target_kl": ("GRPO", "CartPole-v1", dict(_GRPO, num_steps=120, target_kl=1e-4, norm_obs=True)),
    "grpo_pendulum": (
        "GRPO", "Pendulum-v1",
        dict(_GRPO, squash=True, noise_correlation=0.5, supervision="aligned", norm_obs=True),
    ),
    "grpo_blackjack": ("GRPO", "Blackjack-v1", dict(_GRPO, variant="dapo", kl_coef=0.02, num_minibatches=1)),
    "dr_grpo": ("GRPO", "CartPole-v1", dict(_GRPO, variant="dr_grpo", shared=True)),
    "dapo": ("GRPO", "CartPole-v1", dict(_GRPO, variant="dapo", clip_coef_high=0.07, supervision="aligned")),
    "rloo": ("GRPO", "CartPole-v1", dict(num_envs=6, group_size=3, num_steps=40, variant="rloo")),
    "gpg": ("GRPO", "CartPole-v1", dict(num_envs=6, group_size=2, num_steps=40, variant="gpg")),
}  # fmt: skip
COMPILED = ("trpo", "a2c_q", "ppo_native", "grpo_process", "reinforce_pendulum")  # as the compiler gets them
# What commit 2e745ff could not record, and why.


def play(name, compile=False, noise=None):
    """Train the agent of a case for `ITERATIONS` iterations.

    Args:
        name: of the case.
        compile: as the hyperparameter of that name.
        noise: a seed, where rounding errors are to be added to the weights before and after each iteration.

    Returns:
        weights: of the network at the end, [W]; of a large tensor some.
        names: of the metrics, and
        metrics: their values, [`ITERATIONS`, M].
        episodes: by row step, environment, return and length of each, [4, E].
    """
    algo, env, options = CASES[name]
    agent = getattr(rlcore, algo)(env, **{**SMALL, **options, "compile": compile})
    generator = None if noise is None else torch.Generator().manual_seed(noise)
    metrics, episodes = [], []
    _add_noise(agent, generator)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*were cut there")  # so short are the episodes meant to be
        # The learning rate sinks towards 0 at this step; whole episodes take fewer steps.
        iterations = agent.iterations(agent.config.num_envs * agent.config.num_steps * ITERATIONS)
        for _, (measured, ended) in zip(range(ITERATIONS), iterations, strict=False):
            metrics.append({k: v for k, v in measured.items() if "second" not in k})
            episodes += zip(ended.step, ended.env, ended.returns, ended.lengths, strict=True)
            _add_noise(agent, generator)
    weights = [some_of(x) for x in agent.network.state_dict().values()]
    agent.close()
    assert len(metrics) == ITERATIONS and all(m.keys() == metrics[0].keys() for m in metrics)
    return {
        "weights": torch.cat(weights).numpy(),
        "names": np.array(list(metrics[0])),
        "metrics": np.array([list(m.values()) for m in metrics], dtype=np.float64),
        "episodes": np.array(episodes, dtype=np.float64).reshape(-1, 4).T,
    }


def _add_noise(agent, generator):
    if generator is not None:
        with torch.no_grad():
            for x in agent.network.parameters():
                noise = NOISE / x[0].numel() ** 0.5 * torch.randn(x.shape, generator=generator)
                x.add_(torch.where(x == 0, 0, noise))  # zeros are exact, and where images are blank they decide


def some_of(x):
    x = x.detach().flatten().to(torch.float32)
    return x[:: -(-len(x) // MOST_WEIGHTS) or 1]


def distances(expected, result):
    """How far apart two plays of a case are: a dictionary of the weights', the returns' and each metric's distance.

    Distances of metrics are measured by the largest value that the metric had, all others by the value itself where
    that is more than 1. Metrics that the result has beside those expected are left out.

    Raises:
        AssertionError: where the episodes differ.
    """
    np.testing.assert_array_equal(result["episodes"][[0, 1, 3]], expected["episodes"][[0, 1, 3]], "other episodes")
    found = {
        "weights": _largest(result["weights"] - expected["weights"], expected["weights"]),
        "returns": _largest(result["episodes"][2] - expected["episodes"][2], expected["episodes"][2]),
    }
    theirs = dict(zip(map(str, result["names"]), result["metrics"].T, strict=True))
    for name, ours in zip(map(str, expected["names"]), expected["metrics"].T, strict=True):
        assert name in theirs, f"there is no metric {name}"
        np.testing.assert_array_equal(np.isnan(theirs[name]), np.isnan(ours), f"{name} is NaN elsewhere")
        scale = max(np.abs(ours[np.isfinite(ours)]).max(initial=0), 1e-3)
        found[name] = float(np.nan_to_num(np.abs(theirs[name] - ours)).max() / scale)
    return found


def _largest(difference, values):
    return float((np.abs(difference) / np.maximum(1, np.abs(values))).max(initial=0))


def tolerances(name, expected):
    """By what the case's distances are bounded: `MARGIN` times what rounding did to it, at least `LEAST`."""
    seen = [distances(expected, play(name, noise=seed)) for seed in range(REPLAYS)]
    return {key: max(LEAST.get(key, LEAST_OF_METRICS), MARGIN * max(d[key] for d in seen)) for key in seen[0]}


def read(path):
    """What a file says of each case, tolerances as `distances` names them, and with what it was made."""
    with np.load(path) as file:
        arrays = dict(file)
    made_with, cases = str(arrays.pop("made_with")), {}
    for key, array in arrays.items():
        name, _, part = key.partition("/")
        cases.setdefault(name, {})[part] = array
    for case in cases.values():
        keys = "weights", "returns", *map(str, case["names"])
        case["tolerances"] = dict(zip(keys, case["tolerances"].tolist(), strict=True))
    return cases, made_with


def versions():
    return ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, np, gymnasium))


def main(path):
    torch.set_num_threads(1)
    arrays = {"made_with": np.array(versions())}
    for name in CASES:
        case = play(name)
        case["tolerances"] = np.array(list(tolerances(name, case).values()))
        arrays |= {f"{name}/{part}": array for part, array in case.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
