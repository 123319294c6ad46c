"""Where curves go beside TensorBoard: what a tracker gets, services that are offline, and those that fail."""

import json
import sys
import textwrap

import pytest

from rlcore.cli import main
from rlcore.runs.tracking import find_tracker

SMALL = ["--total-steps", "320", "--num-envs", "2", "--num-steps", "16", "--num-minibatches", "1", "--seed", "1"]
SMALL += ["--compile", "false", "--device", "cpu", "--no-progress", "--eval-episodes", "0", "--backend", "sync"]

OWN = """
    import json

    class Lines:
        def __init__(self, folder, settings):
            self.file = open(folder / "lines.jsonl", "a")
            self.say(algo=settings["algo"], rate=settings["hyperparameters"]["learning_rate"])

        def say(self, **entry):
            print(json.dumps(entry), file=self.file, flush=True)

        def log(self, scalars, step, at):
            self.say(step=step, **scalars)

        def flush(self):
            self.say(flush=True)

        def close(self):
            self.say(close=True)

    class Broken(Lines):
        def log(self, scalars, step, at):
            raise ConnectionError("the server is gone")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_tracker.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_tracker", None)


def lines(folder):
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_a_tracker_of_ones_own_gets_every_point_in_a_run_and_when_it_is_resumed(own, tmp_path):
    """All that TensorBoard has, at the same steps, and once more what comes after the checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    flags = ["--track", "my_tracker:Lines"]
    assert main(["train", "ppo", "CartPole-v1", *SMALL, "--run-dir", str(folder), *flags]) == 0
    first = lines(folder)
    assert first[0] == {"algo": "ppo", "rate": 0.002} and first[-1] == {"close": True} and {"flush": True} in first
    points = [entry for entry in first if "step" in entry]
    events = EventAccumulator(str(folder)).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("loss/policy_loss")]
    assert curve == [(p["step"], pytest.approx(p["loss/policy_loss"])) for p in points] and len(curve) >= 8
    assert main(["train", "--resume", str(folder), "--total-steps", "640", "--no-progress", *flags]) == 0
    steps = [entry["step"] for entry in lines(folder)[len(first) :] if "step" in entry]
    assert steps[0] > points[-1]["step"] and steps[-1] >= 640


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(own, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--track", "my_tracker:Broken", "--track", "my_tracker:Lines"]
    with pytest.warns(UserWarning, match="nothing more is logged to Broken, which failed: the server is gone"):
        assert main(["train", "ppo", "CartPole-v1", *SMALL, "--run-dir", str(folder), *flags]) == 0
    assert any("step" in entry for entry in lines(folder))
    assert (folder / "checkpoints").iterdir()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wandby", "--track is 'wandby', did you mean 'wandb'?, but may be wandb, mlflow, or module:function"),
        ("no_such_module:x", "--track is 'no_such_module:x', which cannot be imported: No module named"),
        ("json:x", "--track is 'json:x', which cannot be imported: module 'json' has no attribute 'x'"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(name, sentence, tmp_path, capsys):
    assert main(["train", "ppo", "CartPole-v1", "--track", name, "--run-dir", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Exception, match=r"--track wandb needs the package wandb: pip install 'rlcore\[wandb\]'"):
        find_tracker("wandb")(tmp_path, {})


def test_weights_and_biases_offline_has_the_curves_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    assert main(["train", "ppo", "CartPole-v1", *SMALL, "--run-dir", str(folder), "--track", "wandb"]) == 0
    identity = json.loads((folder / "tracking.json").read_text())["wandb"]
    logs = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(logs) == 1 and logs[0].name == f"run-{identity}.wandb"
    data = logs[0].read_bytes()
    assert b"loss/policy_loss" in data and b"learning_rate" in data


def test_mlflow_has_the_curves_and_goes_on_under_the_same_id(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    assert main(["train", "ppo", "CartPole-v1", *SMALL, "--run-dir", str(folder), "--track", "mlflow"]) == 0
    identity = json.loads((folder / "tracking.json").read_text())["mlflow"]
    flags = ["--total-steps", "640", "--no-progress", "--track", "mlflow"]
    assert main(["train", "--resume", str(folder), *flags]) == 0
    client = mlflow.MlflowClient()
    run = client.get_run(identity)
    assert run.data.params["algo"] == "ppo" and run.info.status == "FINISHED"
    assert run.data.params["hyperparameters.num_envs"] == "2"
    steps = [metric.step for metric in client.get_metric_history(identity, "loss/policy_loss")]
    assert steps == sorted(steps) and steps[-1] >= 640 and steps[0] < 320
