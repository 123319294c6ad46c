"""Atari games with the preprocessing of Mnih et al. 2015, the same from three implementations.

An observation is the latest 4 frames `[4, 84, 84]` uint8, oldest first, each the brighter of the last two screens of an
action held for 4 frames, in grey and resized by area. An episode begins with FIRE, where the game has the action, and
up to 30 no-ops; frames before its first are zeros. Rewards are the game's own, unclipped (agents clip what they learn
from, `clip_reward`), and an episode is a whole game. Backends:

    vector   ale-py's own vector environment in C++ (the default)
    envpool  EnvPool's, in C++ too
    sync, async  gymnasium's AtariEnv behind gymnasium's wrappers
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from rlcore.envs.envpool import EnvPoolVectorEnv, needed
from rlcore.envs.guard import FAULT_KEY
from rlcore.errors import UsageError, did_you_mean

PREFIX = "ALE/"  # of the Arcade Learning Environment


@dataclass(frozen=True)
class AtariOptions:
    """How a game is played; every field may be given to `make_vec` or as `--env-arg NAME=VALUE`."""

    noop_max: int = 30  # most no-ops at the beginning of an episode
    fire_reset: bool = True  # press FIRE before them, in games that have the action
    frameskip: int = 4  # frames for which an action is held
    stack_num: int = 4  # frames in an observation
    screen_size: int = 84  # height and width of a frame
    episodic_life: bool = False  # for learning, losing a life ends the episode; the game and its return go on
    repeat_action_probability: float = 0.0  # sticky actions; 0.25 in Machado et al. 2018, 0 in Mnih et al. 2015
    full_action_space: bool = False  # all 18 actions instead of those the game uses
    max_frames: int = 108_000  # longest game; this is half an hour


def register_games() -> None:
    """Make ale-py's games known to gymnasium; a UsageError where it is not installed."""
    gymnasium.register_envs(needed("ale_py", "Atari", "ale-py", extra="atari"))


def make_atari(spec: EnvSpec, num_envs: int, backend: str, vectorize: Any, kwargs: dict[str, Any]) -> VectorEnv:
    """A vector environment of one game; see `make_vec`. `vectorize` makes that of gymnasium's single games."""
    kwargs = dict(kwargs)
    render_mode, known = kwargs.pop("render_mode", None), [field.name for field in dataclasses.fields(AtariOptions)]
    for name in kwargs:
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(f"'{name}' is not an option of {spec.id}{near}; there are {', '.join(known)}")
    options = o = AtariOptions(**kwargs)
    settings = dict(  # as ale-py and EnvPool both call them
        stack_num=o.stack_num, noop_max=o.noop_max, use_fire_reset=o.fire_reset, img_height=o.screen_size,
        img_width=o.screen_size, repeat_action_probability=o.repeat_action_probability,
        full_action_space=o.full_action_space,
    )  # fmt: skip
    if backend == "vector":
        envs = _ale_vector(spec, num_envs, options, settings)
    elif backend == "envpool":
        settings |= dict(frame_skip=o.frameskip, max_episode_steps=o.max_frames // o.frameskip)
        task = f"{spec.name.removeprefix(PREFIX)}-v5"
        envs = EnvPoolVectorEnv(
            task, num_envs, spec, frame_stack=o.stack_num, episodic_life=False, reward_clip=False, **settings
        )
    else:
        envs = vectorize(lambda: make_game(spec, options, render_mode))
    return LifeLoss(envs) if options.episodic_life else envs


def _ale_vector(spec: EnvSpec, num_envs: int, o: AtariOptions, settings: dict[str, Any]) -> VectorEnv:
    from ale_py.vector_env import AtariVectorEnv

    # Its own episodic_life begins a new game at each lost life, and its mode DISABLED is refused by 0.12.1.
    envs = AtariVectorEnv(
        spec.kwargs["game"], num_envs, autoreset_mode=AutoresetMode.SAME_STEP, max_num_frames_per_episode=o.max_frames,
        frameskip=o.frameskip, reward_clipping=False, **settings,
    )  # fmt: skip
    # The metadata is an attribute of the class, which the next instance with another mode would change.
    envs.metadata = {**envs.metadata, "frame_stack": o.stack_num}
    envs.spec = spec
    return envs


def make_game(spec: EnvSpec, o: AtariOptions, render_mode: str | None = None) -> gymnasium.Env:
    """One game behind gymnasium's wrappers."""
    needed("cv2", "Atari behind gymnasium's wrappers", "opencv", extra="atari")  # gymnasium's preprocessing takes it
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit

    env = gymnasium.make(
        spec, frameskip=1, repeat_action_probability=o.repeat_action_probability, render_mode=render_mode,
        full_action_space=o.full_action_space, max_num_frames_per_episode=None, disable_env_checker=True,
    )  # fmt: skip
    env = AtariReset(env, o.noop_max, o.fire_reset)
    env = AtariPreprocessing(env, noop_max=0, frame_skip=o.frameskip, screen_size=o.screen_size)
    env = TimeLimit(env, o.max_frames // o.frameskip)
    env = FrameStackObservation(env, o.stack_num, padding_type="zero")
    env.metadata = {**env.metadata, "frame_stack": o.stack_num, "render_fps": 60 / o.frameskip}
    return env


class AtariReset(gymnasium.Wrapper):
    """FIRE and no-ops at the beginning of an episode, frame by frame and from the same random numbers as ale-py's
    vector environment, so that one seed gives one game in both."""

    def __init__(self, env: gymnasium.Env, noop_max: int, fire_reset: bool):
        super().__init__(env)
        game: Any = env.unwrapped
        meanings = game.get_action_meanings()
        self.noop_max, self.fire = noop_max, meanings.index("FIRE") if fire_reset and "FIRE" in meanings else None
        self.random = np.random.RandomState()  # MT19937, as std::mt19937

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(options=options)
        if seed is not None:
            self.random.seed(seed)
            game: Any = self.unwrapped
            game.ale.setInt("random_seed", seed)
            game.load_game()
            game.ale.reset_game()
        drawn = int(self.random.randint(0, 2**32, dtype=np.uint32)) * self.noop_max >> 32 if self.noop_max else 0
        for action in [0] * drawn if self.fire is None else [self.fire] + [0] * (drawn - 1):
            obs, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                obs, info = self.env.reset()
        return obs, info


class LifeLoss(VectorWrapper):
    """Marks in `infos["life_lost"]` `[N]` which environments lost a life in a step and play on.

    The game goes on, and so do its return and its frames; only learning takes it as an end.
    """

    def __init__(self, envs: VectorEnv):
        super().__init__(envs)
        self.lives = np.zeros(envs.num_envs, dtype=np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        which = (options or {}).get("reset_mask", slice(None))  # asked first: gymnasium takes it out of the options
        obs, infos = self.env.reset(seed=seed, options=options)
        self.lives[which] = self._left(infos)[which]
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        left = self._left(infos)
        fewer = left < self.lives
        self.lives = np.array(left)
        return obs, rewards, terminated, truncated, {**infos, "life_lost": fewer & ~terminated & ~truncated}

    def _left(self, infos: dict[str, Any]) -> np.ndarray:
        """Lives `[N]`; an environment that failed tells none, and keeps those it had."""
        if FAULT_KEY not in infos:
            return infos["lives"]
        return np.where(infos[f"_{FAULT_KEY}"], self.lives, infos.get("lives", self.lives))
