"""Agents of PettingZoo's parallel environments as environments; games of our own stand in for PettingZoo's."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlcore
from rlcore import A2C, PPO, REINFORCE
from rlcore.collect import HostCollector
from rlcore.envs import VectorAdapter, from_pettingzoo
from rlcore.envs import envpool as extras
from rlcore.envs.guard import WAITING_KEY
from rlcore.errors import EnvironmentFault, UsageError

SMALL = dict(hidden_sizes=(8,), num_steps=12, seed=3, device="cpu", compile=False)
POISON = 1e6


class Game:
    """What PettingZoo's ParallelEnv has, as far as it is needed."""

    possible_agents, agents = ["a", "b", "c"], []
    observation, action = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(3, start=1)

    def observation_space(self, agent):
        return self.observation

    def action_space(self, agent):
        return self.action

    def close(self):
        self.closed = True


class Scripted(Game):
    """Agent i of episode e sees [e, i, t] and is paid 100 e + 10 i + t for reaching step t. `script` says of each agent
    when it comes, when it goes and how: terminated, cut, both, or gone without a flag."""

    def __init__(self, script, keeps=False):
        self.script, self.keeps, self.episode, self.acted, self.seeds = script, keeps, 0, [], []

    def reset(self, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        self.seeds.append(seed)
        self.agents = self._there()
        return {agent: self.see(agent) for agent in self.agents}, {agent: {"begins": True} for agent in self.agents}

    def _there(self):
        return [x for x, (comes, goes, _) in self.script.items() if comes <= self.t < goes]

    def see(self, agent):
        return np.array([self.episode, self.possible_agents.index(agent), self.t], np.float32)

    def step(self, actions):
        assert set(actions) == set(self.agents) and all(self.action.contains(x) for x in actions.values()), actions
        self.acted.append((self.t, {agent: int(x) for agent, x in actions.items()}))
        self.t += 1
        ends = {x: how for x, (_, goes, how) in self.script.items() if goes == self.t}
        told = [*self.agents, *(x for x in self._there() if x not in self.agents)]
        # Of those who are through already, values that must not go anywhere.
        over = [x for x, (_, goes, _) in self.script.items() if goes < self.t]
        obs = {x: self.see(x) for x in told} | {x: np.full(3, POISON, np.float32) for x in over}
        rewards = {x: 100.0 * self.episode + 10 * self.possible_agents.index(x) + self.t for x in told}
        rewards |= dict.fromkeys(over, POISON)
        terminated = {x: "t" in ends.get(x, "") for x in told} | dict.fromkeys(over, True)
        truncated = {x: "c" in ends.get(x, "") for x in told} | dict.fromkeys(over, True)
        self.agents = sorted({*self._there(), *(over + list(ends) if self.keeps and self._there() else [])})
        return obs, rewards, terminated, truncated, {x: {"t": self.t} for x in told}


SCRIPT = {"a": (0, 2, "t"), "b": (0, 5, "c"), "c": (0, 3, "c")}


def rows_of(envs, steps, **options):
    """A rollout of `steps`, and the adapter that it came through."""
    agent = A2C(envs, **{**SMALL, "num_steps": steps, **options})
    return agent, agent.collect()


def fill(agent, name):
    return getattr(agent.buffer, name).numpy()


# Who plays, who waits, and where episodes led.


@pytest.mark.parametrize("keeps", [False, True])
def test_an_agent_that_is_through_waits_until_all_of_its_copy_are(keeps):
    agent, episodes = rows_of(from_pettingzoo(Scripted, 1, script=SCRIPT, keeps=keeps), 10)
    two = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 1, 0]], dtype=bool)  # [t, a] of one episode
    mask = fill(agent, "mask")
    assert np.array_equal(mask, np.tile(two, (2, 1)))
    assert agent.global_step == two.sum() * 2 == 20
    ends = np.zeros((5, 3), dtype=bool)
    ends[1, 0] = True
    assert np.array_equal(fill(agent, "terminated") & mask, np.tile(ends, (2, 1)))
    ends[:], ends[2, 2], ends[4, 1] = False, True, True
    assert np.array_equal(fill(agent, "truncated") & mask, np.tile(ends, (2, 1)))
    obs, t = fill(agent, "obs"), np.arange(5)
    for e, rows in ((1, obs[:5]), (2, obs[5:])):
        assert (rows[:, 1] == [[e, 1, s] for s in t]).all()  # who plays all the time
        assert (rows[:2, 0] == [[e, 0, 0], [e, 0, 1]]).all() and (rows[2:, 0] == [e, 0, 2]).all()
    assert fill(agent, "dones")[5].all() and fill(agent, "dones").sum() == 3
    # Returns are the agent's own: 100 e + 10 i + t for each t it reached.
    found = sorted(zip(episodes.env, episodes.lengths, episodes.returns, strict=True))
    lengths = {0: 2, 1: 5, 2: 3}
    assert found == [(i, n, (100 * e + 10 * i) * n + n * (n + 1) / 2) for i, n in lengths.items() for e in (1, 2)]


