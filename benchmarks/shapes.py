"""PPO on the native CartPole-v1 from 1 to 65,536 environments: speed, memory, and where both stop paying.

    python benchmarks/shapes.py                                   the shapes of benchmarks/shapes.toml
    python benchmarks/shapes.py --num-envs 4 64 --techniques compiled
    python benchmarks/shapes.py --toml FILE                       shapes of your own
    python benchmarks/shapes.py --device cuda --num-envs 4096 16384 65536

Each point is a fresh process: steps per second of whole training, then of rollouts alone, peak resident memory of the
process (torch and all else included: at one environment it is what Python and torch take), and on CUDA the peak of the
memory that torch reserved there. Networks, epochs and minibatches are those of speed.py. Both techniques step the same
environments, the native ones on the device: `compiled` as compiled programs (CUDA: graphs), `python` operation by
operation. Programs are built beforehand in processes of their own, so that the compiler's memory is not counted.
Techniques and shapes alternate, repetition by repetition.

A TOML file has the keys num_envs, techniques, longest, most_transitions, update_epochs and num_minibatches; a rollout
has `longest` rows, or as many fewer as keep it within `most_transitions`. A shape that fails (memory) is reported and
the others go on. Writes results/shapes_CartPole-v1_DEVICE.json and a plot beside it.
"""

from __future__ import annotations

import argparse
import functools
import resource
import statistics
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

# The peak that getrusage tells of a process is at least its parent's, so nothing large is imported here.
import harness
import machine

