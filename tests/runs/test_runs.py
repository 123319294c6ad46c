"""Whole runs through the command line, in processes of their own, as a user makes them."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import pytest
import torch

from rlcore import load
from rlcore.cli import main
from rlcore.storage.checkpoint import read_checkpoint

SMALL = [
    "--num-steps",
    "32",
    "--num-envs",
    "4",
    "--hidden-sizes",
    "16",
    "--seed",
    "5",
    "--preset",
    "none",
    "--device",
    "cpu",
]


def rlcore(*arguments, check=True, **options):
    command = [sys.executable, "-m", "rlcore", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env, **options)
    assert not check or result.returncode == 0, result.stderr
    return result


def start(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlcore", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(condition, process, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run from beginning to end."""
    folder = tmp_path_factory.mktemp("run") / "a"
    result = rlcore(
        "train", "ppo", "CartPole-v1", *SMALL, "--total-steps", 6000, "--run-dir", folder, "--eval-episodes", 7
    )
    return folder, result.stdout


def test_a_run_leaves_everything_the_readme_names(finished):
    folder, output = finished
    assert "no preset" in output and "evaluation: return" in output and str(folder) in output
    assert len([line for line in output.splitlines() if line.startswith("step ")]) >= 10  # piped: plain lines
    assert "\x1b" not in output
    report = json.loads((folder / "evaluation.json").read_text())
    assert len(report["returns"]) == report["episodes"] == 7
    assert report["mean"] == pytest.approx(sum(report["returns"]) / 7)
    assert 1 <= len(list((folder / "checkpoints").glob("step-*.pt"))) <= 5
    assert list(folder.glob("events.out.tfevents.*"))


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_episode_csv_holds_every_episode_once(finished):
    folder, _ = finished
    columns, *rows = read_csv(folder / "episodes.csv")
    rows = [dict(zip(columns, row, strict=True)) for row in rows]
    steps = [int(row["global_step"]) for row in rows]
    assert steps == sorted(steps) and len(rows) > 50
    lengths = sum(int(row["length"]) for row in rows)
    total = load(max((folder / "checkpoints").glob("*.pt"))).global_step
    assert total - 4 * 500 < lengths <= total
    assert all(float(row["return"]) == int(row["length"]) for row in rows)  # CartPole pays 1 a step


def test_tensorboard_has_the_curves(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0]))
    events.Reload()
    wanted = {
        "rollout/episode_return", "rollout/episode_length", "loss/policy_loss", "loss/value_loss", "policy/entropy",
        "policy/approx_kl", "policy/clip_fraction", "policy/explained_variance", "optimizer/grad_norm",
        "optimizer/learning_rate", "time/steps_per_second",
    }  # fmt: skip
    assert wanted <= set(events.Tags()["scalars"])
    rates = [event.value for event in events.Scalars("optimizer/learning_rate")]
    assert rates == sorted(rates, reverse=True)
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in wanted}
    last = load(max((finished[0] / "checkpoints").glob("*.pt"))).global_step
    assert steps["loss/policy_loss"][-1] == steps["time/steps_per_second"][-1] == last


