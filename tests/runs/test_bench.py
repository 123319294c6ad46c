"""Benches: suites, cells, what fails, what is killed, and the index of what became of them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from itertools import product

import numpy as np
import pytest

from rlcore import PPO
from rlcore.agents.engine import RUNS, Engine
from rlcore.cli import main
from rlcore.cli.flags import Parser, RunFlags, hyperparameters_of
from rlcore.errors import UsageError
from rlcore.runs.bench import Bench, expected_cells
from rlcore.runs.bench_progress import BenchProgress
from rlcore.runs.processes import Processes, share
from rlcore.runs.results import POINTS, Result, curve_of, read_index, read_results
from rlcore.runs.suite import cells_of, completed, read_suite, seeds_of, shipped_suites
from rlcore.storage.files import FolderLock

# An agent that is none of rlcore: it notes that it was run, and returns its seed.
FOREIGN = """
    import json, os, pathlib, sys
    env_id, flags = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])
    out = pathlib.Path(flags["--out"])
    with open(out.parent / "runs", "a") as file:
        print(flags["--seed"], file=file)
    (out.parent / "shared-by").write_text(os.environ["RLCORE_RUNS"])
    if (out.parent / "broken").exists():
        print("something", file=sys.stderr)
        sys.exit("the disk of seed " + flags["--seed"] + " is round")
    out.mkdir(exist_ok=True)
    returns = [float(flags["--seed"])] * int(flags["--eval-episodes"])
    (out / "result.json").write_text(json.dumps({"returns": returns, "steps": 7}))
