"""Benches on a Ray cluster: what travels, what is lost and runs again; with ray itself where it is installed."""

import dataclasses
import io
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rlcore.cli import main
from rlcore.runs import cluster as cluster_module
from rlcore.runs import node
from rlcore.runs.bench import MOST_LOSSES, Bench
from rlcore.runs.cluster import Cluster
from rlcore.runs.node import PYTHON, ROOT, Order, carry_out, pack, unpack
from rlcore.runs.results import read_index
from tests.runs.test_bench import suite_of

CHECKOUT = Path(__file__).parent.parent.parent

# An agent that is none of rlcore: returns that follow from the seed, and how often it was begun where that is seen.
FOREIGN = """
    import json, os, pathlib, sys, time
    flags = dict(word.split("=", 1) for word in sys.argv[2:])
    seed, out, where = int(flags["--seed"]), pathlib.Path(flags["--out"]), os.environ.get("TEST_BEGINNINGS")
    if where:
        with open(where, "a") as file:
            print(seed, file=file)
    print("seed", seed)
    if seed == int(os.environ.get("TEST_BROKEN", -1)):
        sys.exit("the disk of seed %d is round" % seed)
    time.sleep(float(os.environ.get("TEST_SECONDS", 0)))
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "file").write_text(str(seed))
    (out / "result.json").write_text(json.dumps({"returns": [seed * 1.5, os.environ["RLCORE_RUNS"].count("4")]}))
"""


@pytest.fixture
def foreign(tmp_path):
    script = tmp_path / "agent.py"
    script.write_text(textwrap.dedent(FOREIGN))
    return {"command": [sys.executable, str(script)]}


def run(path, suite, cluster=None, show=False):
    bench = Bench.open(path, suite)
    try:
        return bench.run(2, show, cluster)
    finally:
        bench.close()


def table(path):
    """What a bench came to, without times and places."""
    return sorted((r.agent, r.env_id, r.seed, r.state, r.error, r.folder, r.returns) for r in read_index(path))


# Folders as bytes.


def test_a_folder_comes_back_whole_in_the_place_of_an_earlier_one(tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    (source / "checkpoints").mkdir(parents=True)
    (source / "checkpoints" / "step-1.pt").write_bytes(bytes(range(256)) * 100)
    (source / "empty").mkdir()
    (source / "link").symlink_to("checkpoints/step-1.pt")
    unpack(pack(source), target)
    (target / "left over").touch()
    unpack(pack(source), target)
    found = {p.relative_to(target).as_posix() for p in target.rglob("*")}
    assert found == {"checkpoints", "checkpoints/step-1.pt", "empty", "link"}
    assert (target / "link").read_bytes() == bytes(range(256)) * 100
    assert list(target.parent.iterdir()) == [target]  # nothing temporary


def archive_of(*entries):
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, kind, link in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            archive.addfile(entry)
    return memory.getvalue()


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", tarfile.REGTYPE, "")],
        [("a/../../evil", tarfile.REGTYPE, "")],
        [("link", tarfile.SYMTYPE, "../..")],
        [("link", tarfile.SYMTYPE, "/etc")],
        [("link", tarfile.LNKTYPE, "../../evil")],
        [("device", tarfile.CHRTYPE, "")],
    ],
)
def test_paths_that_leave_the_folder_are_refused_and_nothing_has_changed(entries, tmp_path):
    target = tmp_path / "bench" / "run"
    target.mkdir(parents=True)
    (target / "kept").touch()
    with pytest.raises(tarfile.TarError):
        unpack(archive_of(("good", tarfile.REGTYPE, ""), *entries), target)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "bench",
        "bench/run",
        "bench/run/kept",
    ]


def test_what_is_no_tar_is_refused(tmp_path):
    with pytest.raises(tarfile.TarError):
        unpack(b"no tar", tmp_path / "run")
    assert not list(tmp_path.iterdir())


# What a node does.

WRITE = "import os, pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); print('here', os.environ['TOLD']); "
READ = "(p / 'copy').write_text((p.parent.parent / 'early' / 'seed-0' / 'weights').read_text()); sys.exit(3)"


