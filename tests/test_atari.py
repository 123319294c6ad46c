"""Atari through its three backends, and learning from pixels."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import rlcore
from rlcore import make_vec
from rlcore.envs.adapter import VectorAdapter
from rlcore.errors import UsageError

pytest.importorskip("ale_py", reason="extra 'atari' is not installed")
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
