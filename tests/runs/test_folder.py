"""Run folders that other processes want too, or that were damaged."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest

from rlcore import load
from rlcore.cli import main
from rlcore.errors import CheckpointError, UsageError
from rlcore.runs import folder as module
from rlcore.runs.folder import EpisodeLog, FolderTaken, RunFolder
from rlcore.runs.settings import read_settings
from rlcore.storage.checkpoint import read_checkpoint, write_checkpoint
from rlcore.storage.toml import LARGEST_FILE

SMALL = ["--num-steps", "32", "--num-envs", "4", "--hidden-sizes", "16", "--seed", "5", "--preset", "none"]
SMALL += ["--device", "cpu", "--compile", "false", "--no-progress"]
TRAIN = ["train", "ppo", "CartPole-v1", *SMALL, "--total-steps", "1200", "--checkpoint-every", "300"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run from beginning to end; not to be changed."""
    path = tmp_path_factory.mktemp("run") / "a"
    assert main([*TRAIN, "--run-dir", str(path), "--eval-episodes", "3"]) == 0
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def killed(run):
    """As it would be if it had been killed before its last two checkpoints."""
    for file in checkpoints(run)[-2:]:
        file.unlink()
    (run / "evaluation.json").unlink()
    return run


def checkpoints(run):
    return sorted((run / "checkpoints").glob("step-*.pt"))


def call(capsys, *arguments, code=0):
    """Run a command in this process; returns what it printed and its lines on stderr, where warnings are."""
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assert main(list(map(str, arguments))) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, [f"rlcore: {w.message}" for w in caught if w.category is UserWarning] + err.splitlines()


def same_weights(a, b):
    ours, theirs = (read_checkpoint(file)["agent"]["network"] for file in (a, b))
    return all((ours[k] == theirs[k]).all() for k in theirs)


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [row[:4] for row in csv.reader(file)]


# Several processes.


def test_while_a_run_writes_to_its_folder_nobody_else_does(run, tmp_path, capsys):
    folder = RunFolder.open_to_write(run)
    _, (line,) = call(capsys, "train", "--resume", run, "--total-steps", "2000", code=2)
    assert line.startswith(f"rlcore: the run folder {run} is in use by process {os.getpid()} on host ")
    call(capsys, "eval", run, "--episodes", "1")  # reading needs no lock
    folder.close()
    folder = RunFolder.create(tmp_path / "new")
    with pytest.raises(FolderTaken, match="exists already"):
        RunFolder.create(tmp_path / "new")
    folder.close()


def test_a_run_holds_its_folder_to_the_end_of_the_evaluation(tmp_path, monkeypatch, capsys):
    from rlcore.runs.train import Run

    evaluate, seen = Run.evaluate, []

    def watched(self, *arguments):
        with pytest.raises(FolderTaken, match="is in use by"):
            RunFolder.open_to_write(self.folder.path)
        seen.append(self.folder.path)
        return evaluate(self, *arguments)

    monkeypatch.setattr(Run, "evaluate", watched)
    path = tmp_path / "run"
    call(capsys, *TRAIN, "--run-dir", path, "--eval-episodes", "1")
    call(capsys, "train", "--resume", path, "--total-steps", "1500", "--no-progress")
    assert seen == [path, path] and ".lock" not in os.listdir(path)


def test_a_run_that_fails_gives_its_folder_back(run, monkeypatch, capsys):
    monkeypatch.setattr("rlcore.runs.train.load", lambda *_, **__: (_ for _ in ()).throw(UsageError("no such package")))
    call(capsys, "train", "--resume", run, "--total-steps", "2000", code=2)
    RunFolder.open_to_write(run).close()


def test_of_processes_that_begin_in_one_folder_at_once_one_wins(tmp_path):
    """Threads, which the lock keeps apart as it does processes."""
    path, results, barrier = tmp_path / "deep" / "run", [], threading.Barrier(8)

    def begin():
        barrier.wait()
        try:
            results.append(RunFolder.create(path))
        except UsageError as error:
            results.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    sentences = [result for result in results if isinstance(result, str)]
    assert len(sentences) == 7
    assert all("exists already" in s or "is in use by process" in s for s in sentences), sentences