def test_a_point_in_tensorboard_is_the_mean_since_the_last(tmp_path, monkeypatch):
    """Every iteration counts in one point, and whatever is left is written at the end."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rlcore import PPO
    from rlcore.runs import train

    monkeypatch.setattr(train, "TENSORBOARD_POINTS", 3)
    agent = PPO("CartPole-v1", num_envs=2, num_steps=32, num_minibatches=2, seed=1, device="cpu", compile=False)
    losses, iterations = [], agent.iterations

    def watched(total_steps):
        for metrics, episodes in iterations(total_steps):
            losses.append((agent.global_step, metrics["policy_loss"]))
            yield metrics, episodes

    monkeypatch.setattr(agent, "iterations", watched)
    total = 13 * 64
    settings = {"algo": "ppo", "env_id": "CartPole-v1", "total_steps": total, "checkpoint_every": total}
    train.Run.start(tmp_path / "run", agent, settings).train(progress=False)
    agent.close()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss/policy_loss")]
    assert 3 <= len(points) <= 4 and points[-1][0] == losses[-1][0] and len(losses) > 8
    before = 0
    for step, value in points:
        part = [loss for at, loss in losses if before < at <= step]
        assert value == pytest.approx(sum(part) / len(part))
        before = step


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_progress_asks_for_the_return_only_where_it_is_shown(monkeypatch, stream):
    from rlcore.progress import Progress

    monkeypatch.setattr(sys, "stdout", stream)
    asked = []
    progress = Progress(1000)
    for step in range(1, 1001):
        progress.update(step, lambda step=step: asked.append(step) or 1.5)
    progress.close()
    monkeypatch.undo()
    assert 1 <= len(asked) <= 20 and asked[-1] == 1000
    assert "1.5" in stream.getvalue()


def test_config_is_complete_and_makes_the_same_run_again(finished, tmp_path):
    folder, _ = finished
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["hyperparameters"]["seed"] == 5 and config["hyperparameters"]["target_kl"] == "none"
    rlcore("train", "--config", folder / "config.toml", "--run-dir", tmp_path / "b", "--no-progress")
    a, b = (sorted((f / "checkpoints").glob("*.pt"))[-1] for f in (folder, tmp_path / "b"))
    assert a.name == b.name and same_weights(a, b)
    assert tomllib.loads((tmp_path / "b" / "config.toml").read_text()) == config
    other = rlcore(
        "train", "--config", folder / "config.toml", "--run-dir", tmp_path / "c", "--seed", 6, "--total-steps", 600
    )
    assert "seed 6" in other.stdout


def same_weights(a, b):
    ours, theirs = (read_checkpoint(file)["agent"]["network"] for file in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("backend", ["vector", "async"])
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, backend):
    """`async` cannot store its environments' state and begins new episodes at each checkpoint; `vector` can."""
    total = 16_000 if backend == "vector" else 5_000
    flags = [
        *SMALL,
        "--backend",
        backend,
        "--total-steps",
        total,
        "--checkpoint-every",
        total // 8,
        "--eval-episodes",
        0,
    ]
    rlcore("train", "ppo", "CartPole-v1", *flags, "--run-dir", tmp_path / "whole")
    process = start("train", "ppo", "CartPole-v1", *flags, "--run-dir", tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    wait_for(lambda: any(int(f.stem[5:]) > total // 3 for f in checkpoints.glob("step-*.pt")), process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = max(int(f.stem[5:]) for f in checkpoints.glob("step-*.pt"))
    assert done < total
    rlcore("train", "--resume", tmp_path / "killed", "--eval-episodes", 0)
    whole, killed = (sorted((tmp_path / n / "checkpoints").glob("*.pt")) for n in ("whole", "killed"))
    assert whole[-1].name == killed[-1].name and same_weights(whole[-1], killed[-1])
    logs = [[row[:4] for row in read_csv(tmp_path / n / "episodes.csv")] for n in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_a_finished_run_goes_on_with_more_steps(finished, tmp_path):
    folder = tmp_path / "run"
    rlcore("train", "ppo", "CartPole-v1", *SMALL, "--total-steps", 1000, "--run-dir", folder, "--eval-episodes", 0)
    again = rlcore("train", "--resume", folder, check=False)
    assert again.returncode == 2 and "complete at step" in again.stderr and "--total-steps" in again.stderr
    rlcore("train", "--resume", folder, "--total-steps", 2000, "--eval-episodes", 3)
    assert json.loads((folder / "evaluation.json").read_text())["global_step"] >= 2000
    assert tomllib.loads((folder / "config.toml").read_text())["total_steps"] == 2000


def short_run(folder, *more):
    flags = [*SMALL, "--compile", "false", "--total-steps", "512", "--eval-episodes", "0", "--no-progress", *more]
    assert main(["train", "ppo", "CartPole-v1", *flags, "--run-dir", str(folder)]) == 0


def edit(folder, before, after):
    text = (folder / "config.toml").read_text()
    assert before in text
    (folder / "config.toml").write_text(text.replace(before, after))


def test_an_edited_config_is_what_the_run_goes_on_with(tmp_path, capsys, recwarn):
    folder = tmp_path / "run"
    short_run(folder)
    newest = max((folder / "checkpoints").glob("*.pt"))
    edit(folder, "learning_rate = 0.00025", "learning_rate = 0.01")
    edit(folder, "gamma = 0.99", "gamma = 0.9")
    edit(folder, "total_steps = 512", "total_steps = 1024")
    by_hand = load(newest, learning_rate=0.01, gamma=0.9).learn(1024)
    assert main(["train", "--resume", str(folder), "--no-progress"]) == 0
    told = [str(warning.message) for warning in recwarn]
    assert f"learning_rate is 0.01 from here on, as {folder / 'config.toml'} says, and was 0.00025" in told
    assert sum("from here on" in line for line in told) == 2
    agent = load(folder)
    assert agent.global_step == by_hand.global_step and agent.config.gamma == 0.9
    assert torch.equal(agent.parameters.vector, by_hand.parameters.vector)
    # Nothing is edited any more: neither by the file, nor by what is asked for on the command line.
    assert main(["train", "--resume", str(folder), "--no-progress", "--total-steps", "1400", "--device", "cpu"]) == 0
    assert len([warning for warning in recwarn if "from here on" in str(warning.message)]) == 2
    assert tomllib.loads((folder / "config.toml").read_text())["hyperparameters"]["gamma"] == 0.9


@pytest.mark.parametrize(
    "before, after, words",
    [
        (
            "hidden_sizes = [\n    16,\n]",
            "hidden_sizes = [32]",
            "hidden_sizes in .* is [32], .* goes on with [16]",
        ),
        ("num_envs = 4", "num_envs = 8", "num_envs in .* is 8, but the run goes on with 4"),
        ("\nseed = 5", "\nseed = 6", "seed in .* is 6, but the run goes on with 5; rlcore train --config"),
        ('algo = "ppo"', 'algo = "a2c"', "algo in .* is 'a2c', but the run goes on with 'ppo'"),
        ('env_id = "CartPole-v1"', 'env_id = "Acrobot-v1"', "env_id in .* is 'Acrobot-v1'"),
        ("[env_kwargs]", "[env_kwargs]\nsutton_barto_reward = true", "env_kwargs in .* --env-arg NAME=VALUE"),
        (
            'algo = "ppo"',
            'algo = "ppo"\ntotal_stepz = 9',
            "'total_stepz' in .*toml is not known, did you mean 'total_st",
        ),
        ("gamma = 0.99", "gama = 0.9", "'gama' in .* is not a hyperparameter of the run, did you mean 'gamma'"),
        ("gamma = 0.99", "gamma = 9", "gamma is 9.0, but must be at least 0 and at most 1"),
        ("clip_coef = 0.2", "clip_coef = true", "clip_coef is True, but must be a number"),
        ("num_minibatches = 4", "num_minibatches = 3", "num_minibatches is 3, but must divide"),
    ],
)
def test_what_cannot_be_edited_is_refused_by_name(tmp_path, capsys, before, after, words):
    folder = tmp_path / "run"
    short_run(folder)
    edit(folder, before, after)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(folder), "--total-steps", "1024"]) == 2
    said = capsys.readouterr().err
    assert re.search(".*".join(map(re.escape, words.split(".*"))), said), said
    assert said.count("\n") == 1 and files == {path: path.read_bytes() for path in files}
    if "is not" in words:  # which --config refuses too
        assert main(["train", "--config", str(folder / "config.toml"), "--run-dir", str(tmp_path / "new")]) == 2
        assert words.split("'")[1] in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_a_checkpoint(tmp_path, number, code):
    folder = tmp_path / "run"
    flags = ["--compile", "false", "--total-steps", 10_000_000, "--run-dir", folder]
    process = start("train", "ppo", "CartPole-v1", *SMALL, *flags)
    wait_for(lambda: (folder / "episodes.csv").exists() and list(folder.glob("events*")), process)
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors and f"--resume {folder}" in errors
    last = max((folder / "checkpoints").glob("*.pt"))
    assert read_checkpoint(last)["agent"]["collector"]["global_step"] > 0


def test_eval_by_folder_and_by_file_agree(finished):
    folder, _ = finished
    last = max((folder / "checkpoints").glob("*.pt"))
    a, b = (json.loads(rlcore("eval", x, "--episodes", 6, "--seed", 3, "--json").stdout) for x in (folder, last))
    assert a == b and len(a["returns"]) == 6 and a["env_id"] == "CartPole-v1"
    assert "over 6 stochastic episodes" in rlcore("eval", folder, "--episodes", 6, "--stochastic").stdout


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_video_is_a_film_of_the_episode(finished, tmp_path, suffix):
    import imageio

    out = tmp_path / f"film.{suffix}"
    result = rlcore("video", finished[0], "--out", out, "--max-steps", 20)
    frames = imageio.mimread(out, memtest=False)
    written = int(result.stdout.split(" frames")[0].split()[-1])
    # A gif shows equal frames in a row as one that lasts longer.
    assert len(frames) == written if suffix == "mp4" else len(frames) <= written
    assert 5 <= len(frames) <= 21 and frames[0].shape[0] == 400
    assert (frames[0] != frames[-1]).any()
    again = rlcore("video", finished[0], "--out", out, check=False)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_run_that_diverges_keeps_its_checkpoint_and_a_dump(tmp_path):
    folder = tmp_path / "run"
    flags = ["--learning-rate", "1e30", "--max-grad-norm", "none", "--run-dir", folder, "--total-steps", 5000]
    result = rlcore("train", "ppo", "Pendulum-v1", *SMALL, *flags, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "became nan" in result.stderr or "became inf" in result.stderr
    assert str(folder / "checkpoints") in result.stderr
    (dump,) = folder.glob("diverged-step-*.pt")
    assert str(dump) in result.stderr
    assert torch.isfinite(read_checkpoint(dump)["buffer"]["rewards"]).all()
    load(max((folder / "checkpoints").glob("*.pt"))).evaluate(1)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_saved(tmp_path):
    """RLIMIT_FSIZE makes writes fail as a full disk does."""
    folder = tmp_path / "run"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from rlcore.cli import main; "
        "import rlcore.runs.folder, rlcore.storage.checkpoint as c; real = c.write_checkpoint; n = [0]\n"
        "def limited(path, payload):\n"
        "    n[0] += 1\n"
        "    if n[0] == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    real(path, payload)\n"
        "import rlcore.agents.stored as a; a.write_checkpoint = limited\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [
        "train",
        "ppo",
        "CartPole-v1",
        *SMALL,
        "--total-steps",
        "4000",
        "--run-dir",
        str(folder),
        "--no-progress",
    ]
    result = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and "cannot be written" in result.stderr
    files = sorted((folder / "checkpoints").iterdir())
    assert len(files) == 2 and all(file.suffix == ".pt" for file in files)
    assert load(files[-1]).global_step > 0
