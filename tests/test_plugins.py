"""Agents of other packages, by entry points; the first of them is that of the guide on agents, as pasted."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rlcore.agents import AGENTS, PPO, AgentTable, load
from rlcore.agents.config import field_help
from rlcore.errors import UsageError

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "pages" / "guides" / "agent.md").read_text()


def guide_file(name):
    """The text of the block that the guide says to put into a file of this name."""
    return re.search(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)[1]


def install(folder, files, pyproject):
    """What pip would leave in site-packages: modules, and a dist-info with the entry points of `pyproject`."""
    project = tomllib.loads(pyproject)["project"]
    for name, text in files.items():
        (folder / name).write_text(text)
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata)
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))


def rlcore(site, *arguments, code=0):
    """Run the command line where `site` is importable; returns what it printed, and on stderr."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "rlcore", *arguments]
    done = subprocess.run(command, cwd=site, env=environ, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install(folder, {"rlcore_awr.py": guide_file("rlcore_awr.py")}, guide_file("pyproject.toml"))
    return folder


def test_the_example_has_at_most_60_lines():
    lines = [*guide_file("rlcore_awr.py").splitlines(), *guide_file("pyproject.toml").splitlines()]
    assert 30 < len(lines) <= 60


def test_it_is_listed_and_its_hyperparameters_are_explained(site):
    listed, errors = rlcore(site, "list", "--json")
    agents = json.loads(listed)
    assert list(agents) == ["reinforce", "a2c", "ppo", "trpo", "grpo", "bc", "dpo", "rewardmodel", "awr"] and not errors
    assert agents["awr"]["summary"].startswith("Advantage-weighted regression (Peng et al. 2019")
    assert agents["awr"]["defaults"]["beta"] == 1.0
    assert "temperature: low imitates the best alone (default: 1.0)" in rlcore(site, "train", "awr", "--help")[0]
    assert "  awr         Advantage-weighted" in rlcore(site, "train", "--help")[0]


def test_it_trains_evaluates_and_resumes_from_the_command_line(site):
    line = re.search(r"<!-- command: plugin -->\n```bash\nrlcore (.*)\n```", GUIDE)[1]
    said, _ = rlcore(site, *line.split(), "--run-dir", "run", "--no-progress")
    assert float(re.search(r"evaluation: return ([\d.]+)", said)[1]) > 300  # it learns: a random policy gets 22
    assert json.loads(rlcore(site, "eval", "run", "--episodes", "2", "--json")[0])["algo"] == "awr"
    rlcore(site, "train", "--resume", "run", "--total-steps", "52000", "--no-progress", "--eval-episodes", "0")
    near = rlcore(site, "train", "arw", "CartPole-v1", code=2)[1]
    assert near == "rlcore: 'arw' is not an algorithm of rlcore, did you mean 'awr'?; there are " + (
        "reinforce, a2c, ppo, trpo, grpo, bc, dpo, rewardmodel, awr, or module:Class of your own\n"
    )


BROKEN = {
    "absent": ("no_such_module:Absent", "ModuleNotFoundError: No module named 'no_such_module'"),
    "crashes": ("broken_agents_crash:X", "cannot be loaded: ZeroDivisionError: division by zero"),
    "function": ("broken_agents:function", "is no agent: broken_agents:function must be a subclass"),
    "wrong": ("broken_agents:Named", "must bear the name of its class in lower case, 'named'"),
    "ppo": ("broken_agents:Named", "agent 'ppo' of package broken-agents is left out, because its name is taken"),
}


@pytest.fixture
def broken(tmp_path):
    points = "\n".join(f'{name} = "{value}"' for name, (value, _) in BROKEN.items())
    pyproject = f'[project]\nname = "broken-agents"\nversion = "1"\n[project.entry-points."rlcore.agents"]\n{points}'
    source = "from rlcore import PPO\nclass Named(PPO): pass\ndef function(): pass\n"
    install(tmp_path, {"broken_agents.py": source, "broken_agents_crash.py": "1 / 0\n"}, pyproject)
    return tmp_path


def test_broken_agents_are_a_sentence_each_and_the_rest_works(broken):
    listed, errors = rlcore(broken, "list", "--json")
    assert list(json.loads(listed)) == ["reinforce", "a2c", "ppo", "trpo", "grpo", "bc", "dpo", "rewardmodel"]
    sentences = errors.splitlines()
    for name, (_, message) in BROKEN.items():
        assert sum(f"agent '{name}' of package broken-agents" in s and message in s for s in sentences) == 1, errors
    assert len(sentences) == len(BROKEN) and all(s.startswith("rlcore: ") for s in sentences)


def test_a_broken_agent_asked_for_by_name_is_one_sentence(broken):
    _, errors = rlcore(broken, "train", "crashes", "CartPole-v1", code=2)
    sentence = "rlcore: agent 'crashes' of package broken-agents cannot be loaded: ZeroDivisionError: division by zero"
    assert errors.splitlines()[-1] == sentence and "Traceback" not in errors


def test_agents_of_rlcore_itself_ask_no_package(monkeypatch):
    def searched(group):
        raise AssertionError("searched the installed packages")

    monkeypatch.setattr("rlcore.agents.entry_points", searched)
    table = AgentTable({"ppo": PPO})
    assert table["ppo"] is PPO and "ppo" in table
    with pytest.raises(AssertionError, match="searched"):
        list(table)


def test_found_in_this_process_it_is_loaded_once_and_only_when_asked_for(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "rlcore_awr", raising=False)
    monkeypatch.setattr("rlcore.agents._subclasses", lambda agent: {})  # of which another test may have left some
    table = AgentTable({"ppo": PPO})
    with pytest.raises(KeyError):
        table["unheard"]
    assert "rlcore_awr" not in sys.modules
    assert table["awr"] is table["awr"] and len(table) == 2 and "unheard" not in table
    assert "temperature" in field_help(table["awr"].Config)["beta"]
    monkeypatch.delitem(sys.modules, "rlcore_awr")


def test_a_class_that_bears_another_name_would_not_be_found_again_in_a_checkpoint(broken, monkeypatch):
    monkeypatch.syspath_prepend(str(broken))
    with pytest.raises(UsageError, match="'named'"):
        AgentTable({})["wrong"]


def test_a_study_of_an_own_agent_as_in_the_guide(tmp_path):
    """From a file of 60 lines to a search, a bench beside PPO, a page and a policy that needs no rlcore, as pasted."""
    for name in ("rlcore_awr.py", "study.toml"):
        (tmp_path / name).write_text(guide_file(name))
    lines = re.search(r"<!-- command: study -->\n```bash\n(.*?)\n```", GUIDE, re.DOTALL)[1].splitlines()
    assert [line.split()[:2] for line in lines] == [["rlcore", name] for name in ("tune", "bench", "report", "export")]
    said = [rlcore(tmp_path, *line.split()[1:]) for line in lines]

    preset = tomllib.loads((tmp_path / "study" / "tune" / "preset.toml").read_text())["awr"]["CartPole-v1"]
    assert (
        "beta" in preset and len(json.loads((tmp_path / "study" / "tune" / "trials.json").read_text())["trials"]) == 10
    )
    results = [json.loads(line) for line in (tmp_path / "study" / "bench" / "results.jsonl").read_text().splitlines()]
    assert {(r["agent"], r["seed"], r["state"]) for r in results} == {
        (agent, seed, "done") for agent in ("ppo", "awr") for seed in range(3)
    }
    assert all(r["hyperparameters"]["beta"] == preset["beta"] for r in results if r["agent"] == "awr")
    assert all(
        word in (tmp_path / "study" / "bench" / "report.md").read_text() for word in ("ppo", "awr", "CartPole-v1")
    )
    play = [sys.executable, ROOT / "benchmarks" / "examples" / "run_policy.py", "awr.pt2", "CartPole-v1"]
    played = subprocess.run(play, cwd=tmp_path, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    assert "acts as the agent does" in said[-1][0]


def test_an_agent_of_the_current_folder_goes_on_and_is_imported_by_no_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from rlcore import PPO\nclass Mine(PPO): pass\nclass A2C(PPO): pass\nprint('ran')"
    )
    out, _ = rlcore(tmp_path, "train", "mine:Mine", "CartPole-v1", "--total-steps", "600", "--run-dir", "run",
                    "--no-progress", "--eval-episodes", "0")  # fmt: skip
    assert out.startswith("ran\nmine on 4 × CartPole-v1")
    for command in (["eval", "run"], ["train", "--resume", "run", "--total-steps", "900"]):
        said, sentence = rlcore(tmp_path, *command, code=2)
        assert "is of algorithm 'mine'" in sentence and "--import MODULE" in sentence and "ran" not in said
    rlcore(tmp_path, "train", "--resume", "run", "--total-steps", "1500", "--import", "mine", "--eval-episodes", "0")
    assert json.loads(
        rlcore(tmp_path, "eval", "run", "--import", "mine", "--episodes", "1", "--json")[0].split("ran\n")[1]
    )
    for name, sentence in (
        ("mine:Min", "'mine:Min' is no agent: mine has no subclass of rlcore.agents.Agent Min, did you mean 'Mine'"),
        ("mine:A2C", "'mine:A2C' must have another name, because 'a2c' is one of rlcore's own"),
        ("none:Mine", "the module 'none' cannot be imported"),
    ):
        assert sentence in rlcore(tmp_path, "train", name, "CartPole-v1", code=2)[1]
    (tmp_path / "bench").mkdir()  # somebody's
    (tmp_path / "bench" / "bench.toml").write_text('agents = ["mine:Mine"]\nenvs = ["mine:X-v0"]\nimports = ["mine"]\n')
    line = '{"agent": "mine", "env_id": "mine:X-v0", "seed": 0, "state": "failed", "error": "lost"}\n'
    (tmp_path / "bench" / "results.jsonl").write_text(line)
    said, _ = rlcore(tmp_path, "report", "bench")
    assert "ran" not in said and "9 not run" in said


def test_a_subclass_that_is_defined_is_loaded(tmp_path):
    class Here(PPO):
        pass

    agent = Here("CartPole-v1", seed=0, num_envs=2, num_steps=8)
    agent.save(tmp_path / "here.pt")
    assert type(load(tmp_path / "here.pt")) is Here and "here" not in list(AGENTS)