def test_what_waits_is_given_no_action_that_counts_and_rewards_of_its_own_alone():
    game = Scripted(SCRIPT)
    agent, _ = rows_of(from_pettingzoo([game]), 5)
    assert [sorted(actions) for _, actions in game.acted] == [["a", "b", "c"]] * 2 + [["b", "c"]] + [["b"]] * 2
    actions = fill(agent, "actions")
    assert [acted["b"] for _, acted in game.acted] == (actions[:, 1] + 1).tolist()
    assert np.abs(fill(agent, "rewards")).max() < POISON and np.abs(fill(agent, "obs")).max() < POISON


def test_a_cut_is_valued_by_what_the_agent_saw_at_its_end():
    agent, _ = rows_of(from_pettingzoo(Scripted, 1, script=SCRIPT), 10)
    with torch.no_grad():
        value = agent.network.value(torch.tensor([[1.0, 2, 3], [1, 1, 5], [2, 2, 3], [2, 1, 5]]))
    following = agent.buffer.next_values
    cuts = following[[2, 4, 7, 9], [2, 1, 2, 1]]
    torch.testing.assert_close(cuts, value)
    assert (following[[1, 6], 0] == 0).all()  # terminated
    torch.testing.assert_close(following[:4, 1], agent.buffer.values[1:5, 1])


def test_both_flags_are_a_termination_and_leaving_without_one_is_a_cut():
    agent, episodes = rows_of(
        from_pettingzoo(Scripted, 1, script={"a": (0, 1, "tc"), "b": (0, 2, ""), "c": (0, 3, "t")}), 3
    )
    assert (fill(agent, "terminated") & fill(agent, "mask")).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert (fill(agent, "truncated") & fill(agent, "mask")).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert sorted(zip(episodes.env, episodes.lengths, strict=True)) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("script", [
    {"a": (0, 3, "t"), "b": (1, 3, "t"), "c": (9, 9, "")},
    {"a": (0, 2, "t"), "b": (2, 3, "t"), "c": (9, 9, "")},  # comes as the only other leaves
])  # fmt: skip
def test_who_comes_later_begins_then_and_who_never_does_waits_for_ever(script):
    game = Scripted(script)
    agent, episodes = rows_of(from_pettingzoo([game]), 6)
    comes = script["b"][0]
    b = np.array([comes <= t < 3 for t in range(3)] * 2)
    assert np.array_equal(fill(agent, "mask")[:, 1], b) and not fill(agent, "mask")[:, 2].any()
    assert game.episode == 3  # and none was cut short by a reset
    assert (fill(agent, "obs")[b][:, 1, 2] == [*range(comes, 3)] * 2).all()
    assert (fill(agent, "obs")[:, 2, 1] == 0).all()  # shows what agent a saw, which is a valid observation
    assert fill(agent, "dones")[comes, 1] and sorted(set(episodes.env)) == [0, 1]
    assert [n for i, n in zip(episodes.env, episodes.lengths, strict=True) if i == 1] == [3 - comes] * 2


