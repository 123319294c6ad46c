"""Where the curves of a run go: TensorBoard always, and with --track to Weights & Biases, MLflow, or what one writes.

A tracker is made by a function `(folder, settings) -> Tracker` of the run folder's path and of what config.toml says,
in a new run and in each that resumes it.
"""

import importlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlcore.errors import RlcoreError, UsageError, did_you_mean, one_line
from rlcore.storage.files import write_atomically

IDS = "tracking.json"  # of the run folder: under which names other services have the run
LARGEST_IDS = 2**16  # bytes
QUEUE = 200  # points that TensorBoard keeps in memory


class Tracker(Protocol):
    """Takes the points of a run's curves."""

    def log(self, scalars: dict[str, float], step: int, at: float) -> None:
        """One point of some curves: finite values by name, after `step` environment steps, at the time `at` (seconds
        since 1970). Steps of a run that was resumed may come again."""

    def flush(self) -> None:
        """Before a checkpoint: what was logged should be safe from then on."""

    def close(self) -> None:
        """The run ends, or is interrupted."""


Maker = Callable[[Path, dict[str, Any]], Tracker]


class TensorBoard:
    """Event files in the run folder; `resume_at` is the step of the checkpoint that a run goes on from."""

    def __init__(self, folder: Path, settings: dict[str, Any], resume_at: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_at is None else resume_at + 1
        self.writer: Any = SummaryWriter(str(folder), purge_step=purge_step, max_queue=QUEUE)
        threading.excepthook = _leave_storage_errors_to_the_caller

    def log(self, scalars: dict[str, float], step: int, at: float) -> None:
        # `add_scalar` makes an event of each number, and was a sixth of a fast run's time.
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self.writer.file_writer.add_summary(Summary(value=values), step, at)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        try:
            self.writer.close()
        finally:
            threading.excepthook = threading.__excepthook__


class WandB:
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline and its other variables say where to. A run that is resumed
    goes on under the same id."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        wandb = _package("wandb", "wandb")
        known = _ids(folder).get("wandb")
        with _told("Weights & Biases"):
            self.run = wandb.init(
                dir=str(folder), id=known, resume="allow" if known else None, config=settings, name=folder.name,
                group=f"{settings.get('algo')} {settings.get('env_id')}",
            )  # fmt: skip
        _keep_id(folder, "wandb", self.run.id)

    def log(self, scalars: dict[str, float], step: int, at: float) -> None:
        self.run.log({**scalars, "global_step": step}, step=step)

    def flush(self) -> None:
        pass  # a process of its own writes

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where to. A run that is resumed goes on under the same
    id."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        mlflow = _package("mlflow", "mlflow")
        from mlflow.entities import Metric

        self.new_metric, known = Metric, _ids(folder).get("mlflow")
        with _told("MLflow"):
            self.client = mlflow.MlflowClient()
            self.id = known or self._new_run(mlflow, folder)
            if known is None:
                for name, value in _flat(settings).items():
                    self.client.log_param(self.id, name, str(value)[:500])
        _keep_id(folder, "mlflow", self.id)

    def _new_run(self, mlflow: Any, folder: Path) -> str:
        import os

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rlcore")
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        return self.client.create_run(experiment, run_name=folder.name).info.run_id

    def log(self, scalars: dict[str, float], step: int, at: float) -> None:
        metrics = [self.new_metric(name, value, int(1000 * at), step) for name, value in scalars.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def flush(self) -> None:
        pass  # each point is written at once

    def close(self) -> None:
        self.client.set_terminated(self.id)


KNOWN: dict[str, Maker] = {"wandb": WandB, "mlflow": MLflow}


def find_tracker(name: str) -> Maker:
    """What makes a tracker: wandb, mlflow, or of "module:function" that function.

    Raises:
        UsageError: where there is none of that name, or its module cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in KNOWN:
            near = did_you_mean(name, KNOWN)
            raise UsageError(f"--track is '{name}'{near}, but may be {', '.join(KNOWN)}, or module:function")
        return KNOWN[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the import of foreign code raises
        raise UsageError(f"--track is '{name}', which cannot be imported: {one_line(error)}") from error


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--track {name} needs the package {error.name}: pip install 'rlcore[{extra}]'") from error


@contextmanager
def _told(service: str) -> Iterator[None]:
    """In one sentence what goes wrong in somebody else's service."""
    try:
        yield
    except Exception as error:
        raise RlcoreError(f"{service} cannot be logged to: {one_line(error)[:500]}") from error


def _ids(folder: Path) -> dict[str, str]:
    try:
        with open(folder / IDS, "rb") as file:
            found = json.loads(file.read(LARGEST_IDS))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _keep_id(folder: Path, service: str, identity: str) -> None:
    write_atomically(folder / IDS, json.dumps({**_ids(folder), service: identity}).encode())


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Tables in tables as names with dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": v for key, v in inner.items()}
    return flat


def _leave_storage_errors_to_the_caller(error: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer thread raises its error again in the next call, where it is reported in one sentence."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)
