import json
import os
import subprocess
import sys

import pytest

from rlcore.cli import main


def run(capsys, *arguments):
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments):
    """The message of a command that must fail as bad input does."""
    code, out, err = run(capsys, *arguments)
    assert code == 2 and err.count("\n") == 1 and err.startswith("rlcore: "), (code, out, err)
    assert "Traceback" not in err
    return err


TRAIN = ("train", "ppo", "CartPole-v1")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("trian",), "did you mean 'train'?"),
        (("train", "pop", "CartPole-v1"), "did you mean 'ppo'?"),
        (("train", "ppo", "CartPol-v1"), "did you mean 'CartPole-v1'?"),
        ((*TRAIN, "--lerning-rate", "1"), "did you mean '--learning-rate'?"),
        ((*TRAIN, "--learning-rate=fast"), "learning_rate is 'fast', but must be a number"),
        ((*TRAIN, "--gamma", "1.1"), "gamma is 1.1, but must be at least 0 and at most 1"),
        ((*TRAIN, "--num-envs", "2.5"), "num_envs is '2.5', but must be a whole number"),
        ((*TRAIN, "--num-envs", "0"), "num_envs is 0, but must be at least 1"),
        ((*TRAIN, "--num-envs", "3", "--num-steps", "5"), "num_minibatches is 4, but must divide"),
        ((*TRAIN, "--hidden-sizes", "a,b"), "hidden_sizes is 'a,b', but must be a list of whole numbers"),
        ((*TRAIN, "--total-steps", "-5"), "--total-steps is -5, but must be at least 1"),
        ((*TRAIN, "--total-steps", "many"), "--total-steps is 'many', but must be a whole number"),
        ((*TRAIN, "--total-steps", "1.5e0"), "must be a whole number"),
        ((*TRAIN, "--checkpoint-every", "0"), "--checkpoint-every is 0"),
        ((*TRAIN, "--threads", "0"), "--threads is 0"),
        ((*TRAIN, "--seed"), "--seed: expected one argument"),
        ((*TRAIN, "--preset", "CartPole-v0"), "did you mean 'CartPole-v1'?"),
        ((*TRAIN, "--device", "cuda:77"), "device is 'cuda:77', but"),
        ((*TRAIN, "--device", "gpu"), "device is 'gpu', but may be cpu, cuda, cuda:K or auto"),
        ((*TRAIN, "--backend", "fast"), "backend is 'fast', but may be one of auto, native, sync, async, vector"),
        ((*TRAIN, "--env-arg", "wind"), "--env-arg is 'wind', but must be NAME=VALUE"),
        ((*TRAIN, "--env-arg", "wind=3"), "CartPole-v1 cannot be made with {'wind': 3}"),
        ((*TRAIN, "extra"), "argument 'extra' is not known"),
        (("train", "--seed", "1", "ppo"), "the algorithm comes first"),
        (("train", "ppo"), "ENV_ID"),
        (("train", "--resume"), "--resume: expected one argument"),
        (("train", "--resume", "/nowhere/run"), "the run folder /nowhere/run does not exist"),
        (("train", "--config", "/nowhere.toml"), "/nowhere.toml does not exist"),
        (("eval", "/nowhere/run"), "does not exist"),
        (("eval", "/nowhere/run", "--episodes", "0"), "--episodes is 0"),
        (("video", "/nowhere/run"), "does not exist"),
        (("eval",), "RUN"),
        (("list", "--jsn"), "did you mean '--json'?"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(capsys, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not os.listdir(tmp_path)  # and leaves nothing behind


def test_cuda_where_there_is_none(capsys, monkeypatch, tmp_path):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device is available here" in refused(capsys, *TRAIN, "--device", "cuda")


def test_a_run_folder_that_exists_is_never_touched(capsys, tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    message = refused(capsys, *TRAIN, "--run-dir", str(tmp_path))
    assert "exists already" in message and f"--resume {tmp_path}" in message
    assert os.listdir(tmp_path) == ["precious.txt"]
    assert "is not a run folder" in refused(capsys, "train", "--resume", str(tmp_path))


def test_an_unsupported_space_is_refused_by_name(capsys, tmp_path, monkeypatch):
    import gymnasium as gym

    from tests.environments import Echo

    monkeypatch.chdir(tmp_path)
    gym.register("RlcoreText-v0", lambda: Echo(gym.spaces.Text(3)))
    assert "the observation space is Text" in refused(capsys, "train", "ppo", "RlcoreText-v0")
    gym.registry.pop("RlcoreText-v0")


def test_nan_from_the_environment(capsys, tmp_path):
    import gymnasium as gym

    from tests.environments import BreaksAt

    gym.register("RlcoreBreaks-v0", lambda: BreaksAt(40, "reward"))
    message = refused(capsys, "train", "ppo", "RlcoreBreaks-v0", "--run-dir", str(tmp_path / "r"), "--no-progress")
    assert "environment 0 returned nan in its reward at vector step 40" in message
    gym.registry.pop("RlcoreBreaks-v0")


def test_config_files_that_are_not_configs(capsys, tmp_path):
    bad = tmp_path / "bad.toml"
    for text, words in (
        ("[", "is not readable as TOML"),
        ("a = 1", "is not the config of a run: it has no 'algo'"),
        ('algo="ppo"\nenv_id="CartPole-v1"\ntotal_steps=10\n[hyperparameters]\ngama=1', "did you mean 'gamma'?"),
        ('algo="ppo"\nenv_id="CartPole-v1"\ntotal_steps=10\n[hyperparameters]\ngamma="x"', "gamma is 'x'"),
    ):
        bad.write_text(text)
        assert words in refused(capsys, "train", "--config", str(bad), "--run-dir", str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_preset_is_used_named_and_overridden(capsys, tmp_path):
    settings = ("--total-steps", "100", "--eval-episodes", "0", "--no-progress", "--gamma", "0.5")
    code, out, _ = run(capsys, *TRAIN, *settings, "--run-dir", str(tmp_path / "a"))
    assert code == 0 and "preset CartPole-v1 (overridden: gamma)" in out
    code, out, _ = run(capsys, *TRAIN, *settings, "--run-dir", str(tmp_path / "b"), "--preset", "none")
    assert code == 0 and "no preset" in out
    code, out, _ = run(
        capsys, "train", "ppo", "MountainCar-v0", *settings, "--run-dir", str(tmp_path / "c"), "--preset", "CartPole-v1"
    )
    assert code == 0 and "preset CartPole-v1" in out and "backend sync" in out
    import tomllib

    a, b = (tomllib.loads((tmp_path / x / "config.toml").read_text())["hyperparameters"] for x in "ab")
    assert a["gamma"] == b["gamma"] == 0.5 and a["num_envs"] == 16 and b["num_envs"] == 4


def test_help_explains_every_hyperparameter(capsys):
    import dataclasses

    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_help

    for name, agent in AGENTS.items():
        with pytest.raises(SystemExit) as left:
            main(["train", name, "--help"])
        assert left.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        for field in dataclasses.fields(agent.Config):
            assert "--" + field.name.replace("_", "-") in text
            assert len(field_help(agent.Config)[field.name]) > 10, field.name


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--help"), ("train",), ("--version",), ("list",)])
def test_help_at_every_level(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 0 and out and not err


@pytest.mark.parametrize(
    "command", [("eval",), ("video",), ("list",), ("train", "--resume"), ("train", "--resume", "x")]
)
def test_help_of_commands(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0 and "usage: rlcore" in capsys.readouterr().out


def test_list_as_json(capsys):
    listed = json.loads(run(capsys, "list", "--json")[1])
    assert listed["ppo"]["defaults"]["clip_coef"] == 0.2
    assert listed["ppo"]["presets"]["CartPole-v1"]["total_steps"] <= 100_000


def test_help_and_mistakes_do_not_wait_for_torch():
    code = "import sys; from rlcore.cli import main; main(['--help']); main(['trian']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result


def test_importing_rlcore_imports_no_extras():
    """Nor anything else that a training loop does not need: TensorBoard, rich, plotting, video."""
    code = "import sys, rlcore; print(sorted(m for m in sys.modules if m.split('.')[0] in set(sys.argv[1:])))"
    heavy = ["tensorboard", "rich", "matplotlib", "imageio", "pygame", "tomli_w", "pandas", "scipy"]
    before = subprocess.run(
        [sys.executable, "-c", code.replace(", rlcore", ", torch, gymnasium"), *heavy], capture_output=True, text=True
    )
    after = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True)
    assert after.stdout == before.stdout


def test_the_run_says_how_its_environments_are_really_stepped(capsys, tmp_path):
    """GRPO needs a seed for each environment, so it cannot take CartPole's own vector implementation."""
    settings = ("--total-steps", "50", "--eval-episodes", "0", "--no-progress", "--num-envs", "4", "--group-size", "2")
    code, out, _ = run(capsys, "train", "grpo", "CartPole-v1", *settings, "--run-dir", str(tmp_path / "g"))
    assert code == 0 and "backend sync (groups need a seed for each environment)" in out
