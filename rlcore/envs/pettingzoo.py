"""PettingZoo's parallel environments as one vector environment, for a policy that all agents share.

M copies of A agents each are N = M · A environments: agent a of copy m is row m · A + a, with transitions, episodes and
returns of its own. Whose episode is over while others of the copy still play waits until theirs are over too, and so
does who is not there yet (`VectorAdapter`: such rows are no transitions). Then the copy is reset; the mode is DISABLED.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from rlcore.envs.envpool import needed
from rlcore.envs.guard import WAITING_KEY, Wrong, check_observation, describe, seed_of_each, whole, whom_to_reset
from rlcore.envs.make import import_module
from rlcore.errors import EnvironmentFault, UsageError

INTERFACE = ("possible_agents", "reset", "step", "observation_space", "action_space")


def from_pettingzoo(make: str | Callable[[], Any] | list[Any], copies: int = 1, **env_kwargs: Any) -> VectorEnv:
    """A vector environment in which each agent of each copy is an environment.

    Args:
        make: a function that makes a ParallelEnv, the name of a game of PettingZoo ("butterfly.pistonball_v6"), or a
            list of ParallelEnvs that are there already.
        copies: M, how many to make.
        env_kwargs: passed to what makes them.

    Raises:
        UsageError: where PettingZoo is needed but not installed, what is made is no ParallelEnv, or agents differ in
            their spaces.
    """
    if isinstance(make, list):
        return PettingZooVectorEnv(make)
    if isinstance(make, str):
        needed("pettingzoo", f"the environment '{make}'", "pettingzoo", extra="pettingzoo")
        make = _maker(f"pettingzoo.{make}")
    if not callable(make):
        raise UsageError(f"make is {make!r}, but must be a function, a name or a list of ParallelEnvs")
    if whole("copies", copies) < 1:
        raise UsageError(f"copies is {copies}, but must be at least 1")
    return PettingZooVectorEnv([make(**env_kwargs) for _ in range(copies)])


class PettingZooVectorEnv(VectorEnv):
    """N = M · A environments that are the agents of M parallel ones; `agents` are the names of the A.

    Raises:
        UsageError: as `from_pettingzoo`.
    """

    def __init__(self, envs: list[Any]):
        _check_interface(envs)
        self.agents = list(envs[0].possible_agents)
        self.single_observation_space = _shared_space(envs, "observation")
        self.single_action_space = _shared_space(envs, "action")
        self.copies = [Copy(env, self.agents, self.single_observation_space) for env in envs]
        self.num_envs = len(envs) * len(self.agents)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes; observations `[N, ...]` of all, and infos.

        Args:
            seed: copy m gets seed + m; or one for each of the N, the same for all of a copy.
            options: may have "reset_mask" `[N]`, which names all who play in a copy that is to begin anew, or are
                through with it; who has just joined goes on. The rest is passed on.

        Raises:
            ResetNeeded: where a mask leaves out environments that have never begun.
        """
        options = dict(options or {})
        mask, asked = options.pop("reset_mask", None), np.zeros(self.num_envs, dtype=bool)
        asked[whom_to_reset(mask, self.num_envs)] = True
        if not asked.all() and self.copies[0].seen[0] is None:
            raise ResetNeeded("the first reset has to be of all environments, without a reset_mask")
        seeds = self._seeds(seed)
        for m, which in enumerate(asked.reshape(len(self.copies), -1)):
            if mask is None or self._is_over(m, which):
                self._answer(m, self.copies[m].reset, seeds[m], options or None)
        return self._shown()

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take `actions [N, ...]`; observations, rewards, terminated, truncated `[N]`, and infos.

        Raises:
            ResetNeeded: where the episodes of all agents of a copy are over, or have not begun.
        """
        over = [m for m, copy in enumerate(self.copies) if not copy.playing.any()]
        if over:
            raise ResetNeeded(f"copies {over} are over or have not begun; reset these before the next step")
        each, size = list(iterate(self.action_space, actions)), len(self.agents)
        answers = [self._answer(m, x.step, each[m * size : (m + 1) * size]) for m, x in enumerate(self.copies)]
        obs, infos = self._shown()
        return obs, *(np.concatenate(x) for x in zip(*answers, strict=True)), infos

    def close_extras(self, **kwargs: Any) -> None:
        for copy in self.copies:
            copy.env.close()

    def _answer(self, m: int, method: Callable, *arguments: Any) -> Any:
        """What copy m does, or an EnvironmentFault where that fails."""
        try:
            return method(*arguments)
        except (Exception, SystemExit) as error:
            env, first = getattr(self.copies[m].env, "unwrapped", None), m * len(self.agents)
            what = f"returned {error}" if isinstance(error, Wrong) else describe(error, env)
            who = f"copy {m} (environments {first} to {first + len(self.agents) - 1})"
            raise EnvironmentFault(f"{who} {what}") from error

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        """What all see, and infos: who waits while others of the same copy play, and what the copies tell."""
        space = self.single_observation_space
        infos: dict[str, Any] = {}
        obs = [x for copy in self.copies for x in copy.seen]
        for n, info in enumerate(x for copy in self.copies for x in copy.infos):
            infos = self._add_info(infos, info, n)
        infos[WAITING_KEY] = np.concatenate([copy.playing.any() & ~copy.playing for copy in self.copies])
        return concatenate(space, obs, create_empty_array(space, self.num_envs)), infos

    def _is_over(self, m: int, asked: np.ndarray) -> bool:
        """Whether copy m is to begin anew, of which the agents `asked [A]` are in a mask; a UsageError where that would
        cut others short."""
        copy = self.copies[m]
        asked, copy.joined = asked & ~copy.joined, np.zeros_like(copy.joined)
        unasked = copy.playing & ~asked
        if asked.any() and unasked.any():
            left_out = f"options['reset_mask'] leaves out environment {m * len(self.agents) + unasked.argmax()}"
            raise UsageError(f"{left_out}, but it plays in copy {m} too, which would begin anew")
        return bool(asked.any())

    def _seeds(self, seed: Any) -> list[int | None]:
        """The seed of each copy."""
        if seed is None or isinstance(seed, int | np.integer):
            return seed_of_each(None if seed is None else int(seed), len(self.copies))
        rows = np.array(seed_of_each(seed, self.num_envs), dtype=object).reshape(len(self.copies), -1)
        for m, row in enumerate(rows):
            if len(set(row)) > 1:
                raise UsageError(f"seed has {row.tolist()} for copy {m}, but its agents share one environment")
        return rows[:, 0].tolist()


class Copy:
    """One parallel environment and A agents.

    An agent who is not there acts in vain; it shows what it saw last, or if it has seen nothing yet, what another did.

    Attributes:
        playing, ended, joined: `[A]` bool, whose next step is a transition, whose episode is over before that of the
            copy, and who began one in the latest step.
        seen, infos: what each agent was told last.
    """

    def __init__(self, env: Any, agents: list[str], space: Space):
        self.env, self.agents, self.space = env, agents, space
        self.playing, self.ended, self.joined = (np.zeros(len(agents), dtype=bool) for _ in range(3))
        self.seen: list[Any] = [None] * len(agents)
        self.infos: list[dict[str, Any]] = [{} for _ in agents]

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> None:
        """Begin an episode."""
        obs, infos = self.env.reset(seed=seed, options=options)
        self.playing, self.ended, self.joined = self._there(), np.zeros_like(self.ended), np.zeros_like(self.joined)
        if not self.playing.any():
            raise Wrong("no agents from its reset")
        self._tell(self.playing, obs, infos)
        for a in np.flatnonzero(~self.playing):
            self.seen[a] = self.seen[self.playing.argmax()]

    def step(self, actions: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, terminated and truncated `[A]` of those who play."""
        acting = {agent: x for agent, x in zip(self.agents, actions, strict=True) if agent in self.env.agents}
        obs, *answers, infos = self.env.step(acting)
        given = np.zeros(len(actions)), np.zeros_like(self.playing), np.zeros_like(self.playing)
        for name, x, answer in zip(("reward", "terminated", "truncated"), given, answers, strict=True):
            for a in np.flatnonzero(self.playing).tolist():
                x[a] = self._of(a, answer, name)
        there, (rewards, terminated, truncated) = self._there(), given
        truncated |= self.playing & ~there & ~terminated  # who leaves without a word
        self.ended |= terminated | truncated
        self.joined = there & ~self.playing & ~self.ended
        unseen = terminated & [agent not in obs for agent in self.agents]  # nor is it needed what follows a termination
        self._tell((self.playing | self.joined) & ~unseen, obs, infos)
        self.playing = there & ~self.ended
        return rewards, terminated, truncated

    def _there(self) -> np.ndarray:
        return np.array([agent in self.env.agents for agent in self.agents])

    def _tell(self, which: np.ndarray, obs: dict[str, Any], infos: dict[str, Any]) -> None:
        """Let the agents `which [A]` see what they are given; the infos of others are empty."""
        self.infos = [infos.get(agent, {}) if told else {} for agent, told in zip(self.agents, which, strict=True)]
        for a in np.flatnonzero(which).tolist():
            self.seen[a] = self._of(a, obs, "observation")
            try:
                check_observation(self.space, self.seen[a], "", finite=False)
            except Wrong as error:
                raise Wrong(f"for agent '{self.agents[a]}' {error}") from None

    def _of(self, a: int, given: dict[str, Any], name: str) -> Any:
        if self.agents[a] not in given:
            raise Wrong(f"no {name} of agent '{self.agents[a]}'")
        return given[self.agents[a]]


