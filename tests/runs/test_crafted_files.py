"""Files that somebody made to do harm: refused with one sentence, before anything of them is run, believed or kept."""

import collections
import copy
import functools
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlcore import A2C, GRPO, PPO, load
from rlcore.envs.state import Misfit, capture_state, check_fits, restore_state
from rlcore.errors import CheckpointError, RlcoreError, UsageError
from rlcore.storage.checkpoint import FORMAT, VERSION, read_checkpoint, write_checkpoint

SMALL = dict(num_steps=8, hidden_sizes=(4,), num_minibatches=1)
FLAGS = []  # what a trap that was sprung leaves


def set_flag(*arguments, **options):
    """What crafted files here try to have called."""
    FLAGS.append((arguments, options))
    return gym.make("CartPole-v1").unwrapped


@pytest.fixture(autouse=True)
def no_flag():
    FLAGS.clear()
    spec = copy.deepcopy(gym.registry["CartPole-v1"])
    yield
    assert not FLAGS
    assert gym.registry["CartPole-v1"] == spec


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The checkpoint of a small agent whose environments' state is stored in it."""
    path = tmp_path_factory.mktemp("honest") / "agent.pt"
    PPO("CartPole-v1", seed=0, num_envs=2, num_steps=8, hidden_sizes=(4,), backend="sync").learn(50).save(path)
    return path


def changed(honest, tmp_path, change):
    """The honest checkpoint after `change(payload)`."""
    payload = read_checkpoint(honest)
    change(payload)
    path = tmp_path / "changed.pt"
    torch.save(payload, path)
    return path


