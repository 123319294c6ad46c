"""Shared starts of groups in vector environments written in C++, which take one seed each as a numpy array."""

import gymnasium as gym
import numpy as np
import pytest

from rlcore import GRPO
from rlcore.envs.adapter import VectorAdapter

pytest.importorskip("ale_py", reason="shared starts of Atari environments need ale_py")

G, GROUPS = 2, 2
pytestmark = pytest.mark.filterwarnings("ignore:.*were still running after num_steps")


@pytest.fixture(params=["SAME_STEP", "NEXT_STEP"])
def make(request):
    """Makes the vector environment of an Atari game; all are closed after the test."""
    made = []

    def make(game):
        mode = gym.vector.AutoresetMode[request.param]
        made.append(gym.make_vec(f"ALE/{game}-v5", num_envs=GROUPS * G, autoreset_mode=mode))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def starts(agent):
    """First observations of each group's members, `[GROUPS, G, ...]`."""
    first = agent.buffer.obs[0].numpy()
    return first.reshape(GROUPS, G, *first.shape[1:]).copy()


def test_members_of_a_group_start_alike_and_groups_do_not(make):
    agent = GRPO(make("Breakout"), group_size=G, num_steps=8, seed=1, hidden_sizes=(4,), update_epochs=1)
    seen = []
    for _ in agent.iterations(3 * 8 * GROUPS * G):
        first = starts(agent)
        assert (first == first[:, :1]).all(), "members of a group differ"
        assert (first[0] != first[1]).any(), "groups start alike"
        seen.append(first)
    assert len(seen) == 3
    assert any((seen[0] != later).any() for later in seen[1:]), "the starts are those of the iteration before"


def test_a_start_is_the_whole_state_not_just_the_first_screen(make):
    """Pong's opening screens look alike after any number of no-ops; what follows equal actions does not."""
    adapter = VectorAdapter(make("Pong"))
    actions = np.random.default_rng(0).integers(0, 6, 60)

    def play(seeds):
        screens = [adapter.reset(seeds)]
        screens += [adapter.step(np.full(GROUPS * G, action)).obs for action in actions]
        return np.stack(screens)

    screens = play([3, 3, 5, 5])
    assert (screens[:, 0] == screens[:, 1]).all() and (screens[:, 2] == screens[:, 3]).all()
    assert (screens[-1, 0] != screens[-1, 2]).any()
    np.testing.assert_array_equal(play([3, 3, 5, 5]), screens)
