"""One face for gymnasium's three autoreset modes, which differ in where the true successor of an episode's last step
is found, and in whether a dead row follows it:

    DISABLED   `step` returns the true successor in its row; `reset` with a mask then renews only the finished ones
    SAME_STEP  `step` returns the first observation of the next episode; the true successor is in infos["final_obs"]
    NEXT_STEP  `step` returns the true successor; the *next* step ignores its action, returns reward 0 and the first
               observation of the next episode: that row is no transition

With DISABLED some may be through before others of the same game (`rlcore.envs.pettingzoo`). Such a vector environment
tells in the infos of all its steps and resets, under `rlcore_waiting` `[N]` of bool, who waits: whose action will be
ignored, and whose next row is no transition. They are not in the mask of a reset before they wait no longer.
"""

import dataclasses
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlcore.envs.async_vector import cause_of_death, first_dead
from rlcore.envs.guard import FAULT_KEY, WAITING_KEY, describe
from rlcore.envs.masks import MaskedVectorEnv, with_masks
from rlcore.errors import EnvironmentFault, RlcoreError, UsageError, one_line
from rlcore.spaces import (
    ActionSpec,
    Field,
    Part,
    action_spec,
    map_parts,
    numpy_dtype,
    observation_parts,
    split_observation,
)  # fmt: skip


class Step(NamedTuple):
    """What one step of N environments gave.

    Attributes:
        obs: observation to act on next, `[N, ...]` arrays, split into parts.
        rewards: `[N]`.
        terminated, truncated: `[N]` bool. A lost life terminates (`infos["life_lost"]`), though the game goes on.
        done: `[N]` bool, whether an episode of the environment's own ended.
        real: `[N]` bool, False where this step was the dead row of a next-step autoreset, or one of who waits.
        begun, first: `[N]` bool, whether `obs` begins an episode of the environment's own, or one to learn from.
        final_envs: indices of environments whose true successor is not in `obs`; None where there are none.
        final_obs: their true successors `[len(final_envs), ...]`; None where there are none.
        failed: `[N]` bool, where the environment failed and has begun a new episode since; None where none has.
    """

    obs: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    real: np.ndarray
    begun: np.ndarray
    first: np.ndarray
    final_envs: np.ndarray | None
    final_obs: Any
    failed: np.ndarray | None = None


FAULTS_IN_A_ROW = 10  # of one environment, without a good step between them, end a run in any case
FAULT_STREAM = 0xFA17  # keeps the seeds of restarts apart from all others of a run


class Restarts:
    """How often failed environments were begun anew, and the seeds they began with: `counts [N]` so far, on which the
    next seed depends, `in_a_row [N]` since the last good step; `first` and `latest` are sentences of this process."""

    def __init__(self, num_envs: int):
        self.counts, self.in_a_row = (np.zeros(num_envs, dtype=np.int64) for _ in range(2))
        self.troubled = False  # whether any of these is above 0: asked in every step
        self.first: str | None = None
        self.latest: str | None = None
        self.seed = 0  # of the run

    def add(self, n: int, sentence: str) -> int:
        """Count a restart of environment n after the fault in `sentence`; the seed to begin with, or an
        EnvironmentFault where the environment does not come to a good step any more."""
        self.counts[n] += 1
        self.in_a_row[n] += 1
        self.troubled = True
        self.first, self.latest = self.first or sentence, sentence
        if self.in_a_row[n] >= FAULTS_IN_A_ROW:
            number = f"fault number {FAULTS_IN_A_ROW} in a row without a good step between them"
            raise EnvironmentFault(f"{sentence}, which is its {number}")
        sequence = np.random.SeedSequence(self.seed, spawn_key=(FAULT_STREAM, int(n), int(self.counts[n])))
        return int(sequence.generate_state(1)[0] % 2**31)

    def load(self, counts: Any) -> None:
        """Go on with stored `counts`, or raise a ValueError where they are not those of as many environments."""
        counts = np.asarray(counts)
        if counts.shape != self.counts.shape or counts.dtype != np.int64 or (counts < 0).any():
            raise ValueError(f"its number of restarts is not one for each of {len(self.counts)} environments")
        self.counts, self.in_a_row = counts.copy(), np.zeros_like(counts)