def _maker(game: str) -> Callable[[], Any]:
    """What makes the ParallelEnv of a game, a module."""
    import_module(game)
    if not hasattr(sys.modules[game], "parallel_env"):
        raise UsageError(f"{game} has no parallel_env: its agents take turns, or it is no game")
    return sys.modules[game].parallel_env


def _check_interface(envs: list[Any]) -> None:
    """Refuse what is not one parallel environment after the other, of the same agents."""
    if not envs:
        raise UsageError("make is an empty list, but must have at least one ParallelEnv")
    for env in envs:
        missing = next((name for name in INTERFACE if not hasattr(env, name)), None)
        if missing or hasattr(env, "last"):
            why = "is an AECEnv, whose agents take turns" if hasattr(env, "last") else f"has no '{missing}'"
            raise UsageError(f"make gave a {type(env).__name__}, which {why}; it must be a ParallelEnv of PettingZoo")
        if list(env.possible_agents) != list(envs[0].possible_agents) or not env.possible_agents:
            both = f"{list(env.possible_agents)} and {list(envs[0].possible_agents)}"
            raise UsageError(f"possible_agents are {both}, but must be the same in all copies, and at least one")


def _shared_space(envs: list[Any], kind: str) -> Space:
    """The space of all agents, or a UsageError where they differ."""
    each = [(agent, getattr(env, f"{kind}_space")(agent)) for env in envs for agent in env.possible_agents]
    first, shared = each[0]
    for agent, space in each:
        if space != shared:
            differ = f"agents '{first}' and '{agent}' have {kind} spaces {shared} and {space}"
            raise UsageError(f"{differ}, but one policy for all needs the same")
    return shared
