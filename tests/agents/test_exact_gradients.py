"""Policy gradients against the exact gradient of J, by going through every trajectory of a small problem.

What an agent puts into its loss is weighted by the probability of each trajectory, so that nothing is left to chance:
an estimator without bias gives the exact gradient to the last digits, one with a bias does not.
"""

from itertools import product

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlcore import A2C, GRPO, PPO, REINFORCE, TRPO, RolloutBuffer
from rlcore.agents.grpo import VARIANTS
from rlcore.optim import conjugate_gradient, flat
from tests.agents.float64 import as_float64, draw_minibatches, hold, poison
from tests.environments import MODES, Echo, vectorize

# Two states at each of three times; state 2 t + i. Starts, and then where action a leads from each: over, or the two
# states of the following time.
STARTS = {0: 0.3, 1: 0.7}
rng = np.random.default_rng(0)
TRANSITIONS = rng.dirichlet([1, 1, 1], size=(4, 2))  # [state, action, (over, first, second)]
REWARDS = rng.normal(size=(6, 2)) + 1.0
SPACES = spaces.Box(0, 1, (6,)), spaces.Discrete(2)


def make(algorithm, num_envs=4, horizon=3, **hyperparameters):
    """An agent in float64 with a policy and values far from zero."""
    settings = dict(num_steps=horizon, seed=0, hidden_sizes=(5,)) | hyperparameters
    if algorithm is not TRPO:
        settings.setdefault("ent_coef", 0.0)
    agent = algorithm(vectorize(lambda n: Echo(*SPACES), num_envs, MODES[0]), **settings)
    as_float64(agent)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in agent.network.parameters():
            p += 0.7 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return agent


def trajectories(horizon=3):
    """All (start, states, actions, probability of what the environment chose)."""

    def go_on(states, actions, chance):
        for a in range(2):
            t, now = len(actions), (*actions, a)
            if t == horizon - 1:
                yield states, now, chance
                continue
            over, *following = TRANSITIONS[states[-1], a]
            yield states, now, chance * over
            for i, p in enumerate(following):
                yield from go_on((*states, 2 * (t + 1) + i), now, chance * p)

    return [found for start in STARTS for found in go_on((start,), (), 1.0)]


def log_policy(agent):
    return agent.network.policy(torch.eye(6, dtype=torch.float64)).log_p  # [state, action]


def log_probabilities(agent, paths):
    """log Π_t π(a_t|s_t) of each trajectory."""
    log_p = log_policy(agent)
    return torch.stack([log_p[list(states), list(actions)].sum() for states, actions, _ in paths])


def probabilities(agent, paths, starts=True):
    chances = torch.tensor([chance * (STARTS[states[0]] if starts else 1) for states, _, chance in paths])
    return chances.double() * log_probabilities(agent, paths).exp()


def gradient(agent, of):
    return flat(torch.autograd.grad(of, agent.network.policy_parameters()))


def exact_gradient(agent, gamma=1.0, horizon=3):
    paths = trajectories(horizon)
    returns = [sum(gamma**t * REWARDS[s, a] for t, (s, a) in enumerate(zip(*p[:2], strict=True))) for p in paths]
    return gradient(agent, probabilities(agent, paths) @ torch.tensor(returns).double())


