"""Everything that reads a file, given files that are damaged or crafted: only our own errors, and memory in proportion.

    python benchmarks/fuzz_readers.py                         20,000 inputs for each reader
    python benchmarks/fuzz_readers.py checkpoint --count 500  a part of it
    python benchmarks/fuzz_readers.py checkpoint --index 77   one input again, with its traceback

Each input is made from honest files and its number alone: bytes changed, parts cut, pickles changed and packed again
with right checksums, values replaced by hostile ones. A reader may take an input or refuse it with an error of rlcore;
anything else, more memory than ten times the input's size plus 100 MB, more than 20 seconds, or a program that is
started counts as a failure. Memory is what Linux tells of the process.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import functools
import io
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch

from rlcore import A2C, GRPO, PPO, REINFORCE, load
from rlcore.errors import RlcoreError
from rlcore.storage.checkpoint import FORMAT, VERSION, read_checkpoint

SECONDS, RATIO, EXTRA = 20, 10, 100 * 10**6
STARTS_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
SMALL = dict(num_steps=8, hidden_sizes=(4,), num_minibatches=1, device="cpu", compile=False)


# Honest files.


@functools.cache
def honest_checkpoints() -> list[bytes]:
    """Checkpoints of small agents, with state of every kind in them."""
    agents = [
        PPO("CartPole-v1", seed=0, num_envs=2, backend="sync", **SMALL),
        PPO("CartPole-v1", seed=0, num_envs=2, backend="vector", norm_obs=True, norm_reward=True, **SMALL),
        PPO("CartPole-v1", seed=0, num_envs=2, backend="native", **SMALL),
        A2C("Pendulum-v1", seed=1, num_envs=2, state_dependent_std=True, **SMALL),
        GRPO("Blackjack-v1", seed=2, num_envs=4, group_size=2, kl_coef=0.1, **SMALL),
        REINFORCE("CartPole-v1", seed=3, num_envs=2, **SMALL),
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, agent in enumerate(agents):
            agent.learn(40).save(Path(folder) / str(i))
            agent.close()
        return [(Path(folder) / str(i)).read_bytes() for i in range(len(agents))]


@functools.cache
def honest_run() -> dict[str, bytes]:
    """The files of a finished run, by name."""
    from rlcore.cli import main

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = (
            "--total-steps 300 --num-envs 2 --num-steps 8 --num-minibatches 1 --seed 1 --hidden-sizes 4 --preset none"
        )
        flags = [*flags.split(), "--eval-episodes", "2", "--compile", "false", "--no-progress"]
        with open(os.devnull, "w", encoding="utf-8") as silence:
            stdout, sys.stdout = sys.stdout, silence
            try:
                assert main(["train", "ppo", "CartPole-v1", *flags, "--run-dir", str(run)]) == 0
            finally:
                sys.stdout = stdout
        files = [file for file in run.rglob("*") if file.is_file() and not file.name.startswith((".", "events"))]
        return {str(file.relative_to(run)): file.read_bytes() for file in files}


# What is done to them.


def hostile(rng: random.Random) -> Any:
    """A value that some code was not made for."""
    return rng.choice(
        [
            None, True, -1, 0, 1, 3, 2**31, 2**63, -(2**63), 10**9, 10**30, 0.0, -0.5, 1e308, float("nan"),
            float("inf"), "", "x", "os:system", "../../etc/passwd", "cuda", "async", "native", "none", "x" * 5000,
            b"", b"\xff\xfe", "subprocess:getoutput", "rlcore.cli:main", "CartPole-v1", "FrozenLake-v1", "Ähm\n\t\x00",
            [], {}, (), [[]], {"env": {}}, {"constant": None}, {"array": torch.zeros(2)}, {"scalar": torch.zeros(())},
            {"text": ["<U9", [1], bytes(36)]}, {"generator": {}}, {"dict": [("a", 1)]}, {"list": [1]}, {"tuple": []},
            (1, 2, 3), [0] * 1000, {"a": 1}, {1: 2}, torch.zeros(0), torch.zeros(3), torch.zeros(2, 2).long(),
            torch.full((2,), float("nan")), torch.ones(2, dtype=torch.bool), torch.zeros(1).expand(1000),
        ]
    )  # fmt: skip


def changed_tree(rng: random.Random, payload: Any) -> Any:
    """One part of nested data replaced, dropped, renamed or exchanged with another."""
    payload, places = copy.deepcopy(payload), []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list) and node[key]:
                walk(node[key])

    walk(payload)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        node, key = rng.choice(places)
        other, place = rng.choice(places)
        try:
            match rng.randrange(6):
                case 0 if isinstance(node, dict):
                    node[rng.choice(["", "os", 3, "__class__", "num_envs"])] = node.pop(key)
                case 1:
                    del node[key]
                case 2:
                    node[key] = copy.deepcopy(other[place])
                case 3 if isinstance(node[key], int) and not isinstance(node[key], bool):
                    node[key] = rng.choice([node[key] + 1, -node[key], node[key] * 1000, 10 ** rng.randrange(1, 30)])
                case _:
                    node[key] = hostile(rng)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return payload


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, put in, doubled or set to zero, in a few places."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not data:
            return bytes(data)
        at, length = rng.randrange(len(data)), rng.choice([1, 2, 4, 8, 100])
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + 10 * length]
            case 5:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case _:
                data[at : at + length] = rng.choice([b"\xff", b"\x00", b"\x7f", b"\n"]) * len(data[at : at + length])
    return bytes(data)


def packed_again(archive: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive whose parts were changed, with right checksums."""
    memory = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(memory, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return memory.getvalue()


LONG = b"\xff\xff\xff\xff\xff\x00\x00\x00"  # a terabyte
OPCODES = (
    *(bytes([code]) for code in b"]}()N02.tldaseuRbQ\x81\x85\x86\x87\x88\x8f\x90\x91"),
    *(b"h\x00", b"h\x01", b"q\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f"),
    *(b"K\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"I99999999999\n"),
    *(b"X\xff\xff\xff\xff", b"\x96" + LONG, b"\x8e" + LONG, b"\x95" + LONG),
    *(b"cos\nsystem\n", b"cbuiltins\nbytearray\n", b"ctorch\nFloatStorage\n", b"ctorch\nTensor\n"),
    *(b"c__builtin__\nbytes\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"),
    b"c_codecs\nencode\n",
)


def changed_pickle(rng: random.Random, data: bytes) -> bytes:
    """A pickle with bytes changed, or with operations put in."""
    if rng.random() < 0.4:
        return changed_bytes(rng, data)
    data = bytearray(data)
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        data[at:at] = b"".join(rng.choices(OPCODES, k=rng.choice([1, 2, 4]))) * rng.choice([1, 1, 1, 100, 20_000])
    return bytes(data)


def pickle_from_nothing(rng: random.Random) -> bytes:
    """Operations in a random order, or containers that hold each other many times."""
    if rng.random() < 0.5:
        return b"\x80\x02" + b"".join(rng.choices(OPCODES, k=rng.randrange(1, 60))) + b"."
    node: Any = hostile(rng) if rng.random() < 0.5 else 0
    node = 0 if isinstance(node, torch.Tensor) else node
    for _ in range(rng.randrange(1, 300)):
        node = rng.choice([[node] * rng.randrange(1, 12), {"env": node}, (node, node), {"a": node, "b": node}])
    try:
        return pickle.dumps({"format": FORMAT, "version": VERSION, "agent": node}, 2)
    except (RecursionError, pickle.PicklingError, TypeError):
        return b"\x80\x02]."


def changed_checkpoint(rng: random.Random) -> bytes:
    data = rng.choice(honest_checkpoints())
    way = rng.random()
    if way < 0.15:
        return changed_bytes(rng, data)
    if way < 0.35:
        return packed_again(data, lambda name, part: changed_pickle(rng, part) if name.endswith("data.pkl") else part)
    if way < 0.45:
        return packed_again(data, lambda _, part: changed_bytes(rng, part) if rng.random() < 0.1 else part)
    if way < 0.5:
        made = pickle_from_nothing(rng)
        return packed_again(data, lambda name, part: made if name.endswith("data.pkl") else part)
    if way < 0.52:
        size = rng.choice([10**3, 10**6, 10**8])
        return packed_again(data, lambda _, part: bytes(size) if rng.random() < 0.1 else part, zipfile.ZIP_DEFLATED)
    memory = io.BytesIO()
    torch.save(changed_tree(rng, _payload(data)), memory)
    return memory.getvalue()


@functools.cache
def _payload(data: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x").write_bytes(data)
        return read_checkpoint(Path(folder) / "x")


WORDS = (
    "1e999", "-1", "0", "nan", "inf", '"x"', "[]", "{}", "[[[[", "9" * 5000, "1979-05-27", "true", '"none"',
    '"os:system"', '"ppo"', '"../.."', "1_000_000_000_000", "{ a = 1 }", '"""', "'", "\x00", "\r", "\ud7ff", "= =",
    "[hyperparameters]",
    "a." * 3000 + "b = 1", "[" * 3000, "num_envs", "seed", "0x" + "f" * 400, "2147483648", "0.1", ",", "\n\n",
)  # fmt: skip


def changed_text(rng: random.Random, data: bytes) -> bytes:
    """Text with words replaced, lines dropped, doubled or exchanged, or its bytes changed."""
    if rng.random() < 0.3:
        return changed_bytes(rng, data)
    lines = data.decode(errors="replace").splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 2, 5])):
        if not lines:
            break
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 2:
                lines.insert(at, rng.choice(WORDS) + "\n")
            case 3:
                lines[at] = lines[at].strip("\n") * rng.choice([2, 1000])
            case _:
                key, sign, _ = lines[at].partition("=") if "=" in lines[at] else lines[at].rpartition(",")
                lines[at] = f"{key}{sign} {rng.choice(WORDS)}\n"
    return "".join(lines).encode(errors="replace")