ENV_ID = "CartPole-v1"
TECHNIQUES = ("compiled", "python")
KEYS = ("num_envs", "techniques", "longest", "most_transitions", "update_epochs", "num_minibatches")
WARM_UP = 2  # iterations
SATURATED = 0.9  # of the highest speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toml", type=Path, default=Path(__file__).with_suffix(".toml"), help="default: shapes.toml")
    parser.add_argument("--num-envs", type=int, nargs="+")
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES)
    parser.add_argument("--longest", type=int, help="rows of a rollout at most")
    parser.add_argument("--most-transitions", type=int, help="transitions of a rollout at most")
    parser.add_argument("--update-epochs", type=int)
    parser.add_argument("--num-minibatches", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", default="auto", help="torch's, or auto: as `rlcore train` chooses")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time per point, at least two iterations")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if options.threads != "auto" and not (options.threads.isdecimal() and int(options.threads) >= 1):
        parser.error(f"--threads is '{options.threads}', but must be auto or a whole number of at least 1")
    try:
        work = read_work(options)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as programs:
        points = measure_all(work, options, programs)
    report(points, work, options)


def read_work(options: argparse.Namespace) -> dict[str, Any]:
    """The TOML file with what the flags say in its place.

    Raises:
        ValueError: what is wrong with one of them, in one sentence.
    """
    try:
        work = tomllib.loads(options.toml.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--toml {options.toml} cannot be read: {error}") from error
    if unknown := set(work) - set(KEYS):
        raise ValueError(f"{options.toml} has the key '{min(unknown)}', but may have {', '.join(KEYS)}")
    work |= {key: value for key in KEYS if (value := getattr(options, key)) is not None}
    for key in KEYS:
        if key not in work:
            raise ValueError(f"{options.toml} has no '{key}', and there is no --{key.replace('_', '-')}")
        values = work[key] if isinstance(work[key], list) else [work[key]]
        allowed = TECHNIQUES if key == "techniques" else None
        if not values or not all(x in allowed if allowed else type(x) is int and x >= 1 for x in values):
            raise ValueError(f"{key} is {work[key]!r}, but may be {allowed or 'whole numbers of at least 1'}")
    return work


def num_steps(num_envs: int, work: dict[str, Any]) -> int:
    """Rows of a rollout, within the bound on its transitions."""
    return max(min(work["longest"], work["most_transitions"] // num_envs), 1)


def measure_all(work: dict[str, Any], options: argparse.Namespace, programs: str) -> list[dict[str, Any]]:
    """Every technique and shape, with the rows of its repetitions."""
    points = {
        f"{technique} {count:,}": {"technique": technique, "num_envs": count, "num_steps": num_steps(count, work)}
        | {"rows": [], "error": None}
        for count in work["num_envs"]
        for technique in work["techniques"]
    }

    def measure(name: str, _: int, seconds: float = options.seconds) -> dict[str, Any] | None:
        point = points[name]
        if point["error"]:
            return None
        row = in_process(point, work, options, programs, seconds)
        point["error"] = row.get("error")
        return row

    if options.device == "cpu":
        compiled = [name for name, point in points.items() if point["technique"] == "compiled"]
        built = harness.alternate(compiled, 1, functools.partial(measure, seconds=0.0), said)
        for name, [row] in built.items():
            points[name]["build_seconds"] = row.get("ready_seconds")
    for name, rows in harness.alternate(points, options.repetitions, measure, said).items():
        points[name]["rows"] = [row for row in rows if "error" not in row]
    return list(points.values())


def said(row: dict[str, Any]) -> str:
    if "steps_per_second" not in row:
        return row.get("error") or f"built in {row['ready_seconds']:.1f} s"
    card = f", card {row['device_MiB']:,.0f} MiB" if row["device_MiB"] else ""
    return (
        f"{row['steps_per_second']:12,.0f} steps/s, rollout alone {row['rollout_steps_per_second']:12,.0f}, "
        f"memory {row['peak_rss_MiB']:,.0f} MiB{card}, {row['threads']} threads"
    )


def in_process(
    point: dict[str, Any], work: dict[str, Any], options: argparse.Namespace, programs: str, seconds: float
) -> dict[str, Any]:
    """One measurement in a process of its own; {"error": what it said last} where that fails."""
    shape = {name: point[name] for name in ("technique", "num_envs", "num_steps")}
    task = {**shape, **{name: work[name] for name in ("update_epochs", "num_minibatches")}, "seconds": seconds}
    task |= {"device": options.device, "threads": options.threads}
    try:
        return harness.worker(__file__, task, threads=None, cache=programs)  # the package decides on its threads
    except harness.Failed as error:
        return {"error": error.said}


def measure(
    technique: str, device: str, threads: str, seconds: float, num_envs: int, num_steps: int, **work: int
) -> dict[str, Any]:
    """In this process: steps per second of training and of rollouts, and peak memory. `seconds` 0 only builds."""
    import torch

    import rlcore
    from rlcore.runs.train import set_threads

    before = peak_rss()
    agent = rlcore.PPO(
        ENV_ID, num_envs=num_envs, num_steps=num_steps, **work, learning_rate=2.5e-4, ent_coef=0.01, seed=1,
        device=device, backend="native", compile=technique == "compiled",
    )  # fmt: skip
    used = set_threads(agent, threads)
    start = time.perf_counter()
    agent.engine.prepare(harness.FAR)
    if not seconds:
        return {"ready_seconds": time.perf_counter() - start}
    iterations = agent.iterations(harness.FAR)
    for _ in range(WARM_UP):
        next(iterations)
    ready = time.perf_counter() - start
    training = harness.stretch(agent, functools.partial(next, iterations), seconds, calls=2).steps_per_second
    rollout = harness.stretch(agent, agent.collect, seconds / 2, calls=2).steps_per_second
    return {
        "steps_per_second": training, "rollout_steps_per_second": rollout, "ready_seconds": ready, "threads": used,
        "peak_rss_MiB": peak_rss(), "rss_before_MiB": before,
        "device_MiB": torch.cuda.max_memory_reserved() / 2**20 if device == "cuda" else None,
    }  # fmt: skip


def peak_rss() -> float:
    """MiB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(points: list[dict[str, Any]], work: dict[str, Any], options: argparse.Namespace) -> None:
    measured = []
    for point in points:
        rows = point.pop("rows")
        if rows:
            names = ("steps_per_second", "rollout_steps_per_second", "peak_rss_MiB", "device_MiB", "ready_seconds")
            point |= {f"{n}_median": statistics.median(r[n] for r in rows) for n in names if rows[0][n] is not None}
            point["repetitions"] = rows
            measured.append(point)
    saturation = {t: where_it_saturates(t, measured) for t in work["techniques"]}
    for technique, count in saturation.items():
        if count:
            print(f"{technique}: {SATURATED:.0%} of its highest speed from {count:,} environments on")
    for point in points:
        if point["error"]:
            print(f"{point['technique']} with {point['num_envs']:,} environments failed: {point['error']}")
    path = machine.write(
        f"shapes_{ENV_ID}_{options.device}",
        {"env_id": ENV_ID, "device": options.device, "threads": options.threads, "work": work}
        | {"saturation_at": SATURATED, "saturated_from_num_envs": saturation, "points": points},
    )
    if measured:
        plot(measured, options.device, path.with_suffix(".png"))


def where_it_saturates(technique: str, points: list[dict[str, Any]]) -> int | None:
    """The fewest environments with which training reaches nearly its highest speed."""
    speeds = {p["num_envs"]: p["steps_per_second_median"] for p in points if p["technique"] == technique}
    return min((n for n, v in speeds.items() if v >= SATURATED * max(speeds.values())), default=None)


def plot(points: list[dict[str, Any]], device: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, technique in zip(("tab:blue", "tab:orange"), TECHNIQUES, strict=True):
        mine = sorted((p for p in points if p["technique"] == technique), key=lambda p: p["num_envs"])
        if not mine:
            continue
        x = [p["num_envs"] for p in mine]
        training, rollout = ([p[f"{k}steps_per_second_median"] for p in mine] for k in ("", "rollout_"))
        left.plot(x, training, "-o", color=color, ms=4, label=f"{technique}, training")
        left.plot(x, rollout, "--", color=color, label=f"{technique}, rollout alone")
        spread = [[pick(r["steps_per_second"] for r in p["repetitions"]) for p in mine] for pick in (min, max)]
        left.fill_between(x, *spread, color=color, alpha=0.2, lw=0)
        right.plot(x, [p["peak_rss_MiB_median"] for p in mine], "-o", color=color, ms=4, label=f"{technique}, process")
        if "device_MiB_median" in mine[0]:
            card = [p["device_MiB_median"] for p in mine]
            right.plot(x, card, ":s", color=color, ms=4, label=f"{technique}, on the card")
    for axes, label in ((left, "steps per second"), (right, "peak memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="environments", ylabel=label)
        ticks = sorted({p["num_envs"] for p in points})
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter(lambda mebibytes, _: f"{mebibytes:,.0f}")
    here = machine.describe()
    where = here["gpu"] if device == "cuda" else f"{here['cores']} cores of {here['cpu']}"
    figure.suptitle(f"PPO on {ENV_ID}, {where}", fontsize=11)
    figure.savefig(path, dpi=120)
    print(f"wrote {machine.shown(path)}")


if __name__ == "__main__":
    harness.start(main, measure)