def exact_values(agent, gamma=1.0):
    """V of each state under the agent's policy, from the last time backwards."""
    p, values = log_policy(agent).detach().exp(), torch.zeros(6, dtype=torch.float64)
    for state in reversed(range(6)):
        for a in range(2):
            ahead = 0.0 if state > 3 else TRANSITIONS[state, a, 1:] @ values[state // 2 * 2 + 2 :][:2].numpy()
            values[state] += p[state, a] * (REWARDS[state, a] + gamma * ahead)
    return values


def fill(agent, paths, values=None):
    """A buffer with one trajectory in each column, as the agent's collector would have filled it; poison elsewhere."""
    buffer = RolloutBuffer(agent.config.num_steps, len(paths), *SPACES)
    poison(buffer)
    with torch.no_grad():
        log_p, params = log_policy(agent), agent.network.policy(torch.eye(6, dtype=torch.float64)).params
        if values is None:
            values = agent.network.value(torch.eye(6, dtype=torch.float64))
    for n, (states, actions, _) in enumerate(paths):
        for t, (s, a) in enumerate(zip(states, actions, strict=True)):
            last = t == len(actions) - 1
            buffer.obs[t, n], buffer.actions[t, n], buffer.mask[t, n] = torch.eye(6)[s], a, True
            buffer.logprobs[t, n], buffer.dist_params[t, n] = log_p[s, a], params[s]
            buffer.rewards[t, n], buffer.terminated[t, n] = REWARDS[s, a], last
            buffer.values[t, n] = values[s]
            buffer.next_values[t, n] = 1e3 if last else values[states[t + 1]]  # after the end: must not be asked
    return buffer


def whole(agent, buffer, estimate=None):
    batch = buffer.flatten(*(agent.estimate(buffer) if estimate is None else estimate))
    return batch.take(torch.arange(len(batch.mask)))


def expected_gradient(agent, buffer, chances, estimate=None):
    """Minus the gradient of the loss, summed over the steps of each column and weighted by the column's probability.

    A loss with weights of its own is a mean over columns, any other a mean over real transitions.
    """
    batch = whole(agent, buffer, estimate)
    columns = chances.detach().expand(buffer.num_steps, -1).flatten()
    scale = buffer.num_envs if batch.weighted else batch.mask.sum()
    loss, _ = agent.loss(agent.network, batch.replace(weight=batch.weight * scale * columns))
    return -gradient(agent, loss)


def difference(ours, exact):
    assert exact.norm() > 0.05
    return ((ours - exact).norm() / exact.norm()).item()


def test_all_trajectories_are_there_and_of_all_lengths():
    agent, paths = make(REINFORCE), trajectories()
    assert probabilities(agent, paths).sum().item() == pytest.approx(1, abs=1e-12)
    assert {len(actions) for _, actions, _ in paths} == {1, 2, 3} and len(paths) == 84
    start_values = exact_values(agent)[:2]
    expected = probabilities(agent, paths) @ torch.tensor([REWARDS[list(s), list(a)].sum() for s, a, _ in paths])
    assert (0.3 * start_values[0] + 0.7 * start_values[1]).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(
    "switches",
    [
        dict(psi="total_return", gamma=1.0),
        dict(psi="total_return", gamma=0.7),
        dict(psi="reward_to_go", gamma=1.0),
        dict(psi="reward_to_go", gamma=0.7, discount_steps=True),
        dict(psi="baseline", gamma=1.0),
        dict(psi="baseline", gamma=0.7, discount_steps=True),
        dict(psi="baseline", baseline="mean", gamma=1.0),
        dict(psi="baseline", baseline="mean", gamma=0.7, discount_steps=True),
    ],
    ids=str,
)
def test_reinforce_has_no_bias(switches):
    agent, paths = make(REINFORCE, **switches), trajectories()
    agent.coefs["baseline"] = 1.7
    buffer = fill(agent, paths)
    ours = expected_gradient(agent, buffer, probabilities(agent, paths))
    assert difference(ours, exact_gradient(agent, switches["gamma"])) < 1e-6


@pytest.mark.parametrize("psi", ["reward_to_go", "baseline"])
def test_reinforce_without_discounted_steps_follows_another_direction(psi):
    agent, paths = make(REINFORCE, psi=psi, gamma=0.7), trajectories()
    ours = expected_gradient(agent, fill(agent, paths), probabilities(agent, paths))
    assert difference(ours, exact_gradient(agent, 0.7)) > 0.1
    assert difference(ours, exact_gradient(agent, 1.0)) > 0.1


def test_the_running_mean_is_that_of_earlier_rollouts():
    """Each trajectory on its own: a mean that it has entered already would depend on its actions."""
    agent, paths = make(REINFORCE, baseline="mean", baseline_decay=0.6, gamma=1.0), trajectories()
    estimates = []
    for path in paths:
        agent.coefs["baseline"] = 1.7
        alone = fill(agent, [path])
        estimates.append(agent.estimate(alone))
        to_go = np.cumsum([REWARDS[s, a] for s, a in zip(*path[:2], strict=True)][::-1])
        assert agent.coefs["baseline"] == pytest.approx(0.6 * 1.7 + 0.4 * to_go.mean())
    psi, returns, _ = (torch.cat(x, 1) for x in zip(*estimates, strict=True))
    buffer = fill(agent, paths)
    estimate = psi, returns, torch.full_like(psi, 1 / len(paths))
    ours = expected_gradient(agent, buffer, probabilities(agent, paths), estimate)
    assert difference(ours, exact_gradient(agent)) < 1e-6


@pytest.mark.parametrize(
    "switches, values, unbiased",
    [
        (dict(psi="q"), "wrong", True),  # whole episodes: V is nowhere needed
        (dict(psi="advantage"), "wrong", True),
        (dict(psi="advantage"), "exact", True),
        (dict(psi="advantage", gae_lambda=0.5), "exact", True),
        (dict(psi="q", gae_lambda=0.5), "exact", True),
        (dict(psi="td_error"), "exact", True),
        (dict(psi="advantage", gae_lambda=0.5), "wrong", False),
        (dict(psi="td_error"), "wrong", False),
    ],
    ids=str,
)
def test_a2c_has_no_bias_where_it_should_have_none(switches, values, unbiased):
    agent, paths = make(A2C, gamma=1.0, vf_coef=0.0, **switches), trajectories()
    buffer = fill(agent, paths, exact_values(agent) if values == "exact" else None)
    off = difference(expected_gradient(agent, buffer, probabilities(agent, paths)), exact_gradient(agent))
    assert off < 1e-6 if unbiased else off > 0.1


def test_q_is_the_advantage_and_the_value_and_both_fit_the_critic_to_it():
    estimates = {}
    for psi in ("q", "advantage", "td_error"):
        agent = make(A2C, psi=psi, gamma=0.9, gae_lambda=0.8)
        buffer = fill(agent, trajectories())
        estimates[psi] = [x[buffer.mask] for x in agent.estimate(buffer)]
    torch.testing.assert_close(estimates["q"][0], estimates["advantage"][0] + buffer.values[buffer.mask])
    for psi in ("q", "advantage"):
        assert torch.equal(estimates[psi][1], estimates["q"][0])
    delta, target = estimates["td_error"]
    torch.testing.assert_close(target, delta + buffer.values[buffer.mask])


def test_a2cs_loss_is_the_mean_over_steps():
    """What the scale in `expected_gradient` leaves open."""
    agent, paths = make(A2C, vf_coef=0.3, ent_coef=0.2, gamma=1.0), trajectories()
    batch = whole(agent, fill(agent, paths))
    loss, metrics = agent.loss(agent.network, batch)
    log_p = log_policy(agent).detach()
    values = agent.network.value(torch.eye(6, dtype=torch.float64)).detach()
    policy_loss, value_loss, entropy = [], [], []
    for states, actions, _ in paths:
        for t, (s, a) in enumerate(zip(states, actions, strict=True)):
            to_go = REWARDS[list(states[t:]), list(actions[t:])].sum()
            policy_loss.append(-(to_go - values[s]) * log_p[s, a])
            value_loss.append(0.5 * (to_go - values[s]) ** 2)
            entropy.append(-(log_p[s].exp() * log_p[s]).sum())
    means = [torch.stack(x).mean().item() for x in (policy_loss, value_loss, entropy)]
    assert [metrics[k].item() for k in ("policy_loss", "value_loss", "entropy")] == pytest.approx(means, rel=1e-6)
    assert loss.item() == pytest.approx(means[0] + 0.3 * means[1] - 0.2 * means[2], rel=1e-6)


def test_reinforces_loss_is_a_sum_over_steps_and_a_mean_over_episodes():
    agent, paths = make(REINFORCE, ent_coef=0.2, gamma=1.0), trajectories()
    loss, metrics = agent.loss(agent.network, whole(agent, fill(agent, paths)))
    log_p = log_policy(agent).detach()
    values = agent.network.value(torch.eye(6, dtype=torch.float64)).detach()
    policy_loss, entropies = 0.0, []
    for states, actions, _ in paths:
        for t, (s, a) in enumerate(zip(states, actions, strict=True)):
            to_go = REWARDS[list(states[t:]), list(actions[t:])].sum()
            policy_loss -= (to_go - values[s]).item() * log_p[s, a].item() / len(paths)
            entropies.append(-(log_p[s].exp() * log_p[s]).sum().item())
    assert metrics["policy_loss"].item() == pytest.approx(policy_loss, rel=1e-6)
    assert metrics["entropy"].item() == pytest.approx(np.mean(entropies), rel=1e-6)
    assert loss.item() == pytest.approx(policy_loss - 0.2 * sum(entropies) / len(paths), rel=1e-6)


def test_reinforces_critic_is_fitted_apart_to_the_returns():
    """Its first loss is the mean over real steps, weighted by nothing; the policy stays as it is, to the bit."""
    for updates in (1, 40):
        agent, paths = make(REINFORCE, critic_updates=updates, gamma=1.0, learning_rate=0.05), trajectories()
        buffer = fill(agent, paths)
        batch = buffer.flatten(*agent.estimate(buffer))
        values = agent.network.value(torch.eye(6, dtype=torch.float64)).detach()
        squared = [
            0.5 * (REWARDS[list(states[t:]), list(actions[t:])].sum() - values[states[t]].item()) ** 2
            for states, actions, _ in paths
            for t in range(len(actions))
        ]
        policy = flat(agent.network.policy_parameters()).clone()
        agent.draws["rows"] = torch.arange(len(batch))
        last = agent.fit_critic(batch).item()
        assert torch.equal(policy, flat(agent.network.policy_parameters()))
        assert last == pytest.approx(np.mean(squared), rel=1e-6) if updates == 1 else last < 0.5 * np.mean(squared)
        assert not torch.equal(values, agent.network.value(torch.eye(6, dtype=torch.float64)))


def test_normalised_psi_has_mean_zero_and_deviation_one_over_real_steps():
    for algorithm in (REINFORCE, A2C):
        agent, paths = make(algorithm, norm_adv=True), trajectories()
        batch = whole(agent, fill(agent, paths))
        psi = batch.advantages[batch.mask]
        psi = (psi - psi.mean()) / psi.std(correction=0)
        per_step = 1 / len(paths) if algorithm is REINFORCE else 1 / len(psi)
        logprobs = agent.network.policy(batch.obs).log_prob(batch.actions)[batch.mask]
        expected = -per_step * (psi * logprobs).sum()
        assert agent.loss(agent.network, batch)[1]["policy_loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_ppo_at_the_old_policy_is_a2c():
    settings = dict(gae_lambda=0.9, gamma=0.95, vf_coef=0.0, norm_adv=False)
    grads = []
    for algorithm in (A2C, PPO):
        agent = make(algorithm, **settings)
        paths = trajectories()
        batch = whole(agent, fill(agent, paths))
        grads.append(gradient(agent, agent.loss(agent.network, batch)[0]))
    assert difference(grads[1], grads[0]) < 1e-10


def pairs_of(agent, paths, group_size, starts=STARTS):
    """All tuples of trajectories from a common start, side by side, and each tuple's probability."""
    columns, chances = [], []
    alone = probabilities(agent, paths, starts=False).detach()
    for start, p_start in starts.items():
        members = [n for n, (states, _, _) in enumerate(paths) if states[0] == start]
        for group in product(members, repeat=group_size):
            columns += group
            chances.append(p_start * alone[list(group)].prod())
    return columns, torch.stack(chances)


def spread(buffer, columns):
    """A buffer whose columns are those of `buffer`, repeated."""
    many = RolloutBuffer(buffer.num_steps, len(columns), *SPACES)
    for name, x in vars(buffer).items():
        if isinstance(x, torch.Tensor):
            hold(many, **{name: x[:, columns]})
    return many


ON_POLICY = dict(scale_std=False, length_norm="none", update_epochs=1, num_minibatches=1)


@pytest.mark.parametrize("G, horizon", [(2, 3), (3, 2)])
@pytest.mark.parametrize(
    "switches",
    [
        ON_POLICY,
        ON_POLICY | dict(ratio=False),
        dict(variant="rloo"),
        dict(variant="dr_grpo"),
        dict(supervision="process", scale_std=False, length_norm="none"),
        dict(supervision="aligned", scale_std=False, length_norm="none"),
        dict(length_norm="none"),
        dict(length_norm="none", leave_one_out=True),
    ],
    ids=str,
)
def test_grpos_expected_gradient_over_all_groups(switches, G, horizon):
    """Group means shrink the gradient by 1 − 1/G, for each member is in its own baseline; leaving it out does not.

    What the standard deviation, or one mean for all steps, makes of it has no simpler form than the enumeration.
    """
    agent, paths = make(GRPO, 2 * G, horizon, group_size=G, **switches), trajectories(horizon)
    columns, chances = pairs_of(agent, paths, G)
    buffer = spread(fill(agent, paths), columns)
    ours = expected_gradient(agent, buffer, chances.repeat_interleave(G) / G)
    variant = switches.get("variant")
    exact = exact_gradient(agent, horizon=horizon)
    if switches in (ON_POLICY, ON_POLICY | dict(ratio=False)):
        assert difference(ours, (1 - 1 / G) * exact) < 1e-6
    elif variant == "rloo":
        assert difference(ours, exact) < 1e-6
    elif variant == "dr_grpo":
        assert difference(ours, (1 - 1 / G) / horizon * exact) < 1e-6
    else:
        supervision = switches.get("supervision", "outcome")
        enumerated = enumerated_gradient(
            agent, paths, columns, chances, G, supervision, switches.get("leave_one_out", False)
        )
        assert difference(ours, enumerated) < 1e-6
        if supervision == "aligned":  # an own form of the mean, biased because who still plays is a consequence
            assert difference(ours, (1 - 1 / G) * exact) > 0.02


def enumerated_gradient(agent, paths, columns, chances, G, supervision, leave_one_out):
    """Σ p(group) 1/G Σ_i Σ_t A_t ∇ log π(a_t|s_t), from tables of scores and of the gradients of each log π."""
    log_p = log_policy(agent)
    slopes = {
        (s, a): flat(torch.autograd.grad(log_p[s, a], agent.network.policy_parameters(), retain_graph=True))
        for s in range(6)
        for a in range(2)
    }
    coefficients = dict.fromkeys(slopes, 0.0)
    for group, chance in enumerate(chances.tolist()):
        members = [paths[n][:2] for n in columns[group * G : group * G + G]]
        rewards = [np.array([REWARDS[s, a] for s, a in zip(*m, strict=True)]) for m in members]
        to_go = [np.cumsum(r[::-1])[::-1] for r in rewards]
        totals = np.array([r.sum() for r in rewards])
        everything = np.concatenate(rewards)
        for i, (states, actions) in enumerate(members):
            for t, key in enumerate(zip(states, actions, strict=True)):
                if supervision == "process":
                    advantage = (rewards[i][t:] - everything.mean()).sum()
                elif supervision == "aligned":
                    advantage = to_go[i][t] - np.mean([g[t] for g in to_go if len(g) > t])
                else:  # scaled; the factor of leave-one-out then cancels
                    spread = np.ptp(totals) > 1e-12
                    advantage = (totals[i] - totals.mean()) / totals.std() if spread else 0.0
                coefficients[key] += chance / G * advantage
    return sum(coefficient * slopes[key] for key, coefficient in coefficients.items())


def test_annealing_lowers_the_rate_of_both_of_reinforces_optimisers():
    agent = make(REINFORCE, learning_rate=0.4)
    agent.anneal(0.25)
    assert agent.optimizer.learning_rate == agent.critic_optimizer.learning_rate == pytest.approx(0.1)


def test_reinforces_update_fits_the_critic_after_the_policy():
    agent, paths = make(REINFORCE, critic_updates=3, gamma=1.0), trajectories()
    buffer, order = fill(agent, paths), []
    fit = agent.fit_critic
    agent.buffer = buffer
    draw_minibatches(agent)
    agent.step = lambda batch: order.append("policy") or {"loss": torch.zeros(())}
    agent.fit_critic = lambda batch: order.append("critic") or fit(batch)
    metrics = agent.update(buffer.flatten(*agent.estimate(buffer)))
    assert order == ["policy", "critic"] and metrics["value_loss"] > 0


# TRPO.


def test_the_fisher_product_is_that_of_the_enumerated_matrix():
    agent, paths = make(TRPO, norm_adv=False), trajectories()
    batch = whole(agent, fill(agent, paths))
    log_p, size = log_policy(agent), len(flat(agent.network.policy_parameters()))
    matrix, rows = torch.zeros(size, size, dtype=torch.float64), 0
    for states, actions, _ in paths:
        for s, _ in zip(states, actions, strict=True):
            rows += 1
            for a in range(2):
                slope = flat(torch.autograd.grad(log_p[s, a], agent.network.policy_parameters(), retain_graph=True))
                matrix += log_p[s, a].exp().detach() * torch.outer(slope, slope)
    matrix /= rows
    fisher = agent.fisher_product(batch)
    columns = torch.stack([fisher(v) for v in torch.eye(size, dtype=torch.float64)], 1)
    torch.testing.assert_close(columns, matrix, rtol=1e-6, atol=1e-9)

    g = exact_gradient(agent)
    damped = matrix + 0.1 * torch.eye(size, dtype=torch.float64)
    solved = conjugate_gradient(lambda v: fisher(v) + 0.1 * v, g, 30)
    torch.testing.assert_close(solved, torch.linalg.solve(damped, g), rtol=1e-6, atol=1e-9)


def test_the_step_tried_first_is_the_longest_within_the_quadratic_bound():
    """½ xᵀF x = δ with F as it is, not as damped, along the solution with damping."""
    agent, paths = make(TRPO, max_kl=0.02, cg_iterations=40), trajectories()
    batch = whole(agent, fill(agent, paths))
    tried, search = [], agent._line_search
    agent._line_search = lambda *arguments: tried.append(arguments[2]) or search(*arguments)
    g, fisher = gradient(agent, agent.surrogate(batch)), agent.fisher_product(batch)
    matrix = torch.stack([fisher(v) for v in torch.eye(len(g), dtype=torch.float64)])
    agent.policy_step(batch)
    (full,) = tried
    assert 0.5 * (full @ matrix @ full).item() == pytest.approx(0.02, rel=1e-6)
    damped = matrix @ full + 0.1 * full
    assert (torch.dot(damped, g) / damped.norm() / g.norm()).item() == pytest.approx(1, abs=1e-9)


def test_trpos_loss_is_that_of_the_critic():
    agent, paths = make(TRPO, gae_lambda=1.0, gamma=1.0), trajectories()
    batch = whole(agent, fill(agent, paths))
    loss, metrics = agent.loss(agent.network, batch)
    values = agent.network.value(torch.eye(6, dtype=torch.float64)).detach()
    squared = [
        0.5 * (REWARDS[list(states[t:]), list(actions[t:])].sum() - values[states[t]].item()) ** 2
        for states, actions, _ in paths
        for t in range(len(actions))
    ]
    assert loss.item() == metrics["value_loss"].item() == pytest.approx(np.mean(squared), rel=1e-6)


def test_a_share_of_the_rollout_makes_the_fisher_product():
    agent, paths = make(TRPO, fisher_fraction=0.25), trajectories()
    batch = whole(agent, fill(agent, paths))
    v = gradient(agent, agent.surrogate(batch))
    v = v / v.norm()
    part = batch.take(torch.arange(0, len(batch.mask), 4))
    share = agent.fisher_product(batch)(v)
    agent.config = make(TRPO).config
    torch.testing.assert_close(share, agent.fisher_product(part)(v), rtol=1e-12, atol=0)
    assert difference(share, agent.fisher_product(batch)(v)) > 0.01


def test_trpos_first_surrogate_gradient_is_a2cs():
    settings = dict(gae_lambda=0.9, gamma=0.95, norm_adv=False)
    trpo, a2c, paths = make(TRPO, **settings), make(A2C, vf_coef=0.0, **settings), trajectories()
    ours = gradient(trpo, trpo.surrogate(whole(trpo, fill(trpo, paths))))
    theirs = -gradient(a2c, a2c.loss(a2c.network, whole(a2c, fill(a2c, paths)))[0])
    assert difference(ours, theirs) < 1e-10


@pytest.mark.parametrize("n", [1, 2, 7])
def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_unknowns(n):
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix, b = a @ a.T + torch.eye(n), torch.randn(n, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, n), exact)
    torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, n + 50), exact)  # goes on without NaN
    assert (conjugate_gradient(lambda v: matrix @ v, 0 * b, 5) == 0).all()


