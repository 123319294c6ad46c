"""The example of self-play: that its game is PettingZoo's, that its players play as they should, and that it runs."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import rlcore

FILE = Path(__file__).parent.parent / "benchmarks" / "examples" / "self_play.py"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent.parent))
    spec = importlib.util.spec_from_file_location("self_play", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pettingzoos():
    pytest.importorskip("pettingzoo")
    pytest.importorskip("pygame")
    from pettingzoo.classic import connect_four_v3

    return connect_four_v3.env()


def test_there_are_69_lines_of_four(example):
    assert example.LINES.shape == (42, 69) and (example.LINES.sum(0) == 4).all()
    assert len(np.unique(example.LINES, axis=1).T) == 69


def test_the_game_is_that_of_pettingzoo(example):
    """Random games, the learner on either side: the same observations, masks, rewards and ends after each move."""
    env, rng, ends = pettingzoos(), np.random.default_rng(0), []
    for game in range(150):
        env.reset()
        moves = []

        def scripted(stones, _, env=env, moves=moves):
            np.testing.assert_array_equal(stones[0], env.observe(env.agent_selection)["observation"])
            moves.append(int(example.chance(stones, rng)[0]))
            env.step(moves[-1])
            return np.array(moves[-1:])

        envs = example.ConnectFour(1, [scripted])
        seen, _ = envs.reset(seed=game)
        own, over = env.agent_selection, False
        assert len(moves) == (own == "player_1")
        while not over:
            theirs = env.observe(own)
            np.testing.assert_array_equal(seen["observation"][0], theirs["observation"])
            np.testing.assert_array_equal(seen["action_mask"][0], theirs["action_mask"])
            action = example.chance(seen["observation"], rng)
            env.step(int(action[0]))
            seen, rewards, terminated, truncated, _ = envs.step(action)
            over = terminated[0]
            assert over == all(env.terminations.values()) and not truncated[0]
            assert rewards[0] == env.rewards[own] and SPACE_HOLDS(example, seen)
        np.testing.assert_array_equal(seen["observation"][0], env.observe(own)["observation"])
        ends.append(rewards[0])
    assert set(ends) >= {-1, 1}


def SPACE_HOLDS(example, seen):
    return example.SPACE.contains({name: x[0] for name, x in seen.items()})


def test_a_full_board_is_a_draw(example):
    envs = example.ConnectFour(2, [example.chance])
    envs.reset(seed=0)
    pattern = np.array([[(c // 2 + r) % 2 for c in range(7)] for r in range(6)])  # no four in a line
    for side in (0, 1):
        envs.stones[..., side] = pattern == side
    envs.stones[:, 0, 0] = 0
    seen, rewards, terminated, *_ = envs.step(np.array([0, 0]))
    assert terminated.all() and (rewards == 0).all() and not seen["action_mask"].any()


def test_looking_ahead_wins_at_once_or_else_blocks(example):
    rng = np.random.default_rng(0)
    stones = np.zeros((3, 6, 7, 2), np.int8)
    stones[0, 5, :3, 0] = stones[0, 3:, 6, 1] = 1  # can win in column 3, should not block in 6
    stones[1, 3:, 6, 1] = 1
    for _ in range(20):
        columns = example.lookahead(stones, rng)
        assert columns[:2].tolist() == [3, 6]
    assert len({int(example.lookahead(stones, rng)[2]) for _ in range(100)}) == 7


def test_each_game_is_played_by_its_opponent_and_half_of_them_begin(example):
    def first(stones, rng):
        return example.legal(stones).argmax(1)

    envs = example.ConnectFour(400, [first, example.chance])
    envs.reset(seed=0)
    begun = envs.stones.any((1, 2, 3))
    assert 150 < begun.sum() < 250 and 150 < envs.opponents.sum() < 250
    of_first = begun & (envs.opponents == 0)
    assert envs.stones[of_first, 5, 0, 1].all() and not envs.stones[..., 0].any()
    mask = np.arange(400) < 10
    before = envs.stones.copy()
    envs.step(np.full(400, 6))
    envs.reset(options={"reset_mask": mask})
    assert not envs.stones[:10, ..., 0].any() and envs.stones[10:, 5, 6, 0].sum() > 300
    assert before[10:].sum() < envs.stones[10:].sum()


def test_a_copy_stays_as_it_is_while_the_agent_learns(example):
    import torch

    agent, curve = example.train(seed=0, total_steps=600, games=8, every=1)
    assert [row[1] for row in curve] == [2, 3, 4] and agent.envs.pool[0] is example.chance
    stones = np.zeros((64, 6, 7, 2), np.int8)
    one = example.frozen(agent, torch.Generator().manual_seed(0))(stones, None)
    copy = example.frozen(agent, torch.Generator().manual_seed(0))
    agent.learn(1_000)
    assert copy(stones, None).tolist() == one.tolist()
    assert isinstance(agent, rlcore.PPO) and agent.adapter.action_spec.masked


def test_the_example_runs_and_judges_in_pettingzoo(example, tmp_path, monkeypatch, capsys):
    pettingzoos()
    monkeypatch.setattr(example.machine, "RESULTS", tmp_path)
    arguments = ["--total-steps", "20000", "--games", "32", "--every", "5", "--judged", "60"]
    monkeypatch.setattr(sys, "argv", ["self_play.py", *arguments])
    example.main()
    result = json.loads((tmp_path / "self_play_connect_four.json").read_text())
    for row in result["against"].values():
        assert row["wins"] + row["draws"] + row["losses"] == 60
    assert result["against"]["chance"]["win_rate"] > 0.6 and "'lookahead': {'wins'" in capsys.readouterr().out