def test_rows_are_copy_by_copy_and_copies_end_apart():
    games = [Scripted(SCRIPT), Scripted({x: (0, 1 + i, "t") for i, x in enumerate("abc")})]
    agent, episodes = rows_of(from_pettingzoo(games), 15)
    assert agent.envs.num_envs == agent.config.num_envs == 6
    assert (fill(agent, "obs")[0, :, 1] == [0, 1, 2, 0, 1, 2]).all()
    assert [game.episode for game in games] == [4, 6]
    assert [sum(np.array(episodes.env) == n) for n in range(6)] == [3] * 3 + [5] * 3
    assert episodes.step == sorted(episodes.step) and episodes.step[-1] == agent.global_step


def test_rollouts_go_on_where_the_last_one_stopped():
    """The same transitions whether collected in one rollout or in several, cut in the middle of a wait too."""

    def transitions(steps, rollouts):
        agent = A2C(from_pettingzoo(Scripted, 2, script=SCRIPT), **{**SMALL, "num_steps": steps})
        parts, ends = [], []
        for _ in range(rollouts):
            found = agent.collect()
            ends += zip(found.step, found.env, found.returns, found.lengths, strict=True)
            parts.append(
                {x: fill(agent, x).copy() for x in ("mask", "obs", "rewards", "terminated", "truncated", "dones")}
            )
        return {x: np.concatenate([part[x] for part in parts]) for x in parts[0]}, ends

    (whole, ends), (pieces, ends_of_pieces) = transitions(12, 1), transitions(3, 4)
    assert ends == ends_of_pieces
    for name, x in whole.items():
        np.testing.assert_array_equal(x, pieces[name], err_msg=name)


def test_whole_episodes_end_when_all_have_finished():
    agent = REINFORCE(from_pettingzoo(Scripted, 1, script=SCRIPT), **{**SMALL, "num_steps": 9})
    for _ in range(2):
        episodes = agent.collect()
        assert agent.buffer.length == 5 and fill(agent, "mask").sum(0).tolist() == [2, 5, 3]
        assert sorted(episodes.lengths) == [2, 3, 5] and agent.collector.cut_episodes == 0
        agent.iteration += 1


def test_evaluation_counts_each_agent_for_itself():
    agent = A2C(from_pettingzoo(Scripted, 1, script=SCRIPT), **SMALL)
    result = agent.evaluate(6, seed=0, env=from_pettingzoo(Scripted, 1, script=SCRIPT))
    assert result.lengths.tolist() == [2, 2, 5, 5, 3, 3]
    assert result.returns.tolist() == [203, 403, 565, 1065, 366, 666]
    forever = dict.fromkeys("abc", (0, 1000, "t"))
    result = agent.evaluate(3, seed=0, env=from_pettingzoo(Scripted, 1, script=forever), max_steps=4)
    assert result.lengths.tolist() == [4, 4, 4]
    assert result.returns.tolist() == [410, 450, 490]


# Learning.


@pytest.mark.parametrize("memory", [None, "gru"])
def test_rows_of_who_waits_touch_no_gradient(memory):
    after = []
    for poisoned in (False, True):
        options = {**SMALL, "norm_obs": True, "norm_reward": True, "memory": memory}
        agent = PPO(from_pettingzoo(Scripted, 1, script=SCRIPT), **options, num_minibatches=1)
        agent.collect()
        if poisoned:
            waits = ~agent.buffer.mask
            assert waits.sum() == 10
            for name in ("obs", "rewards", "values", "next_values", "logprobs", "dist_params"):
                getattr(agent.buffer, name)[waits] = 1e4
        metrics = agent.learn_from_buffer()
        after.append((agent.parameters.vector.detach().clone(), metrics["loss"].item(), agent.reward_scaler.stats.var))
    assert np.isfinite(after[0][1]) and torch.equal(after[0][0], after[1][0]) and after[0][1:] == after[1][1:]


class Lever(Game):
    """Three agents see their number and are paid 1 for pulling the lever of that number; one leaves after each round,
    so that agent i plays i + 1 of them."""

    observation, action = spaces.Discrete(3), spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return self._seen(self.agents), {agent: {} for agent in self.agents}

    def _seen(self, agents):
        return {agent: self.possible_agents.index(agent) for agent in agents}

    def step(self, actions):
        told = list(self.agents)
        good = {agent: float(actions[agent] == self.possible_agents.index(agent)) for agent in told}
        self.agents = self.agents[1:]
        ends = {agent: agent not in self.agents for agent in told}
        return self._seen(told), good, ends, dict.fromkeys(told, False), {agent: {} for agent in told}