# Who reads them.


def read_a_checkpoint(rng: random.Random, folder: Path) -> Callable[[], None]:
    """rlcore.load: the agent, its environments and their state."""
    path = folder / "agent.pt"
    path.write_bytes(changed_checkpoint(rng))
    return lambda: load(path, device="cpu").close()


def read_a_config(rng: random.Random, folder: Path) -> Callable[[], None]:
    """`rlcore train --config`, up to where the agent would be made: the run folder that is asked for is taken."""
    from rlcore.agents import AGENTS
    from rlcore.agents.config import make_config
    from rlcore.cli import training
    from rlcore.runs.folder import FolderTaken
    from rlcore.runs.settings import read_settings

    path = folder / "config.toml"
    path.write_bytes(changed_text(rng, honest_run()["config.toml"]))

    def read() -> None:
        with contextlib.suppress(FolderTaken):
            training.train(["--config", str(path), "--run-dir", str(folder)])
        config = read_settings(path)
        values = {name: None if value == "none" else value for name, value in config["hyperparameters"].items()}
        make_config(AGENTS[config["algo"]].Config, values)

    return read


def read_a_run(rng: random.Random, folder: Path) -> Callable[[], None]:
    """`rlcore train --resume` with some of a run folder's files changed, up to where training would go on."""
    from rlcore.runs.folder import EpisodeLog
    from rlcore.runs.train import Run

    files = dict(honest_run())
    for name in rng.sample(sorted(files), rng.choice([1, 1, 2, len(files)])):
        data = files[name]
        files[name] = (
            changed_text(rng, data) if name.endswith((".toml", ".csv", ".json")) else _changed_archive(rng, data)
        )
    if rng.random() < 0.2:
        stray = rng.choice(
            ["step-abc.pt", "step-.pt", "step-99999999999999999999.pt", "step--1.pt", ".x.1.tmp", "step-1.pt"]
        )
        files[f"checkpoints/{stray}"] = rng.choice([b"", rng.randbytes(100)])
    if rng.random() < 0.2:
        files.pop(rng.choice(sorted(files)))
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    def read() -> None:
        run = Run.resume(folder, 1000, device="cpu")
        try:
            EpisodeLog(run.folder.episodes_file, resume_at=run.agent.global_step).close()
        finally:
            run.agent.close()
            run.close()

    return read