def test_a_run_that_began_and_ended_while_another_took_the_lock_is_not_overwritten(tmp_path, monkeypatch):
    acquire = RunFolder._acquire

    def late(self):
        (self.path / "config.toml").write_text("another's")
        acquire(self)

    monkeypatch.setattr(RunFolder, "_acquire", late)
    with pytest.raises(FolderTaken, match="exists already"):
        RunFolder.create(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == ["config.toml"]


def test_two_processes_with_one_run_dir(tmp_path):
    command = [sys.executable, "-m", "rlcore", *TRAIN, "--run-dir", str(tmp_path / "run"), "--eval-episodes", "0"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], errors
    (sentence,) = "".join(errors).splitlines()
    assert "exists already" in sentence or "is in use by process" in sentence
    assert load(RunFolder.open(tmp_path / "run").latest_checkpoint()).global_step >= 1200


def test_a_folder_with_nothing_but_a_dead_lock_is_empty(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on host elsewhere\n")
    RunFolder.create(tmp_path).close()


def test_a_lock_file_is_left_alone_where_a_new_run_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    for action in (RunFolder.create, RunFolder.open_to_write):
        with pytest.raises(UsageError):
            action(tmp_path)
    assert os.listdir(tmp_path) == ["precious.txt"]


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlcore.cli.training.time.strftime", lambda form: "20260101-000000")
    for _ in range(3):
        call(capsys, *TRAIN[:-4], "--total-steps", "200", "--eval-episodes", "0")
    name = "ppo-seed5-20260101-000000"
    assert sorted(os.listdir("runs/CartPole-v1")) == [name, f"{name}-2", f"{name}-3"]


def test_half_written_files_of_dead_processes_go_and_no_others(run):
    dead = [run / ".config.toml.77.tmp", run / "checkpoints" / ".step-000000300.pt.77-0a1b2c3d.tmp"]
    others = [run / "notes.tmp", run / ".hidden", run / "checkpoints" / "x.tmp"]
    for file in dead + others:
        file.write_text("x")
    RunFolder.open(run)
    assert all(file.exists() for file in dead)  # reading removes nothing
    RunFolder.open_to_write(run).close()
    assert not any(file.exists() for file in dead) and all(file.exists() for file in others)


def test_where_there_are_no_locks_half_written_files_may_be_of_the_living(run, monkeypatch):
    def none_here(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none_here)
    file = run / ".config.toml.77.tmp"
    file.write_text("x")
    with pytest.warns(UserWarning, match="cannot be locked"):
        RunFolder.open_to_write(run).close()
    assert file.exists()


# Checkpoints.


def test_checkpoints_are_ordered_by_number_whatever_lies_beside_them(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    for name in ("step-999999999.pt", "step-1000000000.pt", "step-abc.pt", "step-.pt", "step-7.pt.damaged", "x"):
        (folder.checkpoints / name).touch()
    (folder.checkpoints / "step-5000000000.pt").mkdir()
    assert folder.latest_checkpoint().name == "step-1000000000.pt"
    for step in range(5):
        folder.checkpoint_file(step).touch()
    folder.drop_old_checkpoints()
    left = sorted(file.name for file in folder.checkpoints.glob("step-*.pt") if file.is_file())
    assert left == ["step-.pt", "step-000000002.pt", "step-000000003.pt", "step-000000004.pt", "step-1000000000.pt",
                    "step-999999999.pt", "step-abc.pt"]  # fmt: skip


def test_a_run_with_a_stray_file_among_its_checkpoints_goes_on(run, capsys):
    (run / "checkpoints" / "step-abc.pt").write_text("stray")
    call(capsys, "train", "--resume", run, "--total-steps", "1500", "--no-progress", "--eval-episodes", "0")


def test_resuming_goes_on_from_before_a_damaged_checkpoint(finished, killed, capsys):
    *_, before, newest = checkpoints(killed)
    newest.write_bytes(newest.read_bytes()[:-100])
    out, err = call(capsys, "eval", killed, "--episodes", "1")
    assert len(err) == 1 and str(newest) in err[0] and str(before) in out and newest.exists()
    _, err = call(capsys, "train", "--resume", killed, "--no-progress")
    assert len(err) == 1 and str(newest) in err[0] and str(before) in err[0]
    kept = newest.with_name(newest.name + ".damaged")
    assert kept.name in err[0] and kept.exists() and newest.exists()  # the run has written it anew
    assert same_weights(checkpoints(killed)[-1], checkpoints(finished)[-1])
    assert rows(killed / "episodes.csv") == rows(finished / "episodes.csv")


def test_where_all_checkpoints_are_damaged_the_newest_is_told_of_and_nothing_changes(killed, capsys):
    for file in checkpoints(killed):
        file.write_bytes(b"x")
    before = sorted(os.listdir(killed / "checkpoints"))
    for command in (("train", "--resume"), ("eval",), ("video",)):
        _, (line,) = call(capsys, *command, killed, code=2)
        assert str(checkpoints(killed)[-1]) in line
    assert sorted(os.listdir(killed / "checkpoints")) == before


def test_only_a_file_that_cannot_be_read_is_gone_back_behind(killed, monkeypatch, capsys):
    """Not a package that is missing, nor an environment or network that does not fit."""
    for error in (UsageError("no package"), CheckpointError("does not fit")):
        monkeypatch.setattr("rlcore.runs.train.load", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        for command in (("train", "--resume"), ("eval",)):
            assert call(capsys, *command, killed, code=2)[1] == [f"rlcore: {error}"]
    assert not list((killed / "checkpoints").glob("*.damaged"))


@pytest.mark.parametrize("extra", [{}, {"seconds": "x", "recent_returns": 3}, {"seconds": float("nan")}])
def test_what_a_checkpoint_says_of_the_run_may_be_anything(killed, capsys, extra):
    newest = checkpoints(killed)[-1]
    payload = read_checkpoint(newest)
    write_checkpoint(newest, {**payload, "extra": extra})
    call(capsys, "train", "--resume", killed, "--no-progress", "--eval-episodes", "0")


# The log of episodes.

HEADER = "global_step,env,return,length,seconds\r\n"
GOOD = ["100,0,20,20,0.10\r\n", "200,1,-1.5e+06,30,0.20\r\n", "200,2,nan,30,0.20\r\n", "300,0,inf,40,0.30\r\n"]


def truncated(tmp_path, data, step=300):
    path = tmp_path / "episodes.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    log = EpisodeLog(path, resume_at=step)
    log.close()
    return path, log.set_aside


def test_a_whole_log_is_cut_at_the_step_and_nothing_is_said(tmp_path):
    for tail in ("", "400,0,9,9,0.40\r\n", "400,0,9,9,0.40\r\n45", "400,0,9", HEADER[:0]):
        path, aside = truncated(tmp_path, HEADER + "".join(GOOD) + tail)
        assert path.read_bytes().decode() == HEADER + "".join(GOOD) and aside is None, tail
    for begun in ("", "global_st"):
        path, aside = truncated(tmp_path, begun)
        assert path.read_bytes().decode() == HEADER and aside is None
    assert os.listdir(tmp_path) == ["episodes.csv"]


DAMAGE = {
    "no UTF-8": b"\xff\xfe\x80\r\n",
    "NULs": b"\0" * 5000,
    "NULs in a line": b"150,0,\0\0,20,0.1\r\n",
    "cut line": b"150,0,2",
    "cut line in the middle": b"150,0,2\r\n",
    "no number": b"x,0,20,20,0.10\r\n",
    "no number behind": b"150,0,twenty,20,0.10\r\n",
    "half a number": b"150,0,1.,20,0.10\r\n",
    "more columns": b"150,0,20,20,0.10,7\r\n",
    "fewer columns": b"150,0,20\r\n",
    "empty line": b"\r\n",
    "second header": HEADER.encode(),
    "negative step": b"-5,0,20,20,0.10\r\n",
    "endless number": b"1" * 6000 + b",0,20,20,0.10\r\n",
    "endless cut number": b"1" * 60,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_of_a_damaged_log_the_whole_records_are_kept_and_the_file_too(tmp_path, damage, place):
    parts = [line.encode() for line in GOOD]
    if not damage.endswith(b"\n") and place < 4:
        damage += b"\n"
    data = HEADER.encode() + b"".join([*parts[:place], damage, *parts[place:]])
    path, aside = truncated(tmp_path, data)
    assert path.read_bytes().decode() == HEADER + "".join(GOOD)
    assert aside == tmp_path / "episodes.csv.damaged-1" and aside.read_bytes() == data
    _, aside = truncated(tmp_path, b"\xff")
    assert aside == tmp_path / "episodes.csv.damaged-2"
    assert len(os.listdir(tmp_path)) == 3


def test_a_log_without_its_header_gets_one(tmp_path):
    path, aside = truncated(tmp_path, "".join(GOOD))
    assert path.read_bytes().decode() == HEADER + "".join(GOOD) and aside is not None


def test_a_huge_line_is_never_in_memory(tmp_path):
    import tracemalloc

    data = HEADER.encode() + GOOD[0].encode() + b"7" * 20_000_000 + b"\n" + GOOD[1].encode()
    (tmp_path / "episodes.csv").write_bytes(data)
    tracemalloc.start()
    EpisodeLog(tmp_path / "episodes.csv", resume_at=300).close()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert (tmp_path / "episodes.csv").read_bytes().decode() == HEADER + GOOD[0] + GOOD[1]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_set_aside(tmp_path, make):
    path = tmp_path / "episodes.csv"
    make(path)
    log = EpisodeLog(path, resume_at=300)
    log.close()
    assert log.set_aside.name == "episodes.csv.damaged-1" and path.read_bytes() == HEADER.encode()


def test_a_run_with_a_damaged_log_goes_on_and_says_so(killed, capsys):
    with open(killed / "episodes.csv", "ab") as file:
        file.write(b"\0" * 100)
    _, (line,) = call(capsys, "train", "--resume", killed, "--no-progress", "--eval-episodes", "0")
    assert "episodes.csv was damaged" in line and "episodes.csv.damaged-1" in line


def test_a_log_that_cannot_be_opened_is_one_sentence(killed, monkeypatch, capsys):
    def closed(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_truncate", closed)
    _, (line,) = call(capsys, "train", "--resume", killed, "--no-progress", code=2)
    assert "cannot be written: Permission denied" in line


# config.toml.

WHOLE = {
    "algo": '"ppo"',
    "env_id": '"CartPole-v1"',
    "total_steps": "600",
    "hyperparameters": "{num_envs = 2, num_steps = 16}",
}
BAD_FILES = {
    "no UTF-8": (b'algo = "\xff"', "not readable as TOML"),
    "NULs": (b"\0" * 100, "not readable as TOML"),
    "nested": (b"a = " + b"[" * 50_000, "nested too deeply"),
    "dotted": (b"a" + b".a" * 200_000 + b" = 1", "more than 100 parts"),
    "tables": (b"[" + b"a." * 90 + b"a]\nb = 1\n", "has no 'algo'"),
    "huge": (b"# " + b"x" * LARGEST_FILE, "longer than 1,048,576 bytes"),
    "digits": (b"a = " + b"9" * 5000, "not readable as TOML"),
    "empty": (b"", "has no 'algo'"),
    "duplicate": (b"a = 1\na = 2", "not readable as TOML"),
}
BAD_VALUES = [
    ("algo", "3", "algo in FILE is 3, but must be a text"),
    ("algo", '""', "algo in FILE is '', but must be a text"),
    ("algo", '["ppo"]', "must be a text"),
    ("algo", '"pop"', "did you mean 'ppo'?"),
    ("env_id", '""', "env_id in FILE is '', but must be a text"),
    ("env_id", "{a = 1}", "must be a text"),
    ("env_id", '"Cart\\u001b[2JPole"', "is not registered"),
    ("total_steps", '"x"', "total_steps in FILE is 'x', but must be a whole number of at least 1"),
    ("total_steps", "0", "total_steps in FILE is 0"),
    ("total_steps", "-1", "total_steps in FILE is -1"),
    ("total_steps", "nan", "total_steps in FILE is nan"),
    ("total_steps", "inf", "total_steps in FILE is inf"),
    ("total_steps", "true", "total_steps in FILE is True"),
    ("total_steps", "1" + "0" * 30, "total_steps in FILE is 1000"),
    ("total_steps", "0x" + "f" * 5000, "total_steps in FILE is a number of 20,000 bits"),
    ("checkpoint_every", "[1]", "checkpoint_every in FILE is [1]"),
    ("checkpoint_every", "0", "checkpoint_every in FILE is 0"),
    ("eval_episodes", "-1", "eval_episodes in FILE is -1"),
    ("preset", "1", "preset in FILE is 1"),
    ("versions", "[1]", "versions in FILE is [1], but must be a table"),
    ("env_kwargs", "[1]", "env_kwargs in FILE is [1], but must be a table"),
    ("env_kwargs", "{when = 2020-01-01}", "env_kwargs.when in FILE is the date or time 2020-01-01"),
    ("env_kwargs", "{num_envs = 3}", "'num_envs' cannot be an argument of the environment's constructor"),
    ("env_kwargs", "{a = " + "[" * 30 + "]" * 30 + "}", "tables of more than 20 levels"),
    ("hyperparameters", "3", "hyperparameters in FILE is 3, but must be a table"),
    ("hyperparameters", "[{gamma = 1.0}]", "must be a table"),
    ("hyperparameters", "{gamma = nan}", "gamma is nan, but must be"),
    ("hyperparameters", "{learning_rate = inf}", "learning_rate is inf, but must be"),
    ("hyperparameters", "{learning_rate = 1" + "0" * 400 + "}", "hyperparameters.learning_rate in FILE is a number of"),
    ("hyperparameters", "{num_envs = 1000000000}", "num_envs is 1,000,000,000, but"),
    ("hyperparameters", "{num_steps = 1000000000000}", "num_steps is 1000000000000, but must be at least"),
    ("hyperparameters", "{hidden_sizes = [1000000000]}", "hidden_sizes is (1000000000,), but must be at least 1 and"),
    ("hyperparameters", "{hidden_sizes = [[1]]}", "hidden_sizes is [[1]], but must be a list"),
    ("hyperparameters", "{seed = 1" + "0" * 30 + "}", "seed is 1000"),
    ("hyperparameters", "{seed = -1}", "seed is -1, but must be at least 0"),
    ("hyperparameters", "{activation = [1]}", "activation is [1], but may be one of"),
    ("hyperparameters", "{device = 3}", "device is 3, but must be a text"),
]  # fmt: skip


@pytest.mark.parametrize("data, words", BAD_FILES.values(), ids=BAD_FILES)
def test_a_config_that_is_none_is_one_sentence(tmp_path, capsys, data, words):
    file = tmp_path / "config.toml"
    file.write_bytes(data)
    _, (line,) = call(capsys, "train", "--config", file, "--run-dir", tmp_path / "new", code=2)
    assert words in line and str(file) in line and not (tmp_path / "new").exists()


def test_a_folder_in_the_place_of_a_config(tmp_path, capsys):
    _, (line,) = call(capsys, "train", "--config", tmp_path, code=2)
    assert line == f"rlcore: the file {tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize("key, value, words", BAD_VALUES)
def test_an_entry_of_the_wrong_kind_is_one_sentence(tmp_path, capsys, key, value, words):
    file = tmp_path / "config.toml"
    file.write_text("".join(f"{k} = {v}\n" for k, v in {**WHOLE, key: value}.items()))
    _, (line,) = call(capsys, "train", "--config", file, "--run-dir", tmp_path / "new", code=2)
    line = line.replace(str(file), "FILE")
    assert words in line
    assert "\x1b" not in line and not (tmp_path / "new").exists()


@pytest.mark.parametrize("key", WHOLE)
def test_a_key_that_is_missing_is_named(tmp_path, key):
    file = tmp_path / "config.toml"
    file.write_text("".join(f"{k} = {v}\n" for k, v in WHOLE.items() if k != key))
    with pytest.raises(UsageError, match=f"is not the config of a run: it has no '{key}'"):
        read_settings(file)


@pytest.mark.parametrize("text", [None, "[", "total_steps = 3", "folder"])
def test_a_damaged_config_is_made_again_from_the_checkpoint(finished, killed, capsys, text):
    file = killed / "config.toml"
    file.unlink()
    file.mkdir() if text == "folder" else file.write_text(text) if text else None
    _, (line,) = call(capsys, "train", "--resume", killed, "--no-progress")
    assert f"it is made again from what {killed}" in line
    assert ("config.toml.damaged" in line) == (text is not None)
    if text not in (None, "folder"):
        assert (killed / "config.toml.damaged").read_text() == text
    made, whole = (tomllib.loads((f / "config.toml").read_text()) for f in (killed, finished))
    assert made == whole and made["eval_episodes"] == 3
    assert same_weights(checkpoints(killed)[-1], checkpoints(finished)[-1])


def test_a_damaged_config_that_no_checkpoint_makes_up_for_is_one_sentence(killed, capsys):
    newest = checkpoints(killed)[-1]
    write_checkpoint(newest, {**read_checkpoint(newest), "extra": {}})
    (killed / "config.toml").write_text("[")
    _, (line,) = call(capsys, "train", "--resume", killed, "--no-progress", code=2)
    assert "not readable as TOML" in line and "has no 'total_steps'" in line
    assert (killed / "config.toml").read_text() == "["


# The final evaluation.

LOST = {
    "missing": Path.unlink,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:50]),
    "no UTF-8": lambda file: file.write_bytes(b"\xff"),
    "of another step": lambda file: file.write_text(json.dumps({"global_step": 4, "mean": 1.0})),
    "a list": lambda file: file.write_text("[1]"),
    "nested": lambda file: file.write_text("[" * 100_000),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_a_run_killed_in_its_evaluation_is_only_evaluated(finished, run, capsys, lose):
    lose(run / "evaluation.json")
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if "toml" not in file.name and file.is_file()}
    out, err = call(capsys, "train", "--resume", run)
    assert "evaluation: return" in out and "run folder" in out and not err
    ours, theirs = (json.loads((f / "evaluation.json").read_text()) for f in (run, finished))
    assert ours.pop("training_seconds") == pytest.approx(theirs.pop("training_seconds"), abs=0.2)  # without playing
    assert ours == theirs
    after = {file: file.stat().st_mtime_ns for file in before if file.name != "evaluation.json"}
    assert all(after[file] == before[file] for file in after)
    assert sorted(os.listdir(run)) == sorted(os.listdir(finished))
    _, (line,) = call(capsys, "train", "--resume", run, code=2)
    assert "is complete at step" in line and "--total-steps" in line


def test_of_an_old_run_the_evaluation_counts_as_missing_unless_none_is_wanted(run, capsys):
    (run / "evaluation.json").unlink()
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("eval_episodes = 3\n", ""))
    _, (line,) = call(capsys, "train", "--resume", run, "--eval-episodes", "0", code=2)
    assert "is complete" in line
    call(capsys, "train", "--resume", run)
    assert json.loads((run / "evaluation.json").read_text())["episodes"] == 100


def test_eval_episodes_are_kept_and_read_again(run, tmp_path, capsys):
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["eval_episodes"] == 3
    out, _ = call(capsys, "train", "--config", run / "config.toml", "--run-dir", tmp_path / "b", "--no-progress")
    assert "over 3 greedy episodes" in out
    out, _ = call(capsys, "train", "--resume", run, "--total-steps", "1300", "--no-progress")
    assert "over 3 greedy episodes" in out
    call(capsys, "train", "--resume", run, "--total-steps", "1400", "--no-progress", "--eval-episodes", "0")
    assert tomllib.loads((run / "config.toml").read_text())["eval_episodes"] == 0
    call(capsys, "train", "--resume", run, code=2)


# Films.


def test_a_film_overwrites_nothing_and_leaves_nothing_half(finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip("imageio")
    from rlcore.runs import video

    out, write = tmp_path / "film.gif", video._write

    def another_was_quicker(writer, path, frames, fps):
        path.write_text("another's")
        write(writer, path, frames, fps)

    monkeypatch.setattr(video, "_write", another_was_quicker)
    _, (line,) = call(capsys, "video", finished, "--out", out, "--max-steps", "3", code=2)
    assert "exists already" in line and out.read_text() == "another's" and os.listdir(tmp_path) == ["film.gif"]
    out.unlink()
    monkeypatch.setattr(video, "_write", write)
    (tmp_path / ".film.unfinished.gif").write_text("of a dead process")
    with video._locked(out):
        _, (line,) = call(capsys, "video", finished, "--out", out, "--max-steps", "3", code=2)
        assert f"{out} is in use by process {os.getpid()}" in line
    call(capsys, "video", finished, "--out", out, "--max-steps", "3")
    assert os.listdir(tmp_path) == ["film.gif"] and out.read_bytes().startswith(b"GIF")
    _, (line,) = call(capsys, "video", finished, "--out", tmp_path / "no" / "film.gif", code=2)
    assert "cannot be written: No such file or directory" in line
    _, (line,) = call(capsys, "video", finished, "--out", "/proc/film.gif", "--max-steps", "3", code=2)
    assert "/proc/film.gif cannot be written" in line  # and not that somebody else had locked it


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_a_film_for_which_there_is_no_room_is_one_sentence_and_no_file(finished, tmp_path, monkeypatch, capfd, name):
    pytest.importorskip("imageio")

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:48])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["video", str(finished), "--out", str(tmp_path / name), "--max-steps", "3"]) == 2
    assert (
        capfd.readouterr().err
        == f"rlcore: the video file {tmp_path / name} cannot be written: No space left on device\n"
    )
    assert not os.listdir(tmp_path)


def test_what_an_encoder_says_is_not_printed_beside_the_sentence(finished, tmp_path, capfd, monkeypatch):
    """ffmpeg prints where it fails, here over a picture that has no area."""
    pytest.importorskip("imageio_ffmpeg")
    from rlcore.runs import video

    monkeypatch.setattr(video, "_frame", lambda envs: np.zeros((0, 0, 3), np.uint8))
    assert main(["video", str(finished), "--out", str(tmp_path / "a.mp4"), "--max-steps", "3"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "a.mp4 cannot be written" in said and "FFMPEG" not in said, said