@pytest.mark.parametrize("kind", [PPO, REINFORCE])
def test_one_policy_learns_what_each_agent_is_to_do(kind):
    options = dict(learning_rate=0.02, num_steps=12 if kind is PPO else 3, seed=1, device="cpu", compile=False)
    agent = kind(from_pettingzoo(Lever, 8), hidden_sizes=(16,), **options)
    agent.learn(8_000)
    result = agent.evaluate(30, seed=0, env=from_pettingzoo(Lever, 2))
    assert sorted(set(zip(result.returns, result.lengths, strict=True))) == [(1, 1), (2, 2), (3, 3)]
    if kind is PPO:
        with torch.no_grad():  # V of agent i is the number of rounds left to it, discounted: it is (i + 1) at its begin
            value = agent.network.value(torch.arange(3))
        assert value.argmax() == 2 and (value > 0.5).all()


class Pennies(Game):
    """Matching pennies, ten rounds: the first wants both alike, the second different. What one wins the other loses,
    and (1/2, 1/2) is the only equilibrium."""

    possible_agents = ["even", "odd"]
    observation, action = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        return {"even": 0, "odd": 1}, {"even": {}, "odd": {}}

    def step(self, actions):
        self.t += 1
        won = 1.0 if actions["even"] == actions["odd"] else -1.0
        over = self.t == 10
        self.agents = [] if over else self.agents
        no = dict.fromkeys(self.possible_agents, False)
        return {"even": 0, "odd": 1}, {"even": won, "odd": -won}, no, dict.fromkeys(no, over), {}


def test_what_one_agent_wins_the_other_loses_and_chance_stays_in_the_play():
    agent = PPO(from_pettingzoo(Pennies, 16), num_steps=20, seed=1, device="cpu", compile="record", ent_coef=0.1)
    totals = np.zeros(2)
    for _, episodes in agent.iterations(30_000):
        for n, x in zip(episodes.env, episodes.returns, strict=True):
            totals[n % 2] += x
        assert sum(episodes.returns) == 0 and set(episodes.lengths) == {10}
    with torch.no_grad():
        policy = agent.network.policy(torch.arange(2))
    assert totals.sum() == 0 and (policy.params.softmax(-1) > 0.2).all()


# Masks.


class Masked(Scripted):
    """Allows lever 1 + (t + i) mod 3 alone; who is through is allowed nothing."""

    def __init__(self, script, source="observation", keeps=False):
        super().__init__(script, keeps)
        self.source = source
        if source == "observation":
            mask = spaces.Box(0, 1, (3,), np.int8)
            self.observation = spaces.Dict({"observation": Game.observation, "action_mask": mask})

    def _mask(self, agent):
        goes = self.script[agent][1]
        allowed = np.arange(3) == (self.t + self.possible_agents.index(agent)) % 3
        return (allowed & (self.t < goes)).astype(np.int8)

    def see(self, agent):
        plain = super().see(agent)
        return plain if self.source == "infos" else {"observation": plain, "action_mask": self._mask(agent)}

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed, options)
        return obs, {x: {"action_mask": self._mask(x)} if self.source == "infos" else {} for x in infos}

    def step(self, actions):
        for agent, action in actions.items():
            assert action == 1 + (self.t + self.possible_agents.index(agent)) % 3, "forbidden"
        obs, rewards, terminated, truncated, infos = super().step(actions)
        obs = {x: seen for x, seen in obs.items() if x in infos}
        return obs, rewards, terminated, truncated, {x: {"action_mask": self._mask(x)} for x in infos}


@pytest.mark.parametrize("source", ["observation", "infos"])
@pytest.mark.parametrize("script", [SCRIPT, {"a": (0, 2, "c"), "b": (1, 4, "t"), "c": (2, 3, "t")}])
def test_masks_keep_to_what_each_agent_may_do_and_ask_nothing_of_who_waits(source, script):
    envs = from_pettingzoo(Masked, 2, script=script, source=source)
    agent = PPO(envs, **{**SMALL, "num_steps": 20}, mask_actions=None if source == "observation" else True)
    for metrics, _ in agent.iterations(200):
        assert np.isfinite(metrics["loss"])
    assert agent.adapter.action_spec.masked


