"""Variance of the policy gradient for six choices of ψ, on the same episodes of the same fixed policies.

    python benchmarks/gradient_variance.py                     CartPole-v1 after 0, 20,000 and 100,000 steps
    python benchmarks/gradient_variance.py --seed 1 --name S   another training run, results/S.json and S.png

    g = Σ_t γ^t ψ_t ∇ log π(a_t|s_t)      of one episode; an agent takes the mean over N episodes

REINFORCE trains to each stage. Its policy is then frozen, and its critic fitted anew on episodes of this policy alone,
to the targets A2C makes with λ = 1 (Monte Carlo returns, going on with V behind the time limit), so that V is V^π as
well as may be. On further episodes, never used before, the six agents' own `estimate` makes ψ from one and the same
buffer, and g is computed exactly for every episode: only ψ differs.

γ = 0.99 and the factor γ^t (`discount_steps` of REINFORCE; A2C's ψ gets it here) make all six estimates of one thing,
the gradient of the discounted return. Without the factor, reward-to-go would estimate something else than total return;
at γ = 1 the time limit of 500 steps, of which V knows nothing, would bias all that bootstraps, where 0.99^500 < 0.007
takes it out. Agents in practice leave γ^t away. ψ = q and advantage have λ = 0.95: with λ = 1 they would be
reward-to-go and baseline once more, to the last digit on episodes that end by themselves.

For each ψ the JSON has the following, each as [value, low, high] with the 95% percentile interval over resampled
episodes, the same resamples for all six. Squared norms are U-statistics, over pairs of different episodes, so that
noise does not pass for signal; null stands where noise leaves no number.

    variance                  tr Cov[g] of one episode; the mean over N episodes has 1/N of it
    variance_over_reward_to_go
    mean_norm                 |E g|
    noise_scale               variance / mean_norm²: the number of episodes in whose mean noise is as long as signal
                              (the simple noise scale of McCandlish et al. 2018, arXiv:1812.06162, section 2.2)
    cosine_to_X               between E g and that of X; sampling error may carry it above 1
    relative_difference_to_X  |E g − E g_X| / |E g_X|, the bias; X is reward_to_go, or baseline, which has the same
                              expectation and much less noise, so that it shows a smaller bias

What it shows (also as `notes` in the JSON):

  - Order of variance, every stage: total return > reward-to-go ≈ Q > reward-to-go − V > advantage > TD error, as
    the literature has it. What each step buys grows with training, as episodes get longer: from reward-to-go to the
    TD error it is a factor of 9 before training and of 170 after 100,000 steps.
  - Q does not always come below reward-to-go: it does before training, hardly after 20,000 steps, and is slightly
    above after 100,000. Both contain Σ γ^t V(s_t) ∇ log π, which at the later stages has by itself more variance
    (variance_of_v_part) than all of reward-to-go. λ only shortens the rest; a baseline takes this part away.
  - Total return and the baseline have the mean of reward-to-go within the error, as they must. Total return's error
    is large: after 100,000 steps 4,096 episodes do not even tell its mean from 0.
  - The TD error, and less so the advantage at λ = 0.95, pay with bias, because V is fitted and not exact: the TD
    error's mean gradient is 10%, 6% and 20% off that of the baseline at the three stages, though its direction
    hardly differs (cosine 0.98 or more). Its squared error, variance / N plus bias squared, is still the smaller one
    up to N = 170, 750 and 430 episodes per update.
  - V is fitted here for the comparison. The critic that REINFORCE had trained by itself (critic_as_trained) explains
    57% and 33% of the variance of the returns at the later stages, the fitted one 66% and 56%. What V is seen to gain
    here is what the fitted critic gives.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from rlcore import A2C, REINFORCE
from rlcore.agents import Agent
from rlcore.diagnostics import explained_variance

PSI = {
    "total_return": (REINFORCE, "total return"),
    "reward_to_go": (REINFORCE, "reward-to-go"),
    "q": (A2C, "Q estimate, λ"),
    "baseline": (REINFORCE, "reward-to-go − V"),
    "advantage": (A2C, "advantage (GAE), λ"),
    "td_error": (A2C, "TD error"),
}
NUM_ENVS = 64
COMMON = {"num_envs": NUM_ENVS, "num_steps": 500, "device": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 20_000, 100_000], help="training steps")
    parser.add_argument("--episodes", type=int, default=4096, help="measured at each stage")
    parser.add_argument(
        "--critic-episodes", type=int, default=1024, help="on which V is fitted; 0: V as it was trained"
    )
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95, help="of q and advantage")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result files (default: gradient_variance_ENV)")
    options = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    stages = [measure(options, steps, network) for steps, network in trained(options)]
    name = options.name or f"gradient_variance_{options.env_id.replace('/', '-')}"
    settings = {key: value for key, value in vars(options).items() if key != "name"}
    seconds = round(time.perf_counter() - start, 1)
    machine.write(
        name,
        {
            **settings,
            "seconds": seconds,
            "notes": notes() if options == parser.parse_args([]) else [],
            "stages": stages,
        },
    )
    plot(stages, options, machine.RESULTS / f"{name}.png")


def trained(options: argparse.Namespace) -> list[tuple[int, nn.Module]]:
    """The network at each stage of one training run."""
    agent = REINFORCE(options.env_id, gamma=options.gamma, learning_rate=1e-3, seed=options.seed, device="cpu")
    networks, stages = [], sorted(options.stages)
    course = agent.iterations(max(1, stages[-1]))
    for steps in stages:
        while agent.global_step < steps:
            next(course)
        networks.append((agent.global_step, copy.deepcopy(agent.network)))
    agent.close()
    return networks


def measure(options: argparse.Namespace, steps: int, network: nn.Module) -> dict[str, Any]:
    """One stage: fit V, collect, differentiate, and compare the six."""
    agents = {psi: make(options, psi) for psi in PSI}
    player = agents["baseline"]  # the one whose rollouts all share
    player.network.load_state_dict(network.state_dict())
    before = judge_critic(options, player)
    if options.critic_episodes:
        fit_critic(options, player)
    after = judge_critic(options, player)
    gradients, lengths, cut = collect_gradients(options, player, agents)
    for agent in agents.values():
        agent.close()
    stage = {
        "training_steps": steps,
        "return_mean": float(lengths.mean()),  # CartPole pays 1 per step
        "share_cut_by_time_limit": cut,
        "critic_as_trained": before,
        "critic_fitted": after,
        "variance_of_v_part": float((gradients["reward_to_go"] - gradients["baseline"]).var(0).sum()),
        "psi": compare(options, gradients),
    }
    stage["ordering"] = sorted(PSI, key=lambda psi: -stage["psi"][psi]["variance"][0])
    show(stage)
    return stage


def make(options: argparse.Namespace, psi: str) -> Agent:
    """The agent whose `estimate` makes ψ."""
    kind = PSI[psi][0]
    own = {"discount_steps": True} if kind is REINFORCE else {"gae_lambda": options.gae_lambda}
    return kind(options.env_id, psi=psi, gamma=options.gamma, seed=options.seed, **own, **COMMON)


def play(player: Agent, kind: int, count: int):
    """`count` rollouts of a whole episode per environment; each `kind` has seeds of its own."""
    for index in range(count):
        seed = np.random.SeedSequence([player.config.seed, kind, index]).generate_state(1)[0] % 2**31
        player.collector.reset(int(seed))
        player.collect()
        yield player.buffer


def value_targets(options: argparse.Namespace, player: Agent, kind: int, count: int) -> Any:
    """Observations, values and Monte Carlo targets of fresh episodes, all real steps in a row."""
    target = A2C(options.env_id, psi="advantage", gae_lambda=1.0, gamma=options.gamma, seed=0, **COMMON)
    parts = [(b.obs[b.mask], b.values[b.mask], target.estimate(b)[1][b.mask]) for b in play(player, kind, count)]
    target.close()
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def judge_critic(options: argparse.Namespace, player: Agent) -> dict[str, float]:
    """How well V does on episodes it was not fitted to."""
    _, values, targets = value_targets(options, player, 1, 4)
    explained = float(explained_variance(values, targets))
    return {"explained_variance": explained, "mean_v": float(values.mean()), "mean_target": float(targets.mean())}


def fit_critic(options: argparse.Namespace, player: Agent, rounds: int = 4, updates: int = 1500) -> None:
    """Regress V on fresh returns; again and again, because targets behind the time limit hold V itself."""
    network = player.network
    parameters = [*network.critic.parameters(), *network.value_head.parameters()]
    optimizer = torch.optim.Adam(parameters, 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds * updates)
    for index in range(rounds):
        count = max(1, options.critic_episodes // NUM_ENVS // rounds)
        obs, _, targets = value_targets(options, player, 10 + index, count)
        for _ in range(updates):
            rows = torch.randint(len(obs), (2048,))
            optimizer.zero_grad()
            F.mse_loss(network.value(obs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()


def collect_gradients(
    options: argparse.Namespace, player: Agent, agents: dict[str, Agent]
) -> tuple[dict[str, Tensor], Tensor, float]:
    """Per ψ the gradient of each episode, [episodes, parameters]; the episodes' lengths; the share cut at the limit."""
    network = player.network
    names = [
        f"{part}.{name}" for part in ("actor", "policy_head") for name, _ in getattr(network, part).named_parameters()
    ]
    parameters = {name: value.detach() for name, value in network.named_parameters() if name in names}

    def weighted(parameters: dict[str, Tensor], obs: Tensor, actions: Tensor, psi: Tensor) -> Tensor:
        policy, _ = functional_call(network, parameters, (obs,))
        return psi @ policy.log_prob(actions)  # [ψ, T] @ [T]

    per_episode = vmap(jacrev(weighted), in_dims=(None, 1, 1, 2))
    rollouts, lengths, cut = [], [], []
    for b in play(player, 2, options.episodes // NUM_ENVS):
        psi = torch.stack([weights(agents[name], b) for name in PSI])[:, : b.length]  # [ψ, T, N]
        jacobian = per_episode(parameters, b.obs[: b.length], b.actions[: b.length], psi)
        rollouts.append(torch.cat([part.flatten(2) for part in jacobian.values()], -1))  # [N, ψ, parameters]
        lengths.append(b.mask.sum(0))
        cut.append((b.truncated & ~b.terminated & b.mask).any(0))
    gradients = torch.cat(rollouts).unbind(1)
    return dict(zip(PSI, gradients, strict=True)), torch.cat(lengths).float(), float(torch.cat(cut).float().mean())


def weights(agent: Agent, buffer: Any) -> Tensor:
    """γ^t ψ_t `[T, N]`, 0 in padding; `discount_steps` has brought γ^t in where the agent has that."""
    psi = agent.estimate(buffer)[0]
    if isinstance(agent, A2C):
        psi = psi * agent.config.gamma ** torch.arange(len(psi)).unsqueeze(-1)
    return torch.where(buffer.mask, psi, 0.0)


def compare(options: argparse.Namespace, gradients: dict[str, Tensor]) -> dict[str, Any]:
    """The statistics of each ψ, on the episodes as they are and on resamples of them."""
    n = len(gradients["baseline"])
    rng = np.random.default_rng(options.seed)
    counts = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), options.resamples)).float()
    counts = torch.cat([torch.ones(1, n), counts])  # row 0: every episode once
    sums = {psi: counts @ g for psi, g in gradients.items()}

    def product(plus: tuple[str, ...], times: tuple[str, ...]) -> Tensor:
        """⟨E a, E b⟩ for each row of counts; a and b are a ψ's g, or the difference of two."""
        (a, sum_a), (b, sum_b) = (
            [table[x[0]] - table[x[1]] if len(x) == 2 else table[x[0]] for table in (gradients, sums)]
            for x in (plus, times)
        )
        return pair_product(a, b, sum_a, sum_b, counts)

    square = {psi: product((psi,), (psi,)) for psi in PSI}
    variance = {psi: counts.double() @ g.double().pow(2).sum(1) / n - square[psi] for psi, g in gradients.items()}
    rows = {}
    for psi in PSI:
        rows[psi] = {
            "variance": variance[psi],
            "variance_over_reward_to_go": variance[psi] / variance["reward_to_go"],
            "mean_norm": square[psi].clamp(min=0).sqrt(),
            "noise_scale": torch.where(square[psi] > 0, variance[psi] / square[psi], torch.inf),
        }
        for reference in ("reward_to_go", "baseline"):
            cosine = product((psi,), (reference,)) / (square[psi] * square[reference]).sqrt()
            difference = product((psi, reference), (psi, reference)) / square[reference]
            rows[psi][f"cosine_to_{reference}"] = cosine
            rows[psi][f"relative_difference_to_{reference}"] = difference.clamp(min=0).sqrt()
    return {psi: {key: interval(x) for key, x in row.items()} for psi, row in rows.items()}


