import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as td

from rlcore.networks.distributions import make_distribution, noise_size
from rlcore.spaces import action_spec

BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))
CASES = {
    "categorical": action_spec(spaces.Discrete(5)),
    "multi_categorical": action_spec(spaces.MultiDiscrete([2, 3, 4])),
    "bernoulli": action_spec(spaces.MultiBinary(3)),
    "gaussian": action_spec(BOX),
    "tanh_gaussian": action_spec(BOX, squash=True),
}


def make(kind, batch=(6,), seed=0, dtype=torch.float64):
    spec = CASES[kind]
    generator = torch.Generator().manual_seed(seed)
    params = torch.randn(*batch, spec.num_params, generator=generator, dtype=dtype)
    return make_distribution(spec)(params), spec


def samples(kind, count, seed=0):
    one, spec = make(kind, (1,), seed)
    policy = make_distribution(spec)(one.params.expand(count, -1))
    noise = policy.noise_(torch.empty(count, noise_size(spec), dtype=torch.float64), torch.Generator().manual_seed(1))
    return policy, policy.sample(noise)


def peer(kind, policy):
    """The same distribution of torch's own."""
    if kind == "categorical":
        return td.Categorical(logits=policy.params)
    if kind == "bernoulli":
        return td.Independent(td.Bernoulli(logits=policy.params), 1)
    if kind == "gaussian":
        return td.Independent(td.Normal(policy.mean, policy.log_std.exp()), 1)
    return None


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
def test_agrees_with_torch_distributions(kind):
    policy, _ = make(kind)
    other, _ = make(kind, seed=1)
    p, q = peer(kind, policy), peer(kind, other)
    actions = p.sample()
    torch.testing.assert_close(policy.log_prob(actions), p.log_prob(actions))
    torch.testing.assert_close(policy.entropy(), p.entropy())
    torch.testing.assert_close(policy.kl(other), td.kl_divergence(p, q))


def test_multi_categorical_is_the_product_of_its_parts():
    policy, spec = make("multi_categorical")
    other, _ = make("multi_categorical", seed=1)
    ps = [td.Categorical(logits=x) for x in policy.params.split(spec.nvec, -1)]
    qs = [td.Categorical(logits=x) for x in other.params.split(spec.nvec, -1)]
    actions = torch.stack([p.sample() for p in ps], -1)
    expected = sum(p.log_prob(a) for p, a in zip(ps, actions.unbind(-1), strict=True))
    torch.testing.assert_close(policy.log_prob(actions), expected)
    torch.testing.assert_close(policy.entropy(), sum(p.entropy() for p in ps))
    torch.testing.assert_close(policy.kl(other), sum(td.kl_divergence(p, q) for p, q in zip(ps, qs, strict=True)))


@pytest.mark.parametrize("kind", CASES)
def test_entropy_is_minus_the_mean_log_probability_of_samples(kind):
    policy, actions = samples(kind, 200_000)
    logprobs = policy.log_prob(actions)
    error = 5 * logprobs.std() / math.sqrt(len(actions))
    assert abs(policy.entropy()[0].item() + logprobs.mean().item()) < error


@pytest.mark.parametrize("kind", CASES)
def test_kl_is_the_mean_log_ratio_of_samples(kind):
    policy, actions = samples(kind, 200_000)
    other, _ = samples(kind, 200_000, seed=5)
    logratio = policy.log_prob(actions) - other.log_prob(actions)
    assert abs(policy.kl(other)[0].item() - logratio.mean().item()) < 5 * logratio.std() / math.sqrt(len(actions))
    assert policy.kl(policy).abs().max() < 1e-12


def test_tanh_log_probability_integrates_to_one_over_the_action_box():
    spec = CASES["tanh_gaussian"]
    policy = make_distribution(spec)(torch.tensor([[0.3, -0.6, -0.7, -0.4]], dtype=torch.float64))
    n = 500  # midpoint rule
    axes = [np.linspace(low, high, n + 1)[:-1] + (high - low) / (2 * n) for low, high in [(-2, 2), (0, 5)]]
    a = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    unit = 2 * (a - spec.space.low) / (spec.space.high - spec.space.low) - 1
    density = policy.log_prob(torch.from_numpy(np.arctanh(unit))).exp().sum() * (4 / n) * (5 / n)
    assert abs(density.item() - 1) < 1e-3


def test_tanh_log_probability_is_finite_far_out():
    policy, _ = make("tanh_gaussian", (1,))
    assert torch.isfinite(policy.log_prob(torch.tensor([[40.0, -40.0]], dtype=torch.float64))).all()


@pytest.mark.parametrize("kind", ["categorical", "multi_categorical", "bernoulli"])
def test_samples_have_the_probabilities_of_the_parameters(kind):
    policy, actions = samples(kind, 200_000)
    unique, counts = actions.reshape(len(actions), -1).unique(dim=0, return_counts=True)
    unique = unique.reshape(-1, *actions.shape[1:])
    expected = make_distribution(CASES[kind])(policy.params[: len(unique)]).log_prob(unique).exp()
    assert abs(expected.sum().item() - 1) < 1e-9  # every action occurs
    assert (counts / len(actions) - expected).abs().max() < 0.006


@pytest.mark.parametrize("kind", CASES)
def test_mode_is_at_least_as_probable_as_any_sample(kind):
    policy, actions = samples(kind, 1000)
    if kind == "tanh_gaussian":  # the mode is that of u, before squashing
        assert torch.equal(policy.mode(), policy.mean)
    else:
        assert (policy.log_prob(policy.mode()) >= policy.log_prob(actions) - 1e-12).all()


@pytest.mark.parametrize("kind", CASES)
def test_leading_dimensions_are_free(kind):
    flat, spec = make(kind, (6,))
    stacked = make_distribution(spec)(flat.params.reshape(2, 3, -1))
    actions = flat.mode()
    torch.testing.assert_close(
        stacked.log_prob(actions.reshape(2, 3, *actions.shape[1:])).flatten(), flat.log_prob(actions)
    )
    assert stacked.entropy().shape == (2, 3)
