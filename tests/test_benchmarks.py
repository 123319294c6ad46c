"""What the benchmarks compute and decide by themselves."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


SCRIPT = """
import os
import sys

import harness

def main():
    print(harness.worker(__file__, {"a": 1, "b": [2]}, threads=3, cache="/somewhere"))
    try:
        harness.worker(__file__, {"a": 0, "b": []})
    except harness.Failed as error:
        print(error.said)
    harness.run([sys.executable, "-c", "print('about to fail', file=sys.stderr)"])

def work(a, b):
    print("on the way")
    return [1 // a, b, os.environ["OMP_NUM_THREADS"], os.environ.get("RLCORE_CACHE")]

harness.start(main, work)
"""


def test_a_worker_does_its_task_in_a_process_of_its_own_and_tells_how_it_failed(tmp_path):
    (tmp_path / "script.py").write_text(f"import sys; sys.path.append({str(BENCHMARKS)!r})\n" + SCRIPT)
    env = {name: value for name, value in os.environ.items() if name != "RLCORE_CACHE"}
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=env)
    lines = result.stdout.splitlines()
    assert lines[0] == "[1, [2], '3', '/somewhere']" and lines[1].startswith("ZeroDivisionError: ")
    assert result.returncode == 1 and "-c" in result.stderr and "failed with code 1:" in result.stderr
    assert "NameError: name 'sys' is not defined" in result.stderr


def test_techniques_take_turns_and_ratios_are_those_of_one_repetition(capsys):
    import harness

    course = []

    def measure(name, repetition):
        course.append((name, repetition))
        return None if name == "c" and repetition else len(course)

    rows = harness.alternate("abc", 2, measure, lambda row: f"got {row}")
    assert course == [(name, repetition) for repetition in (0, 1) for name in "abc"]
    assert rows == {"a": [1, 4], "b": [2, 5], "c": [3]}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[3].split() == ["2/2", "a", "got", "4"]
    assert harness.ratios(rows["a"], rows["b"]) == [0.5, 0.8]
    assert harness.with_median("x", rows["a"]) == {"x_median": 2.5, "x": [1, 4]}
    assert harness.spread([3, 1, 2]) == "2.00 (1.00 to 3.00)" and harness.spread([0.5], ".0%") == "50% (50% to 50%)"
    harness.table([["name", "x"], ["a", "10.5"], ["longer", ""]])
    assert capsys.readouterr().out == "\nname        x\na        10.5\nlonger       \n"


def test_a_stretch_of_training_is_told_with_the_agents_own_phases():
    import harness

    from rlcore import PPO

    agent = PPO("CartPole-v1", num_envs=2, num_steps=8, num_minibatches=1, seed=0, device="cpu", compile=False)
    iterations = agent.iterations(harness.FAR)
    next(iterations)
    first = agent.global_step
    stretch = harness.stretch(agent, lambda: next(iterations), calls=3)
    assert stretch.calls == 3 and stretch.steps == agent.global_step - first > 0
    assert stretch.phases["prepare"] == 0 < min(stretch.phases["collect"], stretch.phases["learn"])
    assert 0 < stretch.phases["collect"] + stretch.phases["learn"] < stretch.seconds
    assert stretch.steps_per_second == stretch.steps / stretch.seconds
    agent.close()


def test_the_agent_of_the_readme_is_measured_on_the_work_of_ppo():
    import speed

    options = argparse.Namespace(algo="ppo", env_id="CartPole-v1", num_envs=None, device="cpu", threads=1, seconds=0.0)
    mine = speed.train_rlcore(options, speed.own_agent(), compile=False)
    theirs = speed.WORKERS["python"](options)
    assert mine["work"] == theirs["work"] and theirs["work"]["num_envs"] == 4
    assert list(mine["seconds"]) == ["collect", "learn"]
    assert speed.shares([mine]).keys() == mine["seconds"].keys() and sum(speed.shares([mine]).values()) == 1
    assert speed.shares([{"seconds": {}}]) == {}


def test_results_go_where_they_are_asked_to_go(tmp_path):
    env = {**os.environ, "RLCORE_RESULTS": str(tmp_path / "a" / "b"), "PYTHONPATH": str(BENCHMARKS)}
    subprocess.run([sys.executable, "-c", "import machine; machine.write('x', {'y': 1})"], check=True, env=env)
    assert '"y": 1' in (tmp_path / "a" / "b" / "x.json").read_text()


def work_of(tmp_path, text, **flags):
    import shapes

    file = tmp_path / "work.toml"
    file.write_text(text)
    return shapes.read_work(argparse.Namespace(toml=file, **{**dict.fromkeys(shapes.KEYS), **flags}))


WORK = """
num_envs = [1, 64]
techniques = ["python"]
longest = 128
most_transitions = 1000
update_epochs = 4
num_minibatches = 2
"""


def test_flags_go_before_the_toml_and_rollouts_keep_their_bound(tmp_path):
    import shapes

    work = work_of(tmp_path, WORK, num_envs=[8, 65536], update_epochs=1)
    assert work["num_envs"] == [8, 65536] and work["update_epochs"] == 1 and work["num_minibatches"] == 2
    assert [shapes.num_steps(n, work) for n in (1, 8, 100, 2000)] == [128, 125, 10, 1]


@pytest.mark.parametrize(
    "text, flags, message",
    [
        ("num_envs = [", {}, "cannot be read"),
        (WORK + "num_env = [1]", {}, "has the key 'num_env'"),
        (WORK.replace("longest = 128", ""), {}, "has no 'longest', and there is no --longest"),
        (WORK, {"num_envs": [4, 0]}, r"num_envs is \[4, 0\], but may be whole numbers of at least 1"),
        (WORK.replace("python", "jax"), {}, r"techniques is \['jax'\], but may be"),
    ],
)
def test_bad_shapes_are_refused(tmp_path, text, flags, message):
    with pytest.raises(ValueError, match=message):
        work_of(tmp_path, text, **flags)


def test_shipped_shapes_are_good():
    import shapes

    options = argparse.Namespace(toml=BENCHMARKS / "shapes.toml", **dict.fromkeys(shapes.KEYS))
    work = shapes.read_work(options)
    assert all(n * shapes.num_steps(n, work) <= work["most_transitions"] for n in work["num_envs"])


def test_saturation_is_the_first_shape_near_the_top():
    import shapes

    speeds = {1: 10, 4: 50, 16: 91, 64: 100, 256: 80}
    points = [{"technique": "compiled", "num_envs": n, "steps_per_second_median": v} for n, v in speeds.items()]
    assert shapes.where_it_saturates("compiled", points) == 16
    assert shapes.where_it_saturates("python", points) is None


def test_single_environments_are_played_to_their_end():
    import time_to_solve

    def to_the_right(obs, deterministic):
        assert deterministic and obs.shape == (3, 4)
        return np.ones(3, dtype=np.int64)

    returns = time_to_solve.play([gymnasium.make("CartPole-v1") for _ in range(3)], to_the_right, seed=7)
    expected = []
    for seed in (7, 8, 9):
        env = gymnasium.make("CartPole-v1")
        env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(1)
            total, done = total + reward, terminated or truncated
        expected.append(total)
    assert returns.tolist() == expected


def test_solved_runs_are_counted_and_ratios_taken_within_a_repetition():
    import time_to_solve

    repetitions = [
        {"imports": {"seconds": 1.0}, "compiled": {"seconds": 3.0, "mean": 500.0, "mean_single": 470.0}},
        {"imports": {"seconds": 2.0}, "compiled": {"seconds": 4.0, "mean": 475.0, "mean_single": 480.0}},
        {"imports": {"seconds": 1.0}, "compiled": {"seconds": 5.0, "mean": 474.0, "mean_single": 100.0}},
    ]
    summary = time_to_solve.summarize("compiled", repetitions)
    assert summary["ratio_to_imports"] == [3.0, 2.0, 5.0] and summary["ratio_to_imports_median"] == 3.0
    assert (summary["solved"], summary["solved_single"], summary["solved_of"]) == (2, 1, 3)


def test_costs_of_features_are_shares_of_the_bare_time():
    import run_features

    row = {
        "bare": {"wall": 10.0, "cpu": 8.0}, "all": {"wall": 11.0, "cpu": 8.8, "beside": 0.33},
        "without progress": {"wall": 10.5, "cpu": 8.4},
        "clocked": {"wall": 10.0, "cpu": 8.0, "parts": {"progress": 0.2, "nan check": 0.1}},
    }  # fmt: skip
    cost = run_features.summarize([row, row])["cost"]
    assert cost["all"]["wall_median"] == pytest.approx(0.1) and cost["all"]["cpu_median"] == pytest.approx(0.1)
    assert cost["all"]["calls_median"] == pytest.approx(0.03)
    assert cost["progress"]["wall_median"] == pytest.approx(0.05)
    assert cost["progress"]["calls_median"] == pytest.approx(0.02)
    assert cost["nan check"] == {"calls_median": pytest.approx(0.01)}


def test_rows_that_are_there_are_left_out_unless_their_settings_have_changed():
    import memory

    def keys(rows, **more):
        found = memory.missing(rows, ["Repeat4", "TMaze"], ["feedforward", "gru"], range(2), **more)
        return [memory.key(row) for row in found]

    rows = {}
    every = keys(rows)
    assert len(every) == 8 and every[:3] == ["Repeat4 feedforward 0", "Repeat4 gru 0", "TMaze feedforward 0"]
    for row in memory.missing(rows, ["TMaze"], ["gru"], range(1)):
        rows[memory.key(row)] = json.loads(json.dumps(row))
    assert keys(rows) == [one for one in every if one != "TMaze gru 0"]
    assert keys(rows, total_steps=7) == every
    rows["TMaze gru 0"]["settings"]["hyperparameters"]["gamma"] = 0.5
    assert keys(rows) == every
    without, with_memory = (memory.settings("TMaze", policy)["hyperparameters"] for policy in ("feedforward", "lstm"))
    assert with_memory == {**without, "memory": "lstm", "memory_size": 64, "sequence_length": 64}


def test_seeds_that_solved_a_memory_task_are_counted():
    import memory

    means = {"gru": [1.0, 0.95, 0.94], "feedforward": [0.5]}
    rows = {
        f"{policy} {seed}": {"task": "TMaze", "policy": policy, "seed": seed, "mean": mean, "train_seconds": 2.0 + seed}
        for policy, found in means.items() for seed, mean in enumerate(found)
    }  # fmt: skip
    summary = memory.summarize(rows)
    assert list(summary) == ["TMaze feedforward", "TMaze gru"]
    row = summary["TMaze gru"]
    assert (row["solved"], row["seeds"], row["min"], row["max"]) == (2, [0, 1, 2], 0.94, 1.0)
    assert row["train_seconds_median"] == 3.0 and summary["TMaze feedforward"]["solved"] == 0


# gpu.sh with a stand-in for Python, which says what it is called with.

FAKE = """#!/usr/bin/env bash
case "$*" in
    *get_device_name*) echo "$CARD" ;;
    *"import envpool"*) exit 1 ;;
    *"import "*) ;;
    *"$FAILING"*) echo "starting"; echo "it broke"; exit 3 ;;
    *"$HANGING"*) echo "still busy"; exec sleep 60 ;;
    *) echo "$*" >>"$CALLS" ;;