ACTIONS = {
    "categorical": (spaces.Discrete(3), {}),
    "multi_categorical": (spaces.MultiDiscrete([2, 3]), {}),
    "bernoulli": (spaces.MultiBinary(3), {}),
    "gaussian": (spaces.Box(-1, 1, (2,)), {}),
    "gaussian of the state": (spaces.Box(-1, 1, (2,)), dict(state_dependent_std=True)),
    "tanh_gaussian": (spaces.Box(-1, 2, (2,)), dict(squash=True)),
}


def trpo_on(kind, **hyperparameters):
    """A TRPO agent with a rollout, advantages drawn at random (Echo's rewards teach nothing), and its batch."""
    space, settings = ACTIONS[kind]
    envs = vectorize(lambda n: Echo(action_space=space), 4, MODES[0])
    agent = TRPO(envs, num_steps=32, seed=3, hidden_sizes=(8,), **settings | hyperparameters)
    agent.collect()
    advantages = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    return agent, whole(agent, agent.buffer, (advantages, advantages))


@pytest.mark.parametrize("max_kl", [0.001, 0.05])
@pytest.mark.parametrize("kind", ACTIONS)
def test_a_policy_step_keeps_the_bound_and_gains(kind, max_kl):
    agent, batch = trpo_on(kind, max_kl=max_kl)
    assert not batch.mask.all()  # dead rows, which must not count
    critic = [p.clone() for p in (*agent.network.critic.parameters(), *agent.network.value_head.parameters())]

    def mean_kl_and_surrogate():
        old, new = agent.network.distribution(batch.dist_params), agent.network.policy(batch.obs)
        ratio = (new.log_prob(batch.actions) - old.log_prob(batch.actions)).exp()
        return old.kl(new)[batch.mask].double().mean().item(), (ratio * batch.advantages)[batch.mask].mean().item()

    _, before = mean_kl_and_surrogate()
    metrics = agent.policy_step(batch)
    kl, after = mean_kl_and_surrogate()
    assert max_kl / 4 < kl <= max_kl * (1 + 1e-3) and after > before
    assert metrics["kl"].item() == pytest.approx(kl, rel=1e-3) and 0 < metrics["step_scale"] <= 1
    assert metrics["policy_loss"].item() == pytest.approx(before - after, rel=1e-3, abs=1e-5)
    now = (*agent.network.critic.parameters(), *agent.network.value_head.parameters())
    assert all(torch.equal(p, q) for p, q in zip(critic, now, strict=True))