def test_a_node_has_what_it_was_sent_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "weights").write_text("0.5")
    folder = "CartPole-v1/late/seed-0"
    sent = {"CartPole-v1/early/seed-0": pack(tmp_path / "early")}
    answer = carry_out(Order((PYTHON, "-c", WRITE + READ, f"{ROOT}/{folder}"), folder, {"TOLD": "x"}, sent))
    assert answer.code == 3 and answer.log == b"here x\n" and 0 < answer.seconds < 60
    unpack(answer.folder, tmp_path / "back")
    assert (tmp_path / "back" / "copy").read_text() == "0.5"
    assert "cpu" in answer.machine and "command" not in answer.machine
    absent = carry_out(Order(("no-such-command",), folder, {}, {}))
    assert absent.code == 127 and b"no-such-command cannot be started" in absent.log and absent.folder is None
    assert not list((tmp_path / "scratch").iterdir())


def test_a_node_without_rlcore_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("rlcore.runs.node.DESCRIBE", "import no_such_package")
    node._machine.cache_clear()
    command = (PYTHON, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(RuntimeError, match=r"rlcore cannot be started on .*: ModuleNotFoundError: No module named"):
        carry_out(Order(command, "CartPole-v1/own/seed-0", {}, {}))
    assert not (tmp_path / "ran").exists()


# A cluster without ray.


class Tasks:
    """What the cluster uses of ray, with tasks that run when they are asked for; `losses` of them are lost first."""

    class exceptions:
        class NodeDiedError(Exception): ...

        class WorkerCrashedError(Exception): ...

    def __init__(self, losses=0):
        self.losses, self.most, self.handles, self.cancelled = losses, 0, [], []

    def init(self, address, **_): ...

    def shutdown(self):
        self.handles.clear()

    def cluster_resources(self):
        return {"CPU": 3.0}

    def remote(self, **options):
        assert options == {"num_cpus": 1, "num_gpus": 0.0, "max_retries": 0}
        return lambda function: Task

    def wait(self, handles, num_returns=1, timeout=None):
        self.most = max(self.most, len(handles))
        return handles[:num_returns], handles[num_returns:]

    def get(self, handle):
        if self.losses:
            self.losses -= 1
            raise self.exceptions.NodeDiedError("Its node is gone. More\nof it.")
        return carry_out(handle.order)

    def cancel(self, handle):
        self.cancelled.append(handle)


class Task:
    """A handle of it, which ray makes by its `remote`."""

    def __init__(self, order):
        self.order = order

    @classmethod
    def remote(cls, order):
        return cls(order)


def fake(monkeypatch, **arguments):
    tasks = Tasks(**arguments)
    monkeypatch.setattr(cluster_module, "_ray", lambda: tasks)
    return tasks, Cluster("auto")


def test_a_bench_on_a_cluster_comes_to_the_same_and_what_was_lost_runs_again(tmp_path, foreign, monkeypatch, capsys):
    monkeypatch.setenv("TEST_BROKEN", "2")
    suite = suite_of({"own": foreign}, seeds=4)
    (here,) = run(tmp_path / "here", suite)
    tasks, cluster = fake(monkeypatch, losses=2)
    (there,) = run(tmp_path / "there", suite, cluster, show=True)
    assert here.error == there.error == "the disk of seed 2 is round"
    assert table(tmp_path / "here") == table(tmp_path / "there") and len(table(tmp_path / "here")) == 4
    assert tasks.most == cluster.jobs == 3  # as many at a time as the cluster has CPUs
    out = capsys.readouterr().out
    assert "own on CartPole-v1, seed 0 was lost and runs again, 1 so far: Its node is gone\n" in out
    assert out.count("was lost") == 2 and "4/4" in out
    for path in (tmp_path / "here", tmp_path / "there"):
        assert (path / "CartPole-v1" / "own" / "seed-3" / "deep" / "file").read_text() == "3"
        assert (path / "CartPole-v1" / "own" / "seed-3.log").read_text() == "seed 3\n"
    monkeypatch.delenv("TEST_BROKEN")
    assert run(tmp_path / "there", None, cluster) == []  # what failed is tried again
    assert [r.state for r in read_index(tmp_path / "there")] == ["done"] * 4


def test_a_record_says_which_machine_it_was(tmp_path, foreign, monkeypatch):
    """That of the node, with the command and the date of the bench."""
    tasks, cluster = fake(monkeypatch)
    there = {"cpu": "of the node", "versions": {"torch": "9"}}
    monkeypatch.setattr(tasks, "get", lambda task: dataclasses.replace(carry_out(task.order), machine=there))
    assert run(tmp_path / "out", suite_of({"own": foreign}, seeds=1), cluster) == []
    (result,) = read_index(tmp_path / "out")
    assert result.machine.items() >= there.items() and "date" in result.machine and "command" in result.machine


def test_a_cell_that_is_lost_again_and_again_fails(tmp_path, foreign, monkeypatch):
    _, cluster = fake(monkeypatch, losses=MOST_LOSSES + 1)
    (failed,) = run(tmp_path / "out", suite_of({"own": foreign}, seeds=1), cluster)
    assert failed.error == f"it was lost {MOST_LOSSES + 1} times, the last time: Its node is gone"


def test_an_error_of_the_cluster_is_the_failure_of_its_cell_alone(tmp_path, foreign, monkeypatch):
    tasks, cluster = fake(monkeypatch)
    answers = [carry_out, lambda order: dataclasses.replace(carry_out(order), folder=archive_of(("../x", b"0", "")))]
    answers.append(lambda order: (_ for _ in ()).throw(ImportError("no module named\n'rlcore'")))
    monkeypatch.setattr(tasks, "get", lambda handle: answers[int(handle.order.folder[-1])](handle.order))
    evil, absent = run(tmp_path / "out", suite_of({"own": foreign}, seeds=3), cluster)
    assert "its folder cannot be unpacked" in evil.error and "outside" in evil.error
    assert absent.error == "the cluster could not run it: no module named 'rlcore'"


def test_what_a_cell_begins_with_is_sent_along(tmp_path, foreign, monkeypatch):
    """The folder of the agent that it comes after, and its own where it was begun before."""
    _, cluster = fake(monkeypatch)
    agents = {"late": {"algo": "ppo", "after": "early", "total_steps": 9}, "early": foreign}
    bench = Bench.open(tmp_path / "out", suite_of(agents, seeds=1))
    late, early = bench.cells
    cluster.at(bench.path)
    (bench.path / early.folder).mkdir(parents=True)
    job = cluster.start(late, bench._command(late, cluster.root), {})
    assert set(job.handle.order.sent) == {early.folder.as_posix()}
    assert f"--init={ROOT}/{early.folder}" in job.handle.order.words and job.handle.order.words[0] == PYTHON
    (bench.path / late.folder / "checkpoints").mkdir(parents=True)
    (bench.path / late.folder / "checkpoints" / "step-8.pt").touch()
    job = cluster.start(late, bench._command(late, cluster.root), {})
    assert set(job.handle.order.sent) == {early.folder.as_posix(), late.folder.as_posix()}
    assert f"--resume={ROOT}/{late.folder}" in job.handle.order.words
    assert str(tmp_path) not in " ".join(job.handle.order.words)
    bench.close()


def test_tasks_are_cancelled_where_the_bench_ends(tmp_path, foreign, monkeypatch):
    tasks, cluster = fake(monkeypatch)

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", suite_of({"own": foreign}, seeds=5), cluster)
    assert len(tasks.cancelled) == 3


# With ray.


@pytest.fixture
def two_nodes(monkeypatch, tmp_path):
    """A cluster of two nodes on this machine, each with two cells at a time, and a function that kills the second."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("TEST_BEGINNINGS", str(tmp_path / "beginnings"))
    monkeypatch.setenv("TEST_SECONDS", "0.3")
    nodes = Nodes()
    try:
        nodes.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        second = nodes.add_node(num_cpus=2, object_store_memory=100 * 2**20)
        yield nodes.address, lambda: nodes.remove_node(second, allow_graceful=False)
    finally:
        nodes.shutdown()


def test_forty_cells_on_two_nodes_of_which_one_is_killed(tmp_path, foreign, two_nodes, capsys, monkeypatch):
    """All are done, with the results of a bench without Ray; what the node had is run again, and that is told."""
    address, kill_second = two_nodes
    words = ", ".join(map(repr, foreign["command"]))
    (tmp_path / "suite.toml").write_text(
        f'envs = ["CartPole-v1"]\nseeds = 40\neval_episodes = 2\n[agents.own]\ncommand = [{words}]\n'
    )
    index, killed = tmp_path / "there" / "results.jsonl", []

    def kill_on_the_way():
        while not index.exists() or index.read_bytes().count(b"\n") < 8:
            time.sleep(0.05)
        kill_second()
        killed.append(index.read_bytes().count(b"\n"))

    killer = threading.Thread(target=kill_on_the_way, daemon=True)
    killer.start()
    flags = ["--out", str(tmp_path / "there"), "--ray", address]
    assert main(["bench", str(tmp_path / "suite.toml"), *flags]) == 0
    killer.join()
    assert killed[0] < 40
    out = capsys.readouterr().out
    begun = (tmp_path / "beginnings").read_text().split()
    assert set(begun) == set(map(str, range(40)))
    assert 1 <= out.count("was lost and runs again") <= 4 and len(begun) > 40
    monkeypatch.setenv("TEST_SECONDS", "0")
    assert main(["bench", str(tmp_path / "suite.toml"), "--out", str(tmp_path / "here")]) == 0
    assert table(tmp_path / "there") == table(tmp_path / "here") and len(table(tmp_path / "here")) == 40
    assert main(["bench", "--out", str(tmp_path / "there")]) == 0  # there is nothing left to do without Ray


# Mistakes.


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ray", "here"], "--ray is here, but must be HOST:PORT, ray://HOST:PORT, auto or local"),
        (["--ray", "a:b"], "--ray is a:b, but must be HOST:PORT"),
        (["--ray", "127.0.0.1:1"], "--ray is 127.0.0.1:1, where nothing answers: Connection refused"),
        (["--ray", "ray://127.0.0.1:1"], "--ray is ray://127.0.0.1:1, where nothing answers: Connection refused"),
        (
            ["--ray", "auto", "--ray-cpus", "4"],
            "--ray-cpus is 4 and --ray-gpus is 0, but the cluster has 3 CPUs, 0 GPUs",
        ),
        (["--ray", "auto", "--ray-gpus", "0.5"], "--ray-gpus is 0.5, but the cluster has 3 CPUs, 0 GPUs"),
        (["--ray", "auto", "--ray-gpus", "many"], "--ray-gpus is 'many', but must be a number"),
        (["--ray-cpus", "4"], "--ray-cpus is given, but not --ray, which it would be for"),
    ],
)
def test_mistakes_are_told_in_a_sentence(flags, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster_module, "_ray", Tasks)
    assert main(["bench", "classic", "--out", str(tmp_path / "new"), *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1 and not (tmp_path / "new").exists()


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["bench", "classic", "--out", str(tmp_path / "new"), "--ray", "auto"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'rlcore[cluster]'" in error and len(error.splitlines()) == 1 and not (tmp_path / "new").exists()


def test_a_bench_without_a_cluster_imports_nothing_of_it(tmp_path, foreign):
    suite = {"agents": {"own": foreign}, "envs": ["CartPole-v1"], "seeds": 1, "eval_episodes": 2}
    code = f"""
import sys
from pathlib import Path
from rlcore.runs.bench import Bench
from rlcore.runs.suite import completed
bench = Bench.open(Path({str(tmp_path / "out")!r}), completed({suite!r}))
assert bench.run(1, show=False) == []
assert not {{"ray", "rlcore.runs.cluster", "rlcore.runs.node"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_worker_imports_little():
    code = "import sys, rlcore.runs.node; assert not {'torch', 'gymnasium', 'rich', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
