"""Atari through its three backends, and learning from pixels."""

import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import rlcore
from rlcore import make_vec
from rlcore.agents import AGENTS
from rlcore.envs.adapter import VectorAdapter
from rlcore.envs.frames import FrameStacks
from rlcore.envs.make import find_spec, resolve_backend
from rlcore.errors import UsageError
from rlcore.presets import find_preset
from rlcore.runs.atari_scores import human_normalized, table
from rlcore.runs.video import _play, record_video

AtariVectorEnv = pytest.importorskip("ale_py.vector_env", reason="extra 'atari' is not installed").AtariVectorEnv
pytest.importorskip("cv2", reason="extra 'atari' is not installed")


def play(backend, game, seed, actions, **options):
    """Observations, rewards, ends and final observations of one environment, whatever its autoreset mode."""
    envs = make_vec(f"ALE/{game}-v5", 1, backend, **options)
    adapter = VectorAdapter(envs)
    obs = [np.array(adapter.reset(np.array([seed])))]
    rewards, ends, finals = [], [], []
    for action in actions:
        step = adapter.step(np.array([action]))
        obs.append(np.array(step.obs))
        rewards.append(float(step.rewards[0]))
        ends.append((bool(step.terminated[0]), bool(step.truncated[0])))
        finals += [] if step.final_obs is None else [np.array(step.final_obs[0])]
    envs.close()
    return np.concatenate(obs), rewards, ends, finals


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_seed_begins_the_same_game_in_both(seed):
    for options in ({}, {"fire_reset": False, "noop_max": 3}, {"noop_max": 1}, {"noop_max": 0}):
        (first, *_), (other, *_) = (play(backend, "Breakout", seed, [0], **options) for backend in ("vector", "sync"))
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
    ("game", "steps", "options"),
    [
        ("Breakout", 500, {}),
        ("Freeway", 150, {"max_frames": 400}),  # has no FIRE; ends by the limit
        ("Pong", 150, {"repeat_action_probability": 0.25, "noop_max": 7, "full_action_space": True}),
        ("SpaceInvaders", 150, {"frameskip": 3, "fire_reset": False}),
    ],
)
def test_vector_and_wrapper_backends_play_the_same_game(game, steps, options):
    actions = np.random.default_rng(0).integers(0, 3, steps)
    obs, rewards, ends, finals = play("vector", game, 5, actions, **options)
    others, *rest = play("sync", game, 5, actions, **options)
    np.testing.assert_array_equal(obs, others)
    assert rest[:2] == [rewards, ends]
    # Where the game ends within the frames of a step, ale-py pools other screens than gymnasium does: not compared.
    for final, other in zip(finals, rest[2], strict=True):
        np.testing.assert_array_equal(final[:-1], other[:-1])
    if game == "Breakout":
        assert sum(rewards) > 0 and any(terminated for terminated, _ in ends)
    if game == "Freeway":
        assert ends[99] == (False, True)