def test_an_agent_that_plays_must_be_allowed_something():
    class Stuck(Masked):
        def _mask(self, agent):
            return super()._mask(agent) * (agent != "b" or self.t < 2)

    agent = PPO(from_pettingzoo(Stuck, 2, script=SCRIPT), **SMALL)
    with pytest.raises(EnvironmentFault, match=r"environment 1 allows no action at vector step 2"):
        agent.collect()


# Seeds, resets, checkpoints.


def test_copy_m_gets_seed_plus_m_and_later_resets_none():
    games = [Scripted(SCRIPT) for _ in range(3)]
    envs = from_pettingzoo(games)
    adapter = VectorAdapter(envs)
    adapter.reset(7)
    for _ in range(5):
        adapter.step(np.zeros(9, np.int64))
    assert [game.seeds for game in games] == [[7, None], [8, None], [9, None]]
    adapter.reset([4] * 3 + [5] * 3 + [4] * 3)
    assert [game.seeds[-1] for game in games] == [4, 5, 4]
    with pytest.raises(UsageError, match=r"^seed has \[1, 1, 2\] for copy 0, but its agents share one environment$"):
        envs.reset(seed=[1, 1, 2] * 3)
    with pytest.raises(UsageError, match=r"^seed has 2 numbers, but there are 9 environments$"):
        envs.reset(seed=[1, 2])


def test_a_reset_in_the_middle_of_a_wait_begins_with_all():
    envs = from_pettingzoo(Scripted, 2, script=SCRIPT)
    adapter = VectorAdapter(envs)
    adapter.reset(0)
    for _ in range(3):
        step = adapter.step(np.zeros(6, np.int64))
    assert step.real.tolist() == [False, True, True] * 2 and adapter.pending.tolist() == [True, False, True] * 2
    assert adapter.reset(0)[:, 2].tolist() == [0] * 6 and not adapter.pending.any()
    assert adapter.step(np.zeros(6, np.int64)).real.all()


