import errno
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rlcore import PPO, load, make_vec
from rlcore.errors import CheckpointError
from rlcore.storage import checkpoint as module
from rlcore.storage.checkpoint import read_checkpoint, write_checkpoint


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "agent.pt"
    PPO("CartPole-v1", seed=0, num_envs=2).save(path)
    return path


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def crafted_archive(path, payload):
    """A file with the layout of torch.save whose pickle runs a command when it is loaded carelessly."""
    memory = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, memory)
    with zipfile.ZipFile(memory) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickle.dumps(payload, 2) if name.endswith("data.pkl") else source.read(name))


@pytest.mark.parametrize("layout", ["archive", "bare pickle", "legacy torch"])
def test_a_crafted_pickle_executes_nothing(tmp_path, layout):
    path, proof = tmp_path / "agent.pt", tmp_path / "executed"
    payload = {"format": module.FORMAT, "version": module.VERSION, "agent": Exploit(proof)}
    if layout == "archive":
        crafted_archive(path, payload)
    elif layout == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="is not a checkpoint of rlcore"):
        load(path)
    assert not proof.exists()
    if layout == "archive":  # the trap is real: the careless way springs it
        torch.load(path, weights_only=False)
        assert proof.exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(file, keep):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"cut short|not a checkpoint"):
        load(file)


def test_a_flipped_byte_among_the_weights_is_noticed(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        load(file)


def test_other_files_and_other_versions_are_refused(file, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "none.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of rlcore"):
        load(tmp_path / "other.pt")
    monkeypatch.setattr(module, "VERSION", 99)
    with pytest.raises(CheckpointError, match="has version 4, but this rlcore reads 2 to 99"):
        load(file)


@pytest.mark.parametrize("compiled, how", [(True, "compiled"), (False, "python"), (None, None)])
def test_checkpoints_of_version_2_are_read(file, compiled, how):
    payload = module.read_checkpoint(file)
    del payload["agent"]["how"]
    payload["agent"]["compiled"] = compiled
    torch.save({**payload, "version": 2}, file)
    assert load(file).engine.how == how


def test_an_agent_of_another_shape_is_refused(file):
    with pytest.raises(CheckpointError, match="does not fit"):
        load(file, hidden_sizes=(7,))


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(file, monkeypatch, fails):
    before = file.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync" if fails == "write" else "replace", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write_checkpoint(file, {"x": torch.zeros(1000)})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_what_is_written_is_read(tmp_path):
    payload = {"tensor": torch.arange(3), "nested": {"list": [1, 2.5, "a", None, True]}, "big": 2**127 + 1}
    write_checkpoint(tmp_path / "x.pt", payload)
    read = read_checkpoint(tmp_path / "x.pt")
    assert torch.equal(read.pop("tensor"), payload.pop("tensor"))
    assert {k: read[k] for k in payload} == payload


def test_an_environment_given_to_load_is_left_as_it_is(tmp_path):
    """The stored one's state would put back its constants too: here, the reward."""
    PPO("CartPole-v1", seed=0, norm_reward=True).learn(512).save(tmp_path / "agent.pt")
    other = make_vec("CartPole-v1", 3, sutton_barto_reward=True)
    agent = load(tmp_path / "agent.pt", env=other)
    assert agent.global_step >= 512 and agent.config.num_envs == 3
    returns = [ret for _, episodes in agent.iterations(3000) for ret in episodes.returns]
    assert set(returns) == {-1.0}


@pytest.mark.parametrize("backend", ["auto", "sync"])
def test_a_saved_agent_learns_on_exactly_as_the_one_that_was_not_saved(tmp_path, backend):
    settings = dict(seed=3, backend=backend, norm_obs=True, norm_reward=True, objective="kl", target_kl=0.01)
    straight = PPO("CartPole-v1", **settings).learn(3000)
    saved = PPO("CartPole-v1", **settings)
    for _ in saved.iterations(3000):
        if saved.global_step > 1400:
            break
    saved.save(tmp_path / "half.pt")
    resumed = load(tmp_path / "half.pt")
    assert resumed.global_step == saved.global_step
    resumed.learn(3000)
    assert resumed.global_step == straight.global_step and resumed.coefs == straight.coefs
    ours, theirs = resumed.network.state_dict(), straight.network.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert torch.equal(resumed.buffer.obs, straight.buffer.obs)


VERSION_3 = Path(__file__).parent / "version3"  # written by commit 2e745ff, whose optimisers were torch's


@pytest.mark.parametrize("name, key", [("ppo", "ppo"), ("a2c", "a2c"), ("grpo", "grpo"), ("reinforce", "rein")])
def test_a_checkpoint_of_version_3_goes_on_as_it_did_there(name, key):
    expected = np.load(VERSION_3 / "three_iterations_later.npz")
    agent = load(VERSION_3 / f"{name}.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of episodes that are cut
        for iteration, _ in zip(range(3), agent.iterations(10_000), strict=False):
            assert iteration < 3
    for part, x in agent.network.state_dict().items():
        np.testing.assert_allclose(x.numpy(), expected[f"{key}/{part}"], atol=1e-5, err_msg=part)