"""


@pytest.fixture
def foreign(tmp_path):
    script = tmp_path / "agent.py"
    script.write_text(textwrap.dedent(FOREIGN))
    return {"command": [sys.executable, str(script)]}


def suite_of(agents, seeds=2, **entries):
    return completed({"agents": agents, "envs": ["CartPole-v1"], "seeds": seeds, "eval_episodes": 2, **entries})


def run(path, suite, jobs=2):
    bench = Bench.open(path, suite)
    try:
        return bench.run(jobs, show=False)
    finally:
        bench.close()


def test_shipped_suites_are_whole():
    assert {"classic", "box2d", "mujoco", "atari-5", "tokens", "memory"} <= set(shipped_suites())
    for name in shipped_suites():
        if name not in ("box2d", "mujoco"):  # extras
            assert len(list(cells_of(completed(read_suite(name))))) >= 10
    assert len(list(cells_of(completed(read_suite("classic"))))) == 5 * 5 * 10


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"agent": ["ppo"]}, "'agent' is no entry of a suite, did you mean 'agents'"),
        ({"agents": []}, "the suite has no agents"),
        ({"agents": ["pop"]}, "'pop' is not an algorithm of rlcore, did you mean 'ppo'"),
        ({"agents": {"a/b": {"algo": "ppo"}}}, "agents.'a/b' may only have"),
        ({"agents": {"ppo": {"learning_rat": 1}}}, "'learning_rat' is not a hyperparameter of PPO"),
        ({"agents": {"ppo": {"learning_rate": "high"}}}, "learning_rate is 'high', but must be a number"),
        ({"agents": {"ppo": {"total_steps": "many"}}}, "total_steps of ppo is 'many'"),
        ({"agents": {"ppo": {"total_steps": 0}}}, "total_steps of ppo is 0, but must be at least 1"),
        ({"agents": {"x": {"command": "ls"}}}, "command of x is 'ls', but must be a list of words"),
        ({"agents": {"ppo": {"after": "bc"}}}, "after of ppo is 'bc', but may be one of ppo"),
        ({"agents": {"ppo": {"after": "a2c"}, "a2c": {"after": "ppo"}}}, "which itself waits for"),
        ({"agents": {"ppo": 3}}, "agents.ppo is 3, but must be a table"),
        ({"envs": ["CartPole-v9"]}, "environment 'CartPole-v9' is not registered"),
        ({"envs": {"CartPole-v1": {"env_kwargs": 3}}}, "env_kwargs of CartPole-v1 is 3"),
        ({"seeds": 0}, "seeds is 0, but must be from 1"),
        ({"seeds": "3-1"}, "seeds is '3-1'"),
        ({"seeds": "a"}, "seeds is 'a', but must be a whole number"),
        ({"eval_episodes": 0}, "eval_episodes is 0"),
        ({"eval_episodes": True}, "eval_episodes of the suite is True"),
        ({"imports": ["no_such_module"]}, "the module 'no_such_module' cannot be imported"),
    ],
)
def test_wrong_suites_are_refused_in_a_sentence(entries, sentence):
    with pytest.raises(UsageError) as error:
        completed({"agents": ["ppo"], "envs": ["CartPole-v1"], **entries})
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_seeds():
    assert seeds_of(3) == seeds_of("3") == [0, 1, 2] and seeds_of("100-102") == [100, 101, 102]


def test_flags_of_a_cell_say_what_the_suite_says():
    """Each kind of value: number, tuple, none, switch on and off, a choice that looks like a switch."""
    from rlcore.agents import PPO

    asked = {
        "learning_rate": 0.01,
        "hidden_sizes": [8, 8],
        "max_grad_norm": "none",
        "norm_adv": False,
        "norm_obs": True,
    }
    suite = completed(
        {
            "agents": {"x": {"algo": "ppo", "compile": True, "total_steps": 50, **asked}},
            "envs": {"CartPole-v1": {"gamma": 0.5, "total_steps": 70, "env_kwargs": {"sutton_barto_reward": True}}},
            "seeds": "5-5", "total_steps": 30, "preset": "none",
        }
    )  # fmt: skip
    cell = next(cells_of(suite))
    assert cell.command[1:6] == ("-m", "rlcore", "train", "ppo", "CartPole-v1") and cell.is_own
    parser = Parser(prog="x")
    RunFlags(parser, {}, everything=True).add(PPO.Config, parser.add_argument_group("run"))
    values = vars(parser.parse(cell.command[6:]))
    assert values["total_steps"] == "70" and values["preset"] == "none" and values["seed"] == "5"
    assert values["env_arg"] == ["sutton_barto_reward=true"]
    expected = {"learning_rate": 0.01, "hidden_sizes": (8, 8), "max_grad_norm": None, "norm_adv": False}
    expected |= {"norm_obs": True, "compile": True, "gamma": 0.5, "seed": 5}
    assert hyperparameters_of(PPO.Config, values) == expected


def test_cells_run_once_failures_are_told_and_tried_again(tmp_path, foreign):
    path, folder = tmp_path / "out", tmp_path / "out" / "CartPole-v1" / "own"
    suite = suite_of({"own": foreign})
    assert run(path, suite) == []
    results = read_index(path)
    assert [(r.agent, r.seed, r.score, r.steps, r.folder) for r in sorted(results, key=lambda r: r.seed)] == [
        ("own", 0, 0.0, 7, "CartPole-v1/own/seed-0"), ("own", 1, 1.0, 7, "CartPole-v1/own/seed-1"),
    ]  # fmt: skip
    assert run(path, suite_of({"own": foreign}, seeds=3)) == []  # more seeds: only the new one is run
    assert sorted((folder / "runs").read_text().split()) == ["0", "1", "2"]
    (folder / "broken").touch()
    failed = run(path, suite_of({"own": foreign}, seeds=5), jobs=1)
    assert [r.error for r in failed] == ["the disk of seed 3 is round", "the disk of seed 4 is round"]
    (folder / "broken").unlink()
    assert run(path, None) == [] and len(read_index(path)) == 5
    assert expected_cells(path) == [("own", "CartPole-v1", seed) for seed in range(5)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not say which cores there are")
def test_jobs_have_cores_of_their_own(monkeypatch):
    """Small networks on more threads than that are ten times slower."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 5, 8})
    assert [share(slot, 2) for slot in range(2)] == [{2, 3}, {5, 8}]
    assert [share(slot, 3) for slot in range(3)] == [{2}, {3}, {5}]
    assert share(0, 1) == {2, 3, 5, 8} and share(5, 6) == {3}


