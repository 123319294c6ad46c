"""The loops of recurrent layers in C against those of tensor operations."""

import os
import subprocess
import sys

import pytest
import torch

from rlcore.networks import GRU, LSTM, recurrent
from rlcore.programs import recurrent as kernels

KINDS = {"gru": GRU, "lstm": LSTM}
SIZES = [(9, 3, 5), (1, 1, 1), (4, 2, 16), (7, 1, 67), (3, 5, 80)]  # L, S, H: not multiples of any vector, and such


@pytest.fixture(autouse=True)
def compiler():
    if not kernels.is_there(torch.zeros(1)):
        pytest.skip("there is no C++ compiler")


def example(kind, L, S, H):
    torch.manual_seed(L)
    memory = KINDS[kind](4, H)
    x = torch.randn(S, L, 4).transpose(0, 1)  # not dense
    carry = [torch.randn(S, *shape) for shape in memory.sizes.values()]
    return memory, x.requires_grad_(), carry, torch.rand(L, S) < 0.3


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_both_agree_and_so_do_their_gradients(kind, size, monkeypatch):
    memory, x, carry, first = example(kind, *size)
    slope = torch.randn(size[0], size[2], size[1]).transpose(1, 2)
    results = []
    for there in (True, False):
        monkeypatch.setattr(recurrent, "is_there", lambda x, there=there: there)
        y = memory._scan(x, *carry, first, *memory._weights())
        results.append([y, *torch.autograd.grad(y, [x, *memory.parameters()], slope)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (8, 64, 64), (17, 4, 33), (40, 20, 64)], ids=str)  # N, F, H
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_a_rollout_is_a_step_of_torchs(kind, size):
    N, F, H = size
    torch.manual_seed(N)
    memory, x, first = KINDS[kind](F, H), torch.randn(F, N).T, torch.rand(N) < 0.3
    torch.nn.init.normal_(memory.bias_x)
    torch.nn.init.normal_(memory.bias_h)
    carry = {name: torch.randn(N, H) for name in memory.sizes}
    carry["h"][first] = torch.nan  # what was before an episode has no say
    with torch.no_grad():
        found, after = memory.row(x, carry, first)
        expected, after_expected = memory.step(x, memory.begin(carry, first))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)
    assert after["h"] is found or torch.equal(after["h"], found)
    for name, state in after_expected.items():
        torch.testing.assert_close(after[name], state, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_gradients_has_them(kind):
    memory = KINDS[kind](3, 4)
    y, _ = memory.row(torch.randn(2, 3), {name: torch.zeros(2, 4) for name in memory.sizes}, torch.zeros(2).bool())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(y.sum(), [memory.weight_x, memory.bias_x]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_does_not_fit_is_refused(kind):
    memory, x = KINDS[kind](3, 4), torch.randn(2, 3)
    carry = {name: torch.zeros(2, 4) for name in memory.sizes}
    with torch.no_grad():
        for rows, first in ((5, torch.zeros(2).bool()), (2, torch.zeros(3).bool()), (2, torch.zeros(2))):
            with pytest.raises(RuntimeError):
                memory.row(x, {name: torch.zeros(rows, 4) for name in carry}, first)
        with pytest.raises(RuntimeError):
            memory.row(x[:, :2], carry, torch.zeros(2).bool())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_handed_on_is_there_after_sixteen_rows(kind):
    torch.manual_seed(0)
    memory, still = KINDS[kind](3, 32), []
    before = memory.weight_x.detach().clone()
    torch.testing.assert_close(memory.handing_on().weight_x.detach(), 0.3 * before)  # small beside what is held
    start = {name: 0.1 * torch.randn(2, 32) for name in memory.sizes}
    carry = start
    for _ in range(16):
        _, carry = memory.row(torch.zeros(2, 3), carry, torch.zeros(2, dtype=torch.bool))
        still.append(float(carry["h"].detach().norm() / start["h"].norm()))
    assert still[-1] > 0.15, still  # 0.004 and 0.14 without


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_gates_are_right_far_out_and_near_nothing(scale):
    memory, x, carry, first = example("lstm", 6, 2, 8)
    found = memory._scan(x * scale, *carry, first, *memory._weights())
    expected = LSTM(4, 8).double()
    expected.load_state_dict(memory.state_dict())
    expected = expected._scan(x.double() * scale, *(c.double() for c in carry), first, *expected._weights())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so(kind):
    memory, x, carry, first = example(kind, 5, 2, 8)
    with torch.no_grad():
        x[2, 1, 0] = torch.nan
    first = torch.zeros_like(first)
    first[4] = True
    y = memory._scan(x, *carry, first, *memory._weights())
    assert y[:, 0].isfinite().all() and y[:2, 1].isfinite().all()
    assert y[2:4, 1].isnan().any(1).all() and y[4].isfinite().all()  # until an episode begins


def test_without_a_compiler_all_is_as_before():
    code = (
        "import torch, rlcore; from rlcore.programs import recurrent as r;"
        "a = rlcore.PPO('CartPole-v1', num_steps=8, memory='lstm', seed=1, compile=False); a.learn(32);"
        "print(r.library() is None, round(float(a.parameters.vector.sum()), 3))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "CXX": name}, capture_output=True, text=True
        ).stdout.split()
        for name in ("g++", "no-such-compiler")
    ]
    assert [x[0] for x in told] == ["False", "True"] and float(told[0][1]) == pytest.approx(float(told[1][1]), abs=2e-3)
