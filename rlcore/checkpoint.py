"""Checkpoint files: written all or not at all, and read without executing anything they bring along."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from rlcore.errors import CheckpointError

FORMAT = "rlcore-checkpoint"
VERSION = 3


def write_checkpoint(path: str | Path, payload: dict[str, Any]) -> None:
    """Store tensors and built-in types in one file.

    The file appears under its name only when all of it is on the disk; until then an older one of that name stays.

    Raises:
        CheckpointError: where it cannot be written (disk full, no permission, no such folder).
    """
    memory = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **payload}, memory)
    try:
        write_atomically(Path(path), memory.getbuffer())
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` beside `path`, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the platform can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `write_checkpoint` stored, on the CPU.

    Raises:
        CheckpointError: where the file is missing, cut short, damaged, of another version, or not ours. A pickle that
            names anything but tensors and built-in types is refused before it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist")
    _check_archive(path)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of rlcore: it does not hold tensors and plain data alone"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of rlcore")
    if payload.get("version") not in (2, VERSION):
        raise CheckpointError(
            f"the checkpoint {path} has version {payload.get('version')!r}, but this rlcore reads 2 and {VERSION}"
        )
    if payload["version"] == 2:  # which had two ways to run iterations
        compiled = payload["agent"].pop("compiled")
        payload["agent"]["how"] = {True: "compiled", False: "python", None: None}[compiled]
    return payload


def _check_archive(path: Path) -> None:
    """Refuse a file that is no zip archive, was cut short, or whose checksums do not hold."""
    with open(path, "rb") as file:
        is_ours = file.read(2) == b"PK"
    if not is_ours:
        raise CheckpointError(f"{path} is not a checkpoint of rlcore")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        damaged = "its end"
    if damaged:
        raise CheckpointError(f"the checkpoint {path} is cut short or damaged (at {damaged})")
