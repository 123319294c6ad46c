import math

import torch

from rlcore import diagnostics


def test_masked_mean_and_variance_ignore_what_is_masked():
    x = torch.tensor([1.0, 3.0, float("nan")])
    mask = torch.tensor([True, True, False])
    assert diagnostics.masked_mean(x, mask) == 2
    assert diagnostics.masked_var(x, mask) == 1
    assert diagnostics.masked_mean(x, torch.zeros(3, dtype=torch.bool)) == 0


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 50.0])
    mask = torch.tensor([True, True, True, False])
    assert diagnostics.explained_variance(returns.clone(), returns, mask) == 1
    assert diagnostics.explained_variance(torch.full((4,), 7.0), returns, mask) == 0
    assert diagnostics.explained_variance(returns + 5, returns, mask) == 1
    assert math.isnan(diagnostics.explained_variance(returns, torch.ones(4)))


def test_k3_estimates_the_kl_of_two_categoricals():
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    logratio = (q / p).log()
    k3 = diagnostics.approx_kl(logratio)
    assert (k3 >= 0).all()
    torch.testing.assert_close((p * k3).sum(), (p * (p / q).log()).sum())


def test_clip_fraction_counts_ratios_on_both_sides():
    ratios = torch.tensor([0.7, 0.85, 1.0, 1.19, 1.21])
    assert diagnostics.clip_fraction(ratios.log(), 0.2).tolist() == [1, 0, 0, 0, 1]
