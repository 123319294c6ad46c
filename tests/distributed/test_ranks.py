"""Two processes that learn together against one that learns alone."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import rlcore
from rlcore.buffer import RowSampler
from rlcore.errors import UsageError
from rlcore.tracing import Share, sharing
from tests.distributed import work
from tests.distributed.processes import ROOT, start, together


class Part(Share):
    """The share of one of several, without the others."""

    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process came to, and each of two."""
    folders = [tmp_path_factory.mktemp(name) for name in ("alone", "together")]
    return folders[1], work.everything(folders[0]), together("everything", folders[1])


# The same as one process.


@pytest.mark.parametrize("case", work.GRADIENTS)
def test_gradients_are_those_of_one_process(runs, case):
    _, alone, both = runs
    expected = alone["gradients"][case]
    for rank in both:
        found = rank["gradients"][case]
        assert len(found["gradients"]) == len(expected["gradients"]) > 0
        for mine, other in zip(found["gradients"], expected["gradients"], strict=True):
            assert mine.dtype == torch.float64 and mine.norm() > 1e-4
            torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found["parameters"], expected["parameters"], atol=1e-12, rtol=1e-12)
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-6, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("case", work.RUNS)
def test_a_run_is_that_of_one_process(runs, case):
    _, alone, both = runs
    expected = alone["runs"][case]
    for rank in both:
        found = rank["runs"][case]
        torch.testing.assert_close(found["parameters"], expected["parameters"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["state"], expected["state"], atol=1e-6, rtol=1e-6)
        assert (found["steps"], found["how"]) == (expected["steps"], expected["how"])
        for mine, other in zip(found["episodes"], expected["episodes"], strict=True):
            assert {**mine, "returns": 0} == {**other, "returns": 0}
            assert mine["returns"] == pytest.approx(other["returns"], rel=1e-4)
        for mine, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert mine == pytest.approx(other, rel=1e-2, abs=1e-3, nan_ok=True)
    assert sum(len(x["returns"]) for x in expected["episodes"]) > 3
    torch.testing.assert_close(both[0]["runs"][case]["parameters"], both[1]["runs"][case]["parameters"], atol=0, rtol=0)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_minibatches_are_those_of_one_process_in_parts(ragged, count):
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.7

    class Told(Part):
        def columns(self, x):
            return mask

    def drawn(share, mask):
        return RowSampler(4, 2, ragged, share=share).draw(mask, torch.Generator().manual_seed(1))

    whole, mine = drawn(Share(), mask), 6 // count
    found = [[] for _ in whole["minibatches"]]
    for rank in range(count):
        part = drawn(Told(rank, count), mask[:, rank * mine : (rank + 1) * mine])
        for rows, all_of_them in zip(part["minibatches"], found, strict=True):
            rows = rows[rows >= 0]
            all_of_them += (rows // mine * 6 + rank * mine + rows % mine).tolist()
    expected = [sorted(rows[rows >= 0].tolist()) for rows in whole["minibatches"]]
    assert [sorted(rows) for rows in found] == expected


def test_a_gradient_step_adds_up_once():
    class Counting(Part):
        sums = 0

        def sum(self, x):
            self.sums += 1
            return x

    def sums(**settings):
        with sharing(Counting(0, 2)) as share:
            next(work.make("PPO", num_minibatches=4, **settings).iterations(10**9))
        return share.sums

    assert sums(update_epochs=3) - sums(update_epochs=2) == 4


# Checkpoints.


@pytest.mark.parametrize("case", work.RESUMED)
def test_a_resumed_run_is_bit_identical(runs, case):
    for rank in runs[2]:
        straight, resumed = rank["resumed"][case]
        assert torch.equal(straight, resumed)


def test_with_another_number_of_ranks_tensors_go_on_and_others_begin_new_episodes(runs):
    folder, alone, _ = runs
    straight, _ = alone["resumed"]["native"]
    torch.testing.assert_close(work.go_on(folder / "native.pt"), straight, atol=1e-5, rtol=1e-4)
    with pytest.warns(UserWarning, match="begin new episodes in one process"):
        agent = rlcore.load(folder / "sync.pt")
    assert agent.global_step == 3 * 64 and agent.iteration == 3


# What is refused.


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: rlcore.PPO("CartPole-v1", num_envs=7), "num_envs is 7, but must be a multiple of .* processes = 2"),
        (lambda: rlcore.GRPO("CartPole-v1", num_envs=12, group_size=4), "12, but must be .* = 2 × 4 = 8, since groups"),
        (lambda: rlcore.PPO("CartPole-v1", num_envs=8, comparisons=3), "there are 2 processes, but comparisons"),
        (lambda: rlcore.BC("CartPole-v1"), "there are 2 processes, but BC learns from what is stored"),
        (lambda: rlcore.PPO("CartPole-v1", memory="gru", compile=True).learn(1), "compile is true, but sequences"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(make, message):
    with sharing(Part(1, 2)), pytest.raises(UsageError, match=message):
        make()


# The command.

COMMAND = [
    *("-m", "rlcore", "train", "ppo", "CartPole-v1", "--num-envs", "4", "--num-steps", "32", "--preset", "none"),
    *("--seed", "1", "--device", "cpu", "--compile", "false", "--checkpoint-every", "512", "--no-progress"),
    *("--hidden-sizes", "8"),
]


def begin(folder, **more):
    """A run of two ranks, once it has saved twice."""
    processes = start(lambda _: [*COMMAND, "--run-dir", str(folder), "--total-steps", "9000000"], **more)
    wait_for(lambda: newest(folder) > 512, *processes)
    return processes


def newest(folder):
    """The step of the newest checkpoint."""
    return max((int(file.stem[5:]) for file in folder.glob("checkpoints/step-*.pt")), default=-1)


def wait_for(condition, *processes):
    deadline = time.monotonic() + 90
    while not condition():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process):
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def test_a_rank_that_dies_ends_the_other_and_the_run_goes_on_until_one_is_asked_to_stop(tmp_path):
    folder = tmp_path / "run"
    first, second = begin(folder)
    second.kill()
    second.communicate()
    code, _, errors = end(first)
    assert code == 2 and errors.startswith("rlcore: rank 1 died; what was saved is whole") and errors.count("\n") == 1
    saved = newest(folder)
    first, second = start(lambda _: ["-m", "rlcore", "train", "--resume", str(folder)])
    wait_for(lambda: newest(folder) > saved, first, second)
    second.send_signal(signal.SIGTERM)
    (code, out, errors), other = end(first), end(second)
    assert code == 143 and f"at step {saved:,}" in out and "continue with --resume" in errors
    assert other == (143, "", "") and f"stopped at step {newest(folder):,};" in errors


def test_a_rank_that_stops_ends_the_other_within_the_limit(tmp_path):
    first, second = begin(tmp_path / "run", RLCORE_RANK_TIMEOUT=2)
    second.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code, _, errors = end(first)
    second.kill()
    second.communicate()
    assert code == 2 and "rank 1 has not been heard of for 2 s (RLCORE_RANK_TIMEOUT)" in errors
    assert time.monotonic() - began < 2 + 5 + 5


def test_a_wrong_number_of_environments_is_told_once():
    arguments = ["-m", "rlcore", "train", "ppo", "CartPole-v1", "--num-envs", "7"]
    (code, _, errors), other = map(end, start(lambda _: arguments))
    assert code == 2 and errors.count("\n") == 1 and "num_envs is 7" in errors
    assert other == (2, "", "")


def test_alone_nothing_of_it_is_imported():
    code = "import sys, rlcore; rlcore.PPO('CartPole-v1', num_envs=2, num_steps=8).learn(16)\n"
    code += "assert not {'ray', 'rlcore.distributed'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