def refuse(path, words="."):
    with pytest.raises(RlcoreError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return caught.value


# What a file may say of environments.

EVIL_SPEC = {"entry_point": f"{__name__}:set_flag", "kwargs": {"dict": []}}


def env(payload):
    return payload["agent"]["collector"]["env"]


def first(payload):
    """The first CartPole, inside its wrappers."""
    return env(payload)["envs"]["tuple" if "tuple" in env(payload)["envs"] else "list"][0]["env"]


def put(find, name, value):
    return lambda payload: find(payload).__setitem__(name, value)


def drop(find, name):
    return lambda payload: find(payload).pop(name)


ENV_ATTACKS = {
    "the registry's specification": put(env, "spec", {"env": EVIL_SPEC}),
    "a specification in place of a constant": put(env, "spec", {"dict": [("entry_point", EVIL_SPEC["entry_point"])]}),
    "a text in place of a constant": put(env, "spec", EVIL_SPEC["entry_point"]),
    "a class": put(env, "single_action_space", {"env": {"sample": None}}),
    "the functions that make environments": put(env, "env_fns", {"list": ["a", "b"]}),
    "an attribute that is none": put(env, "reset", 0),
    "a dunder": put(env, "__class__", 0),
    "a missing attribute": drop(env, "_terminations"),
    "a number in place of an environment": put(first, "env", 3),
    "no environment": put(first, "env", None),
    "one environment fewer": lambda p: env(p).__setitem__("envs", {"list": [next(iter(env(p)["envs"].values()))[0]]}),
    "more copies": put(env, "num_envs", 10**9),
    "another text": put(env, "observation_mode", "os:system"),
    "no text": put(env, "observation_mode", None),
    "a constant in place of numbers": put(env, "_terminations", {"constant": None}),
    "an unknown tag": put(env, "_terminations", {"module": "os"}),
    "two tags": put(env, "_terminations", {"env": {}, "array": torch.zeros(2)}),
    "a tensor as it is": put(env, "_terminations", torch.zeros(2)),
    "an array that is none": put(env, "_terminations", {"array": "zeros"}),
    "a scalar of two": put(env, "_terminations", {"scalar": torch.zeros(2)}),
    "text of another size than told": put(env, "_rewards", {"text": ["<U1", [10**9], b"abcd"]}),
    "text without size": put(env, "_rewards", {"text": ["<U0", [10**9], b""]}),
    "objects": put(env, "_rewards", {"text": ["|O8", [1], b"abcdefgh"]}),
    "impossible characters": put(env, "_rewards", {"text": ["<U1", [1], b"\xff\xff\xff\xff"]}),
    "a dict with a list as key": put(env, "_rewards", {"dict": [({"list": []}, 1)]}),
    "a container inside a number": put(env, "_rewards", {"list": [{"constant": None}]}),
    "not even a dict": lambda p: p["agent"]["collector"].__setitem__("env", [1]),
}


@pytest.mark.parametrize("attack", ENV_ATTACKS)
def test_a_state_may_differ_from_a_fresh_one_in_numbers_alone(honest, tmp_path, attack):
    path = changed(honest, tmp_path, ENV_ATTACKS[attack])
    refuse(path, "does not fit this network or environment")
    # The agent that another file gives is not touched by what was refused.
    load(honest).evaluate(1, seed=0)


def test_the_specification_in_a_file_never_reaches_an_evaluation(honest, tmp_path):
    path = changed(honest, tmp_path, ENV_ATTACKS["the registry's specification"])
    with pytest.raises(CheckpointError):
        load(path).evaluate(1, seed=0)
    gym.make("CartPole-v1").close()


def test_an_agents_environments_do_not_share_the_registrys_specification():
    agent = PPO("CartPole-v1", num_envs=2, backend="sync")
    assert agent.envs.spec is not gym.registry["CartPole-v1"]
    agent.close()


@pytest.mark.parametrize(
    "state",
    [
        {"bit_generator": "os:system"},
        {"dict": [("bit_generator", "MT19937"), ("state", 1)]},
        {"dict": [("bit_generator", "PCG64"), ("state", {"dict": [("state", -1), ("inc", 1)]}), ("has_uint32", 0)]},
        {"list": []},
        {"env": {}},
    ],
)
def test_a_random_generator_in_an_impossible_state(honest, tmp_path, state):
    def change(payload):
        packed = first(payload)
        while "env" in packed:
            packed = packed["env"]["env"] if set(packed["env"]) == {"env"} else packed["env"]
        packed["_np_random"] = {"generator": state}

    refuse(changed(honest, tmp_path, change), "random generator|in a form")


class Plain(gym.Env):
    """Attributes of every kind; `path` is what code might open."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def __init__(self):
        self.path, self.card, self.seen, self.count, self.last = "world/map.txt", "A", [], {"wood": 1}, None
        self.board, self.table = np.array([b"S", b"F"]), {0: (0.5, [1, 2])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        self.last = 3
        return 0, 1.0, False, False, {}


def test_numbers_cards_and_maps_may_change_and_names_may_not():
    fresh, played = Plain(), Plain()
    played.card, played.seen, played.last = "K", [1, 2.5, (3,)], np.float32(2)
    played.board[0], played.table = b"G", {0: (0.25, [1, 2]), 7: (1.0, [])}
    restore_state(fresh, capture_state(played))
    assert (fresh.card, fresh.seen, fresh.last, fresh.table) == ("K", [1, 2.5, (3,)], 2.0, played.table)
    assert fresh.board.tolist() == [b"G", b"F"]
    for name, value in [("path", "/etc/passwd"), ("path", None), ("path", "x"), ("count", {"iron": 1}), ("last", "os")]:
        played = Plain()
        setattr(played, name, value)
        with pytest.raises(Misfit, match=name):
            restore_state(fresh, capture_state(played))
    played = Plain()
    played.new = 1
    with pytest.raises(Misfit, match="other attributes"):
        restore_state(fresh, capture_state(played))


def test_nothing_is_changed_unless_all_fits():
    fresh, played = Plain(), Plain()
    played.last, played.path = 3, "/etc/passwd"
    state = capture_state(played)
    before = copy.deepcopy(vars(fresh))
    with pytest.raises(Misfit):
        restore_state(fresh, {"last": state["last"], **state})
    assert fresh.last == before["last"] and fresh.path == before["path"]
    check_fits(capture_state(Plain()), capture_state(fresh))


class Late(Plain):
    """Has an attribute from its first step on, which a fresh one has not."""

    def step(self, action):
        self.late = True
        return super().step(action)


class Renamed(Plain):
    def step(self, action):
        self.path = "another text"
        return super().step(action)


class Itself(Plain):
    def step(self, action):
        self.seen = [self]
        return super().step(action)


@pytest.mark.parametrize("kind, kept", [(Plain, True), (Late, False), (Renamed, False), (Itself, False)])
def test_what_a_fresh_environment_would_not_take_back_is_not_stored(tmp_path, kind, kept):
    """Such environments begin new episodes at each checkpoint instead, so that the file can be resumed from."""

    envs = gym.vector.SyncVectorEnv([kind] * 2, autoreset_mode="Disabled", copy=False)
    agent = PPO(envs, seed=0, **{**SMALL, "num_steps": 4})
    assert agent.collector.is_capturable()
    agent.learn(8)
    assert agent.collector.is_capturable() is kept
    agent.save(tmp_path / "a.pt")
    again = gym.vector.SyncVectorEnv([kind] * 2, autoreset_mode="Disabled", copy=False)
    assert load(tmp_path / "a.pt", env=again).global_step == 8


# What a file may name.


def test_the_file_a_reference_came_from_is_not_opened_again(tmp_path, monkeypatch):
    source, path = tmp_path / "source.pt", tmp_path / "agent.pt"
    settings = dict(num_envs=4, group_size=2, num_steps=8, num_minibatches=1, hidden_sizes=(4,), seed=0)
    GRPO("CartPole-v1", **settings).learn(40).save(source)
    agent = GRPO("CartPole-v1", kl_coef=0.1, reference=str(source), **settings).learn(40)
    agent.save(path)
    source.unlink()
    again = load(path)
    for a, b in zip(agent.reference.parameters(), again.reference.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.config.reference == str(source)
    with pytest.raises(CheckpointError, match="does not exist"):
        load(path, reference=str(source))


def test_a_file_imports_nothing(honest, tmp_path, monkeypatch):
    (tmp_path / "rlcore_trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = changed(honest, tmp_path, lambda payload: payload.__setitem__("env_id", "rlcore_trap:CartPole-v1"))
    refuse(path, "may not have a module imported")
    assert not (tmp_path / "sprung").exists()
    assert load(path, env="CartPole-v1").global_step > 0


def test_names_out_of_files_make_no_second_line(honest, tmp_path):
    path = changed(honest, tmp_path, lambda payload: payload.__setitem__("env_id", "x\n\x1b[2Jall is well"))
    assert "\x1b" not in str(refuse(path, "is not registered"))


def test_texts_that_look_like_a_path_have_to_be_given_again(honest, tmp_path):
    path = changed(honest, tmp_path, lambda payload: payload["env_kwargs"].update(xml_file="/etc/passwd"))
    refuse(path, "looks like a path or an import")
    # Given anew, it may also be another environment, so that the stored state is left out.
    path2 = tmp_path / "other.pt"
    PPO("FrozenLake-v1", seed=0, num_envs=2, **SMALL).learn(50).save(path2)
    assert load(path2, env_kwargs={"is_slippery": False}).global_step > 0
    with pytest.raises(UsageError, match="cannot be made with"):  # CartPole takes no such thing, but it was asked
        load(path, env_kwargs={"xml_file": "/etc/passwd"})


@pytest.mark.parametrize(
    "part, value",
    [
        ("algo", "os"), ("algo", 3), ("env_id", 3), ("env_kwargs", []), ("config", None), ("agent", 1), ("extra", 2),
        ("version", 99), ("version", torch.zeros(3)), ("format", torch.zeros(3)), ("config", {3: 4}),
    ],
)  # fmt: skip
def test_parts_of_another_kind(honest, tmp_path, part, value):
    refuse(changed(honest, tmp_path, lambda payload: payload.__setitem__(part, value)))


STATE_ATTACKS = {
    "weights of another kind": lambda s: s["network"].update({"value_head.bias": torch.zeros(1, dtype=torch.int64)}),
    "a weight that is a number": lambda s: s["network"].update({"value_head.bias": 0.0}),
    "a missing weight": lambda s: s["network"].pop("value_head.bias"),
    "moments of another size": lambda s: s["optimizer"].update(exp_avg=torch.zeros(1)),
    "moments of no parameter": lambda s: s["optimizer"].update(other=torch.zeros(1)),
    "no optimiser": lambda s: s.update(optimizer=None),
    "a learning rate of text": lambda s: s["optimizer"].update(learning_rate="fast"),
    "an infinite learning rate": lambda s: s["optimizer"].update(learning_rate=float("inf")),
    "a generator of numbers": lambda s: s.update(generator=torch.zeros(5056)),
    "a generator in no state": lambda s: s.update(generator=torch.full((5056,), 255, dtype=torch.uint8)),
    "a way to run that is none": lambda s: s.update(how="os:system"),
    "a backend that is none": lambda s: s.update(backend="os:system"),
    "a negative iteration": lambda s: s.update(iteration=-1),
    "steps of text": lambda s: s["collector"].update(global_step="many"),
    "negative steps": lambda s: s["collector"].update(rows_collected=-5),
    "coefficients of others": lambda s: s.update(coefs={"os": 1.0}),
    "a coefficient of text": lambda s: s["coefs"].update(clip_coef="x"),
    "counters of another size": lambda s: s["collector"].update(episode_returns=torch.zeros(10**6)),
    "observations of another size": lambda s: s["collector"].update(next_obs=torch.zeros(2, 10**6)),
    "observations of text": lambda s: s["collector"].update(next_obs="x"),
    "flags of numbers": lambda s: s["collector"].update(pending=torch.zeros(2)),
    "no noise": lambda s: s["collector"].pop("noise"),
}


@pytest.mark.parametrize("attack", STATE_ATTACKS)
def test_states_that_are_not_those_of_this_agent(honest, tmp_path, attack):
    path = changed(honest, tmp_path, lambda payload: STATE_ATTACKS[attack](payload["agent"]))
    refuse(path)


def test_what_diverged_is_no_agent(tmp_path):
    agent = PPO("CartPole-v1", num_envs=2, num_steps=8)
    write_checkpoint(tmp_path / "diverged-step-3.pt", {"agent": agent.state_dict(), "buffer": {}, "settings": "{}"})
    refuse(tmp_path / "diverged-step-3.pt", "run that diverged")


# Sizes.


def peak(action):
    """Most memory beyond what is taken now, in bytes, while `action` runs."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def now(name):
        line = next(x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if x.startswith(name))
        return int(line.split()[1]) * 1024

    before = now("VmRSS")
    action()
    return now("VmHWM") - before


CLAIMS = {
    "environments": lambda p: p["config"].update(num_envs=10**9),
    "some more environments": lambda p: p["config"].update(num_envs=50_000),
    "layers": lambda p: p["config"].update(hidden_sizes=(10**9,)),
    "square layers": lambda p: p["config"].update(hidden_sizes=(20_000, 20_000)),
    "steps beyond all memory": lambda p: p["config"].update(num_steps=2**31 - 8),
    "a seed": lambda p: p["config"].update(seed=10**30),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory the way Linux tells it")
@pytest.mark.parametrize("claim", CLAIMS)
def test_sizes_are_not_believed(honest, tmp_path, claim):
    path = changed(honest, tmp_path, CLAIMS[claim])
    assert peak(lambda: refuse(path)) < 100 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory the way Linux tells it")
def test_a_long_rollout_takes_its_memory_when_it_is_played(honest, tmp_path):
    """Its length is in no other part of the file, so nothing can be compared with it."""
    path = changed(honest, tmp_path, lambda p: p["config"].update(num_steps=4_000_000))
    assert peak(lambda: load(path).evaluate(1, seed=0)) < 100 * 2**20


def archive(tmp_path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A file with the layout of torch.save."""
    path = tmp_path / "crafted.pt"
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("archive/data.pkl", pickled)
        out.writestr("archive/byteorder", b"little")
        for i, data in enumerate(storages):
            out.writestr(f"archive/data/{i}", data)
        out.writestr("archive/version", b"3\n")
    return path


HEAD = b"\x80\x02"


def number(n):
    return n.to_bytes(4, "little")


BOMBS = {
    "ten gigabytes of bytes": HEAD + b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    "a storage that is called": HEAD + b"ctorch\nFloatStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    "a tensor that is called": HEAD + b"ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    "a memory of two thousand million places": HEAD + b"Nr\xff\xff\xff\x7f.",
    "eight gigabytes that are announced": HEAD + b"\x96\x00\x00\x00\x00\x02\x00\x00\x00.",
    "text that is announced": HEAD + b"X\xff\xff\xff\xffab.",
    "millions of lists": HEAD + b"]" * 3_000_000 + b".",
    "millions of marks": HEAD + b"(" * 3_000_000 + b".",
    "lists in lists": HEAD + b"]" * 50_000 + b"a" * 49_999 + b".",
    "a list in itself": HEAD + b"]q\x00h\x00a.",
    "code": HEAD + b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "code by another opcode": HEAD + b"(X\x04\x00\x00\x00trueios\nsystem\n.",
    "nothing": b"",
    "no end": HEAD + b"}",
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory the way Linux tells it")
@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_ask_for_more_than_they_hold(tmp_path, bomb):
    path = archive(tmp_path, BOMBS[bomb], [b"\0\0\0\0"])
    used = peak(lambda: refuse(path, "is not a checkpoint of rlcore"))
    assert used < 10 * path.stat().st_size + 100 * 2**20


@pytest.mark.parametrize(
    "part, words",
    [
        (torch.zeros(1).expand(10**10), "larger than the file"),
        (collections.OrderedDict, "tensors and plain data alone"),
        (functools.reduce(lambda inside, _: [inside], range(300), 0), "nested too deeply"),
    ],
)
def test_parts_that_are_more_than_they_seem(tmp_path, part, words):
    torch.save({"format": FORMAT, "version": VERSION, "agent": {"x": part}}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", words)


@pytest.mark.parametrize("shape, strides", [((3,), (1,)), ((2,), (5,)), ((1, 2), (1, 9))])
def test_tensors_outside_of_their_memory(tmp_path, shape, strides):
    """Of two numbers, more."""
    path = tmp_path / "a.pt"
    torch.save({"format": FORMAT, "version": VERSION, "x": torch.zeros(20).as_strided(shape, strides)}, path)
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    name = next(name for name in parts if name.endswith("data/0"))
    parts[name] = parts[name][:8]
    with zipfile.ZipFile(path, "w") as target:
        for key, data in parts.items():
            target.writestr(key, data)
    with pytest.raises(CheckpointError, match="cut short, damaged"):
        read_checkpoint(path)


def test_references_that_multiply(tmp_path):
    """Each list holds the one before ten times: forty of them are 10⁴⁰ values in 2,000 bytes."""
    part, pickled = [0], b""
    for _ in range(40):
        part = [part] * 10
    pickled = pickle.dumps({"format": FORMAT, "version": VERSION, "agent": part}, 2)
    assert len(pickled) < 3000
    refuse(archive(tmp_path, pickled), "refer to each other too often")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory the way Linux tells it")
def test_a_zip_bomb(tmp_path):
    path = archive(tmp_path, HEAD + b"N.", [bytes(2**28)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert peak(lambda: refuse(path, "compressed")) < 50 * 2**20


def test_parts_that_lie_over_each_other(tmp_path):
    """Many names for the same bytes in the file: its size says nothing of what would be read."""
    path = archive(tmp_path, HEAD + b"N.", [bytes(100_000)] + [b""] * 50)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as source:
        first_part = next(x for x in source.infolist() if x.filename.endswith("data/0"))
    at = data.index(b"PK\x01\x02")
    patched, entry = bytearray(data), at
    while patched[entry : entry + 4] == b"PK\x01\x02":
        name = int.from_bytes(patched[entry + 28 : entry + 30], "little")
        if b"data/" in patched[entry + 46 : entry + 46 + name]:
            patched[entry + 16 : entry + 28] = number(first_part.CRC) + number(100_000) * 2
            patched[entry + 42 : entry + 46] = number(first_part.header_offset)
        entry += 46 + name
    path.write_bytes(patched)
    refuse(path, "larger than the file")


def test_what_is_read_is_what_torch_reads(honest):
    """Layouts, shared memory and dtypes included."""
    tensors = {
        "transposed": torch.arange(6.0).view(2, 3).t(), "part": torch.arange(10)[3:7], "empty": torch.zeros(0, 3),
        "number": torch.tensor(3.5, dtype=torch.float64), "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8), "unsigned": torch.from_numpy(np.arange(3, dtype=np.uint32)),
        "half": torch.ones(2, dtype=torch.bfloat16), "text": b"\x00\xff", "nested": {"a": [1, (2.5, None)], 3: "ä"},
    }  # fmt: skip
    path = honest.parent / "all.pt"
    write_checkpoint(path, tensors)
    ours, theirs = read_checkpoint(path), torch.load(path, weights_only=True)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype and ours[name].stride() == value.stride(), name
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name


# Seeds, threads, numbers that are none.


def test_a_stored_generator_is_not_drawn_from_when_native_environments_are_taken_up_again(tmp_path):
    """A compiled run moves to native environments by itself, and so does the one that resumes it."""
    settings = dict(num_envs=2, num_steps=8, hidden_sizes=(4,), seed=3, num_minibatches=1)
    agent = PPO("CartPole-v1", **settings)
    agent.use_backend("native")
    agent.learn(50).save(tmp_path / "a.pt")
    again = load(tmp_path / "a.pt")
    assert again.backend == "native" and torch.equal(again.generator.get_state(), agent.generator.get_state())
    agent.learn(100), again.learn(100)
    assert torch.equal(agent.parameters.vector, again.parameters.vector)


def test_the_first_weights_depend_on_the_seed_alone():
    code = (
        "import hashlib, torch; from rlcore import PPO; h = hashlib.sha256()\n"
        "for env, backend in (('CartPole-v1', 'sync'), ('CartPole-v1', 'vector'), ('CartPole-v1', 'native')):\n"
        "    a = PPO(env, seed=3, hidden_sizes=(512, 512), backend=backend)\n"
        "    print(hashlib.sha256(a.parameters.vector.numpy().tobytes()).hexdigest(), torch.get_num_threads())"
    )
    seen = set()
    for threads in ("1", "2", "3"):
        env = {**os.environ, "OMP_NUM_THREADS": threads}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        seen |= {line.split()[0] for line in result.stdout.splitlines()}
    assert len(seen) == 1


@pytest.mark.parametrize("algo, env_id", [(A2C, "Pendulum-v1"), (GRPO, "CartPole-v1"), (PPO, "CartPole-v1")])
def test_a_learning_rate_that_destroys_the_weights_is_told(algo, env_id):
    with pytest.raises(RlcoreError, match=r"became (nan|inf) in iteration 1 .*learning_rate 1e\+20"):
        algo(env_id, learning_rate=1e20, seed=0, num_steps=16).learn(100_000)
