"""What a type checker says of code that uses rlcore: nothing where it is right, a line where it is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_documented_code import README, blocks

pytest.importorskip("mypy")

ROOT = Path(__file__).parent.parent
RIGHT = """
from pathlib import Path

import gymnasium
import numpy as np
import torch

import rlcore
from rlcore.spaces import action_spec

envs: gymnasium.vector.VectorEnv = rlcore.make_vec("CartPole-v1", 4, seed=1)
agent: rlcore.PPO = rlcore.PPO(envs, hidden_sizes=(32,)).learn(1000, [rlcore.callbacks.Evaluate(500)], progress=True)
result = agent.evaluate(10, env="CartPole-v1")
mean: float = result.mean
returns: np.ndarray = result.returns
actions: np.ndarray = agent.act(envs.reset()[0], deterministic=True)
agent.save(Path("x.pt"), {"note": 1})
rate: float = agent.config.learning_rate
clip: float = agent.config.clip_coef
advantages: torch.Tensor = agent.estimate(agent.buffer)[0]
rewards: torch.Tensor = agent.buffer.rewards
value: torch.Tensor = agent.network.value(rewards)
for metrics, episodes in agent.iterations(2000):
    print(metrics["loss"] + sum(episodes.returns))
other = rlcore.load("x.pt", env="CartPole-v1", device="cpu")
rlcore.train(other, total_steps=10, run_dir=Path("run")).close()
size: int = action_spec(gymnasium.spaces.Discrete(2)).num_params
"""
WRONG = """
import rlcore
from rlcore.spaces import action_spec

rlcore.PPO(3)
rlcore.GRPO(env_kwargs=3)
agent = rlcore.PPO("CartPole-v1")
agent.learn("many")
agent.learn(1000, progress="bar")
agent.learn(1000, lambda agent: True)
agent.act(deterministic=True)
agent.evaluate(episodes="ten")
agent.evaluate(10).median
agent.save(3)
agent.export()
agent.config.clip
agent.buffer.reward
agent.lern(1000)
rlcore.load()
rlcore.make_vec(4, "CartPole-v1")
rlcore.train(agent, "many", "run")
rlcore.estimators.gae(1)
rlcore.PPG
action_spec(2)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is said of each text, by its name: the numbers of its lines with what is wrong there."""
    folder = tmp_path_factory.mktemp("types")
    texts = {"right": RIGHT, "wrong": WRONG, **{name: text for name, _, text in blocks(README, "python")}}
    files = [folder / f"{name.replace('-', '_')}.py" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "setup.cfg", "--check-untyped-defs", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [re.search(r"(\w+)\.py:(\d+): error: (.*)", line) for line in done.stdout.splitlines()]
    return {f.stem: {int(e[2]): e[3] for e in errors if e and e[1] == f.stem} for f in files}


def test_right_code_passes(told):
    assert len(told) > 3 and not {name: lines for name, lines in told.items() if name != "wrong" and lines}


def test_each_mistake_is_told(told):
    lines = dict(enumerate(WRONG.splitlines(), 1))
    right = {n for n, line in lines.items() if not line or line.startswith(("import", "from", "agent = "))}
    assert {n: lines[n] for n in lines.keys() - right - told["wrong"].keys()} == {}
    assert not right & told["wrong"].keys()