esac
"""


@pytest.fixture
def gpu(tmp_path):
    fake, calls = tmp_path / "python", tmp_path / "calls"
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def run(*arguments, card="Card 1", failing="nothing", hanging="nothing", limit="30"):
        calls.write_text("")
        env = {**os.environ, "PYTHON": str(fake), "CARD": card, "FAILING": failing, "HANGING": hanging}
        env |= {"CALLS": str(calls), "RLCORE_GPU_LIMIT": limit}
        command = ["bash", str(BENCHMARKS / "gpu.sh"), "--out", str(tmp_path / "out"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        return result.returncode, result.stdout + result.stderr, calls.read_text().splitlines()

    return run


def test_without_a_card_everything_is_unmeasured(gpu):
    code, output, calls = gpu(card="")
    assert code == 1 and not calls and "There is no CUDA device here" in output
    assert "  tests\n" in output and "  atari-breakout\n" in output


def test_parts_that_are_done_are_skipped_and_the_others_listed_with_their_reason(gpu):
    code, output, calls = gpu(failing="--algo trpo")
    assert code == 1 and "On Card 1" in output
    assert "speed-trpo: failed with code 3: it broke" in output and "envpool: envpool is not installed" in output
    done = output.split("Done:")[1].split("Unmeasured:")[0]
    assert "  tests (Card 1" in done and "  atari-pong (Card 1" in done and "speed-trpo" not in done
    assert "-m pytest -m cuda" in calls and any(call.startswith("benchmarks/shapes.py --device cuda") for call in calls)
    code, output, calls = gpu()
    assert code == 1 and len(calls) == 1 and "--algo trpo" in calls[0]
    assert output.split("Unmeasured:")[1].strip() == "envpool: envpool is not installed"
    code, output, calls = gpu("--again", "shapes")
    assert code == 0 and len(calls) == 1 and "shapes.py" in calls[0]


def test_a_part_that_takes_too_long_is_ended(gpu):
    code, output, calls = gpu("shapes", "tests", hanging="shapes.py", limit="1")
    assert code == 1 and calls == ["-m pytest -m cuda"]
    assert "  shapes: ended after 1 s; its last line: still busy" in output
    assert "  speed-4: not asked for in this call" in output


def test_wrong_arguments_of_gpu_sh_are_one_sentence(gpu):
    for arguments, message in (
        (("shape",), "'shape' is not a part; there are: tests"),
        (("--agin", "shapes"), "'--agin' is not an option"),
        (("--again",), "--again needs the name of a part"),
    ):
        code, output, calls = gpu(*arguments)
        assert code == 2 and not calls and message in output


def test_samples_are_put_into_kinds_and_nothing_is_lost():
    import perf_programs

    shares = perf_programs.by_kind(
        ["# Overhead  Symbol", "", "    40.00%  [.] rl_tile_of", "    17.00%  [.] cpp_fused_add_0",
         "     3.00%  [.] rl_lstm_rows",
         "    15.00%  [.] _int_malloc",
         "    10.00%  [.] torch::inductor::_reinterpret_tensor", "     5.00%  [.] Sleef_finz_expf16_u10avx512f",
         "    10.00%  [k] do_syscall_64"]
    )  # fmt: skip
    assert shares == pytest.approx(
        {"products of matrices": 0.4, "fused elementwise kernels": 0.17, "exponentials": 0.05,
         "gates of recurrent layers": 0.03,
         "allocating and freeing": 0.15, "tensor handles": 0.1, "Python and the rest": 0.1}
    )  # fmt: skip


def test_rows_of_the_table_have_what_is_published():
    import table

    runs = [{"returns": [score - 1, score + 1], "steps": 1_000_100} for score in (-90.0, -76.5, -74.5, -70.0)]
    row = table.row("ppo", "Acrobot-v1", runs)
    assert re.fullmatch(
        r"\| Acrobot-v1 \| ppo \| −75\.5 \[−\d+\.\d, −\d+\.\d\] \| −90\.0 \| 1M \| −73\.5 ± 18 @ 1M \|", row
    )
    assert table.row("grpo", "Acrobot-v1", runs).endswith("| 1M |  |")
