import errno
import io
import json
import linecache
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

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


def test_cuda_where_there_is_none(capsys, monkeypatch, tmp_path):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device is available here" in refused(capsys, *TRAIN, "--device", "cuda")


def test_a_run_folder_that_exists_is_never_touched(capsys, tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    message = refused(capsys, *TRAIN, "--run-dir", str(tmp_path))
    assert f"{tmp_path} exists already and is a folder with other things in it, not a run" in message
    assert "is a file, not a run" in refused(capsys, *TRAIN, "--run-dir", str(tmp_path / "precious.txt"))
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
    assert code == 0 and "preset CartPole-v1" in out and "(--backend sync); it has no vector" in out
    import tomllib

    a, b = (tomllib.loads((tmp_path / x / "config.toml").read_text())["hyperparameters"] for x in "ab")
    assert a["gamma"] == b["gamma"] == 0.5 and a["num_envs"] == 64 and b["num_envs"] == 4


def test_help_explains_every_hyperparameter(capsys):
    import dataclasses

    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_help

    for name, agent in AGENTS.items():
        text = " ".join(help_of(capsys, "train", name, "--help-all").split())
        for field in dataclasses.fields(agent.Config):
            flag = field.name.replace("_", "-")
            assert f"--{flag} " in text or f"--[no-]{flag} " in text
            assert len(field_help(agent.Config)[field.name]) > 10, field.name


def help_of(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 0 and not err
    return out


@pytest.fixture
def own_agent(monkeypatch):
    """The name of an agent of a module that is none of rlcore's, with hyperparameters of its own."""
    module = types.ModuleType("rlcore_test_agents")
    base = "from dataclasses import dataclass; from rlcore.agents import PPO, PPOConfig"
    fields = "\n".join(f"    own_{n}: float = 1.0  # what it is of the {n}th, and no more" for n in range(4))
    source = f"{base}\n@dataclass(frozen=True)\nclass OwnConfig(PPOConfig):\n{fields}\n    vf_coef: float = 0.1\n"
    source += "class Own(PPO):\n    'Mine.'\n    Config = OwnConfig\n"
    lines = source.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "own.py", (len(source), None, lines, "own.py"))
    module.__file__ = "own.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "own.py", "exec"), vars(module))
    return f"{module.__name__}:Own"


def test_help_fits_a_screen_and_tells_first_what_one_needs_first(capsys, monkeypatch, own_agent):
    from rlcore.agents import AGENTS

    monkeypatch.setenv("COLUMNS", "80")
    for name in (*AGENTS, own_agent, "ppo ALE/Pong-v5", "grpo CartPole-v1 --variant dr_grpo"):
        text = help_of(capsys, "train", *name.split(), "--help")
        lines = text.splitlines()
        assert 30 <= len(lines) <= 45 and max(map(len, lines)) <= 80, (name, len(lines))
        assert lines[-1].endswith(f"rlcore train {name.split()[0]} --help-all")
        headings = [line for line in lines if re.fullmatch(r"[a-z]+:", line)]
        assert headings == ["run:", "environment:", "algorithm:", "network:", "speed:"]
        for flag in ("total-steps", "seed", "num-envs", "learning-rate", "gamma", "hidden-sizes", "device"):
            assert f"  --{flag} " in text, (name, flag)
        assert "--optimizer-eps" not in text and "--track" not in text
    assert "--group-size" in text and "--max-kl" not in text
    text = help_of(capsys, "train", own_agent, "--help")
    assert all(f"--own-{n} X" in text for n in range(4)) and "--vf-coef X" in text


def test_all_of_help_is_in_groups(capsys):
    text = help_of(capsys, "train", "ppo", "--help-all")
    groups = dict(re.findall(r"^([a-z ]+):\n((?: .+\n)+)", text, re.MULTILINE))
    where = {"run": "--track", "environment": "--env-arg", "algorithm": "--optimizer-eps", "network": "--torso"}
    where |= {"learned rewards": "--comparisons", "speed": "--threads"}
    assert list(groups) == list(where)
    assert all(f"  {flag} " in groups[group] for group, flag in where.items())


def test_the_defaults_that_help_shows_are_those_of_the_run(capsys, tmp_path, monkeypatch):
    def said(*arguments):
        return " ".join(help_of(capsys, "train", *arguments).split())

    text = said("ppo", "CartPole-v1", "--help")
    assert "Defaults are those of preset CartPole-v1." in text
    assert "(default: 50,000)" in text and "--learning-rate X step size of the optimiser (default: 0.002)" in text
    text = said("ppo", "--help")
    assert "name an ENV_ID" in text and "(default: the preset's, or 1,000,000)" in text
    assert "--learning-rate X step size of the optimiser (default: 0.00025)" in text
    text = said("ppo", "CartPole-v1", "--preset", "none", "--help")
    assert "Defaults are the algorithm's own." in text and "(default: 1,000,000)" in text and "0.00025" in text
    text = said("ppo", "--preset=Acrobot-v1", "-h", "CartPole-v1")
    assert "those of preset Acrobot-v1." in text and "(default: 1,000,000)" in text and "(default: 0.94)" in text
    assert "there is no preset for Blackjack-v1." in said("ppo", "Blackjack-v1", "--help")
    assert "clip_coef_high" not in text
    text = said("grpo", "--variant", "dr_grpo", "--help-all")
    assert "standard deviation (default: false)" in text  # which the variant leaves out
    assert "did you mean 'CartPole-v1'?" in refused(capsys, "train", "ppo", "--preset", "CartPole-v0", "--help")
    (tmp_path / "my.toml").write_text('[ppo."CartPole-v1"]\ngamma = 0.123\n')
    monkeypatch.chdir(tmp_path)
    text = said("ppo", "CartPole-v1", "--preset", "my.toml", "--help")
    assert "preset my.toml" in text and "(default: 0.123)" in text and "(default: 1,000,000)" in text
    (tmp_path / "config.toml").write_text(
        'algo = "ppo"\nenv_id = "CartPole-v1"\ntotal_steps = 12345\n[hyperparameters]\ngamma = 0.321\n'
    )
    text = said("--config", "config.toml", "--help")
    assert "(default: 12,345)" in text and "γ, discount (default: 0.321)" in text and "--optimizer-eps" not in text
    assert "--optimizer-eps" in said("--config", "config.toml", "--help-all")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--help"), ("train",), ("--version",), ("list",)])
def test_help_at_every_level(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 0 and out and not err


@pytest.mark.parametrize(
    "command",
    [("eval",), ("video",), ("list",), ("train", "--resume"), ("train", "--resume", "x"), ("train", "--config")],
)
def test_help_of_commands(capsys, command):
    assert "usage: rlcore" in help_of(capsys, *command, "--help")


def test_digits_of_a_score():
    from rlcore.cli.flags import number

    assert (number(500.0), number(0.0, 500.0), number(0.25), number(1.5, 0.9)) == ("500.0", "0.0", "0.250", "1.500")


def test_list_as_json(capsys):
    listed = json.loads(run(capsys, "list", "--json")[1])
    assert listed["ppo"]["defaults"]["clip_coef"] == 0.2
    assert listed["ppo"]["presets"]["CartPole-v1"]["total_steps"] <= 100_000


def test_the_overview_of_what_there_is(capsys, monkeypatch):
    from rlcore.agents import AGENTS
    from rlcore.cli.flags import ALGORITHMS, summaries

    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "list")
    assert all(f"\n  {name} " in out for name in AGENTS) and "rlcore list presets [WORD]" in out and "classic" in out
    assert sum(-(-len(line) // 66) for line in out.splitlines()) <= 25  # wrapped
    assert tuple(AGENTS) == ALGORITHMS and list(summaries()) == list(AGENTS)
    assert all(text and "arXiv" not in text for text in summaries().values())


def test_lists_in_detail(capsys):
    def listed(*words):
        code, out, err = run(capsys, "list", *words)
        assert code == 0 and not err
        return out

    assert "  CartPole-v1: 50,000 steps; num_envs 64" in listed("presets", "cartP")
    assert "Acrobot" not in listed("presets", "cartpole") and "a2c:" in listed("presets", "cartpole")
    assert "reinforce:" not in listed("presets", "A2C") and "  Acrobot-v1:" in listed("presets", "A2C")
    assert "  ALE/*: 10,000,000" in listed("presets", "ALE/Pong-v5")
    assert "ppo: Proximal" in listed("agents", "PROXIMAL") and "trpo" not in listed("agents", "proximal")
    assert "clip_coef 0.2" in listed("agents", "ppo") and "clip_coef" not in listed("agents", "trpo")
    text = listed("ppo")
    assert "  CartPole-v1: 50,000 steps" in text and "\ndefaults, network:\n" in text and "\n  clip_coef  " in text
    assert "gae_lambda" in listed("ppo", "gae") and "clip_coef" not in listed("ppo", "gae")
    assert list(json.loads(listed("trpo", "--json"))) == ["trpo"]
    assert json.loads(listed("presets", "Taxi", "--json"))["ppo"]["Taxi-v4"]


def test_environments_that_are_listed(capsys):
    from rlcore.envs.native import NATIVE_TASKS

    envs = json.loads(run(capsys, "list", "envs", "--json")[1])
    assert envs["CartPole-v1"]["native"] and "ppo" in envs["CartPole-v1"]["presets"]
    assert envs["CartPole-v1"]["family"] == "classic_control" and envs["Blackjack-v1"]["presets"] == []
    assert set(NATIVE_TASKS) <= set(envs) and "CartPole-v0" not in envs and "HalfCheetah-v2" not in envs
    _, text, _ = run(capsys, "list", "envs")
    assert text.count("\n") < 120 and re.search(r"^  Acrobot-v1 +native, presets: .*ppo", text, re.MULTILINE)
    _, text, _ = run(capsys, "list", "envs", "cartpole-V")
    assert "CartPole-v0" in text and "Acrobot" not in text
    if "ALE/Pong-v5" in envs:
        assert "\nALE: 1" in run(capsys, "list", "envs")[1]
        assert "  ALE/Pong-v5 " in run(capsys, "list", "envs", "pong")[1]


@pytest.mark.parametrize(("family", "module", "is_there"), [("mujoco", "mujoco", False), ("toy_text", "mujoco", True)])
def test_an_environment_whose_module_is_missing_is_not_listed(monkeypatch, family, module, is_there):
    from types import SimpleNamespace

    from rlcore.cli import listing

    monkeypatch.setattr(listing.importlib.util, "find_spec", lambda name: None if name == module else name)
    spec = SimpleNamespace(namespace=None, entry_point=f"gymnasium.envs.{family}.x:X", vector_entry_point=None)
    assert listing._is_installed(spec) == is_there


def test_a_word_that_is_in_no_name_gets_the_nearest(capsys):
    assert "did you mean 'ppo'?; there are presets, agents, envs, reinforce" in refused(capsys, "list", "pop")
    assert "did you mean 'presets'?" in refused(capsys, "list", "preset")
    assert "no preset has 'Cart-Pole-v1' in its name, did you mean 'CartPole-v1'?" in refused(
        capsys, "list", "presets", "Cart-Pole-v1"
    )
    assert "no env has 'CartPol-v1' in its name, did you mean 'CartPole-v1'?" in refused(
        capsys, "list", "envs", "CartPol-v1"
    )
    assert "did you mean 'trpo'?" in refused(capsys, "list", "agents", "trpoo")
    assert "did you mean 'gamma'?" in refused(capsys, "list", "ppo", "gama")
    assert "no module" in refused(capsys, "list", "nomodule:Agent").lower()


def test_lists_that_need_no_torch_do_not_wait_for_it():
    asked = [["list"], ["list", "presets", "cart"], ["list", "pop"], ["train"], ["train", "--help"]]
    code = f"import sys; from rlcore.cli import main; [main(x) for x in {asked}]; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result


# A terminal.


class Terminal(io.StringIO):
    """A terminal, whose lines are what is left where a carriage return has others written over."""

    def isatty(self):
        return True

    def lines(self):
        return [self.screen(line) for line in self.getvalue().split("\n")]

    @staticmethod
    def screen(line):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        return shown.rstrip()


@pytest.fixture
def terminal(monkeypatch):
    """Puts one of 58 columns in the place of the output, from then on: pytest has its own there between fixtures."""

    def begin():
        stream = Terminal()
        monkeypatch.setenv("COLUMNS", "58")
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return begin


def test_a_command_shows_life_before_torch_is_there():
    code = (
        "import io, sys; sys.modules['torch'] = None\n"
        "class Terminal(io.StringIO):\n    def isatty(self): return True\n"
        "sys.stdout = out = Terminal()\n"
        "from rlcore.cli import main\n"
        "try: main(['train', 'ppo', 'CartPole-v1'])\nexcept ImportError: pass\n"
        "sys.__stdout__.write(repr(out.getvalue()))\n"
    )
    said = eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert said.startswith("rlcore: loading torch and gymnasium ...\r") and Terminal.screen(said) == ""


def test_what_one_waited_for_is_gone_when_something_is_printed(terminal, monkeypatch):
    terminal = terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["train", "pop", "CartPole-v1"]) == 2
    assert terminal.getvalue().startswith("rlcore: loading")
    assert terminal.lines()[0] == "rlcore: 'pop' is not an algorithm of rlcore, did you mean"
    assert max(map(len, terminal.lines())) <= 58 and len(terminal.lines()) > 2


def test_no_process_but_the_first_says_what_it_waits_for(terminal, monkeypatch):
    terminal = terminal()
    monkeypatch.setenv("RANK", "1")
    assert main(["eval", "nowhere"]) == 2
    assert not terminal.getvalue()


def test_a_run_fits_a_terminal_of_58_columns_and_says_what_comes_next(terminal, tmp_path, monkeypatch):
    terminal = terminal()
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, *SMALL, "--run-dir", "a run", "--no-progress"]) == 0
    lines = terminal.lines()
    assert max(map(len, lines)) <= 58 and lines[0].startswith("ppo on 2 × CartPole-v1, on cpu")
    text = " ".join(" ".join(lines).split())
    assert "environments: all at once, by the vector implementation of CartPole-v1 (--backend vector);" in text
    assert "iterations: plain Python (--compile false); asked for" in text
    commands = ["rlcore eval 'a run'", "rlcore video 'a run'", "rlcore report 'a run'", "tensorboard --logdir 'a run'"]
    assert lines[-6:-1] == ["next:", *commands]
    for command in commands[:1] + commands[2:3]:
        assert main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("command", ["", "train", "list", "list envs", "list presets", "list agents ppo", "list grpo"])