def _check_form(obs: Any, part: Part) -> None:
    """Refuse what are no observations `[N, ...]` of this part."""
    x = np.asarray(obs)
    if x.dtype.kind in "biuf" and x.ndim and x.shape[1:] == part.shape:
        return
    what = f"of shape {list(x.shape)}" if x.dtype.kind in "biuf" else f"a {type(obs).__name__}"
    wanted = f"[N, {', '.join(map(str, part.shape))}]" if part.shape else "[N]"
    hint = "; observation[None] is a batch of one" if x.shape == part.shape else ""
    raise UsageError(f"observations are {what}, but must be a batch {wanted}{hint}")


class VectorAdapter:
    """Steps a vector environment and tells, whatever its autoreset mode, which rows are real and where episodes led.

    What goes wrong in an environment is an EnvironmentFault. Where a fault is reported in infos instead
    (`make_vec(..., on_env_error="restart")`), a new episode begins at once, with a seed of its own.

    Attributes:
        envs: the vector environment.
        stepped: the same, or where actions are masked, one around it that has the masks in its observations.
        observation_space: of a single environment of `stepped`.
        has_dead_rows: whether a row that is no transition follows each episode.
        steps: vector steps so far.
        clock: how errors tell their number.
        restarts: of environments that failed.
        fields: what infos tell beside each observation, such as which actions are allowed (`metadata["fields"]`).
        extras: those infos, `[N, ...]` each, of the latest observation.
        astray: `[N]` bool, who did not begin with the seed given to the last `reset`, because that failed twice.

    Args:
        envs: any vector environment whose metadata names its autoreset mode.
        squash: map Box actions into their bounds by tanh instead of clipping.
        mask_actions: whether actions are masked, see `rlcore.envs.masks`; None: where masks are found.

    Raises:
        UsageError: where a space is not supported, the autoreset mode is unknown, or actions cannot be masked.
    """

    def __init__(self, envs: VectorEnv, squash: bool = False, mask_actions: bool | None = None):
        self.envs, self.num_envs = envs, envs.num_envs
        self.mode, spec = autoreset_mode(envs), action_spec(envs.single_action_space, squash)
        self.stepped: Any = with_masks(envs, spec, mask_actions)
        self.action_spec: ActionSpec = dataclasses.replace(spec, masked=self.stepped is not envs)
        self.observation_space = self.stepped.single_observation_space
        self.parts = observation_parts(self.observation_space)
        self.has_dead_rows = self.mode is AutoresetMode.NEXT_STEP
        self.pending = np.zeros(self.num_envs, dtype=bool)  # whose next step is a dead row, or one of who waits
        self.steps, self.clock, self._failed = 0, "at vector step {:,}", False
        self.restarts, self.astray = Restarts(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        self.fields: list[Field] = list((envs.metadata or {}).get("fields", ()))
        self.extras: dict[str, np.ndarray] = {}
        self._composite = isinstance(self.observation_space, spaces.Dict | spaces.Tuple)
        self._starts = map_parts(lambda part: part.start, self.parts)
        self._shifted = any(map(np.any, self._starts.values() if self._composite else [self._starts]))

    @property
    def frame_stack(self) -> int:
        """S where an observation `[S, H, W]` is the latest S frames, zeros before an episode's first; 0 elsewhere."""
        return (self.stepped.metadata or {}).get("frame_stack", 0)

    def reset(self, seed: Any = None) -> Any:
        """First observations `[N, ...]` of all environments.

        Raises:
            EnvironmentFault: where an environment fails.
            UsageError: where `seed` is a list and the environments take one number only.
        """
        self.pending, self.astray = (np.zeros(self.num_envs, dtype=bool) for _ in range(2))
        if isinstance(seed, list) and not isinstance(self.envs.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            seed = np.array(seed)  # what vector environments in C++ take
        try:
            obs, infos = self.stepped.reset(seed=seed)
        except Exception as error:
            self._refuse_seeds(error, seed)
            raise self._fault(error) from error
        obs, self.pending = self.split(obs), infos.get(WAITING_KEY, self.pending)
        if self.fields:
            self._keep_extras(infos)
        return obs if FAULT_KEY not in infos else self._begin_anew(_faults(infos), seed)

    def _refuse_seeds(self, error: Exception, seed: Any) -> None:
        """Say what may be the reason where environments were given a seed each."""
        own = isinstance(error, gymnasium.error.Error | TypeError | ValueError) and not isinstance(error, RlcoreError)
        if own and not isinstance(seed, int | None):
            refused = f"{type(self.envs.unwrapped).__name__} cannot be reset with a seed for each environment"
            needed = "which groups that share a start need; take backend sync or async"
            raise UsageError(f"{refused}, {needed}") from error

    def _keep_extras(self, infos: dict[str, Any], which: np.ndarray | None = None) -> None:
        """Keep what `infos` tell of the environments `which [N]`, or of all."""
        for field in self.fields:
            if field.name not in infos:
                raise EnvironmentFault(f"the environments promise '{field.name}' in their infos, but it is not there")
            kept = self.extras.setdefault(field.name, np.zeros((self.num_envs, *field.shape), numpy_dtype(field.dtype)))
            for n in range(self.num_envs) if which is None else np.flatnonzero(which):
                kept[n] = infos[field.name][n]

    def step(self, actions: np.ndarray) -> Step:
        """Take actions as the buffer stores them, `[N, ...]`.

        Raises:
            EnvironmentFault: where an environment fails and is not begun anew.
        """
        self.steps += 1
        try:
            obs, rewards, terminated, truncated, infos = self.stepped.step(self.action_spec.to_env(actions))
        except Exception as error:
            raise self._fault(error) from error
        obs, dead, final_envs, final_obs = self.split(obs), self.pending, None, None
        terminated, truncated = terminated.astype(bool, copy=False), truncated.astype(bool, copy=False)
        done = terminated | truncated
        if self.fields:
            self._keep_extras(infos)
        # The observation after a dead row begins an episode; without dead rows, the one after an end does, or a wait.
        begun = dead if self.has_dead_rows else done
        if self.has_dead_rows:
            self.pending = done
        elif WAITING_KEY in infos:
            self.pending = infos[WAITING_KEY]
            begun = (done | dead) & ~self.pending
        first = begun
        if not self.has_dead_rows and (done.any() or begun is not done):
            final_envs = np.flatnonzero(done)
            obs, final_obs = self._past_ends(obs, infos, begun, final_envs)
        if "life_lost" in infos:
            terminated, first = terminated | infos["life_lost"], begun | infos["life_lost"]
        step = Step(obs, rewards, terminated, truncated, done, ~dead, begun, first, final_envs, final_obs)
        return self._without_faults(step, infos) if FAULT_KEY in infos or self.restarts.troubled else step

    def _past_ends(self, obs: Any, infos: dict[str, Any], begun: np.ndarray, which: np.ndarray) -> tuple[Any, Any]:
        """Observations to act on, where episodes have `begun [N]`, and the true successors where they are over, in
        environments `which`."""
        if self.mode is AutoresetMode.SAME_STEP:
            return obs, self._final_from_infos(infos, which)
        final_obs = map_parts(lambda x: x[which].copy(), obs)  # before the reset, which may write in the same memory
        return self._renew(begun) if begun.any() else obs, final_obs

    def _without_faults(self, step: Step, infos: dict[str, Any]) -> Step:
        """The step, after which those that failed in it begin anew, and those that did not are forgiven."""
        faults, failed, real = _faults(infos), None, step.real
        if faults:
            failed = infos[f"_{FAULT_KEY}"] & ~step.done  # where an episode ended, it was the reset that followed
            real = real & ~failed
            step = step._replace(real=real, begun=step.begun | failed, first=step.first | failed, failed=failed)
        if self.restarts.troubled:
            self.restarts.in_a_row[real] = 0
            self.restarts.troubled = bool(self.restarts.in_a_row.any())
        return step._replace(obs=self._begin_anew(faults)) if faults else step

    def restart(self, which: np.ndarray, after: int) -> Any:
        """Begin a new episode in the environments `which [N]`, whose episodes were cut `after` so many steps.

        Raises:
            EnvironmentFault: where the autoreset mode does not allow that.
        """
        if self.mode is not AutoresetMode.DISABLED:
            raise EnvironmentFault(
                f"an episode runs on after {after:,} steps, and autoreset mode {self.mode.name} cannot begin a new one "
                "in a single environment; give the environment a time limit or allow more steps"
            )
        return self._renew(which)

    def _renew(self, which: np.ndarray) -> Any:
        """Reset the environments `which [N]`; observations of all."""
        obs, faults = self._reset(which, None)
        return self._begin_anew(faults) if faults else obs

    def _reset(self, which: np.ndarray, seeds: list[int | None] | None) -> tuple[Any, dict[int, str]]:
        try:
            obs, infos = self.stepped.reset(seed=seeds, options={"reset_mask": which})
        except Exception as error:
            raise self._fault(error) from error
        if self.fields:
            self._keep_extras(infos, which)
        self.pending = infos.get(WAITING_KEY, self.pending)
        return self.split(obs), _faults(infos)

    def _begin_anew(self, faults: dict[int, str], seeds: Any = None) -> Any:
        """Begin new episodes where `faults` were (environments and sentences), until all have begun; observations of
        all environments, whose `seeds`, where there is a list, are tried once more before others are taken."""
        obs = None
        while faults:
            which = np.zeros(self.num_envs, dtype=bool)
            own: list[int | None] = [None] * self.num_envs
            for n, sentence in faults.items():
                fresh = self.restarts.add(n, f"{sentence} {self.clock.format(self.steps)}")
                which[n], own[n] = True, seeds[n] if isinstance(seeds, list) else fresh
                self.astray[n] = not isinstance(seeds, list)
            obs, faults = self._reset(which, own)
            seeds = None
        return obs

    def _fault(self, error: Exception) -> EnvironmentFault:
        """What to raise in place of an `error` from the vector environment; other errors of ours say it all."""
        if isinstance(error, RlcoreError) and not isinstance(error, EnvironmentFault):
            raise error
        self._failed = True
        sentence = str(error) if isinstance(error, EnvironmentFault) else _sentence(self.envs, error)
        return EnvironmentFault(f"{sentence} {self.clock.format(self.steps)}")

    def split(self, obs: Any) -> Any:
        """Observations `[N, ...]` of `stepped` as the buffer takes them: in parts, indices counted from 0."""
        if self._composite:
            obs = split_observation(self.observation_space, obs)
        return map_parts(np.subtract, obs, self._starts) if self._shifted else obs

    def given(self, obs: Any, action_mask: Any = None) -> Any:
        """As `split`, of observations `[N, ...]` of `envs` that come from anywhere, with the masks of their actions.

        Raises:
            UsageError: where the observations are of another form, or masks are needed, or not, or do not fit.
        """
        if isinstance(self.stepped, MaskedVectorEnv):
            obs = self.split(self.stepped.given(obs, action_mask))
            counts = [len(x) for x in obs.values()]
            if min(counts) != max(counts):
                raise UsageError(f"there are {counts[-1]} action masks, but {counts[0]} observations")
            return obs
        if action_mask is not None:
            raise UsageError("action_mask is given, but this agent does not mask actions (mask_actions)")
        try:
            parts = self.split(obs)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise UsageError(f"observations do not fit {self.observation_space}: {one_line(error)}") from error
        if isinstance(parts, dict) != isinstance(self.parts, dict):
            raise UsageError(f"observations are a {type(obs).__name__}, but must be of {self.observation_space}")
        map_parts(_check_form, parts, self.parts)
        return parts

    def _final_from_infos(self, infos: dict[str, Any], final_envs: np.ndarray) -> Any:
        final = infos.get("final_obs")
        if final is None:
            mode = "the environment's autoreset mode is SAME_STEP"
            raise EnvironmentFault(f"{mode} and an episode ended, but its infos have no 'final_obs'")
        if isinstance(final, dict | tuple):  # batched already, part by part
            return map_parts(lambda x: np.asarray(x)[final_envs], self.split(final))
        rows = [map_parts(np.asarray, self.split(final[n])) for n in final_envs]
        return map_parts(lambda *parts: np.stack(parts), *rows)

    def close(self) -> None:
        """Close the environments; where a fault has been told already, what follows from it is not told again."""
        try:
            self.envs.close()
        except Exception:
            if not self._failed:
                raise


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """The mode in the environment's metadata."""
    mode = (envs.metadata or {}).get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        modes = "one of AutoresetMode's " + ", ".join(mode.name for mode in AutoresetMode)
        sentence = f"the vector environment's metadata['autoreset_mode'] is {mode!r}, but must be {modes}"
        raise UsageError(sentence) from None


def _faults(infos: dict[str, Any]) -> dict[int, str]:
    """The environments that failed, and the sentence of each."""
    if FAULT_KEY not in infos:
        return {}
    return {int(n): infos[FAULT_KEY][n] for n in np.flatnonzero(infos[f"_{FAULT_KEY}"])}


def _sentence(envs: VectorEnv, error: Exception) -> str:
    """What went wrong in a vector environment that is not of our making."""
    processes = getattr(envs.unwrapped, "processes", None)
    if processes and isinstance(error, EOFError | OSError) and (n := first_dead(processes)) is not None:
        return f"the process of environment {n} died ({cause_of_death(processes[n])})"
    return f"the vector environment {describe(error)}"