def pair_product(a: Tensor, b: Tensor, sum_a: Tensor, sum_b: Tensor, counts: Tensor) -> Tensor:
    """⟨E a, E b⟩ without bias: the mean of a_i · b_j over pairs of different episodes, per row of `counts [R, n]`."""
    squares, total = counts.double().pow(2), counts.double().sum(1)
    same = squares @ (a.double() * b.double()).sum(1)
    return ((sum_a.double() * sum_b.double()).sum(1) - same) / (total.pow(2) - squares.sum(1))


def interval(x: Tensor) -> list[float | None]:
    """[value, low, high] of a statistic whose first entry is the value; null where noise leaves none."""
    low, high = np.percentile(x[1:].numpy(), [2.5, 97.5], method="inverted_cdf")  # takes infinities as they are
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in (x[0].item(), low.item(), high.item())]


def show(stage: dict[str, Any]) -> None:
    head = {key: value for key, value in stage.items() if isinstance(value, int | float)}
    print("  ".join(f"{key} {value:.4g}" for key, value in head.items()))
    for psi, statistics in stage["psi"].items():
        cells = [f"{key} {' '.join('-' if v is None else f'{v:.4g}' for v in x)}" for key, x in statistics.items()]
        print(f"  {psi:14}", " | ".join(cells), flush=True)