def test_a_failing_cell_does_not_stop_the_others(tmp_path, foreign, capsys):
    """From the command line: exit code 2, and one sentence that names the cell."""
    file = tmp_path / "suite.toml"
    words = ", ".join(json.dumps(word) for word in foreign["command"])
    file.write_text(
        f'envs = ["CartPole-v1"]\nseeds = 1\neval_episodes = 1\n[agents.bad]\ncommand = ["false"]\n'
        f"[agents.good]\ncommand = [{words}]\n"
    )
    assert main(["bench", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    out, err = capsys.readouterr()
    assert "1/2  bad on CartPole-v1, seed 0: failed: the process ended with code 1" in out
    assert "2/2  good on CartPole-v1, seed 0: return 0" in out and "1 of 2 cells are done" in out
    assert "1 of 2 cells failed, such as bad on CartPole-v1 with seed 0" in err and len(err.splitlines()) == 1


def test_an_agent_that_comes_after_another_waits_and_begins_with_its_network(tmp_path, foreign):
    suite = suite_of({"late": {"algo": "ppo", "after": "early", "total_steps": 9}, "early": foreign}, seeds=1)
    bench = Bench.open(tmp_path / "out", suite)
    late, early = bench.cells
    waiting, running, place = deque([late, early]), [], Processes(bench.path, 2)
    progress = BenchProgress(bench.cells, bench.results, show=False)
    bench._start_some(waiting, running, place, progress)
    assert [job.cell for job in running] == [early] and list(waiting) == [late]
    running[0].handle.wait()
    ((job, ending),) = place.ended(running)
    bench._record(bench._result(job.cell, ending))
    assert f"--init={bench.path / early.folder}" in bench._command(late, bench.path)
    bench._record(dataclasses.replace(bench.results["early", "CartPole-v1", 0], state="failed", error="no disk"))
    bench._start_some(waiting, [], place, progress)
    assert bench.results["late", "CartPole-v1", 0].error.endswith("network of early, which failed: no disk")
    bench.close()


SMALL = ["bench", "--agents", "a2c", "--envs", "CartPole-v1", "--seeds", "1", "--total-steps", "4000"]
SMALL += ["--eval-episodes", "5", "--jobs", "1"]


def test_a_bench_killed_in_the_middle_goes_on_to_the_same_results(tmp_path):
    """Its runs die with it, and what they had not stored is made again as it was."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "rlcore", *SMALL]
    process = subprocess.Popen([*command, "--out", str(broken)], stdout=subprocess.DEVNULL)
    folder = broken / "CartPole-v1" / "a2c" / "seed-0"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("checkpoints/*.pt"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert main([*SMALL, "--out", str(broken)]) == 2  # another has it
    process.send_signal(signal.SIGKILL)
    process.wait()
    FolderLock(folder / ".lock").acquire(wait=True).release()  # its run has died, too
    assert not (folder / "evaluation.json").exists() and not (broken / "results.jsonl").exists()
    assert main(["bench", "--out", str(broken)]) == main([*SMALL, "--out", str(whole)]) == 0
    (ours,), (theirs,) = read_index(broken), read_index(whole)
    assert ours.returns == theirs.returns and ours.steps == theirs.steps >= 4000
    assert ours.curve["returns"] == theirs.curve["returns"] and len(ours.curve["returns"]) == POINTS
    assert "resuming a2c" in folder.with_name("seed-0.log").read_text()
    assert read_results(folder)[0].returns == ours.returns
    (broken / "results.jsonl").write_bytes(b"")  # killed between the end of the run and the index
    assert main(["bench", "--out", str(broken)]) == 0
    assert read_index(broken)[0].returns == theirs.returns


def test_the_report_of_a_bench_tells_what_has_not_run(tmp_path, foreign, capsys):
    run(tmp_path / "out", suite_of({"own": foreign}, seeds=2))
    Bench.open(tmp_path / "out", suite_of({"own": foreign}, seeds=3)).close()  # one more, which is not run yet
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "report.html: 2 runs, 1 not run; as Markdown: " in capsys.readouterr().out
    assert "own" in (tmp_path / "out" / "report.html").read_text()
    assert "own on CartPole-v1" in (tmp_path / "out" / "report.md").read_text().replace("`", "").replace("\\", "")
    run(tmp_path / "out", None)
    assert main(["report", str(tmp_path / "out"), "--live", "1"]) == 0  # all is done: written once
    assert 'http-equiv="refresh"' in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "{}/new"], "where no bench has begun"),
        (["--out", "{}/new", "--seeds", "3"], "--seeds is given, but neither SUITE nor --agents and --envs"),
        (["classical", "--out", "{}/new"], "SUITE is classical, but there is no such file"),
        (["classic", "--agents", "dpo", "--out", "{}/new"], "--agents names 'dpo', but the suite has ppo, a2c"),
        (["--agents", "ppo", "--out", "{}/new"], "the suite has no envs"),
        (["--agents", ",", "--out", "{}/new"], "--agents is ','"),
        (["classic", "--jobs", "0", "--out", "{}/new"], "--jobs is 0"),
        (["classic", "--out", "{}"], "which has something in it that is no bench"),
        (["{}/file", "--out", "{}/new"], "is not readable as TOML"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, sentence, tmp_path, capsys):
    (tmp_path / "file").write_text("= 3")
    assert main(["bench", *(argument.format(tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1 and not (tmp_path / "new").exists()


def test_another_suite_in_the_same_folder_is_refused_by_what_differs(tmp_path, foreign):
    run(tmp_path / "out", suite_of({"own": foreign}, seeds=1))
    with pytest.raises(UsageError, match=r"another envs.CartPole-v1.total_steps \(None, not 5\)"):
        Bench.open(tmp_path / "out", suite_of({"own": foreign}, envs={"CartPole-v1": {"total_steps": 5}}))
    Bench.open(tmp_path / "out", None).close()  # the lock was given back


def test_a_bench_grows_by_agents_environments_and_seeds(tmp_path, foreign):
    run(tmp_path / "out", suite_of({"own": foreign}, seeds=1))
    bench = Bench.open(tmp_path / "out", suite_of({"more": foreign}, envs=["Acrobot-v1"], seeds=2))
    bench.close()
    cells = {(cell.agent, cell.env_id, cell.seed) for cell in bench.cells}
    assert cells == set(product(("own", "more"), ("CartPole-v1", "Acrobot-v1"), (0, 1)))
    assert set(bench.results) == {("own", "CartPole-v1", 0)}  # what had run has not to run again


# The index.

CURVE = {"steps": [5, 9], "seconds": [0.5, 1.0], "returns": [None, 2.5]}
RESULT = Result("ppo", "CartPole-v1", 3, "done", returns=[1.0, 2.0], curve=CURVE)


def test_an_index_gives_back_what_was_written_and_the_newest_of_each_cell(tmp_path):
    newer = dataclasses.replace(RESULT, returns=[5.0])
    (tmp_path / "results.jsonl").write_text(RESULT.line() + newer.line() + newer.line()[:40])
    assert read_index(tmp_path) == [newer]
    assert Result.of_line(RESULT.line(), "here") == RESULT and RESULT.score == 1.5


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1", "line 1 of {} is no JSON"),
        ("3", "line 1 of {} is 3, but must be the record"),
        ('{"agent": "a"}', "has no 'env_id'"),
        (RESULT.line().replace('"done"', '"undone"').strip(), "has no 'state'"),
        (RESULT.line().replace('"seed": 3', '"seed": "3"').strip(), "seed in line 1 of {} is '3'"),
        (RESULT.line().replace("2.5", "NaN").strip(), "no finite numbers"),
        (RESULT.line().replace("2.5", '"<b>"').strip(), "no finite numbers"),
    ],
)
def test_a_damaged_index_is_refused_with_its_line(line, sentence, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(UsageError) as error:
        read_index(tmp_path)
    assert sentence.format(file) in str(error.value)


def test_a_curve_is_the_mean_of_the_episodes_that_ended_in_each_stretch():
    """Against a loop over episodes; the last step of a stretch belongs to it."""
    rng = np.random.default_rng(0)
    steps = np.sort(rng.choice(np.arange(1, 5001), 300, replace=False)).astype(float)
    steps[[10, 20]] = 50, 100  # on an edge
    steps.sort()
    log = {"global_step": steps, "return": rng.normal(size=300), "seconds": np.sort(rng.uniform(0, 9, 300))}
    curve = curve_of(log, 5000)
    for k in range(POINTS):
        inside = [i for i, step in enumerate(steps) if 50 * k < step <= 50 * (k + 1)]
        mean = curve["returns"][k]
        assert mean is None if not inside else mean == pytest.approx(log["return"][inside].mean(), rel=1e-5)
        until = log["seconds"][steps <= 50 * (k + 1)]
        assert curve["seconds"][k] == pytest.approx(until[-1] if len(until) else 0.0, abs=0.006)
    assert curve["steps"] == [50 * (k + 1) for k in range(POINTS)]


def test_programs_are_compiled_where_the_runs_of_a_bench_together_are_long_enough(monkeypatch, tmp_path, foreign):
    agent = PPO("CartPole-v1", num_envs=2, num_steps=8)
    monkeypatch.setattr(agent.engine, "_obstacle_to_compiling", lambda: "")
    monkeypatch.setattr(agent.engine, "_is_cached", lambda: False)
    assert agent.engine._choose_fastest(30.0)[0] == "recorded"
    monkeypatch.setenv(RUNS, "10")
    agent.engine.runs = Engine(agent).runs
    assert agent.engine._choose_fastest(30.0) == ("compiled", "10 runs share them")
    run(tmp_path / "out", suite_of({"own": foreign}, seeds=3))
    assert next((tmp_path / "out").rglob("shared-by")).read_text() == "3"
