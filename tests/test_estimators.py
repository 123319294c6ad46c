import numpy as np
import pytest
import torch

from rlcore import estimators


def random_rollout(rng, T=23, N=7, masked=True):
    x = {name: torch.from_numpy(rng.normal(size=(T, N))) for name in ("rewards", "values", "next_values")}
    x["terminated"] = torch.from_numpy(rng.random((T, N)) < 0.12)
    x["truncated"] = torch.from_numpy(rng.random((T, N)) < 0.12)
    x["mask"] = torch.from_numpy(rng.random((T, N)) < 0.8) if masked else torch.ones(T, N, dtype=torch.bool)
    return x


def reference_gae(x, gamma, lam):
    """Straight from the definition: sum the discounted deltas forward until the trace is cut."""
    T, N = x["rewards"].shape
    out = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            weight, k = 1.0, t
            while k < T and x["mask"][k, n]:
                bootstrap = 0.0 if x["terminated"][k, n] else gamma * x["next_values"][k, n].item()
                out[t, n] += weight * (x["rewards"][k, n].item() + bootstrap - x["values"][k, n].item())
                if x["terminated"][k, n] or x["truncated"][k, n]:
                    break
                weight, k = weight * gamma * lam, k + 1
    return out


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("masked", [False, True])
def test_gae_equals_the_float64_definition(gamma, lam, masked):
    x = random_rollout(np.random.default_rng(0), masked=masked)
    expected = reference_gae(x, gamma, lam)
    mask = x.pop("mask") if masked else None
    x.pop("mask", None)
    np.testing.assert_allclose(estimators.gae(**x, gamma=gamma, lam=lam, mask=mask), expected, atol=1e-12)
    single = {k: v.float() if v.is_floating_point() else v for k, v in x.items()}
    np.testing.assert_allclose(estimators.gae(**single, gamma=gamma, lam=lam, mask=mask), expected, atol=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_masked_slots_do_not_reach_any_advantage(poison):
    x = random_rollout(np.random.default_rng(1))
    clean = estimators.gae(**x, gamma=0.9, lam=0.9)
    for name in ("rewards", "values", "next_values"):
        x[name] = torch.where(x["mask"], x[name], poison)
    assert torch.equal(estimators.gae(**x, gamma=0.9, lam=0.9), clean)
    assert (clean[~x["mask"]] == 0).all()


def one_row(**values):
    base = dict(rewards=1.0, values=2.0, next_values=4.0, terminated=False, truncated=False)
    return {k: torch.tensor([[v]]) for k, v in (base | values).items()}


def test_one_step_of_one_environment():
    assert estimators.gae(**one_row(), gamma=0.5, lam=0.9).item() == 1 + 0.5 * 4 - 2
    assert estimators.gae(**one_row(terminated=True), gamma=0.5, lam=0.9).item() == 1 - 2
    assert estimators.gae(**one_row(truncated=True), gamma=0.5, lam=0.9).item() == 1 + 0.5 * 4 - 2
    assert estimators.gae(**one_row(terminated=True, truncated=True), gamma=0.5, lam=0.9).item() == 1 - 2


def test_truncation_stops_the_trace():
    x = {k: torch.zeros(2, 1) for k in ("rewards", "values", "next_values")}
    x["rewards"][1] = 100.0
    flags = torch.zeros(2, 1, dtype=torch.bool)
    cut = flags.clone()
    cut[0] = True
    assert estimators.gae(**x, terminated=flags, truncated=flags, gamma=1.0, lam=1.0)[0] == 100
    assert estimators.gae(**x, terminated=flags, truncated=cut, gamma=1.0, lam=1.0)[0] == 0
    assert estimators.gae(**x, terminated=cut, truncated=flags, gamma=1.0, lam=1.0)[0] == 0


def test_lambda_one_is_the_return_minus_the_value():
    x = random_rollout(np.random.default_rng(2), masked=False)
    # V of the successor must be V of the next row for the sum to telescope.
    x["next_values"][:-1] = torch.where(x["terminated"] | x["truncated"], x["next_values"], 0.0)[:-1]
    going_on = ~(x["terminated"] | x["truncated"])[:-1]
    x["next_values"][:-1] = torch.where(going_on, x["values"][1:], x["next_values"][:-1])
    advantages = estimators.gae(**x, gamma=0.97, lam=1.0)
    values = x.pop("values")
    torch.testing.assert_close(advantages, estimators.reward_to_go(**x, gamma=0.97) - values)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_reward_to_go_equals_a_float64_loop(bootstrap):
    x = random_rollout(np.random.default_rng(3))
    T, N = x["rewards"].shape
    expected = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            weight, k = 1.0, t
            while k < T and x["mask"][k, n]:
                expected[t, n] += weight * x["rewards"][k, n].item()
                ended = bool(x["terminated"][k, n] or x["truncated"][k, n])
                cut = not x["terminated"][k, n] and (x["truncated"][k, n] or k == T - 1)
                if cut and bootstrap:
                    expected[t, n] += weight * 0.9 * x["next_values"][k, n].item()
                if ended:
                    break
                weight, k = weight * 0.9, k + 1
    got = estimators.reward_to_go(
        x["rewards"], x["terminated"], x["truncated"], 0.9, x["next_values"] if bootstrap else None, x["mask"]
    )
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_undiscounted_reward_to_go_of_a_whole_episode_counts_its_steps():
    ones, none = torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.bool)
    assert estimators.reward_to_go(ones, none, none, 1.0).flatten().tolist() == [4, 3, 2, 1]