def notes() -> list[str]:
    """The findings as the docstring lists them, those of the default settings."""
    points = __doc__.split("What it shows")[1].split("\n  - ")[1:]
    return [" ".join(point.split()) for point in points]


def plot(stages: list[dict[str, Any]], options: argparse.Namespace, path: Path) -> None:
    """Variance with its interval, a panel per stage; the numbers are multiples of reward-to-go's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(stages), figsize=(2.9 * len(stages) + 1.6, 4.1), sharey=True, squeeze=False)
    labels = [label.replace("λ", f"λ = {options.gae_lambda:g}") for _, label in PSI.values()]
    for panel, stage in zip(panels[0], stages, strict=True):
        rows = [stage["psi"][psi] for psi in PSI]
        value, low, high = np.array([row["variance"] for row in rows], dtype=float).T
        ratio = [row["variance_over_reward_to_go"][0] for row in rows]
        for y, psi in enumerate(PSI):
            colour = "tab:blue" if PSI[psi][0] is REINFORCE else "tab:orange"
            error = [[value[y] - low[y]], [high[y] - value[y]]]
            panel.errorbar(value[y], y, xerr=error, fmt="o", color=colour, capsize=4, markersize=6)
            panel.annotate(
                f"× {ratio[y]:.{2 if ratio[y] >= 0.1 else 3}f}",
                (value[y], y),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
        panel.set_xscale("log")
        panel.set_xlim(value.min() / 4, value.max() * 4)
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(f"after {stage['training_steps']:,} steps\nmean return {stage['return_mean']:.0f}", fontsize=11)
        panel.set_xlabel("tr Cov of one episode's gradient\n(return² / parameter²)", fontsize=10)
        panel.set_yticks(range(len(PSI)), labels, fontsize=11)
    panels[0, 0].set_ylim(len(PSI) - 0.6, -0.7)
    figure.suptitle(
        f"{options.env_id}: variance of the policy gradient by ψ, and as a multiple of reward-to-go's\n"
        "95% intervals over episodes; blue: ψ of REINFORCE, orange: of A2C",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