def test_overviews_and_lists_fit_a_terminal_of_58_columns(terminal, command):
    terminal = terminal()
    assert main(command.split()) == 0
    assert max(map(len, terminal.lines())) <= 58 and len(terminal.lines()) > 8
    assert not any(line.startswith("    ppo") for line in terminal.lines())


def test_what_comes_next_takes_the_modules_that_a_run_took(terminal, module):
    terminal = terminal()
    assert main(["train", "ppo", f"{module}:RlcoreMine-v0", *SMALL, "--run-dir", "r", "--no-progress"]) == 0
    assert f"rlcore eval r --import {module}" in terminal.lines()


def test_progress_fits_a_terminal_of_58_columns(monkeypatch):
    from rich.console import Console

    from rlcore.progress import Progress

    def line(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        progress = Progress(10_000_000)
        progress.update(10_000_000, lambda: -1234.5)
        console = Console(file=io.StringIO(), width=columns)
        console.print(progress.bar.get_renderable())
        progress.close()
        return console.file.getvalue().rstrip("\n")

    narrow, common, wide = line(58), line(80), line(120)
    assert "\n" not in narrow and len(narrow) <= 58 and narrow.startswith("100%")
    assert "return -1234.5" in narrow and narrow.endswith("left")
    assert common.startswith("10,000,000/10,000,000 steps") and "\n" not in common and len(common) <= 80
    assert wide.startswith("10,000,000/10,000,000 steps") and "elapsed" in wide and "\n" not in wide


def test_help_and_mistakes_do_not_wait_for_torch():
    code = "import sys; from rlcore.cli import main; main(['--help']); main(['trian']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result


def test_the_overview_waits_for_no_command():
    code = "import sys, rlcore.cli as cli; cli.main(['--help']); print([m for m in sys.modules if m[:6] == 'rlcore'])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(eval(out.splitlines()[-1])) == {"rlcore", "rlcore.version", "rlcore.errors", "rlcore.cli"}


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
    assert code == 0 and "(--backend sync); groups need a seed for each environment" in out


SMALL = ("--num-steps", "16", "--num-envs", "2", "--hidden-sizes", "8", "--seed", "1", "--preset", "none")
SMALL += ("--total-steps", "400", "--compile", "false", "--device", "cpu", "--eval-episodes", "1")

# Output that cannot be written.


class Broken(io.StringIO):
    """A pipe whose reader has gone after so many writes."""

    def __init__(self, writes, number=errno.EPIPE):
        super().__init__()
        self.left, self.number = writes, number

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("writes", [0, 1, 5])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_training_goes_on_where_nobody_reads_what_it_prints(capsys, tmp_path, monkeypatch, writes, number):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken(writes, number))
        code = main([*TRAIN, *SMALL, "--run-dir", str(tmp_path / "r")])
    errors = capsys.readouterr().err
    assert code == 0 and (not errors if number == errno.EPIPE else os.strerror(number) in errors)
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["global_step"] >= 400


