"""What a user can act on: each message is one sentence that names what is wrong, its value, and what it may be."""

import difflib
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    """Text as one line that moves no terminal's cursor; names out of files come into messages."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fitted(text: str, stream: Any, indent: int = 2) -> str:
    """A line as it is read best from a stream: on a terminal broken between words where that has no more columns."""
    if not stream.isatty():
        return text
    before = " " * (len(text) - len(text.lstrip()))
    options: dict[str, Any] = {"initial_indent": before, "subsequent_indent": " " * indent}
    columns = max(shutil.get_terminal_size().columns, 20)
    lines = textwrap.wrap(text.strip(), columns, break_long_words=False, break_on_hyphens=False, **options)
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """The message of somebody else's error, which may go over several lines."""
    return " ".join(str(error).split())


class RlcoreError(Exception):
    """Base of all errors that rlcore raises on purpose; the command line prints its message and leaves with code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(RlcoreError, ValueError):
    """An argument, hyperparameter or space that rlcore cannot use."""


class CheckpointError(RlcoreError):
    """A file that is not a readable checkpoint of this version of rlcore."""


class EnvironmentFault(RlcoreError, RuntimeError):
    """An environment that returned something no agent can learn from, such as NaN."""


class DivergenceError(RlcoreError, RuntimeError):
    """Training produced a loss or a gradient that is not finite."""


class RankError(RlcoreError, RuntimeError):
    """Another process that learns together with this one, `rank`, is gone or does not answer. `told` where one of the
    others tells of it."""

    def __init__(self, message: str, rank: int, told: bool = False):
        super().__init__(message)
        self.rank, self.told = rank, told


def shown(value: Any) -> str:
    """A value in a message; what is long is cut off, and a number too long for Python to print is described."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else "a value too long to be shown"
    return text if len(text) <= 100 else f"{text[:100]}..."


def difference(name: str, old: Any, new: Any) -> str:
    """The first entry that differs between two settings called `name`, by its path, and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
        return difference(f"{name}.{key}", old.get(key), new.get(key))
    return f"{name} ({shown(old)}, not {shown(new)})"


# What other libraries call it, by which their users look for it.
ELSEWHERE = {
    "alpha": "learning_rate", "lr": "learning_rate", "step_size": "learning_rate", "pi_lr": "learning_rate",
    "timesteps": "total_steps", "total_timesteps": "total_steps", "n_timesteps": "total_steps", "steps": "total_steps",
    "iterations": "total_steps", "n_steps": "num_steps", "rollout_length": "num_steps", "horizon": "num_steps",
    "n_envs": "num_envs", "envs": "num_envs", "num_workers": "num_envs", "workers": "num_envs",
    "batch_size": "num_minibatches", "minibatch_size": "num_minibatches", "n_minibatches": "num_minibatches",
    "n_epochs": "update_epochs", "epochs": "update_epochs", "num_epochs": "update_epochs",
    "noptepochs": "update_epochs", "clip_range": "clip_coef", "cliprange": "clip_coef", "clip": "clip_coef",
    "eps_clip": "clip_coef", "clip_ratio": "clip_coef", "clip_range_vf": "clip_vloss", "entropy_coef": "ent_coef",
    "value_coef": "vf_coef", "vf_loss_coeff": "vf_coef", "entropy_coeff": "ent_coef", "lam": "gae_lambda",
    "lambda": "gae_lambda", "discount": "gamma", "discount_factor": "gamma", "normalize_advantage": "norm_adv",
    "normalize": "norm_obs", "net_arch": "hidden_sizes", "hidden_size": "hidden_sizes", "layers": "hidden_sizes",
    "activation_fn": "activation", "use_sde": "noise_correlation", "rms_prop_eps": "optimizer_eps",
    "max_grad": "max_grad_norm", "num_generations": "group_size", "delta": "max_kl", "target_kl_div": "target_kl",
    "out": "run_dir", "output": "run_dir", "log_dir": "run_dir", "logdir": "run_dir", "save_dir": "run_dir",
    "env_kwargs": "env_arg", "eval_freq": "checkpoint_every", "n_eval_episodes": "eval_episodes",
    "cuda": "device", "gpu": "device", "num_threads": "threads", "n_cpu": "threads", "n_jobs": "jobs",
    "wandb": "track", "n_seeds": "seeds", "n_trials": "trials", "num_episodes": "episodes", "n_episodes": "episodes",
}  # fmt: skip


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A half-sentence that names the option nearest to `name`, or an empty string where none is near."""
    plain = {_plain(option): option for option in options}
    asked = _plain(name)
    if (same := ELSEWHERE.get(asked)) in plain:
        return f", did you mean '{plain[same]}'?"
    near = difflib.get_close_matches(asked, plain, n=1, cutoff=0.5)
    return f", did you mean '{plain[near[0]]}'?" if near else ""


def _plain(name: str) -> str:
    """A name or a flag without what makes it a flag."""
    return name.lower().lstrip("-").replace("-", "_")
