"""Searches: what is tried, what becomes of trials, of killed processes, of several, and of the preset in the end."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

from rlcore.agents import AGENTS, Config, PPOConfig
from rlcore.agents.config import (
    Lambda,
    Range,
    Search,
    check_range,
    check_type,
    enters_programs,
    field_metadata,
    field_types,
    search_space,
)
from rlcore.cli import main
from rlcore.errors import DivergenceError, UsageError
from rlcore.presets import find_preset
from rlcore.runs import tune as module
from rlcore.runs.tune import POINTS, TRIALS_BEFORE_PRUNING, Tuner, make_problem, score

ROLLOUTS = [name for name, agent in AGENTS.items() if agent.learns_from == "rollouts"]
FORK = multiprocessing.get_context("fork")


def problem_of(algo="ppo", env_id="CartPole-v1", **changed):
    preset = find_preset(algo, env_id) or {}
    options = dict(preset=preset, fixed={}, total_steps=600, seeds=[100, 101, 102], eval_episodes=5)
    return make_problem(algo, env_id, **{**options, **changed})


# The database takes longer than the trainings here, and more for each hyperparameter.
FEW = {name: PPOConfig.__dataclass_fields__[name].default for name in search_space(PPOConfig)}
FEW = {name: value for name, value in FEW.items() if name not in ("learning_rate", "activation", "gamma")}
PROBLEM = problem_of(fixed=FEW)


def quality(values, seed):
    """A return that a training could have, from its setting: best at a rate of 1e-3 with ReLU."""
    return -abs(np.log10(values["learning_rate"]) + 3) * 100 - 50 * (values["activation"] == "tanh") + seed % 100


def faked(patch):
    """Puts something in the place of trainings; returns what they were asked for, and how far they came."""
    made = []

    def train(problem, values, seed, report):
        made.append({"values": values, "seed": seed, "points": 0})
        for point in (2, 4):
            made[-1]["points"] = point
            report(point, quality(values, seed) * POINTS / point)
        made[-1]["points"] = POINTS
        return quality(values, seed)

    patch.setattr(module, "train", train)
    return made


@pytest.fixture
def trained(monkeypatch):
    return faked(monkeypatch)


@dataclass
class Whole:
    """A search of 14 trials: where, the trials, the trainings that were made, and what was printed."""

    path: Path
    trials: list
    trained: list
    lines: list


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        made = faked(patch)
        run(path, 14)
    return Whole(path, history(path), made, printed.getvalue().splitlines())


def run(path, trials, problem=PROBLEM, seed=0):
    with contextlib.closing(Tuner.open(path, problem, seed)) as tuner:
        tuner.work(trials, time.monotonic() + 60)
        tuner.write()
        return tuner


def states(path, problem=PROBLEM):
    with contextlib.closing(Tuner.open(path, problem)) as tuner:
        return [trial.state.name for trial in tuner.study.trials]


def history(path):
    return json.loads((path / "trials.json").read_text())["trials"]


# What is searched.


@pytest.mark.parametrize("name", AGENTS)
def test_what_is_searched_is_allowed(name):
    config = AGENTS[name].Config
    kinds, marks = field_types(config), field_metadata(config)
    assert "learning_rate" in search_space(config)
    for field, mark in search_space(config).items():
        values = mark.choices or (mark.low, mark.high)
        assert len(set(values)) == len(values) >= 2 and (mark.choices or mark.low < mark.high)
        for value in values:
            value = check_type(field, value, kinds[field])
            for allowed in marks[field]:
                if isinstance(allowed, Range):
                    check_range(field, value, allowed)


@pytest.mark.parametrize("name", ROLLOUTS)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_first_trial_is_the_preset_and_what_is_for_boxes_is_searched_there(name, env_id):
    problem, preset = problem_of(name, env_id), find_preset(name, env_id)
    config = AGENTS[name].Config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    expected = {**defaults, **preset}
    assert {x: problem.start[x] for x in preset if x != "total_steps"}.items() <= expected.items()
    assert all(value == expected[x] for x, value in problem.start.items())
    assert problem.start.keys() == problem.space.keys() | (preset.keys() - {"total_steps"})
    for x, mark in problem.space.items():
        assert expected[x] in mark.choices or mark.low <= expected[x] <= mark.high
    for_boxes = {"noise_correlation", "log_std_init", "squash"}
    assert problem.space.keys() & for_boxes == (for_boxes if env_id == "Pendulum-v1" else set())


def test_what_the_preset_has_is_tried_too():
    problem = problem_of("trpo", "MountainCar-v0")
    assert problem.start["update_epochs"] == 15 and problem.space["update_epochs"].choices == (5, 10, 20, 15)
    assert problem_of(preset={"learning_rate": 0.9}).space["learning_rate"] == Search(low=1e-4, high=0.9, log=True)


def test_the_spaces_of_the_algorithms():
    spaces = {name: search_space(AGENTS[name].Config) for name in ROLLOUTS}
    assert all(s["learning_rate"] == Search(low=1e-4, high=2e-2, log=True) for s in spaces.values())
    assert spaces["ppo"]["num_envs"].choices == (4, 8, 16) and spaces["grpo"]["num_envs"].choices == (16, 32, 64)
    assert spaces["grpo"]["gamma"].choices == (0.98, 0.99, 0.999, 1.0) and "norm_reward" not in spaces["grpo"]
    assert spaces["ppo"]["gamma"].choices == (0.9, 0.95, 0.98, 0.99, 0.999)
    assert "num_steps" not in spaces["reinforce"] and "max_kl" in spaces["trpo"]


@dataclass(frozen=True)
class Anew(PPOConfig):
    gamma: Annotated[float, Search((0.5, 0.6))] = 0.5  # keeps its range
    clip_coef: Annotated[float, Range(0, 0.5)] = 0.1  # keeps its search
    ent_coef: float = 0.0  # keeps both
    gae_lambda: Annotated[float, Search()] = 1.0  # is not searched
    learning_rate: Annotated[float, Search((1.0, 2.0))] = 1.0  # stays apart
    widths: Annotated[tuple[int, ...], Search(((4,), (8, 8)))] = (4,)  # lists
    depth: Annotated[int, Range(1, 9), Search(low=1, high=4)] = 1  # a whole number


def test_marks_of_a_class_that_declares_a_field_anew():
    marks, space, before = field_metadata(Anew), search_space(Anew), field_metadata(PPOConfig)
    assert marks["gamma"] == (Range(0, 1), Search((0.5, 0.6)))
    assert marks["clip_coef"] == (Range(0, 0.5), Search((0.1, 0.2, 0.3)))
    assert marks["ent_coef"] == before["ent_coef"] and len(before["ent_coef"]) == 2
    assert "gae_lambda" not in space and Range(0, 1) in marks["gae_lambda"]
    assert "gae_lambda" in search_space(PPOConfig) and Search in map(type, Lambda.__metadata__)
    assert space["learning_rate"].choices == (1.0, 2.0) and space["widths"].choices == ((4,), (8, 8))
    fields = [set(enters_programs(config)) for config in (PPOConfig, Anew, Config)]
    assert fields[1] - fields[0] == {"widths", "depth"} and "learning_rate" not in fields[1] | fields[2]


def test_agents_of_others_are_searched_by_their_own_marks(monkeypatch, tmp_path, trained):
    class Other(AGENTS["ppo"]):
        Config = Anew

    monkeypatch.setattr(module, "AGENTS", {"other": Other})
    problem = problem_of("other", preset={}, fixed={**FEW, "num_steps": 64, "activation": "relu"})
    assert problem.space["widths"].choices == ((4,), (8, 8)) and "num_steps" not in problem.space
    run(tmp_path, 6, problem)
    tried = [made["values"] for made in trained]
    assert {made["widths"] for made in tried} == {(4,), (8, 8)} and {made["num_steps"] for made in tried} == {64}
    assert {made["depth"] for made in tried} <= {1, 2, 3, 4} and len({made["depth"] for made in tried}) > 1


def test_a_variant_that_is_fixed_fixes_what_it_is_a_bundle_of():
    problem = problem_of("grpo", fixed={"variant": "rloo", "supervision": "outcome"})
    assert problem.start["update_epochs"] == 1 and problem.start["scale_std"] is False
    assert not {"update_epochs", "length_norm", "variant"} & problem.space.keys()


# What becomes of trials.


def test_the_preset_comes_first_and_the_best_becomes_a_preset(whole):
    trained, trials = whole.trained, whole.trials
    assert trained[0]["values"] == PROBLEM.start and [made["seed"] for made in trained[:3]] == [100, 101, 102]
    with contextlib.closing(Tuner.open(whole.path, PROBLEM)) as tuner:
        first, best_value, importances = tuner.first().value, tuner.best().value, tuner._importances()
    assert len(trials) == 14 and trials[0]["value"] == score(trials[0]["returns"]) == first
    best = max((t for t in trials if t["value"] is not None), key=lambda t: t["value"])
    assert best["value"] == best_value > first
    assert score([quality(best["values"], seed) for seed in (100, 101, 102)]) == best_value
    text = (whole.path / "preset.toml").read_text()
    assert text.count("\n[ppo.CartPole-v1]\n") == 1
    values = {name: list(x) if isinstance(x, tuple) else x for name, x in best["values"].items()}
    assert tomllib.loads(text) == {"ppo": {"CartPole-v1": {"total_steps": 600, **values}}}
    page = (whole.path / "tune.html").read_text()
    assert "{{" not in page and page.count('class="interval"') == 3 and "best so far" in page
    assert page.count("<tr>") == 2 + 3 + 14 and all(t.get("pruned", "") in page for t in trials)
    assert set(importances) == set(PROBLEM.space) and next(iter(importances)) in ("learning_rate", "activation")


def test_the_score_is_the_mean_less_the_deviation():
    assert score([1.0, 3.0]) == 1.0 and score([2.0]) == 2.0


def test_what_is_behind_is_not_trained_to_the_end(whole):
    trials, trained, at = whole.trials, whole.trained, 0
    first = []
    for trial in trials:  # a trial's trainings, the last of which may have been stopped
        mine = []
        while at < len(trained) and trained[at]["values"] == trial["values"]:
            mine.append(trained[at])
            at += 1
        whole = [made for made in mine if made["points"] == POINTS]
        if trial["state"] == "complete":
            assert len(whole) == len(mine) == 3 and len(trial["returns"]) == 3
            first.append(trial["returns"][0])
        elif trial.get("returns"):
            assert len(mine) == len(trial["returns"]) == 1 and trial["pruned"] == "behind after seed 100"
            assert trial["returns"][0] < np.median(first)
            first.append(trial["returns"][0])
        else:
            assert len(mine) == 1 and 2 <= mine[0]["points"] < POINTS and "of seed 100" in trial["pruned"]
    assert at == len(trained)
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert all(trial["number"] >= TRIALS_BEFORE_PRUNING for trial in pruned)
    assert any("/6 of seed 100" in trial["pruned"] for trial in pruned)


def test_after_its_first_training_a_trial_must_be_among_the_better_half(tmp_path, monkeypatch):
    """Also where it was ahead on the way."""
    ends = iter([50, 50, 50, 40, 40, 40, 30, 30, 30, 20, 20, 20, 10, 10, 10, 29, 31, 31, 31])

    def train(problem, values, seed, report):
        for point in range(1, POINTS + 1):
            report(point, 100.0)
        if seed != 100:  # of other seeds nothing is compared
            report(POINTS + 1, -100.0)
        return float(next(ends))

    monkeypatch.setattr(module, "train", train)
    study = run(tmp_path, 7).study
    assert {max(trial.intermediate_values) for trial in study.trials} == {POINTS}
    assert [len(trial["returns"]) for trial in history(tmp_path)] == [3, 3, 3, 3, 3, 1, 3]


def test_the_preset_is_trained_to_the_end_however_bad(tmp_path, trained):
    problem = problem_of(preset={"learning_rate": 0.9123456}, fixed=FEW)
    run(tmp_path, 7, problem)
    assert trained[0]["values"]["learning_rate"] == 0.9123456  # as it stands, of however many digits
    with contextlib.closing(Tuner.open(tmp_path, problem)) as tuner:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tuner, "_median_of_first", lambda number: 1e9)
            module._enqueue_preset(tuner.study, problem)
            tuner.work(8, time.monotonic() + 60, show=False)
        assert [trial.state.name for trial in tuner.study.trials][-1] == "COMPLETE"


@pytest.mark.parametrize("error", [DivergenceError("loss became nan"), UsageError("no\nsuch"), MemoryError()])
def test_a_setting_that_fails_does_not_end_the_search(tmp_path, trained, monkeypatch, capsys, error):
    def failing(problem, values, seed, report, train=module.train):
        if len(trained) == 4:  # the second training of the second trial
            trained.append({})
            raise error
        return train(problem, values, seed, report)

    monkeypatch.setattr(module, "train", failing)
    run(tmp_path, 4)
    failed = [trial for trial in history(tmp_path) if "error" in trial]
    assert [(t["number"], t["state"], t["value"], len(t["returns"])) for t in failed] == [(1, "pruned", None, 1)]
    assert "\n" not in failed[0]["error"] and failed[0]["error"]
    assert len(history(tmp_path)) == 4
    line = next(line for line in capsys.readouterr().out.splitlines() if "failed" in line)
    assert failed[0]["error"] in line


def test_where_nothing_ends_well_there_is_no_preset(tmp_path, monkeypatch, capsys):
    def train(*_):
        raise DivergenceError("loss became nan")

    monkeypatch.setattr(module, "train", train)
    assert main(["tune", "ppo", "CartPole-v1", "--out", str(tmp_path / "x"), "--trials", "2"]) == 2
    out, err = capsys.readouterr()
    assert out.count("loss became nan") == 2 and err == (
        "rlcore: no trial ended well, so that there is no preset; the lines above say why\n"
    )
    assert not (tmp_path / "x" / "preset.toml").exists()


def test_what_is_told(whole):
    lines, value = whole.lines, whole.trials[0]["value"]
    assert len(lines) == 14 and lines[0].startswith(f"   0 {value:9.1f} (best {value:8.1f})  [")
    assert lines[0].endswith("  the preset")
    changed = PROBLEM.changes(whole.trials[1]["values"])
    assert lines[1].split("]  ")[1].split(", ")[0].split()[0] == next(iter(changed)) and "learning_rate" in lines[1]
    assert all(f"{r:.1f}" in lines[1] for r in whole.trials[1]["returns"])
    pruned = next(trial for trial in whole.trials if "pruned" in trial)
    assert pruned["pruned"] in lines[pruned["number"]] and "   pruned (best" in lines[pruned["number"]]


# Going on, several processes.


def test_another_seed_tries_other_settings_than_the_preset(tmp_path, trained, whole):
    run(tmp_path, 3, seed=1)
    mine, others = ([trial["values"] for trial in trials] for trials in (history(tmp_path), whole.trials))
    assert mine[0] == others[0] and mine[1] not in others and mine[2] not in others
    assert len({json.dumps(values) for values in others}) == 14


def test_a_search_goes_on_as_one_that_was_not_stopped_and_repeats_nothing(tmp_path, trained, whole):
    for trials in (4, 10, 10):
        run(tmp_path, trials)
        assert trained == whole.trained[: len(trained)]
    assert [t["values"] for t in history(tmp_path)] == [t["values"] for t in whole.trials[:10]]
    assert states(tmp_path) == [trial["state"].upper() for trial in whole.trials[:10]]


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_trial_whose_process_was_killed_is_run_again(tmp_path, trained, monkeypatch):
    run(tmp_path, 2)
    marker, train = tmp_path / ".marker", module.train

    def hang(*_):
        marker.touch()
        time.sleep(60)

    monkeypatch.setattr(module, "train", hang)
    child = FORK.Process(target=run, args=(tmp_path, 9))
    child.start()
    wait_for(marker.exists)
    monkeypatch.setattr(module, "train", train)
    run(tmp_path, 4)  # the other is at work on one of the four
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    trained.clear()
    assert len(list(tmp_path.glob(".worker-*"))) == 1
    run(tmp_path, 5)
    assert not list(tmp_path.glob(".worker-*"))
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 3]
    with contextlib.closing(Tuner.open(tmp_path, PROBLEM)) as tuner:
        killed, again = tuner.study.trials[2], tuner.study.trials[4]
        assert killed.params == again.params and again.user_attrs["again"] == 2 and len(trained) == 6
    assert [trial["number"] for trial in history(tmp_path)] == [0, 1, 3, 4, 5]


def test_what_kills_its_process_twice_is_left(tmp_path, trained):
    with contextlib.closing(Tuner.open(tmp_path, PROBLEM)) as tuner:
        tuner.work(1, time.monotonic() + 60, show=False)
        for count in (1, 2, 3):
            trial = tuner._ask(None)
            tuner._suggested(trial)
            trial.set_user_attr("worker", None)  # of a process that is no more
            tuner._fail_dead()
            assert len([t for t in tuner.study.trials if t.state.name == "WAITING"]) == count % 2


def test_a_preset_whose_process_was_killed_is_still_the_first(tmp_path, trained, monkeypatch):
    with contextlib.closing(Tuner.open(tmp_path, PROBLEM)) as tuner:
        tuner._ask(None)  # and dies before it knows its values
    run(tmp_path, 3)
    assert states(tmp_path) == ["FAIL", *["COMPLETE"] * 3] and trained[0]["values"] == PROBLEM.start


def test_processes_at_a_time_lose_and_double_nothing(tmp_path, monkeypatch):
    def train(problem, values, seed, report):
        with open(tmp_path / ".log", "a", encoding="utf-8") as log:
            log.write(json.dumps([values, seed]) + "\n")
        time.sleep(0.02)
        return 1.0

    monkeypatch.setattr(module, "train", train)
    children = [FORK.Process(target=run, args=(tmp_path, 6)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert states(tmp_path) == ["COMPLETE"] * 6
    made = [tuple(line.split()) for line in (tmp_path / ".log").read_text().splitlines()]
    assert len(made) == len(set(made)) == 18
    with contextlib.closing(Tuner.open(tmp_path, PROBLEM)) as tuner:
        workers = {trial.user_attrs["worker"] for trial in tuner.study.trials}
        presets = [t.number for t in tuner.study.trials if t.user_attrs.get("is_preset")]
    assert len(workers) > 1 and presets == [0]
    assert {path.name for path in tmp_path.iterdir()} - {".log"} == {
        "study.db", "preset.toml", "trials.json", "tune.html",
    }  # fmt: skip


# The command.

COMMAND = ("tune", "ppo", "CartPole-v1", "--total-steps", "1000", "--seeds", "2", "--eval-episodes", "2")
COMMAND += ("--fixed", "compile=false", "--fixed", "device=cpu", "--fixed", "hidden_sizes=8")


def test_a_search_from_the_command_line_and_training_with_what_it_found(tmp_path, capfd):
    folder, out = tmp_path / "search", ("--out", str(tmp_path / "search"))
    assert main([*COMMAND, *out, "--trials", "3", "--jobs", "2"]) == 0
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 6 and printed[3].startswith("best: trial ")
    assert "(the preset: " in printed[3] and printed[4].startswith("rlcore train ppo CartPole-v1 --preset ")
    trials = history(folder)
    assert [trial["number"] for trial in trials] == [0, 1, 2] and all(len(t["returns"]) == 2 for t in trials)
    assert main([*COMMAND, *out, "--trials", "3"]) == 0
    assert history(folder) == trials and len(capfd.readouterr().out.splitlines()) == 3
    settings = ("--run-dir", str(tmp_path / "run"), "--seed", "1", "--eval-episodes", "0", "--no-progress")
    assert main([*printed[4].split()[1:], *settings]) == 0
    assert f"preset {folder / 'preset.toml'}" in capfd.readouterr().out
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    best = max(trials, key=lambda trial: (trial["value"], -trial["number"]))["values"]
    assert config["total_steps"] == 1000 and config["hyperparameters"].items() >= best.items()
    assert best["hidden_sizes"] == [8] and best["compile"] is False


def test_a_training_tells_how_it_goes_and_is_judged_greedily():
    told, problem = (
        [],
        problem_of(fixed={"compile": False, "num_steps": 8, "num_envs": 4, "update_epochs": 1}, total_steps=400),
    )
    result = module.train(problem, problem.start, 100, lambda *point: told.append(point))
    assert [point for point, _ in told] == [1, 2, 3, 4, 5] and all(8 <= mean <= 200 for _, mean in told)
    agent = AGENTS["ppo"]("CartPole-v1", **problem.start, seed=100)
    assert result == agent.learn(400).evaluate(5, seed=100).mean
    agent.close()


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("rlcore: ")
    return err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pop", "CartPole-v1"), "'pop' is not an algorithm of rlcore, did you mean 'ppo'?"),
        (("ppo", "CartPol-v1"), "did you mean 'CartPole-v1'?"),
        (("ppo",), "ENV_ID"),
        (("dpo", "CartPole-v1"), "ALGO is dpo, which does not learn from rollouts; there are reinforce, a2c, ppo"),
        (("ppo", "CartPole-v1", "--fixed", "gama=1"), "'gama' is not a hyperparameter of PPO, did you mean 'gamma'?"),
        (("ppo", "CartPole-v1", "--fixed", "gamma"), "--fixed is 'gamma', but must be NAME=VALUE"),
        (("ppo", "CartPole-v1", "--fixed", "gamma=2"), "gamma is 2.0, but must be at least 0 and at most 1"),
        (("ppo", "CartPole-v1", "--fixed", "gamma=high"), "gamma is 'high', but must be a number"),
        (("ppo", "CartPole-v1", "--fixed", "seed=3"), "--fixed names seed"),
        (("ppo", "CartPole-v1", "--fixed", "num_envs=3", "--fixed", "num_steps=5"), "num_minibatches is 4, but must"),
        (("ppo", "CartPole-v1", "--trials", "0"), "--trials is 0, but must be at least 1"),
        (("ppo", "CartPole-v1", "--minutes", "0"), "--minutes is '0', but must be a number of more than 0"),
        (("ppo", "CartPole-v1", "--minutes", "inf"), "--minutes is 'inf', but must be a number of more than 0"),
        (("ppo", "CartPole-v1", "--minutes", "soon"), "--minutes is 'soon'"),
        (("ppo", "CartPole-v1", "--jobs", "0"), "--jobs is 0, but must be at least 1"),
        (
            ("ppo", "CartPole-v1", "--trials", "1", "--total-steps", "1", "--seeds", "0-2"),
            "--seeds begins with 0, but must begin with 100 or more",
        ),
        (("ppo", "CartPole-v1", "--seeds", "a"), "seeds is 'a', but must be a whole number"),
        (("ppo", "CartPole-v1", "--total-steps", "0"), "--total-steps is 0"),
        (("ppo", "CartPole-v1", "--preset", "nowhere.toml"), "the file nowhere.toml does not exist"),
        (("ppo", "CartPole-v1", "--trails", "3"), "did you mean '--trials'?"),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, arguments, sentence):
    assert sentence in refused(capsys, "tune", *arguments, "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_folder_with_something_else_is_refused(capsys, tmp_path, trained):
    run(tmp_path / "search", 1, problem_of())
    command = ("tune", "ppo", "CartPole-v1", "--trials", "1", "--eval-episodes", "5", "--out", str(tmp_path / "search"))
    assert "another total_steps (600, not 700); choose" in refused(capsys, *command, "--total-steps", "700")
    command += ("--total-steps", "600")
    assert main(list(command)) == 0 and capsys.readouterr().out.startswith("best: trial 0")
    assert "another seeds" in refused(capsys, *command, "--seeds", "4")
    assert "another start.gamma (0.98, not 0.5)" in refused(capsys, *command, "--fixed", "gamma=0.5")
    other = [word if word != "ppo" else "a2c" for word in command]
    assert "another algo ('ppo', not 'a2c')" in refused(capsys, *other)
    other = [word if word != "CartPole-v1" else "Acrobot-v1" for word in command]
    assert "another env_id ('CartPole-v1', not 'Acrobot-v1')" in refused(capsys, *other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert "something in it that is no search" in refused(capsys, *command[:-4], "--out", str(tmp_path / "full"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.db").write_bytes(b"no database" * 100)
    assert "cannot be read as the study of a search" in refused(capsys, *command[:-4], "--out", str(tmp_path / "bad"))
    (tmp_path / "file").touch()
    assert "is no search" in refused(capsys, *command[:-4], "--out", str(tmp_path / "file"))


def test_without_optuna_the_extra_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    error = refused(capsys, "tune", "ppo", "CartPole-v1", "--out", str(tmp_path / "x"))
    assert error == "rlcore: tune needs the package optuna: pip install 'rlcore[tune]'\n"
    assert not (tmp_path / "x").exists()


# Presets out of files.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[ppo.CartPole-v1]\nlerning_rate = 1", "'lerning_rate' in FILE is not a hyperparameter of ppo, did you mean"),
        ("[ppo.Acrobot-v1]\ngamma = 1.0", "FILE has no preset for ppo on CartPole-v1; it has ppo on Acrobot-v1"),
        ("[a2c.CartPole-v1]\ngamma = 1.0", "it has a2c on CartPole-v1"),
        ("", "it has none"),
        ("[ppo.CartPole-v1", "FILE is not readable as TOML"),
        ("gamma = 1.0", "FILE is not a file of presets: it may only have tables such as"),
        ("[ppo]\ngamma = 1.0", "FILE is not a file of presets"),
        ("[ppo.CartPole-v1]\ntotal_steps = 0", "total_steps in FILE is 0, but must be a whole number of at least 1"),
        ("[ppo.CartPole-v1]\ntotal_steps = true", "total_steps in FILE is True"),
        ("[ppo.CartPole-v1]\ngamma = 7.0", "gamma is 7.0, but must be at least 0 and at most 1"),
        ("[ppo.CartPole-v1]\ngamma = 2020-01-01", "ppo.CartPole-v1.gamma in FILE is the date or time"),
        ("#" * 2**21, "FILE is longer than 1,048,576 bytes, the most that a file of presets may have"),
    ],
)
def test_files_that_are_no_presets_are_refused(capsys, tmp_path, text, sentence):
    file = tmp_path / "preset.toml"
    file.write_text(text)
    error = refused(capsys, "train", "ppo", "CartPole-v1", f"--preset={file}", "--run-dir", str(tmp_path / "x"))
    assert sentence.replace("FILE", str(file)) in error
    assert not (tmp_path / "x").exists()


def test_a_file_may_have_any_name_but_does_not_hide_a_preset(tmp_path, monkeypatch):
    from rlcore.presets import load_preset

    monkeypatch.chdir(tmp_path)
    for name in ("mine", "CartPole-v1"):
        (tmp_path / name).write_text('[ppo."my/*"]\ngamma = 0.5\n[ppo.Name-v0]\ngamma = 0.25')
    assert load_preset("ppo", "mine", "my/Env-v0", ["gamma"]) == ("mine", {"gamma": 0.5})
    assert load_preset("ppo", "mine", "module:Name-v0", ["gamma"]) == ("mine", {"gamma": 0.25})
    assert load_preset("ppo", "CartPole-v1", "Name-v0", []) == ("CartPole-v1", find_preset("ppo", "CartPole-v1"))
    assert load_preset("ppo", "auto", "CartPole-v1", []) == load_preset("ppo", "CartPole-v1", "CartPole-v1", [])
    assert load_preset("ppo", "auto", "Name-v0", []) == load_preset("ppo", "none", "CartPole-v1", []) == ("none", {})
    with pytest.raises(UsageError, match=r"preset 'other' does not exist for ppo.*a \.toml file, auto, none"):
        load_preset("ppo", "other", "Name-v0", [])
