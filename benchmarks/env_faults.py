"""What becomes of a run whose environments fail, each case through the real command line in a process group of its own.

    python benchmarks/env_faults.py                  20 repeats of each case

An environment raises, calls sys.exit, returns another shape or dtype, NaN or infinity, and in processes of its own also
dies or hangs; a worker is killed with kill -9; Ctrl-C and SIGTERM go to the whole process group of the run. A fault
must end the run with exit code 2 and one sentence, or with --on-env-error restart leave it at 0 with one warning; a
signal must leave a checkpoint and 130 or 143. A traceback, another code, or a run that does not end in time is a
failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine

TESTS = Path(__file__).parent.parent / "tests"  # where the environment is that fails
MAIN = "import sys, faulty_env; from rlcore.cli import main; sys.exit(main(sys.argv[1:]))"
FLAGS = ["--num-envs", "3", "--num-steps", "16", "--hidden-sizes", "8", "--preset", "none", "--compile", "false"]
FLAGS += ["--no-progress", "--eval-episodes", "0", "--env-timeout", "2"]
LONG, SHORT = 10_000_000, 3000
SECONDS = 60  # in which any of these runs has to be over; most of it is for a machine that does other things too
RETURNS = ("raise", "exit", "shape", "dtype", "nan", "inf")
DEATHS = ("die", "kill", "hang")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; seconds are those of a busy machine then")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    results = {}
    for name, case in cases().items():
        if options.only in name:
            results[name] = repeated(case, options.repeats, options.jobs)
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    wrong = [name for name, result in results.items() if result["wrong"]]
    machine.write(
        "env_faults",
        {"repeats": options.repeats, "jobs": options.jobs, "limit_seconds": SECONDS, "wrong": wrong, "cases": results},
    )
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def cases() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Each case by its name: makes one run in a folder and tells how it ended."""
    found: dict[str, Callable[[Path], dict[str, Any]]] = {}
    for mode in ("stop", "restart"):
        for backend, faults in (("sync", RETURNS), ("async", RETURNS + DEATHS)):
            for fault in faults:
                found[f"{mode} {backend} {fault}"] = lambda f, m=mode, b=backend, x=fault: by_itself(f, m, b, x)
        found[f"{mode} async kill -9 from outside"] = lambda f, m=mode: killed(f, m)
    found["Ctrl-C to the group"] = lambda f: signalled(f, signal.SIGINT, 130)
    found["SIGTERM to the group"] = lambda f: signalled(f, signal.SIGTERM, 143)
    return found


def repeated(case: Callable[[Path], dict[str, Any]], repeats: int, jobs: int) -> dict[str, Any]:
    def once(_: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return case(Path(folder))

    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(once, range(repeats)))
    seconds = sorted(run["seconds"] for run in runs)
    return {
        "exit_codes": dict(Counter(str(run["code"]) for run in runs)),
        "seconds": {"median": seconds[len(seconds) // 2], "longest": seconds[-1]},
        "tracebacks": sum(run["traceback"] for run in runs),
        "too_late": sum(run["code"] is None for run in runs),
        "wrong": sum(not run["right"] for run in runs),
        "stderr": next((run["stderr"] for run in runs if not run["right"]), runs[0]["stderr"]),
    }


def by_itself(folder: Path, mode: str, backend: str, fault: str) -> dict[str, Any]:
    """An environment fails once, at a step that is known."""
    arguments = ["--env-arg", f'fault="{fault}"', "--env-arg", f"marker={json.dumps(str(folder / 'once'))}"]
    process = start(folder, SHORT, "--backend", backend, "--on-env-error", mode, *arguments)
    return outcome(process, time.perf_counter(), *expected(mode, r"environment \d .*at vector step 40\b"))


def killed(folder: Path, mode: str) -> dict[str, Any]:
    """Worker 1 gets kill -9 in the middle of a run."""
    process = start(folder, LONG if mode == "stop" else 30_000, "--backend", "async", "--on-env-error", mode)
    wait_for_a_checkpoint(process, folder)
    began = time.perf_counter()
    os.kill(children(process)[1], signal.SIGKILL)
    words = r"the process of environment 1 died \(killed by signal 9\) at vector step [\d,]+"
    return outcome(process, began, *expected(mode, words))


def signalled(folder: Path, number: int, code: int) -> dict[str, Any]:
    """The whole group of a run in the middle of its training is told to stop."""
    process = start(folder, LONG, "--backend", "async")
    wait_for_a_checkpoint(process, folder)
    workers, began = children(process), time.perf_counter()
    os.killpg(process.pid, number)
    result = outcome(process, began, code, r"^rlcore: stopped at step ([\d,]+); continue with --resume [^\n]*\n$")
    step = re.search(r"stopped at step ([\d,]+)", result["stderr"])
    saved = step is not None and int(step[1].replace(",", "")) == max(checkpoints(folder))
    result["right"] = result["right"] and saved and not any(map(is_running, workers))
    return result


def expected(mode: str, words: str) -> tuple[int, str]:
    """Exit code and what stderr, one line, has to say."""
    if mode == "stop":
        return 2, rf"^rlcore: [^\n]*{words}[^\n]*\n$"
    return 0, rf"^rlcore: [^\n]*{words}; it was begun anew[^\n]*\n$"


def start(folder: Path, total_steps: int, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-c", MAIN, "train", "ppo", "Faulty-v0", *FLAGS, *flags, "--checkpoint-every", "300"]
    command += ["--total-steps", str(total_steps), "--run-dir", str(folder / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def outcome(process: subprocess.Popen, began: float, code: int, words: str) -> dict[str, Any]:
    """How a run ended, in seconds since it `began` to go wrong."""
    try:
        out, err = process.communicate(timeout=SECONDS)
        got = process.returncode
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        (out, err), got = process.communicate(), None
    traceback = "Traceback" in err or "Traceback" in out
    right = got == code and not traceback and re.search(words, err) is not None
    seconds = round(time.perf_counter() - began, 2)
    return {"code": got, "seconds": seconds, "traceback": traceback, "right": right, "stderr": err[-1000:]}


def wait_for_a_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    end = time.perf_counter() + SECONDS
    while max(checkpoints(folder), default=0) == 0:
        if process.poll() is not None or time.perf_counter() > end:
            raise SystemExit(f"the run did not come to a checkpoint: {process.communicate()[1]}")
        time.sleep(0.005)


def checkpoints(folder: Path) -> list[int]:
    return [int(file.stem.removeprefix("step-")) for file in (folder / "run" / "checkpoints").glob("step-*.pt")]


def children(process: subprocess.Popen) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    main()
