"""Steps per second of recurrent PPO: every memory and way of running it, and sb3-contrib's RecurrentPPO, in one run.

    python benchmarks/speed_memory.py                            8 environments × 128 steps of CartPole-v1
    python benchmarks/speed_memory.py --memories lstm --repetitions 3

As in speed.py, each repetition is a fresh process that trains, unmeasured, for a few iterations and then, measured, for
some seconds; the techniques alternate and ratios are taken within a repetition. Every process has one thread and stays
on one core.

Techniques of rlcore are a memory (lstm, gru, transformer) and a way of running:
    python           as Python on gymnasium's vector implementation of the environment
    python-sync      as Python on gymnasium's single environments, where sb3-contrib has them
    recorded         recorded operations, run one by one without a compiler, on the environments of `python`
    recorded-sync    the same on those of `python-sync`
    compiled         everything compiled, on the native twin of the environment

Peers, with "MlpLstmPolicy":
    sb3_contrib         an LSTM for the actor and one for the critic, its default, in front of the layers
    sb3_contrib-same    rlcore's network: the layers in front, as extractors of features, an LSTM behind each
    sb3_contrib-shared  one LSTM, which learns from the actor alone, in front of the layers

Same work for all: 4 epochs × 4 minibatches of 256 transitions, memories of 64, 64-64 tanh layers for actor and critic,
the same learning rate. `DIFFERS` says what is not the same, and the result file repeats it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import tempfile
import time
from typing import Any

import harness
import machine
from speed import PPO, WARM_UP, summary, time_learning, told

SIZE = 64  # of the memory, and of each hidden layer
WAYS = {
    "python": dict(compile=False, backend="vector"),
    "python-sync": dict(compile=False, backend="sync"),
    "recorded": dict(compile="record", backend="vector"),
    "recorded-sync": dict(compile="record", backend="sync"),
    "compiled": dict(compile=True, backend="native"),
}
MEMORIES = ("lstm", "gru", "transformer")
PEERS = {
    "sb3_contrib": dict(enable_critic_lstm=True, shared_lstm=False),
    "sb3_contrib-same": dict(enable_critic_lstm=True, shared_lstm=False, share_features_extractor=False),
    "sb3_contrib-shared": dict(enable_critic_lstm=False, shared_lstm=True),
}
DIFFERS = (
    "in sb3_contrib an LSTM reads the observation, and layers of 64-64 follow it; in rlcore the memory follows the "
    "layers, which is half as much arithmetic again; sb3_contrib-same has the latter network",
    "rlcore and sb3_contrib have a memory for the actor and one for the critic; sb3_contrib-shared has one, whose "
    "gradient is the actor's",
    "sb3-contrib cuts sequences where episodes begin and pads them to the longest in a minibatch, so that its speed "
    "follows the length of episodes; rlcore's are of one length, with the memory reset inside them",
    "sb3-contrib's minibatches are 256 transitions in a row, from a random place on; rlcore's are whole sequences",
    "sb3-contrib steps gymnasium's single environments, as python-sync and recorded-sync do",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memories", nargs="*", choices=MEMORIES, default=list(MEMORIES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="that every process stays on")
    options = parser.parse_args()
    ours = itertools.product(options.memories, options.ways)
    techniques = [*options.peers, *map(" ".join, ours)]
    with tempfile.TemporaryDirectory() as programs:  # an empty cache: the first repetition compiles, the others load

        def measure(technique: str, _: int) -> dict[str, Any]:
            peer = "sb3_contrib" if technique in PEERS else None
            task = {"technique": technique, **vars(options)}
            return harness.worker(__file__, task, peer, threads=1, cache=programs)

        rows = harness.alternate(techniques, options.repetitions, measure, told)
    report(rows, options)


def report(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    table, cells = summary(rows, [name for name in (*PEERS, "lstm python") if name in rows])
    for name, row in table.items():
        row |= {"parameters": rows[name][0]["parameters"], "work": rows[name][0]["work"]}
    harness.table(cells)
    machine.write(
        f"speed_memory_{options.env_id.replace('/', '-')}_{options.num_envs}envs_1thread",
        {"algo": "ppo", "env_id": options.env_id, "num_envs": options.num_envs, "threads": 1, "differs": DIFFERS}
        | {"techniques": table},
    )


# In processes of their own.


def work(technique: str, **options: Any) -> dict[str, Any]:
    """One repetition of a technique."""
    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {options["core"]})
    if technique in PEERS:
        return train_peer(argparse.Namespace(**options), **PEERS[technique])
    memory, way = technique.split()
    return train_rlcore(argparse.Namespace(**options), memory=memory, memory_size=SIZE, **WAYS[way])


def train_rlcore(options: argparse.Namespace, **how: Any) -> dict[str, Any]:
    import rlcore

    work = {"num_envs": options.num_envs, "hidden_sizes": (SIZE, SIZE), **PPO, **how}
    start = time.perf_counter()
    agent = rlcore.PPO(options.env_id, seed=1, device="cpu", **work)
    iterations = agent.iterations(harness.FAR)
    for _ in range(WARM_UP):
        next(iterations)
    ready = time.perf_counter() - start
    measured = harness.stretch(agent, functools.partial(next, iterations), options.seconds)
    return {
        "steps_per_second": measured.steps_per_second, "ready_seconds": ready,
        "seconds": {phase: measured.phases[phase] for phase in ("collect", "learn")}, "work": work,
        "parameters": sum(p.numel() for p in agent.network.parameters()), "versions": machine.describe()["versions"],
    }  # fmt: skip


def train_peer(options: argparse.Namespace, **lstm: bool) -> dict[str, Any]:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    batch = options.num_envs * PPO["num_steps"]
    in_front = not lstm.get("share_features_extractor", True)
    work = dict(
        n_steps=PPO["num_steps"], batch_size=batch // PPO["num_minibatches"], n_epochs=PPO["update_epochs"],
        learning_rate=PPO["learning_rate"], ent_coef=PPO["ent_coef"],
    )  # fmt: skip
    layers = [] if in_front else dict(pi=[SIZE, SIZE], vf=[SIZE, SIZE])
    policy = dict(lstm_hidden_size=SIZE, n_lstm_layers=1, net_arch=layers, **lstm)
    own = {"features_extractor_class": extractor()} if in_front else {}
    start = time.perf_counter()
    envs = make_vec_env(options.env_id, n_envs=options.num_envs, seed=1)
    model = RecurrentPPO("MlpLstmPolicy", envs, seed=1, device="cpu", policy_kwargs={**policy, **own}, **work)
    model.learn(batch * WARM_UP)
    ready = time.perf_counter() - start
    guess = time_learning(model, batch * WARM_UP)
    return {
        "steps_per_second": time_learning(model, max(int(guess * options.seconds), 1)), "ready_seconds": ready,
        "seconds": {}, "work": {**work, **policy}, "parameters": sum(p.numel() for p in model.policy.parameters()),
        "versions": machine.describe()["versions"],
    }  # fmt: skip


def extractor() -> type:
    """Layers in front of an LSTM, as Stable-Baselines3 takes them."""
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import nn

    class Layers(BaseFeaturesExtractor):
        def __init__(self, space: Any):
            super().__init__(space, SIZE)
            self.layers = nn.Sequential(
                nn.Flatten(), nn.Linear(space.shape[0], SIZE), nn.Tanh(), nn.Linear(SIZE, SIZE), nn.Tanh()
            )

        def forward(self, obs: Any) -> Any:
            return self.layers(obs)

    return Layers


if __name__ == "__main__":
    harness.start(main, work)