def _changed_archive(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return changed_bytes(rng, data)
    memory = io.BytesIO()
    torch.save(changed_tree(rng, _payload(data)), memory)
    return memory.getvalue()


def read_the_episodes(rng: random.Random, folder: Path) -> Callable[[], None]:
    """episodes.csv, as a run that goes on reads it."""
    from rlcore.runs.folder import EpisodeLog

    path = folder / "episodes.csv"
    path.write_bytes(changed_text(rng, honest_run()["episodes.csv"]))
    return lambda: EpisodeLog(path, resume_at=rng.randrange(400)).close()


READERS = {
    "checkpoint": read_a_checkpoint,
    "config": read_a_config,
    "run": read_a_run,
    "episodes": read_the_episodes,
}


# One input, and many.


def attempt(reader: str, index: int) -> dict[str, Any]:
    """Give input number `index` to a reader; says what came of it."""
    rng = random.Random(f"{reader} {index}")
    folder = Path(tempfile.mkdtemp(prefix="rlcore-fuzz-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action = READERS[reader](rng, folder)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            outcome = run(action)
    finally:
        shutil.rmtree(folder)
    if outcome["bytes"] > RATIO * size + EXTRA:
        outcome["failure"] = f"{outcome['bytes'] / 1e6:.0f} MB for {size:,} bytes"
    return {**outcome, "index": index, "size": size}


def run(action: Callable[[], None]) -> dict[str, Any]:
    programs.clear()
    before, start = memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    signal.alarm(SECONDS)
    result, failure = "taken", None
    try:
        action()
    except RlcoreError as error:
        result = "refused"
        if "\n" in str(error):
            failure = f"more than one line: {error}"
    except BaseException as error:
        result, failure = "failed", f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    if programs:
        failure = f"started a program: {programs[0]}"
    used = max(memory("VmHWM") - before, 0)
    return {"result": result, "failure": failure, "bytes": used, "seconds": time.perf_counter() - start}


def memory(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


programs: list[str] = []


def prepare() -> None:
    """Make a process ready: one thread, a limit of time, and an eye on programs that are started."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    def watch(event: str, arguments: tuple) -> None:
        if event in STARTS_PROGRAMS:
            programs.append(f"{event} {arguments}"[:200])

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    sys.addaudithook(watch)
    honest_checkpoints(), honest_run()
    attempt("checkpoint", 0), attempt("run", 0)  # what is imported when first needed is no input's memory


def attempts(task: tuple[str, range]) -> list[dict[str, Any]]:
    return [attempt(task[0], index) for index in task[1]]


def study(pool: Any, reader: str, count: int, first: int = 0) -> dict[str, Any]:
    """Results over `count` inputs."""
    start = time.perf_counter()
    tasks = [(reader, range(at, min(at + 250, first + count))) for at in range(first, first + count, 250)]
    done = [one for chunk in pool.imap_unordered(attempts, tasks) for one in chunk]
    failures = sorted((one for one in done if one["failure"]), key=lambda one: one["index"])
    results = collections.Counter(one["result"] for one in done)
    summary = {
        "inputs": len(done), "taken": results["taken"], "refused": results["refused"], "failures": len(failures),
        "most_megabytes": round(max(one["bytes"] for one in done) / 1e6, 1),
        "longest_seconds": round(max(one["seconds"] for one in done), 2),
        "seconds": round(time.perf_counter() - start, 1),
        "examples": [{key: one[key] for key in ("index", "failure", "size")} for one in failures[:10]],
    }  # fmt: skip
    print(f"{reader}: {summary}", flush=True)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}; default: all")
    parser.add_argument("--count", type=int, default=20_000, help="inputs for each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--index", type=int, help="this input alone, with its traceback; nothing is written")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    readers = options.readers or list(READERS)
    unknown = sorted(set(readers) - set(READERS))
    if unknown:
        parser.error(f"'{unknown[0]}' is no reader; there are {', '.join(READERS)}")
    if options.index is not None:
        return show(readers[0], options.index)
    with multiprocessing.get_context("spawn").Pool(options.jobs, prepare) as pool:
        results = {reader: study(pool, reader, options.count, options.first) for reader in readers}
    machine.write("fuzz_readers", {"first_input": options.first, "readers": results})
    sys.exit(any(result["failures"] for result in results.values()))


def show(reader: str, index: int) -> None:
    prepare()
    folder = Path(tempfile.mkdtemp(prefix="rlcore-fuzz-"))
    try:
        READERS[reader](random.Random(f"{reader} {index}"), folder)()
        print("taken")
    except BaseException:
        traceback.print_exc()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