def test_a_line_search_that_finds_nothing_puts_the_policy_back():
    """A bound so wide that the quadratic form misjudges the first try; a longer search shortens the step."""
    results = {}
    for tries in (1, 20):
        agent, batch = trpo_on("gaussian of the state", max_kl=10.0, line_search_steps=tries)
        before = [p.clone() for p in agent.network.parameters()]
        metrics = agent.policy_step(batch)
        same = all(torch.equal(p, q) for p, q in zip(before, agent.network.parameters(), strict=True))
        results[tries] = metrics["step_scale"].item(), same
        if tries == 1:
            assert metrics["kl"] == 0 and metrics["policy_loss"] == 0
    assert results[1] == (0.0, True)
    scale, same = results[20]
    assert not same and 0 < scale < 1
    assert np.log(scale) / np.log(0.8) == pytest.approx(round(np.log(scale) / np.log(0.8)), abs=1e-4)


@pytest.mark.parametrize("why", ["no gradient", "no gain", "KL too large"])
def test_a_step_without_gain_or_beyond_the_bound_is_not_taken(why):
    agent, batch = trpo_on("categorical")
    before = [p.clone() for p in agent.network.parameters()]
    if why == "no gradient":
        batch = batch.replace(advantages=torch.zeros_like(batch.advantages))
    if why == "no gain":
        surrogate, calls = agent.surrogate, []
        agent.surrogate = lambda batch: surrogate(batch) - 9.0 * len(calls) if not calls.append(0) else None
    if why == "KL too large":
        elsewhere = batch.dist_params + torch.tensor([3.0, 0.0, 0.0])  # as if the policy had moved already
        batch = batch.replace(dist_params=elsewhere)
    metrics = agent.policy_step(batch)
    assert all(torch.equal(p, q) for p, q in zip(before, agent.network.parameters(), strict=True))
    assert metrics["step_scale"] == metrics["kl"] == metrics["policy_loss"] == 0
    assert all(x.isfinite() for x in metrics.values())


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_critics_update_leaves_the_policy_to_the_bit(kind):
    agent, _ = trpo_on(kind, learning_rate=0.1)
    policy = [p.clone() for p in agent.network.policy_parameters()]
    values = agent.network.value(agent.buffer.obs)
    agent.policy_step = lambda batch: {}
    for _ in range(2):
        agent.update(agent.buffer.flatten(*agent.estimate(agent.buffer)))
    assert all(torch.equal(p, q) for p, q in zip(policy, agent.network.policy_parameters(), strict=True))
    assert (agent.network.value(agent.buffer.obs) - values).abs().max() > 0.1


def test_trpo_standardises_its_advantages_over_the_rollout():
    for norm in (False, True):
        agent, _ = trpo_on("categorical", norm_adv=norm)
        seen = []
        agent.policy_step = lambda batch, seen=seen: seen.append(batch.advantages[batch.mask]) or {}
        advantages = torch.arange(128.0).view(32, 4) / 10 + 5
        agent.update(agent.buffer.flatten(advantages, advantages))
        mean, std = (0, 1) if norm else (advantages[agent.buffer.mask].mean(), advantages[agent.buffer.mask].std())
        assert seen[0].mean().item() == pytest.approx(float(mean), abs=1e-5)
        assert seen[0].std().item() == pytest.approx(float(std), rel=0.01)


def test_the_variants_tested_here_are_what_they_are_taken_for():
    assert VARIANTS["rloo"].items() >= dict(scale_std=False, leave_one_out=True, length_norm="none").items()
    assert VARIANTS["dr_grpo"].items() >= dict(scale_std=False, length_norm="constant").items()
