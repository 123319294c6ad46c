"""What compares the episodes of a group with each other, against loops that go through episodes one by one."""

import numpy as np
import pytest
import torch

from rlcore import estimators

OUTCOMES = [
    dict(gamma=gamma, scale=scale, leave_one_out=loo)
    for gamma in (1.0, 0.9)
    for scale in (False, True)
    for loo in (False, True)
]
PROCESSES = [
    dict(scale=s, aligned=a, gamma=g) for s in (False, True) for a, g in ((False, 1.0), (True, 1.0), (True, 0.9))
]
LENGTH_NORMS = ["episode", "token", "batch", "constant", "none"]


def ragged(seed=0, T=9, groups=4, G=3, poison=float("nan")):
    """Episodes of all lengths from 1 to T side by side; what stands in their padding must not matter."""
    rng = np.random.default_rng(seed)
    N = groups * G
    lengths = rng.integers(1, T + 1, N)
    lengths[:2] = T, 1
    mask = torch.from_numpy(np.arange(T)[:, None] < lengths)
    rewards = torch.from_numpy(rng.normal(size=(T, N)))
    return torch.where(mask, rewards, poison), mask, lengths


def episodes_of(rewards, mask):
    return [[rewards[t, n].item() for t in range(len(mask)) if mask[t, n]] for n in range(mask.shape[1])]


def reference_total(rewards, mask, gamma):
    return [sum(gamma**t * r for t, r in enumerate(episode)) for episode in episodes_of(rewards, mask)]


def normalised(x, among, scale, factor=1.0):
    mean = sum(among) / len(among)
    std = (sum((factor * (y - mean)) ** 2 for y in among) / len(among)) ** 0.5
    centred = factor * (x - mean)
    return centred / std if scale and std > 0 else centred


def reference_outcome(rewards, mask, G, gamma, scale, leave_one_out):
    scores, out = reference_total(rewards, mask, gamma), np.zeros(mask.shape)
    for n in range(mask.shape[1]):
        members = range(n // G * G, n // G * G + G)
        group = [scores[m] for m in members]
        if leave_one_out and not scale:
            advantage = scores[n] - sum(scores[m] for m in members if m != n) / (G - 1)
        else:
            advantage = normalised(scores[n], group, scale, G / (G - 1) if leave_one_out else 1.0)
        for t in range(len(mask)):
            out[t, n] = advantage if mask[t, n] else 0.0
    return out


def reference_process(rewards, mask, G, scale, aligned, gamma):
    episodes, out = episodes_of(rewards, mask), np.zeros(mask.shape)
    for n, episode in enumerate(episodes):
        members = range(n // G * G, n // G * G + G)
        for t in range(len(episode)):
            if aligned:

                def to_go(m, t=t):
                    return sum(gamma ** (k - t) * episodes[m][k] for k in range(t, len(episodes[m])))

                playing = [to_go(m) for m in members if len(episodes[m]) > t]
                out[t, n] = normalised(to_go(n), playing, scale)
            else:
                among = [r for m in members for r in episodes[m]]
                out[t, n] = sum(normalised(r, among, scale) for r in episode[t:])
    return out


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_total_return_is_the_same_at_each_step_of_an_episode(gamma):
    rewards, mask, lengths = ragged()
    got = estimators.total_return(rewards, gamma, mask)
    for n, total in enumerate(reference_total(rewards, mask, gamma)):
        np.testing.assert_allclose(got[: lengths[n], n], total, rtol=1e-12)
        assert (got[lengths[n] :, n] == 0).all()
    full = torch.where(mask, rewards, 0.0)
    np.testing.assert_allclose(estimators.total_return(full, gamma)[:1], got[:1])
    estimators.total_return(full, gamma).mul_(2)  # memory of its own at every step


@pytest.mark.parametrize("switches", OUTCOMES, ids=str)
@pytest.mark.parametrize("G", [2, 3])
def test_outcome_advantages_equal_a_float64_loop(switches, G):
    rewards, mask, _ = ragged(G=G)
    got = estimators.group_outcome_advantages(rewards, mask, G, **switches)
    np.testing.assert_allclose(got, reference_outcome(rewards, mask, G, **switches), atol=1e-7)
    assert got.abs().max() > 0.5


@pytest.mark.parametrize("switches", PROCESSES, ids=str)
@pytest.mark.parametrize("G", [2, 3])
def test_process_advantages_equal_a_float64_loop(switches, G):
    rewards, mask, _ = ragged(G=G)
    got = estimators.group_process_advantages(rewards, mask, G, **switches)
    np.testing.assert_allclose(got, reference_process(rewards, mask, G, **switches), atol=1e-6)
    assert got.abs().max() > 0.5


@pytest.mark.parametrize("norm", LENGTH_NORMS)
@pytest.mark.parametrize("dropped", [None, [0, 1, 2, 9, 10, 11]])
def test_step_weights_equal_a_float64_loop(norm, dropped):
    """1/counted Σ_i (1/norm_i) Σ_t: written out for each step."""
    _, mask, lengths = ragged(G=3)
    mask = torch.cat([mask, torch.zeros_like(mask[:2])])  # T is longer than any of the episodes
    T, N = mask.shape
    counted = torch.ones(N, dtype=torch.bool)
    counted[dropped or []] = False
    got = estimators.group_step_weights(mask, 3, norm, None if dropped is None else counted)
    assert got.shape == mask.shape
    for n in range(N):
        steps = {
            "episode": lengths[n],
            "token": sum(lengths[n // 3 * 3 : n // 3 * 3 + 3]) / 3,
            "batch": lengths[counted.numpy()].mean(),
            "constant": T,
            "none": 1,
        }[norm]
        for t in range(T):
            weight = 1 / steps / counted.sum().item() if mask[t, n] and counted[n] else 0.0
            assert got[t, n].item() == pytest.approx(weight, rel=1e-6)


def test_weights_are_those_that_language_models_are_trained_with():
    """The usual forms of a loss over responses of different lengths, from losses of tokens [responses, tokens]."""
    _, mask, _ = ragged(G=3)
    losses, there = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)).T, mask.T.float()
    responses, longest = there.shape
    forms = {
        "episode": ((losses * there).sum(1) / there.sum(1)).mean(),  # grpo
        "batch": (losses * there).sum() / there.sum(),  # bnpo, and dapo in one process
        "constant": (losses * there).sum() / (responses * longest),  # dr_grpo
    }
    for norm, wanted in forms.items():
        got = (estimators.group_step_weights(mask, 3, norm) * losses.T).sum()
        torch.testing.assert_close(got, wanted)


def test_process_advantages_of_unequal_numbers_of_steps_by_hand():
    """A group of two: rewards 1, 0, 1 after tokens 1, 3, 4 of one response and 0 after token 2 of the other's three;
    mean 1/2, standard deviation 1/2, so steps are worth 1, -1, 1 and -1."""
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]], dtype=torch.bool)
    ends = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.bool)
    rewards = torch.tensor([[1.0, 7], [7, 0], [0, 7], [1, 7]])  # what is between the ends of steps counts for nothing
    got = estimators.group_process_advantages(rewards, mask, 2, step_ends=ends)
    torch.testing.assert_close(got, torch.tensor([[1.0, -1], [0, -1], [0, 0], [1, 0]]))


