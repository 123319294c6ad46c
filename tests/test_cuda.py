"""What only a card can show; skipped where there is none. `pytest -m cuda` runs these alone."""

import gymnasium
import numpy as np
import pytest
import torch

import rlcore
from rlcore.envs.native import NATIVE_TASKS
from rlcore.envs.native_vector import NativeVectorEnv
from rlcore.errors import UsageError
from rlcore.programs.program import Captured
from rlcore.spaces import map_parts
from tests.test_programs import CASES, assert_same, iterate, make, recorded_graph, rows_of_products

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SEGMENTS = [case for case, (agent, *_) in CASES.items() if agent not in (rlcore.REINFORCE, rlcore.GRPO)]
WHOLE_EPISODES = [case for case in CASES if case not in SEGMENTS]


def test_a_captured_graph_computes_what_its_program_does():
    x = torch.arange(6.0, device=DEVICE).view(3, 2)
    runner = Captured(recorded_graph(rows_of_products, x), [], [x])
    for inputs in (x, torch.ones_like(x), x + 3):
        expected = rows_of_products(inputs)
        last, rows = runner([inputs])
        torch.testing.assert_close(last, expected["last"])
        torch.testing.assert_close(rows, expected["rows"])


@pytest.mark.parametrize("case", SEGMENTS)
def test_captured_equals_eager(case):
    eager = make(case, device=DEVICE, backend="native")
    captured = make(case, device=DEVICE, backend="native", compile=True)
    captured.engine.prepare(1000)
    assert captured.engine.how == "compiled"
    for _ in range(5):
        ours, episodes = iterate(eager, eager.learn_from_buffer)
        theirs, same_episodes = iterate(captured, captured.engine.learn)
        assert (episodes.step, episodes.env, episodes.lengths) == (
            same_episodes.step, same_episodes.env, same_episodes.lengths
        )  # fmt: skip
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)
    assert_same(eager, captured, 2e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_agent_learns_on_the_card(case):
    agent = make(case, device=DEVICE, backend="native")
    before = agent.parameters.vector.clone()
    for _ in range(2):
        metrics, _ = iterate(agent, agent.learn_from_buffer)
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert agent.buffer.obs.device.type == agent.parameters.vector.device.type == DEVICE
    if case not in ("trpo_refused", "rloo"):  # no step is small enough; all returns of so short episodes are equal
        assert not torch.equal(agent.parameters.vector, before)


@pytest.mark.parametrize("case", CASES)
def test_recorded_equals_eager_on_the_card(case):
    eager, recorded = make(case, device=DEVICE), make(case, device=DEVICE, compile="record")
    recorded.engine.prepare(1000)
    for _ in range(3):
        ours, _ = iterate(eager, eager.learn_from_buffer)
        theirs, _ = iterate(recorded, recorded.engine.learn)
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)
    assert_same(eager, recorded, 2e-4)


@pytest.mark.parametrize("case", WHOLE_EPISODES)
def test_whole_episodes_are_not_captured_and_say_so(case):
    with pytest.raises(UsageError, match="compile is true, but whole episodes"):
        make(case, device=DEVICE, compile=True).engine.prepare(1000)
    agent = make(case, device=DEVICE, compile="auto")
    agent.engine.prepare(10**9)
    assert agent.engine.how == "python"


@pytest.mark.parametrize("case", ["ppo", "ppo_continuous", "a2c"])
def test_the_card_learns_what_the_processor_learns(case):
    """From the same rollout and minibatches, which come from another generator there."""
    host, card = make(case), make(case, device=DEVICE)
    torch.testing.assert_close(card.parameters.vector.cpu(), host.parameters.vector)
    host.collect()
    card.collect()
    card.buffer.obs.copy_(host.buffer.obs)
    for name in host.buffer.fields:
        setattr(card.buffer, name, getattr(host.buffer, name))
    card.draws.update({name: x.to(DEVICE) for name, x in host.draws.items()})
    ours, theirs = host.learn_from_buffer(), card.learn_from_buffer()
    assert {k: float(v) for k, v in theirs.items()} == pytest.approx(
        {k: float(v) for k, v in ours.items()}, rel=1e-3, abs=1e-4
    )
    torch.testing.assert_close(card.parameters.vector.cpu(), host.parameters.vector, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("env_id", NATIVE_TASKS)
def test_native_environments_step_alike_on_the_card(env_id):
    task, generator = NATIVE_TASKS[env_id], torch.Generator().manual_seed(0)
    state = task.initial(torch.rand(50, task.draws, dtype=torch.float64, generator=generator))
    space = gymnasium.vector.utils.batch_space(task.action_space, 50)
    space.seed(0)
    for _ in range(20):
        actions = torch.as_tensor(space.sample())
        ours = task.step(state, actions)
        theirs = task.step(state.to(DEVICE), actions.to(DEVICE))
        for host, card in zip(ours, theirs, strict=True):
            assert card.device.type == DEVICE
            torch.testing.assert_close(card.cpu(), host, atol=1e-6, rtol=1e-6)
        observed = map_parts(lambda x: x.cpu(), task.observe(state.to(DEVICE)))
        torch.testing.assert_close(observed, task.observe(state), atol=1e-6, rtol=1e-6)
        state = ours[0]


def test_the_native_vector_environment_runs_on_the_card():
    host, card = NativeVectorEnv("CartPole-v1", 4), NativeVectorEnv("CartPole-v1", 4, device=DEVICE)
    np.testing.assert_allclose(card.reset(seed=3)[0], host.reset(seed=3)[0], atol=1e-6)
    for _ in range(5):  # no episode is over before
        actions = np.arange(4) % 2
        ours, theirs = host.step(actions), card.step(actions)
        for x, y in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(y, x, atol=1e-4)


@pytest.mark.parametrize("compile, how", [(False, "python"), ("record", "recorded"), (True, "compiled")])
def test_host_environments_feed_the_card(compile, how):
    agent = rlcore.PPO(
        "CartPole-v1", num_envs=4, num_steps=16, seed=3, device=DEVICE, backend="vector", compile=compile
    )
    agent.learn(10 * 64)
    assert agent.engine.how == how and agent.global_step >= 10 * 64
    assert torch.isfinite(agent.parameters.vector).all()
    agent.close()


def test_what_the_card_saved_acts_alike_on_the_processor(tmp_path):
    agent = make("ppo", device=DEVICE)
    agent.learn(96)
    agent.save(tmp_path / "agent.pt")
    loaded = rlcore.load(tmp_path / "agent.pt", device="cpu")
    obs = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    tensor = torch.from_numpy(obs)
    ours = agent.network.policy(tensor.to(DEVICE)).params.detach().cpu()
    torch.testing.assert_close(loaded.network.policy(tensor).params.detach(), ours, atol=1e-4, rtol=1e-4)
    assert loaded.global_step == agent.global_step