@pytest.mark.parametrize("backend", ["vector", "sync", "envpool"])
def test_backends_agree_on_spaces_and_rewards(backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    envs = make_vec("ALE/Breakout-v5", 2, backend, seed=3)
    obs, rewards = envs.reset(seed=3)[0], []
    assert obs.shape == (2, 4, 84, 84) and obs.dtype == np.uint8 and envs.single_action_space.n == 4
    assert not obs[:, :3].any() and obs[:, 3].any(), "frames before the first are zeros"
    adapter, rng = VectorAdapter(envs), np.random.default_rng(0)
    before, begun = np.array(adapter.reset(3)), np.zeros(2, bool)
    for _ in range(400):
        step = adapter.step(rng.integers(0, 4, 2))
        begun = (step.terminated | step.truncated) & step.real
        now = np.array(step.obs)
        np.testing.assert_array_equal(now[~begun, :3], before[~begun, 1:])
        assert not now[begun, :3].any()
        before = now
        rewards += list(step.rewards[step.real])
    assert set(rewards) <= {0, 1, 4, 7}, "the game's own rewards, unclipped"
    assert sum(rewards) > 0
    envs.close()


@pytest.mark.parametrize("backend", ["vector", "sync", "envpool"])
def test_a_lost_life_ends_an_episode_for_learning_alone(backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    agents = [
        rlcore.A2C(
            "ALE/Breakout-v5", env_kwargs={"episodic_life": lives, "screen_size": 36}, backend=backend, num_envs=2,
            num_steps=300, seed=1, device="cpu",
        )
        for lives in (True, False)
    ]  # fmt: skip
    episodes = [agent.collector.collect(agent.network) for agent in agents]
    with_lives, without = (agent.buffer for agent in agents)
    assert torch.equal(with_lives.obs[torch.arange(300)], without.obs[torch.arange(300)]), "the games are the same"
    assert torch.equal(with_lives.rewards, without.rewards)
    ends = int(without.terminated.sum())
    assert ends == len(episodes[0]) > 0, "reported are whole games"
    assert episodes[0] == episodes[1]
    assert with_lives.terminated.sum() >= 4 * ends  # five lives, of which the last is the end of the game
    assert torch.equal(with_lives.dones[1:], with_lives.terminated[:-1] | with_lives.truncated[:-1])
    for agent in agents:
        agent.close()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_learning_from_frames_stored_once_is_learning_from_stacks(mode):
    weights = []
    for depth in (4, 0):
        envs = AtariVectorEnv("breakout", 2, autoreset_mode=mode, img_height=36, img_width=36)
        envs.metadata = {"autoreset_mode": mode, "frame_stack": depth}
        agent = rlcore.PPO(envs, num_steps=64, num_minibatches=2, seed=1, device="cpu")
        assert isinstance(agent.buffer.obs, FrameStacks) is (depth == 4)
        agent.learn(6 * 128)
        weights.append(agent.parameters.vector.clone())
        agent.close()
    assert torch.equal(*weights)


def test_learning_clips_rewards_and_reports_them_whole():
    agent = rlcore.PPO("ALE/Breakout-v5", num_envs=2, num_steps=8, clip_reward=True, seed=1, device="cpu")
    agent.buffer.rewards[:] = torch.tensor([7.0, -3.0])
    agent.buffer.mask[:] = True
    agent.learn_from_buffer()
    assert torch.equal(agent.buffer.rewards.unique(), torch.tensor([-1.0, 1.0]))
    agent.close()


TINY = {
    "ppo": dict(num_steps=8, update_epochs=1),
    "a2c": {},
    "trpo": dict(num_steps=8, update_epochs=1, cg_iterations=3),
    "grpo": dict(num_envs=4, group_size=2, num_steps=8, update_epochs=1, num_minibatches=2),
    "reinforce": dict(num_envs=2, num_steps=8, num_minibatches=2),
}


@pytest.mark.filterwarnings("ignore:.*were cut there")
@pytest.mark.parametrize("algo", TINY)
def test_every_agent_learns_from_pixels(algo):
    preset = find_preset(algo, "ALE/Pong-v5")
    del preset["total_steps"]
    agent = AGENTS[algo](
        "ALE/Pong-v5", env_kwargs={"screen_size": 36}, device="cpu", seed=1, **{**preset, **TINY[algo]}
    )
    before = agent.parameters.vector.clone()
    metrics = [m for m, _ in agent.iterations(2 * agent.config.num_envs * agent.config.num_steps)]
    assert agent.network.shared is (algo != "trpo")  # which fits its critic apart
    # GRPO learns nothing from equal scores, which Pong's first steps give.
    assert algo == "grpo" or not torch.equal(before, agent.parameters.vector)
    assert len(metrics) == 2 and all(np.isfinite(list(m.values())).all() for m in metrics)
    agent.close()


def test_torsos_by_name(tmp_path):
    agent = rlcore.A2C("ALE/Pong-v5", torso="impala", num_envs=1, env_kwargs={"screen_size": 36}, seed=1, device="cpu")
    agent.learn(10)
    agent.save(tmp_path / "agent.pt")
    again = rlcore.load(tmp_path / "agent.pt")
    assert again.config.torso == "impala" and torch.equal(agent.parameters.vector, again.parameters.vector)
    agent.close()
    again.close()


def test_bad_input():
    with pytest.raises(UsageError, match=r"'ALE/Pongg-v5' is not registered.*did you mean 'ALE/Pong-v5'"):
        make_vec("ALE/Pongg-v5")
    with pytest.raises(UsageError, match=r"'noopmax' is not an option of ALE/Pong-v5, did you mean 'noop_max'"):
        make_vec("ALE/Pong-v5", noopmax=3)
    with pytest.raises(UsageError, match=r"torso is 'nature', which needs an image .* float32 of shape \[4\]"):
        rlcore.PPO("CartPole-v1", torso="nature")
    with pytest.raises(UsageError, match="backend envpool is for Atari and Google Football"):
        make_vec("CartPole-v1", backend="envpool")


@pytest.mark.parametrize(
    ("env_id", "backend", "package", "extra"),
    [
        ("ALE/Pong-v5", "auto", "ale_py", "atari"),
        ("ALE/Pong-v5", "sync", "cv2", "atari"),
        ("ALE/Pong-v5", "envpool", "envpool", "envpool"),
        ("gfootball/academy_empty_goal_close-v1", "auto", "envpool", "envpool"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, env_id, backend, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"pip install 'rlcore\[{extra}\]'"):
        make_vec(env_id, 1, backend)


def test_human_normalized_scores():
    assert len(table()) == 57
    make_vec("ALE/Pong-v5")  # registers the games
    assert all(f"ALE/{game}-v5" in gymnasium.registry for game in table())
    assert human_normalized("ALE/Pong-v5", -20.7) == 0 and human_normalized("ALE/Pong-v5", 14.6) == 1
    assert human_normalized("ALE/Breakout-v5", 30.5 + (30.5 - 1.7)) == pytest.approx(2)
    assert human_normalized("CartPole-v1", 500) is None and human_normalized("Pong-v5", 1) is None


def test_the_film_shows_the_colour_screen(tmp_path):
    pytest.importorskip("imageio")
    agent = rlcore.PPO("ALE/Breakout-v5", env_kwargs={"screen_size": 36}, num_envs=1, seed=1, device="cpu")
    film = record_video(agent, tmp_path / "a.gif", seed=1, max_steps=20)
    frames, rewards, fps = _play(agent, 1, True, 20)
    assert film["frames"] == len(frames) == 21 and len(rewards) == 20 and fps == 15
    assert frames[0].shape == (210, 160, 3)
    assert (np.ptp(frames[0].astype(int), axis=-1) > 100).any(), "colour, not grey"
    agent.close()


def test_football_scores_and_ends():
    pytest.importorskip("envpool", reason="extra 'envpool' is not installed")
    agent = rlcore.PPO("gfootball/academy_empty_goal_close-v1", num_envs=2, num_steps=100, seed=1, device="cpu")
    assert agent.network.shared and agent.envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    first = agent.collector.next_obs.copy()
    episodes = agent.collector.collect(agent.network)
    assert agent.buffer.mask.all() and len(episodes) >= 1
    assert not agent.collector.is_capturable(), "a game engine is no plain data"
    assert set(episodes.returns) <= {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(agent.adapter.reset(agent.reset_seeds(0)), first)  # a seed gives the same start
    assert len(agent.evaluate(3, seed=1).returns) == 3
    agent.close()
    with pytest.raises(UsageError, match="comes as a vector environment alone"):
        make_vec("gfootball/academy_empty_goal_close-v1", backend="sync")
    with pytest.raises(UsageError, match="did you mean 'gfootball/academy_corner-v1'"):
        make_vec("gfootball/academy_corners-v1")


def test_groups_step_in_what_takes_a_seed_for_each():
    assert resolve_backend(find_spec("CartPole-v1"), "auto", own_seeds=True) == "sync"
    assert resolve_backend(find_spec("ALE/Pong-v5"), "auto", own_seeds=True) == "vector"


def test_frames_stored_once_are_recorded_too():
    options = dict(env_kwargs={"screen_size": 36}, num_envs=1, num_steps=8, num_minibatches=2, seed=1, device="cpu")
    agents = [rlcore.PPO("ALE/Pong-v5", compile=how, **options) for how in (False, "record")]
    for agent in agents:
        agent.learn(16)
        agent.close()
    assert agents[1].engine.how == "recorded" and isinstance(agents[1].buffer.obs, FrameStacks)
    torch.testing.assert_close(agents[1].parameters.vector, agents[0].parameters.vector)