def test_a_mask_that_would_cut_somebody_short_is_refused():
    envs = from_pettingzoo(Scripted, 2, script=SCRIPT)
    adapter = VectorAdapter(envs)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"^copies \[0, 1\] are over or have not begun; reset these"):
        envs.step(np.ones(6, np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"^the first reset has to be of all environments"):
        envs.reset(options={"reset_mask": np.array([True] * 3 + [False] * 3)})
    adapter.reset(0)
    for _ in range(2):
        adapter.step(np.zeros(6, np.int64))
    mask = np.array([False, False, False, False, True, False])
    refused = r"^options\['reset_mask'\] leaves out environment 5, but it plays in copy 1 too, which would begin anew$"
    with pytest.raises(UsageError, match=refused):
        envs.reset(options={"reset_mask": mask})
    mask[5] = True
    obs = adapter.restart(mask, 2)
    assert obs[:, 2].tolist() == [2, 2, 2, 0, 0, 0] and adapter.pending.tolist() == [True] + [False] * 5
    for _ in range(3):
        envs.step(np.ones(6, np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"^copies \[0\] are over"):
        envs.step(np.ones(6, np.int64))


def test_infos_tell_who_waits_and_what_the_agents_are_told():
    envs = from_pettingzoo(Scripted, 1, script=SCRIPT)
    _, infos = envs.reset(seed=0)
    assert infos["begins"].tolist() == [True] * 3 and infos[WAITING_KEY].tolist() == [False] * 3
    for waiting in ([0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1], [0, 0, 0]):
        *_, infos = envs.step(np.ones(3, np.int64))
        assert infos[WAITING_KEY].tolist() == [bool(x) for x in waiting]
    assert infos["_t"].tolist() == [False, True, False] and infos["t"][1] == 5


def test_options_reach_the_copies_without_the_mask():
    class Asked(Scripted):
        def reset(self, seed=None, options=None):
            self.options = options
            return super().reset(seed, options)

    game = Asked(SCRIPT)
    envs = from_pettingzoo([game])
    envs.reset(options={"level": 3, "reset_mask": np.ones(3, dtype=bool)})
    assert game.options == {"level": 3}
    envs.reset()
    assert game.options is None


def test_a_checkpoint_says_that_it_holds_no_environments_and_a_run_goes_on_with_new_episodes(tmp_path):
    agent = PPO(from_pettingzoo(Scripted, 2, script=SCRIPT), **{**SMALL, "num_steps": 8})
    agent.learn(30)
    assert not agent.collector.is_capturable() and agent.collector.state_dict()["env"] is None
    assert agent.adapter.pending.any()
    agent.save(tmp_path / "agent.pt")
    again = rlcore.load(tmp_path / "agent.pt", env=from_pettingzoo(Scripted, 2, script=SCRIPT))
    assert again.global_step == agent.global_step and torch.equal(again.parameters.vector, agent.parameters.vector)
    assert not again.adapter.pending.any()
    same = PPO(from_pettingzoo(Scripted, 2, script=SCRIPT), **{**SMALL, "num_steps": 8})
    same.load_state_dict(agent.state_dict())
    assert not same.adapter.pending.any()
    for one in (again, same):
        episodes = one.collect()
        assert fill(one, "mask")[:5].sum(0).tolist() == [2, 5, 3] * 2 and set(episodes.lengths) == {2, 5, 3}


def test_closing_closes_each_copy():
    games = [Scripted(SCRIPT), Scripted(SCRIPT)]
    from_pettingzoo(games).close()
    assert all(game.closed for game in games)


# Spaces and errors.


class Sees(Game):
    """Samples its spaces for three steps."""

    def __init__(self, observation, action):
        self.observation, self.action = observation, action

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        return {x: self.observation.sample() for x in self.agents}, {}

    def step(self, actions):
        assert all(self.action.contains(x) for x in actions.values()), actions
        self.t, told = self.t + 1, self.agents
        self.agents = [] if self.t == 3 else told[: 4 - self.t]
        ends = {x: x not in self.agents for x in told}
        obs = {x: self.observation.sample() for x in self.agents}  # nothing of who terminated
        return obs, dict.fromkeys(told, 1), ends, dict.fromkeys(told, False), {}


@pytest.mark.parametrize("action", [
    spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2),
    spaces.Box(-1, 1, (2, 2), np.float32),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("observation", [
    spaces.Discrete(4, start=1), spaces.Dict({"x": spaces.Box(0, 255, (3, 2), np.uint8), "y": spaces.Discrete(3)}),
    spaces.Tuple([spaces.MultiBinary(3), spaces.Box(-1, 1, ())]),
], ids=str)  # fmt: skip
def test_spaces_of_all_kinds_go_through(observation, action):
    agent = PPO(from_pettingzoo(Sees, 2, observation=observation, action=action), **SMALL)
    agent.learn(60)
    assert agent.global_step >= 60


def test_what_is_no_parallel_environment_is_refused():
    class TurnByTurn(Scripted):
        def last(self):
            pass

    class OtherSpace(Scripted):
        def observation_space(self, agent):
            return spaces.Discrete(2) if agent == "b" else self.observation

    class OtherActions(Scripted):
        def action_space(self, agent):
            return spaces.Discrete(2) if agent == "c" else self.action

    class OtherAgents(Scripted):
        possible_agents = ["a", "b"]

    class Nobody(Scripted):
        possible_agents = []

    for make, message in (
        (gymnasium.Env, r"^make gave a Env, which has no 'possible_agents'; it must be a ParallelEnv of PettingZoo$"),
        ([TurnByTurn(SCRIPT)], r"^make gave a TurnByTurn, which is an AECEnv, whose agents take turns; it must be"),
        ([], r"^make is an empty list, but must have at least one ParallelEnv$"),
        (3, r"^make is 3, but must be a function, a name or a list of ParallelEnvs$"),
        (
            [OtherSpace(SCRIPT)],
            r"^agents 'a' and 'b' have observation spaces Box\(.*\) and Discrete\(2\), but one policy",
        ),
        (
            [OtherActions(SCRIPT)],
            r"^agents 'a' and 'c' have action spaces Discrete\(3, start=1\) and Discrete\(2\), but",
        ),
        ([Scripted(SCRIPT), OtherAgents(SCRIPT)], r"^possible_agents are \['a', 'b'\] and \['a', 'b', 'c'\], but must"),
        (
            [Nobody(SCRIPT)],
            r"^possible_agents are \[\] and \[\], but must be the same in all copies, and at least one$",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            from_pettingzoo(make)
    for copies, message in (
        (0, r"^copies is 0, but must be at least 1$"),
        ("x", r"^copies is 'x', but must be a whole"),
    ):
        with pytest.raises(UsageError, match=message):
            from_pettingzoo(Scripted, copies, script=SCRIPT)


def without_pettingzoo(monkeypatch):
    def no_module(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(extras.importlib, "import_module", no_module)


def test_a_name_needs_pettingzoo(monkeypatch):
    without_pettingzoo(monkeypatch)
    needs = r"^the environment 'classic.rps_v2' needs the package pettingzoo: pip install 'rlcore\[pettingzoo\]'$"
    with pytest.raises(UsageError, match=needs):
        from_pettingzoo("classic.rps_v2")


class Faulty(Scripted):
    """Goes wrong at step 2, in one of several ways."""

    def __init__(self, script, wrong):
        super().__init__(script)
        self.wrong = wrong

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed, options)
        if self.wrong == "nobody":
            self.agents = []
        return {} if self.wrong == "unseen" else obs, infos

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if self.t == 2:
            if self.wrong == "raises":
                raise ValueError("bad thing")
            if self.wrong == "shape":
                obs["c"] = np.zeros(4, np.float32)
            if self.wrong == "nan":
                obs["c"][0] = np.nan
            rewards = {} if self.wrong == "reward" else rewards
            if self.wrong == "flag":
                del truncated["c"]
            if self.wrong == "cut":
                del obs["b"]
        return obs, rewards, terminated, truncated, infos


@pytest.mark.parametrize(("wrong", "message"), [
    ("raises", r"^copy 1 \(environments 3 to 5\) raised ValueError: bad thing \(test_pettingzoo.py, line \d+\) at "),
    ("shape", r"^copy 1 \(environments 3 to 5\) returned for agent 'c' an observation of shape \[4\], but its space"),
    ("nan", r"^environment 5 returned nan in its observation at vector step 2$"),
    ("reward", r"^copy 1 \(environments 3 to 5\) returned no reward of agent 'a' at vector step 2$"),
    ("flag", r"^copy 1 \(environments 3 to 5\) returned no truncated of agent 'c' at vector step 2$"),
    ("cut", r"^copy 1 \(environments 3 to 5\) returned no observation of agent 'b' at vector step 2$"),
    ("nobody", r"^copy 1 \(environments 3 to 5\) returned no agents from its reset at vector step 0$"),
    ("unseen", r"^copy 1 \(environments 3 to 5\) returned no observation of agent 'a' at vector step 0$"),
])  # fmt: skip
def test_faults_name_the_copy_and_the_agent(wrong, message):
    with pytest.raises(EnvironmentFault, match=message):
        A2C(from_pettingzoo([Scripted(SCRIPT), Faulty(SCRIPT, wrong)]), **SMALL).collect()


# PettingZoo itself.


def test_games_of_pettingzoo_by_name():
    pytest.importorskip("pettingzoo")
    pytest.importorskip("pygame")
    agent = PPO(from_pettingzoo("classic.rps_v2", copies=3, max_cycles=5), **SMALL)
    _, episodes = next(agent.iterations(1))
    assert agent.envs.agents == ["player_0", "player_1"] and isinstance(agent.collector, HostCollector)
    assert episodes.lengths == [5] * 12 and np.add.reduceat(episodes.returns, range(0, 12, 2)).tolist() == [0] * 6
    with pytest.raises(UsageError, match=r"^the module 'pettingzoo.classic.no_game_v0' cannot be imported: "):
        from_pettingzoo("classic.no_game_v0")
    with pytest.raises(
        UsageError, match=r"^pettingzoo.classic.tictactoe_v3 has no parallel_env: its agents take turns"
    ):
        from_pettingzoo("classic.tictactoe_v3")
    from pettingzoo.classic import tictactoe_v3

    with pytest.raises(UsageError, match="is an AECEnv, whose agents take turns; it must be a ParallelEnv"):
        from_pettingzoo(tictactoe_v3.env)