@pytest.mark.parametrize("scale", [False, True])
def test_process_advantages_of_steps_equal_a_float64_loop(scale):
    rewards, mask, _ = ragged(G=3)
    ends = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    got = estimators.group_process_advantages(rewards, mask, 3, scale, step_ends=ends)
    for n in range(mask.shape[1]):
        members = range(n // 3 * 3, n // 3 * 3 + 3)
        among = [rewards[t, m].item() for m in members for t in range(len(mask)) if mask[t, m] and ends[t, m]]
        for t in range(len(mask)):
            later = [rewards[k, n].item() for k in range(t, len(mask)) if mask[k, n] and ends[k, n]]
            wanted = sum(normalised(r, among, scale) for r in later) if mask[t, n] else 0.0
            assert got[t, n].item() == pytest.approx(wanted, abs=1e-6)


def test_weights_of_no_counted_episode_are_zero():
    _, mask, _ = ragged()
    none = torch.zeros(mask.shape[1], dtype=torch.bool)
    assert (estimators.group_step_weights(mask, 3, "episode", none) == 0).all()


def every_estimate(rewards, mask, G):
    return [
        *(estimators.group_outcome_advantages(rewards, mask, G, **switches) for switches in OUTCOMES),
        *(estimators.group_process_advantages(rewards, mask, G, **switches) for switches in PROCESSES),
    ]


@pytest.mark.parametrize("poison", [float("inf"), 1e30, 0.0])
def test_what_stands_in_the_padding_changes_nothing(poison):
    (nan, mask, _), (other, _, _) = ragged(), ragged(poison=poison)
    for a, b in zip(every_estimate(nan, mask, 3), every_estimate(other, mask, 3), strict=True):
        assert torch.equal(a, b) and a.isfinite().all() and (a[~mask] == 0).all()


def test_a_group_never_sees_anothers_rewards():
    rewards, mask, _ = ragged()
    changed = rewards.clone()
    changed[:, 3:6] = rewards[:, 3:6] * 7 - 2
    others = [n for n in range(mask.shape[1]) if n not in (3, 4, 5)]
    for a, b in zip(every_estimate(rewards, mask, 3), every_estimate(changed, mask, 3), strict=True):
        assert torch.equal(a[:, others], b[:, others]) and not torch.equal(a, b)


def test_advantages_of_a_group_sum_to_zero():
    """Outcomes over its members, aligned rewards-to-go over who is still playing, process rewards over all steps."""
    rewards, mask, _ = ragged()
    for switches in OUTCOMES:
        outcome = estimators.group_outcome_advantages(rewards, mask, 3, **switches)[0]
        assert outcome.view(-1, 3).sum(-1).abs().max() < 1e-12
    for scale in (False, True):
        aligned = estimators.group_process_advantages(rewards, mask, 3, scale, aligned=True)
        assert aligned.view(len(mask), -1, 3).sum(-1).abs().max() < 1e-12
        process = estimators.group_process_advantages(rewards, mask, 3, scale)
        steps = process - torch.cat([process[1:], torch.zeros_like(process[:1])])  # undo the sum to the end
        assert torch.where(mask, steps, 0.0).view(len(mask), -1, 3).sum((0, 2)).abs().max() < 1e-12


@pytest.mark.parametrize("score", [0.1, 0.7, -3.3, 1e7 / 3, 0.0])
@pytest.mark.parametrize("G", [2, 3, 7])
def test_equal_scores_give_exactly_zero(score, G):
    """In float32 the mean of G times 0.1 need not be 0.1; what is left must not be blown up by its own spread."""
    rewards, mask = torch.full((1, 2 * G), score), torch.ones(1, 2 * G, dtype=torch.bool)
    for estimate in every_estimate(rewards, mask, G):
        assert (estimate == 0).all()
    assert not estimators.groups_with_spread(estimate, G).any()


def test_equal_scores_stay_zero_among_poisoned_padding_of_other_lengths():
    mask = torch.arange(5)[:, None] < torch.tensor([5, 2, 1, 4, 3, 3])
    rewards = torch.where(mask, 0.0, torch.nan)
    rewards[0] = 0.1
    for switches in OUTCOMES:
        assert (estimators.group_outcome_advantages(rewards, mask, 3, **switches) == 0).all()


@pytest.mark.parametrize("scale", [False, True])
def test_process_supervision_of_constant_step_rewards_is_zero(scale):
    """As in CartPole, where long and short episodes then look alike; the aligned form tells them apart."""
    _, mask, lengths = ragged()
    rewards = torch.full(mask.shape, 0.1)
    assert (estimators.group_process_advantages(rewards, mask, 3, scale) == 0).all()
    aligned = estimators.group_process_advantages(rewards, mask, 3, scale, aligned=True)
    for group in range(0, len(lengths), 3):
        order = np.argsort(lengths[group : group + 3])
        assert aligned[0, group + order[0]] < 0 < aligned[0, group + order[-1]]
    alone = (mask.view(len(mask), -1, 3).sum(-1, keepdim=True) == 1).expand(-1, -1, 3).flatten(1)
    assert alone.any() and (aligned[alone] == 0).all()  # nobody to compare with


def test_a_pair_of_single_steps():
    rewards, mask = torch.tensor([[1.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool)
    outcome, process = estimators.group_outcome_advantages, estimators.group_process_advantages
    assert outcome(rewards, mask, 2, scale=False).tolist() == [[-1.5, 1.5]]
    assert outcome(rewards, mask, 2, scale=False, leave_one_out=True).tolist() == [[-3, 3]]
    assert outcome(rewards, mask, 2).tolist() == [[-1, 1]]
    for aligned in (False, True):
        assert process(rewards, mask, 2, scale=False, aligned=aligned).tolist() == [[-1.5, 1.5]]
        assert process(rewards, mask, 2, aligned=aligned).tolist() == [[-1, 1]]


def test_spread_is_asked_group_by_group():
    advantages = torch.zeros(3, 6)
    advantages[2, 4] = -1e-20
    assert estimators.groups_with_spread(advantages, 2).tolist() == [False] * 4 + [True] * 2
    assert estimators.groups_with_spread(advantages, 3).tolist() == [False] * 3 + [True] * 3
    assert estimators.groups_with_spread(advantages, 6).all()


def test_scores_that_differ_by_rounding_alone_count_as_equal():
    rewards = torch.tensor([[0.1, 0.3], [0.2, 0.0]], dtype=torch.float64)  # 0.1 + 0.2 is not 0.3
    mask = torch.tensor([[True, True], [True, False]])
    assert rewards.sum(0)[0] != rewards.sum(0)[1]
    assert estimators.group_outcome_advantages(rewards, mask, 2).abs().max() == 0