def test_a_list_that_nobody_reads_is_no_mistake_but_one_that_cannot_be_written_is(capsys, monkeypatch):
    for number, code, words in (
        (errno.EPIPE, 0, ""),
        (errno.ENOSPC, 2, "standard output could not be written: No spac"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Broken(3, number))
            assert main(["list"]) == code
        errors = capsys.readouterr().err
        assert words in errors if words else not errors


def test_a_pipe_that_is_closed_by_its_reader(tmp_path):
    command = [sys.executable, "-m", "rlcore", *TRAIN, *SMALL, "--run-dir", str(tmp_path / "r")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0 and not errors
    assert (tmp_path / "r" / "evaluation.json").exists()


def test_without_standard_output_at_all(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert main([*TRAIN, *SMALL, "--run-dir", str(tmp_path / "r")]) == 0
        assert main(["trian"]) == 2


NO_ROOM = "rlcore: standard output could not be written: No space left on device\n"
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "r"
    assert main([*TRAIN, *SMALL, "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "command, code, said",
    [
        ("eval RUN --episodes 1 >&-", 0, ""),
        ("eval RUN --episodes 1 >/dev/full", 2, NO_ROOM),
        ("eval RUN --episodes 1 2>&-", 0, ""),
        ("eval nowhere 2>&-", 2, ""),
        ("eval nowhere 2>/dev/full", 2, ""),
        ("eval RUN --episodes 1 <&-", 0, ""),
        ("eval --help >/dev/full", 2, NO_ROOM),
    ],
)
def test_streams_as_a_shell_gives_them(trained, tmp_path, command, code, said):
    words = f'"{sys.executable}" -m rlcore {command.replace("RUN", shlex.quote(str(trained)))}'
    result = subprocess.run(["sh", "-c", words], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (code, said)


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=str)
def test_no_file_is_read_or_written_in_the_terminals_encoding(tmp_path, encoding):
    """Presets, templates and kernels have letters that few encodings have, and so may names of runs."""
    folder, accented = os.fsencode(tmp_path) + b"/run", os.fsencode(tmp_path) + b"/run-\xc3\xa9"
    begin = [sys.executable, "-m", "rlcore"]
    env = {**os.environ, **encoding}
    for command in (["train", "ppo", "CartPole-v1", *SMALL, "--run-dir", folder], ["eval", folder], ["report", folder]):
        result = subprocess.run([*begin, *command], capture_output=True, env=env)
        assert result.returncode == 0 and not result.stderr, result.stderr
    assert os.path.isfile(folder + b"/report.html")
    result = subprocess.run(
        [*begin, "train", "ppo", "CartPole-v1", *SMALL, "--run-dir", accented], capture_output=True, env=env
    )
    assert result.returncode == (2 if encoding is C_LOCALE else 0), result.stderr
    assert (b"has letters that this locale has not" in result.stderr) == (encoding is C_LOCALE)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_torch_is_imported_is_one_line(trained, times):
    command = [sys.executable, "-m", "rlcore", "eval", trained]
    heeded = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # by children of background jobs it is not
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **heeded)
    while b"libtorch" not in Path(f"/proc/{process.pid}/maps").read_bytes():
        assert process.poll() is None
        time.sleep(0.005)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and errors == "rlcore: interrupted\n"


def test_letters_that_the_terminal_has_not(tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main([*TRAIN, *SMALL, "--run-dir", str(tmp_path / "r")]) == 0
    assert b"2 \\xd7 CartPole-v1" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    "error, words",
    [
        (BrokenPipeError(32, "Broken pipe"), "broke (BrokenPipeError: [Errno 32] Broken pipe)"),
        (ConnectionResetError(), "broke (ConnectionResetError)"),
        (EOFError(), "broke (EOFError)"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_a_broken_connection_is_not_taken_for_closed_output(capsys, tmp_path, monkeypatch, error, words):
    def fails(self, total_steps):
        raise error

    monkeypatch.setattr("rlcore.agents.Agent.iterations", fails)
    assert words in refused(capsys, *TRAIN, *SMALL, "--run-dir", str(tmp_path / "r"))


def test_what_nobody_expected_is_not_hidden(monkeypatch):
    monkeypatch.setattr("rlcore.cli._dispatch", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_messages_are_one_line_that_moves_no_cursor(capsys):
    message = refused(capsys, "train", "p\x1b[2Jp\no", "CartPole-v1")
    assert "'p\\x1b[2Jp\\no' is not an algorithm" in message
    assert len(refused(capsys, "train", "x" * 10_000)) < 2_100


def test_an_environment_that_fails_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    from rlcore.errors import EnvironmentFault

    def fails(self, *arguments):
        raise EnvironmentFault("environment 3 died")

    path = str(tmp_path / "r")
    monkeypatch.setattr("rlcore.agents.Agent.evaluate", fails)
    assert f"environment 3 died; continue with --resume {path}\n" in refused(capsys, *TRAIN, *SMALL, "--run-dir", path)
    monkeypatch.setattr("rlcore.agents.Agent.iterations", fails)
    monkeypatch.setattr("rlcore.agents.Agent.evaluate", None)
    message = refused(capsys, "train", "--resume", path, "--total-steps", "800")
    assert f"environment 3 died; continue with --resume {path}\n" in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_an_agent_too_large_for_memory_is_one_sentence(capsys, tmp_path, monkeypatch, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr("rlcore.agents.Agent.make_network", fails)
    message = refused(capsys, *TRAIN, *SMALL, "--run-dir", str(tmp_path / "r"))
    assert "not enough memory for this agent" in message and "num_envs = 2, num_steps = 16" in message
    assert not (tmp_path / "r").exists()


def test_another_error_while_making_an_agent_is_not_taken_for_that(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("rlcore.agents.Agent.make_network", fails)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main([*TRAIN, *SMALL])


# Signals.


@pytest.fixture
def default_hangup():
    """As in a terminal, even where these tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(numbers, code, ignored=()):
    """The code that a run would be stopped with, or None."""
    from rlcore.runs.train import StopSignals

    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        with StopSignals() as stop:
            for number in numbers:
                os.kill(os.getpid(), number)
            assert stop.code == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_terminal_that_vanishes_stops_a_run_as_sigterm_does(default_hangup):
    hup, term, interrupt = signal.SIGHUP, signal.SIGTERM, signal.SIGINT
    send([hup], 129)
    send([hup, hup], 129)
    send([term, hup], 143)  # a session that ends sends both
    send([hup, term], 143)
    send([hup], None, ignored=[hup])  # nohup
    for two in ([term, term], [interrupt, term], [hup, interrupt, interrupt]):
        with pytest.raises(KeyboardInterrupt):
            send(two, None)


def test_a_run_whose_terminal_vanishes_leaves_a_checkpoint(capsys, tmp_path, monkeypatch, default_hangup):
    from rlcore.agents import Agent

    real = Agent.iterations

    def vanishing(self, total_steps):
        for number, iteration in enumerate(real(self, total_steps)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGHUP)
            yield iteration

    monkeypatch.setattr(Agent, "iterations", vanishing)
    code, _, err = run(capsys, *TRAIN, *SMALL, "--run-dir", str(tmp_path / "r"))
    assert code == 129 and f"continue with --resume {tmp_path / 'r'}" in err
    assert len(list((tmp_path / "r" / "checkpoints").glob("step-*.pt"))) >= 2


# Environments of modules that have to be imported.


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder that registers an environment and notes that it was imported."""
    import gymnasium

    name = "rlcore_test_envs"
    source = (
        "import gymnasium, pathlib\n"
        "pathlib.Path(__file__).with_name('imported').touch()\n"
        "gymnasium.register('RlcoreMine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=50)\n"
    )
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield name
    forget(name)
    gymnasium.registry.pop("RlcoreMine-v0", None)


def forget(module):
    """As in another process."""
    import gymnasium

    sys.modules.pop(module, None)
    gymnasium.registry.pop("RlcoreMine-v0", None)
    sys.path[:] = [path for path in sys.path if path != os.getcwd()]
    if os.path.exists("imported"):
        os.unlink("imported")


def test_an_id_with_its_module(capsys, module):
    code, out, err = run(capsys, "train", "ppo", f"{module}:RlcoreMine-v0", *SMALL)
    assert code == 0, err
    assert f"{module}:RlcoreMine-v0" in out
    (name,) = os.listdir("runs")
    assert name == "RlcoreMine-v0"
    forget(module)
    code, _, err = run(capsys, "train", "ppo", "RlcoreMine-v0", *SMALL, "--import", module)
    assert code == 0, err


def test_ids_with_modules_that_do_not_work(capsys, module):
    def train(env_id, *flags):
        return refused(capsys, "train", "ppo", env_id, *SMALL, *flags)

    assert "did you mean 'RlcoreMine-v0'?" in train(f"{module}:RlcoreMin-v0")
    assert "the module 'rlcore_no_such' cannot be imported: ModuleNotFoundError" in train("rlcore_no_such:X-v0")
    with open("rlcore_bad.py", "w", encoding="utf-8") as file:
        file.write("import sys; sys.exit('no\\nmore')")
    assert "the module 'rlcore_bad' cannot be imported: SystemExit: no more" in train("rlcore_bad:X-v0")
    assert "cannot be imported: SystemExit" in train("CartPole-v1", "--import", "rlcore_bad")
    assert "cannot be imported" in train("CartPole-v1", "--import", ".relative")
    assert "is not registered" in train(":")
    assert "is not registered" in train("X-v" + "9" * 5000)
    assert not os.path.exists("runs")


def test_the_name_behind_the_colon_is_what_counts():
    from rlcore import PPO
    from rlcore.envs.make import find_spec
    from rlcore.presets import find_preset
    from rlcore.runs.atari_scores import human_normalized

    assert find_spec("gymnasium:CartPole-v1").id == "CartPole-v1"
    assert find_preset("ppo", "gymnasium:CartPole-v1") == find_preset("ppo", "CartPole-v1") is not None
    assert human_normalized("ale_py:ALE/Pong-v5", 14.6) == 1
    agent = PPO("gymnasium:CartPole-v1", backend="native", num_envs=2, num_steps=8, seed=0, compile=False)
    assert agent.learn(64).evaluate(1).returns.shape == (1,) and agent.engine._is_cached() in (True, False)


def test_a_file_imports_nothing(capsys, module, monkeypatch):
    import rlcore

    assert run(capsys, "train", "ppo", f"{module}:RlcoreMine-v0", *SMALL, "--run-dir", "r")[0] == 0
    commands = (("train", "--resume", "r", "--total-steps", "800"), ("train", "--config", "r/config.toml"))
    commands += (("eval", "r", "--episodes", "1"), ("video", "r", "--out", "x.gif"))
    monkeypatch.setattr("rlcore.runs.video._write", lambda *_: None)
    for number, command in enumerate(commands):
        forget(module)
        message = refused(capsys, *command)
        assert f"--import {module}" in message and not os.path.exists("imported"), command
        sys.path.insert(0, os.getcwd())  # where it could be imported
        assert "--import" in refused(capsys, *command) and not os.path.exists("imported")
        more = ("--run-dir", f"r{number}") if "--config" in command else ()
        code, _, err = run(capsys, *command, *more, "--import", module)
        assert code == 0 and os.path.exists("imported"), err
    forget(module)
    file = max((p for p in os.listdir("r/checkpoints")), key=lambda name: int(name[5:-3]))
    with pytest.raises(rlcore.errors.UsageError, match="--import"):
        rlcore.load(f"r/checkpoints/{file}")
    assert not os.path.exists("imported")
    sys.path.insert(0, os.getcwd())
    rlcore.load(f"r/checkpoints/{file}", env=f"{module}:RlcoreMine-v0").close()


def test_a_module_inside_a_name_is_the_one_that_is_looked_for(module):
    """As many colons as there may be: what is checked and what would be imported are the same."""
    from rlcore.envs.make import check_imported
    from rlcore.errors import UsageError

    for env_id in (f"os:{module}:X-v0", f"{module}:os:X-v0"):
        with pytest.raises(UsageError, match="a file may not have a module imported"):
            check_imported(env_id, "the file")
    check_imported("os:X-v0", "the file")
    check_imported("ALE/Pong-v5", "the file")


def test_arguments_from_a_file_that_look_like_paths(capsys, tmp_path, monkeypatch):
    import gymnasium

    import rlcore
    from rlcore.envs.make import check_env_kwargs
    from rlcore.errors import UsageError

    endless = []
    endless.append(endless)
    for value in ("/etc/passwd", "a\\b", "module:Class", ["x", {"y": "a/b"}], {"a/b": 1}, b"a/b", [endless, ("a:b",)]):
        with pytest.raises(UsageError, match=r"the file gives the environment where = .*--env-arg where="):
            check_env_kwargs({"size": 3, "name": "plain text", "where": value}, {}, "the file")
        check_env_kwargs({"where": value}, {"where": "x"}, "the file")
    check_env_kwargs({"a": endless, "b": 1.5, "c": None}, {}, "the file")

    def make(where=""):
        return gymnasium.make("CartPole-v1", render_mode="rgb_array").unwrapped

    path = tmp_path / "config.toml"
    gymnasium.register("RlcoreWhere-v0", make, max_episode_steps=50)
    monkeypatch.setitem(gymnasium.registry, "RlcoreWhere-v0", gymnasium.registry.pop("RlcoreWhere-v0"))  # for now
    train = ("train", "ppo", "RlcoreWhere-v0", *SMALL)
    assert run(capsys, *train, "--run-dir", str(tmp_path / "r"), "--env-arg", "where=a/b")[0] == 0
    stored = str(tmp_path / "r")
    path.write_text((tmp_path / "r" / "config.toml").read_text())
    again = ("--run-dir", str(tmp_path / "s"))
    for command in (
        ("train", "--config", str(path), *again), ("eval", stored, "--episodes", "1"),
        ("train", "--resume", stored, "--total-steps", "800", "--no-progress"),
    ):  # fmt: skip
        assert "--env-arg where=" in refused(capsys, *command)
        code, _, err = run(capsys, *command, "--env-arg", "where=here")
        assert code == 0, err
    import tomllib

    for name in "rs":
        config = tomllib.loads((tmp_path / name / "config.toml").read_text())
        assert config["env_kwargs"] == {"where": "here"}
    assert rlcore.load(max((tmp_path / "r" / "checkpoints").glob("*.pt"))).env_kwargs == config["env_kwargs"]


def test_every_number_of_an_agent_has_a_range():
    import dataclasses

    from rlcore.agents import AGENTS
    from rlcore.agents.config import Range, field_metadata, field_types, inner_type

    for agent in AGENTS.values():
        kinds, marks = field_types(agent.Config), field_metadata(agent.Config)
        for field in dataclasses.fields(agent.Config):
            if inner_type(kinds[field.name]) in (int, float) or "tuple" in str(kinds[field.name]):
                ranges = [mark for mark in marks[field.name] if isinstance(mark, Range)]
                assert len(ranges) == 1, field.name
                assert inner_type(kinds[field.name]) is float or ranges[0].high < 2**64


@pytest.mark.parametrize("name", ["seed", "gamma", "learning_rate", "num_envs", "activation", "device", "hidden_sizes"])
@pytest.mark.parametrize("value", [10**6000, -(10**6000), [10**6000], 10**400], ids=["long", "low", "list", "high"])
def test_numbers_that_python_will_not_print(name, value):
    from rlcore.agents import PPO
    from rlcore.errors import UsageError

    with pytest.raises(UsageError, match=rf"^{name} is "):
        PPO.Config(**{name: value})


# What a run says of itself.


def told(env_id="CartPole-v1", backend="sync", how="python", asked="auto", on_env_error="stop", groups=False, count=1):
    """What a run says of its environments."""
    from types import SimpleNamespace

    from rlcore.runs.train import describe_environment

    return describe_environment(
        SimpleNamespace(
            env_id=env_id, backend=backend, engine=SimpleNamespace(how=how), group_starts=groups,
            config=SimpleNamespace(backend=asked, on_env_error=on_env_error), share=SimpleNamespace(count=count),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(), "one after another in this process (--backend sync); it has no vector implementation"),
        (dict(asked="sync"), "one after another in this process (--backend sync); asked for"),
        (dict(groups=True), "(--backend sync); groups need a seed for each environment"),
        (dict(on_env_error="restart"), "(--backend sync); environments that fail are begun anew one by one"),
        (dict(count=2), "(--backend sync); each process has the seeds of its own environments"),
        (dict(backend="async", asked="async"), "each in a process of its own (--backend async); asked for"),
        (dict(backend="envpool", asked="envpool"), "all at once, by EnvPool's threads (--backend envpool); asked for"),
        (dict(backend="vector"), "by the vector implementation of CartPole-v1 (--backend vector); that is faster than"),
        (
            dict(backend="native", how="compiled", env_id="gymnasium:CartPole-v1"),
            "rlcore's own CartPole-v1, in tensors and so part of the compiled programs (--backend native); the same "
            "task as gymnasium's",
        ),
        (
            dict(backend="native", how="recorded", env_id="rlcore/Copy-v0"),
            "environments: rlcore's own rlcore/Copy-v0, in tensors (--backend native); it is made of tensors",
        ),
    ],
)
def test_a_run_says_in_words_how_its_environments_are_stepped(asked, words):
    assert told(**asked).startswith("environments: ") and words in told(**asked)


@pytest.mark.parametrize(
    ("how", "count", "seconds", "words"),
    [
        ("python", 1, 0, "iterations: plain Python (--compile false); why"),
        ("recorded", 1, 0, "run one by one, faster than plain Python (--compile record); why"),
        ("compiled", 1, 0, "iterations: compiled programs, the fastest way (--compile true); why"),
        ("compiled", 1, 41.3, "(--compile true); why; built in 41 s, cached for next time"),
        ("compiled", 2, 0, "rollout, learning by recorded operations (--compile true); why; over 2 processes, 8 "
         "environments each"),
    ],
)  # fmt: skip
def test_a_run_says_in_words_how_its_iterations_run(how, count, seconds, words):
    from types import SimpleNamespace

    from rlcore.agents.engine import Engine

    agent = SimpleNamespace(share=SimpleNamespace(count=count), buffer=SimpleNamespace(num_envs=8))
    assert Engine.describe(SimpleNamespace(agent=agent, how=how, reason="why", seconds=seconds)).endswith(words)
