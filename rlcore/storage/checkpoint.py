"""Checkpoint files: written all or not at all, and read without executing or believing anything they bring along."""

import io
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.errors import CheckpointError, UsageError
from rlcore.storage.archive import Refused, read_archive
from rlcore.storage.files import write_atomically

FORMAT = "rlcore-checkpoint"
VERSION = 4
CHECKPOINT = re.compile(r"step-([0-9]+)\.pt")


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder of them by step, whatever else lies beside them; a UsageError where it cannot be
    read."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read: {error.strerror}") from error
    matches = sorted(filter(None, map(CHECKPOINT.fullmatch, names)), key=lambda match: (int(match[1]), match[0]))
    return [file for match in matches if (file := Path(folder, match[0])).is_file()]


def write_checkpoint(path: str | Path, payload: dict[str, Any]) -> None:
    """Store tensors and built-in types in one file, which takes its name, and the place of an older one, only when all
    of it is on the disk.

    Raises:
        CheckpointError: where it cannot be written (disk full, no permission, no such folder).
    """
    memory = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **payload}, memory)
    try:
        write_atomically(Path(path), memory.getbuffer())
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `write_checkpoint` stored, on the CPU.

    Raises:
        CheckpointError: where the file is missing, cut short, damaged, of another version, or not ours, names anything
            but tensors and built-in types, or would take more memory than its size explains.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist")
    try:
        payload = read_archive(path)
    except PermissionError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file fails in as many ways as zip and pickle have parts
        why = str(error) if isinstance(error, Refused) else "it is cut short, damaged, or of another kind"
        raise CheckpointError(f"{path} is not a checkpoint of rlcore: {why}") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of rlcore")
    version = payload.get("version")
    if type(version) is not int or version not in (2, 3, VERSION):
        raise CheckpointError(
            f"the checkpoint {path} has version {version!r:.20}, but this rlcore reads 2 to {VERSION}"
        )
    return payload


def read_agent(path: str | Path) -> dict[str, Any]:
    """The checkpoint of an agent: `read_checkpoint`, with all parts that an agent is made from.

    Raises:
        CheckpointError: as there, and where a part is missing or of another kind.
    """
    payload = read_checkpoint(path)
    if "algo" not in payload and "buffer" in payload:
        raise CheckpointError(
            f"{path} is what a run that diverged left to look at, not an agent; load a checkpoint from before that"
        )
    kinds = {"algo": str, "env_id": str | None, "env_kwargs": dict, "config": dict, "agent": dict, "extra": dict}
    for name, kind in kinds.items():
        if name not in payload or not isinstance(payload[name], kind):
            raise CheckpointError(f"{path} is not the checkpoint of an agent: its part '{name}' is missing or damaged")
    for name in ("env_kwargs", "config"):
        if not all(isinstance(key, str) and _is_plain(value) for key, value in payload[name].items()):
            raise CheckpointError(f"{path} is not the checkpoint of an agent: its part '{name}' is no plain data")
    if payload["version"] == 2:  # which had two ways to run iterations
        compiled = payload["agent"].pop("compiled", None)
        payload["agent"]["how"] = "compiled" if compiled is True else "python" if compiled is False else None
    return payload


def read_newest(path: str | Path) -> tuple[Path, dict[str, Any], dict[Path, CheckpointError]]:
    """Of a run folder, the newest checkpoint of an agent that can be read, what it holds, and what is wrong with each
    newer one; of a file, the file. A CheckpointError where there is none, or where none can be read, that of the
    newest."""
    files = checkpoint_files(Path(path, "checkpoints")) if os.path.isdir(path) else [Path(path)]
    if not files:
        raise CheckpointError(f"the folder {path} has no checkpoint")
    damaged: dict[Path, CheckpointError] = {}
    for file in reversed(files):
        try:
            return file, read_agent(file), damaged
        except CheckpointError as error:
            damaged[file] = error
    raise damaged[files[-1]]


def check_like(state: Any, fresh: Any, name: str) -> None:
    """Refuse a state that has not the structure of a fresh one: the same keys in its dicts, tensors of the same shape
    and dtype, plain values of the same type. A ValueError names the first part that differs."""
    if isinstance(fresh, dict):
        if not isinstance(state, dict) or state.keys() != fresh.keys():
            raise ValueError(f"{name} has other parts than expected")
        for key, value in fresh.items():
            check_like(state[key], value, f"{name}.{key}")
    elif isinstance(fresh, Tensor):
        if not isinstance(state, Tensor) or state.shape != fresh.shape or state.dtype != fresh.dtype:
            raise ValueError(f"{name} is {_described(state)}, but must be {_described(fresh)}")
    elif type(state) is not type(fresh):
        raise ValueError(f"{name} is {_described(state)}, but must be {_described(fresh)}")


def stored_count(state: dict[str, Any], name: str) -> int:
    """A count out of a state, or a ValueError where it is missing or no whole number of at least 0."""
    value = state.get(name)
    if type(value) is not int or value < 0 or value >= 2**63:
        raise ValueError(f"{name} is missing or no whole number of at least 0")
    return value


def _is_plain(value: Any) -> bool:
    """Whether there are no tensors in it."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else not isinstance(value, Tensor)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
    return type(value).__name__
