"""Reward models: what they learn from pairs, and agents that learn from what they say."""

import copy
import itertools
import json
import math

import gymnasium
import numpy as np
import pytest
import torch

import rlcore
from rlcore.agents import AGENTS
from rlcore.agents.rewards import CANDIDATES
from rlcore.cli import main
from rlcore.errors import CheckpointError, UsageError
from rlcore.preferences.bradley_terry import accuracy, cross_entropy, reliability
from rlcore.preferences.data import Preferences, Segments
from rlcore.preferences.sampling import pairs_of
from rlcore.spaces import Sequences, map_parts

POLICIES = ("reinforce", "a2c", "ppo", "trpo", "grpo")
SMALL = dict(seed=0, compile=False, memory="transformer", memory_size=8)


def drawn(space, count, length, generator):
    """Observations or actions of a space, `[count, length, ...]`, as a buffer holds them."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.randint(int(space.n), (count, length), generator=generator)
    return torch.randn(count, length, *space.shape, generator=generator)


def made_up(env_id, count=24, length=6, seed=0, better=None, actions=None):
    """Pairs of segments that nobody played, the last of which are shorter; `better` says what a step is worth."""
    env, generator = gymnasium.make(env_id), torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        obs = drawn(env.observation_space, count, length, generator)
        acts = (
            drawn(env.action_space, count, length, generator) if actions is None else actions(count, length, generator)
        )
        mask = torch.ones(count, length, dtype=torch.bool)
        mask[count - count // 4 :, length // 2 :] = False
        sides.append(Segments(obs, acts, mask))
    if better is None:
        return Preferences(*sides, torch.tensor([(1, 0, 0.5)[n % 3] for n in range(count)]))
    first, second = ((better(side.obs, side.actions) * side.mask).sum(1) for side in sides)
    return Preferences(*sides, (first > second).float())


def texts(count=24):
    agent = rlcore.GRPO("rlcore/Copy-v0", env_kwargs={"length": 2}, num_envs=count * 2, group_size=2, **SMALL)
    agent.collect()
    pairs = pairs_of(agent.buffer, count, group_size=2, generator=torch.Generator().manual_seed(0))
    return Preferences(pairs.first, pairs.second, torch.arange(count) % 3 / 2)


def model_of(what, **options):
    options = {"seed": 0, "compile": False, "num_envs": 8, "hidden_sizes": (8,), **options}
    if what == "texts":
        small = {**options, "env_kwargs": {"length": 2}, "memory": "transformer", "memory_size": 8}
        return rlcore.RewardModel("rlcore/Copy-v0", preferences=texts(), **small)
    env_id = {"numbers": "Pendulum-v1", "squashed": "Pendulum-v1"}.get(what, "CartPole-v1")
    own = {"memory": {"memory": "gru", "memory_size": 8}, "squashed": {"squash": True}}.get(what, {})
    return rlcore.RewardModel(env_id, preferences=made_up(env_id), **{**options, **own})


KINDS = ("choices", "numbers", "squashed", "memory", "texts")


def one_by_one(model, network, segments, member):
    """Σ r(s, a) of each segment by itself, as one member of the ensemble says."""
    sums = []
    for n in range(len(segments)):
        rows = int(segments.mask[n].sum())
        obs, actions = map_parts(lambda x: x[n, :rows], segments.obs), segments.actions[n, :rows]  # noqa: B023
        obs = obs.double() if isinstance(obs, torch.Tensor) else obs
        if network.remembers:
            carry = {field.name: torch.zeros(1, *field.shape, dtype=torch.float64) for field in network.fields()}
            obs = Sequences(obs, torch.zeros(rows, dtype=torch.bool), carry, rows, 1)
        spec = network.spec
        if spec.nvec:
            action = torch.eye(spec.nvec[0], dtype=torch.float64)[actions]
        elif spec.squash:
            action = 2 * torch.tanh(actions.double())
        else:
            action = actions.double().clamp(-2, 2)
        features = network.trunks[member](obs)
        sums.append(network.heads[member](torch.cat([features, action], 1)).sum())
    return torch.stack(sums)


# What it learns


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("what", ["choices", "numbers", "squashed", "memory"])
def test_loss_and_gradient(what, smoothing):
    """Bradley-Terry's, written out, of each member, in float64."""
    model = model_of(what, label_smoothing=smoothing)
    for head in model.network.heads:  # at first what they say hardly differs
        head[2].weight.data.mul_(50)
    model.collect()
    pairs = model.collector.segments[model_of_rows(model)]
    label = model.buffer.preference[0, ::2].double()
    batch = model.buffer.flatten(*model.estimate(model.buffer))
    loss, metrics = model.loss(model.network, batch.take(batch.units()))
    exact = copy.deepcopy(model.network).double()
    total, hs = 0.0, []
    for member in range(model.config.ensemble):
        first, second = (one_by_one(model, exact, pairs[side::2], member) for side in (0, 1))
        p = 1 / (1 + torch.exp(second - first))
        y = label * (1 - smoothing) + (1 - label) * smoothing
        total = total - (y * p.log() + (1 - y) * (1 - p).log()).mean()
        hs.append((first - second).detach())
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    wanted = torch.autograd.grad(total, list(exact.parameters()))
    for got, right in zip(torch.autograd.grad(loss, list(model.network.parameters())), wanted, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-3, atol=1e-6)
    hs = torch.stack(hs)
    assert metrics["disagreement"].item() == pytest.approx(hs.std(0, correction=0).mean().item(), rel=1e-4)
    decided = label != 0.5
    right = ((hs.mean(0) > 0) == (label > 0.5))[decided].double().mean()
    assert metrics["accuracy"].item() == pytest.approx(right.item())


def model_of_rows(model):
    """Which segments stand in the columns of its buffer, found by their actions and observations."""
    held = model.collector.segments
    found = []
    for n in range(model.buffer.num_envs):
        same = (held.obs == model.buffer.obs[: held.length, n]).flatten(1).all(1)
        found.append(int(same.nonzero()[0]))
    return found


@pytest.mark.parametrize("what", KINDS)
def test_segments_are_judged_alone(what):
    """By each member, whatever stands beside or behind them."""
    model = model_of(what)
    exact, pairs = copy.deepcopy(model.network).double(), model.pairs
    if what == "texts":
        exact = model.network
    said = model.compare(pairs)
    for member in range(model.config.ensemble):
        first, second = (alone(model, exact, side, member, what) for side in (pairs.first, pairs.second))
        torch.testing.assert_close(said[member].double(), (first - second).double(), rtol=1e-4, atol=1e-5)


def alone(model, network, segments, member, what):
    if what != "texts":
        return one_by_one(model, network, segments, member).detach()
    return torch.cat([network.of_segments(segments[n : n + 1]) for n in range(len(segments))], 1)[member]


@pytest.mark.parametrize("what", KINDS)
def test_what_is_behind_a_segment_changes_nothing(what):
    model = model_of(what)
    pairs = model.pairs
    said = model.compare(pairs)
    for side in (pairs.first, pairs.second):
        side.actions[~side.mask] = 1
        if isinstance(side.obs, torch.Tensor):
            side.obs[~side.mask] = 1e3
    torch.testing.assert_close(model.compare(pairs), said)


def test_a_reward_is_recovered():
    """That of numbers and actions together, up to its scale, from which of two segments has more of it."""

    def worth(obs, actions):
        return obs[..., 0] * torch.where(actions == 1, 1.0, -1.0)

    pairs = made_up("CartPole-v1", count=1500, length=4, better=worth)
    model = rlcore.RewardModel("CartPole-v1", preferences=pairs, seed=0, compile=False, hidden_sizes=(32,), ensemble=2,
                               learning_rate=5e-3)  # fmt: skip
    model.learn(150_000)
    fresh = made_up("CartPole-v1", count=500, length=4, better=worth, seed=1)
    assert model.reliability(fresh).accuracy > 0.93
    obs, actions = fresh.first.obs.flatten(0, 1), fresh.first.actions.flatten()
    said = model.network(obs, actions).mean(0).detach()
    assert np.corrcoef(said, worth(obs, actions))[0, 1] > 0.9


def test_members_differ_where_they_know_nothing():
    model = rlcore.RewardModel("CartPole-v1", preferences=made_up("CartPole-v1"), seed=0, compile=False, ensemble=4)
    weights = [torch.cat([x.flatten() for x in head.parameters()]) for head in model.network.heads]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_pairs_held_out_are_not_learned_from():
    pairs = made_up("CartPole-v1", count=40)
    model = rlcore.RewardModel("CartPole-v1", preferences=pairs, seed=0, compile=False, held_out=0.25)
    apart = pairs.held_out(0.25)
    assert apart.sum() == 10 and len(model.collector._given()) == 60
    kept = {tuple(x.flatten().tolist()) for x in model.collector._given().obs}
    assert not kept & {tuple(x.flatten().tolist()) for x in pairs[apart].first.obs}
    metrics = [found for found, _ in itertools.islice(model.iterations(10**6), 10)]
    assert "held_out_accuracy" not in metrics[8]
    seen = model.reliability(pairs[apart])
    assert metrics[9]["held_out_accuracy"] == seen.accuracy and metrics[9]["held_out_loss"] == seen.loss
    decided = pairs[apart & (pairs.label != 0.5)]
    result = model.evaluate(5)
    right = ((model.compare(decided).mean(0) > 0) == (decided.label > 0.5))[:5]
    assert result.returns.tolist() == right.double().tolist()
    assert result.lengths.tolist() == (decided.first.mask.sum(1) + decided.second.mask.sum(1))[:5].tolist()


def test_more_pairs_move_none_to_the_other_side():
    pairs = made_up("CartPole-v1", count=100)
    for share in (0.01, 0.1, 0.37, 0.9):
        whole = pairs.held_out(share)
        assert whole[0] and whole.sum() == math.ceil(100 * share)
        for count in (1, 13, 50):
            assert torch.equal(pairs[:count].held_out(share), whole[:count])


def test_reliability_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    h, label = 3 * torch.randn(300, generator=generator), torch.randint(3, (300,), generator=generator) / 2
    seen, bins = reliability(h, label), {}
    for x, y in zip(h.double().tolist(), label.tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        bins.setdefault(min(int(p * 10), 9), []).append((p, y))
    error = sum(abs(sum(p for p, _ in own) - sum(y for _, y in own)) for own in bins.values()) / 300
    assert seen.calibration_error == pytest.approx(error) and seen.counts == [len(bins[k]) for k in sorted(bins)]
    assert seen.said == pytest.approx([np.mean([p for p, _ in bins[k]]) for k in sorted(bins)])
    assert seen.won == pytest.approx([np.mean([y for _, y in bins[k]]) for k in sorted(bins)])
    decided = [(x > 0) == (y > 0.5) for x, y in zip(h.tolist(), label.tolist(), strict=True) if y != 0.5]
    assert seen.accuracy == pytest.approx(np.mean(decided)) and seen.pairs == 300
    loss = -sum(y * math.log(1 / (1 + math.exp(-x))) + (1 - y) * math.log(1 / (1 + math.exp(x)))
                for x, y in zip(h.tolist(), label.tolist(), strict=True)) / 300  # fmt: skip
    assert seen.loss == pytest.approx(loss, rel=1e-5)
    assert accuracy(torch.ones(2), torch.full((2,), 0.5)) == 0  # nothing to tell
    certain = cross_entropy(torch.zeros(3), torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(certain, torch.full((3,), math.log(2)))


# Agents that learn from it


def likes_ones(env_id="CartPole-v1", **options):
    """A model for which action 1 is worth more, learned from pairs in which it is."""
    pairs = made_up(env_id, count=200, length=4, better=lambda _, actions: (actions == 1).float())
    model = rlcore.RewardModel(env_id, preferences=pairs, seed=0, compile=False, hidden_sizes=(16,), **options)
    return model.learn(8000)


@pytest.mark.filterwarnings("ignore:.*still running")
@pytest.mark.parametrize("algo", POLICIES)
def test_every_agent_learns_from_it(algo):
    model = likes_ones()
    sizes = dict(num_envs=16, num_steps=32, learning_rate=1e-2)
    agent = AGENTS[algo]("CartPole-v1", reward_model=model, norm_reward=True, seed=0, compile=False, **sizes)
    agent.learn(15_000)
    agent.collect()
    assert agent.buffer.actions[agent.buffer.mask].double().mean() > 0.9


@pytest.mark.filterwarnings("ignore:.*still running")
@pytest.mark.parametrize("compile", [False, "record"])
def test_the_rewards_of_the_environment_are_not_seen(compile):
    """Two agents whose environments pay otherwise learn the same; without a model they do not."""

    class Paid(rlcore.PPO):
        pay = 1.0

        def collect(self):
            episodes = super().collect()
            self.buffer.rewards = self.buffer.rewards * self.pay
            return episodes

    def learned(pay, model):
        Paid.pay = pay
        agent = Paid("CartPole-v1", seed=0, compile=compile, num_envs=4, num_steps=32, reward_model=model)
        lengths = [episodes.returns for _, episodes in agent.iterations(512)]
        return agent.parameters.vector, lengths

    model = likes_ones()
    (one, told), (other, same) = learned(1.0, model), learned(-7.0, model)
    assert torch.equal(one, other) and told == same and any(told)
    assert not torch.equal(learned(1.0, None)[0], learned(-7.0, None)[0])


@pytest.mark.parametrize("policy", ["plain", "gru"])
def test_each_step_gets_what_the_model_says(policy):
    model = likes_ones(ensemble=3)
    own = {"memory": "gru", "memory_size": 8} if policy == "gru" else {}
    sizes = dict(seed=0, compile=False, num_envs=4, num_steps=20, num_minibatches=1)
    agent = rlcore.PPO("CartPole-v1", reward_model=model, reward_std_coef=0.5, backend="vector", **sizes, **own)
    agent.collect()
    assert not agent.buffer.mask.all()  # gymnasium's next-step autoreset
    metrics = agent.rewards(agent.buffer)
    total = spread = 0.0
    for t, n in itertools.product(range(20), range(4)):
        obs, action = agent.buffer.obs[t, n], agent.buffer.actions[t, n]
        said = model.network(obs.unsqueeze(0), action.unsqueeze(0)).double()[:, 0].tolist()
        right = np.mean(said) - 0.5 * np.std(said) if agent.buffer.mask[t, n] else 0.0
        assert agent.buffer.rewards[t, n].item() == pytest.approx(right, abs=1e-5)
        if agent.buffer.mask[t, n]:
            total, spread = total + np.mean(said), spread + np.std(said)
    ends = ((agent.buffer.terminated | agent.buffer.truncated) & agent.buffer.mask).sum().item()
    assert metrics["predicted_return"].item() == pytest.approx(total / ends, rel=1e-4)
    assert metrics["predicted_std"].item() == pytest.approx(spread / ends, rel=1e-4)


def test_a_response_is_judged_token_by_token_and_charged_for_its_kl():
    model = model_of("texts")
    whole = dict(whole_episodes=True, num_steps=None, num_minibatches=1, env_kwargs={"length": 2}, num_envs=8)
    agent = rlcore.PPO("rlcore/Copy-v0", reward_model=model, reward_kl_coef=0.5, **SMALL, **whole)
    for x in agent.reference.parameters():
        x.data.add_(0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    agent.collect()
    buffer = agent.buffer
    responses = Segments(map_parts(lambda x: x.transpose(0, 1), buffer.obs), buffer.actions.T, buffer.mask.T)
    score = model.network.of_segments(responses).mean(0)
    logratio = buffer.logprobs - agent.reference.policy(buffer.observations()).log_prob(
        buffer.actions.flatten(0, 1)[: buffer.length * 8]
    ).view(-1, 8)  # fmt: skip
    kl = torch.where(buffer.mask[: buffer.length], logratio[: buffer.length], 0.0).sum(0)
    agent.rewards(buffer)
    torch.testing.assert_close(buffer.rewards.sum(0), (score - 0.5 * kl).detach(), rtol=1e-4, atol=1e-5)


def test_it_is_frozen():
    model = likes_ones()
    agent = rlcore.A2C("CartPole-v1", reward_model=model, seed=0, compile=False)
    before = copy.deepcopy(model.network.state_dict())
    agent.learn(500)
    for name, x in agent.reward_model.state_dict().items():
        assert torch.equal(x, before[name])
    assert len(agent.parameters.vector) == sum(x.numel() for x in agent.network.parameters())


@pytest.mark.parametrize("compile", ["record", True])
def test_all_ways_to_run_agree(compile, not_compiled):
    """Of the model recorded alone."""

    def run(learning, playing):
        pairs, sizes = made_up("CartPole-v1"), dict(seed=0, hidden_sizes=(8,))
        model = rlcore.RewardModel("CartPole-v1", preferences=pairs, compile=learning, num_envs=8, **sizes)
        model.learn(400)
        agent = rlcore.PPO("CartPole-v1", reward_model=model, norm_reward=True, reward_std_coef=1.0, num_envs=4,
                           num_steps=16, compile=playing, backend="native", **sizes)  # fmt: skip
        return model.parameters.vector, agent.learn(256).parameters.vector

    for one, other in zip(run("record", compile), run(False, False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_programs_know_what_model_they_are_for():
    """The same tensors, and another activation between them."""
    keys = []
    for activation in ("tanh", "relu"):
        model = model_of("choices", activation=activation)
        agent = rlcore.PPO("CartPole-v1", reward_model=model, seed=0, compile=False)
        keys.append(agent.engine.key("learn"))
    assert keys[0] != keys[1]


# Questions on the way


def asking(**options):
    sizes = dict(seed=0, compile=False, num_envs=4, num_steps=64, hidden_sizes=(8,), norm_reward=True)
    return rlcore.PPO("CartPole-v1", **{**sizes, "comparisons": 40, **options})


@pytest.mark.parametrize("count", [16, 64])
def test_questions_are_asked_in_time(count):
    """A quarter at once, then as many as the share of the run that is over, but of a rollout no more than it has."""
    agent, asked, steps = asking(comparisons=count), [], []
    for metrics, _ in agent.iterations(256 * 16):
        asked.append(metrics["comparisons"])
        steps.append(agent.global_step)
    total = 0
    for before, after, found in zip([0, *steps[:-1]], steps, asked, strict=True):
        due = math.ceil(min(count, count * (0.25 + before / (256 * 16)))) - total
        total += max(min(due, (after - before) // 50), 0)
        assert found == total
    assert asked[0] == min(count // 4, steps[0] // 50) and asked[-1] == count == agent.queries.asked == len(
        agent.queries.model.pairs
    )


def test_answers_are_those_of_the_rewards():
    agent = asking(num_envs=16)
    agent.learn(1024 * 3)
    answers = agent.queries.model.pairs
    first, second = (side.mask.sum(1) for side in (answers.first, answers.second))  # a reward of 1 in each row
    assert torch.equal(answers.label, torch.where(first == second, 0.5, (first > second).float()))
    assert (answers.label != 0.5).any()


def test_the_most_doubtful_pairs_are_asked_about():
    agent = asking(num_envs=16)
    agent.learn(1024)
    agent.collect()
    state = agent.generator.get_state()
    asked = agent.queries._most_doubtful(7)
    agent.generator.set_state(state)
    pairs = pairs_of(agent.buffer, 7 * CANDIDATES, 50, generator=agent.generator)
    said = agent.queries.model.compare(pairs).double().sigmoid().numpy()
    best = np.argsort(-said.std(0))[:7]
    assert torch.equal(asked.first.obs, pairs[best.tolist()].first.obs)


def test_the_agent_gets_what_the_model_has_learned():
    agent = asking()
    begun = copy.deepcopy(agent.reward_model.state_dict())
    agent.learn(256)
    for name, x in agent.queries.model.network.state_dict().items():
        assert torch.equal(agent.reward_model.state_dict()[name], x)
    assert any(not torch.equal(begun[name], x) for name, x in agent.reward_model.state_dict().items())
    frozen = copy.deepcopy(agent.reward_model.state_dict())
    agent.queries.ask = lambda progress: {}
    agent.learn(512)
    assert all(torch.equal(frozen[name], x) for name, x in agent.reward_model.state_dict().items())


def test_a_model_that_is_given_keeps_its_pairs():
    model = likes_ones(num_steps=20)
    agent = asking(reward_model=model, comparisons=10)
    agent.learn(256 * 4)
    assert len(model.pairs) == 210 and torch.equal(model.pairs.label[:200], likes_ones().pairs.label)
    assert model.pairs.length == 20


@pytest.mark.filterwarnings("ignore:.*still running")
@pytest.mark.parametrize("whole", [False, True])
def test_segments_are_no_longer_than_a_rollout(whole):
    sizes = dict(num_envs=4, num_steps=7, seed=0, compile=False, whole_episodes=whole)
    agent = rlcore.A2C("CartPole-v1", reward_model=likes_ones(num_steps=20), comparisons=10, **sizes).learn(300)
    asked = agent.queries.model.pairs[200:]
    assert len(asked) >= 3 and asked.first.mask.sum(1).max() == 7 and asked.length == 7
    agent = rlcore.A2C("CartPole-v1", comparisons=10, **sizes).learn(300)
    assert agent.queries.model.config.num_steps == 7


def test_questions_about_texts_are_about_one_prompt():
    own = {**SMALL, "env_kwargs": {"length": 2}, "num_envs": 16, "group_size": 4, "comparisons": 6}
    agent = rlcore.GRPO("rlcore/Copy-v0", **own).learn(200)
    answers = agent.queries.model.pairs
    assert len(answers) >= 2 and torch.equal(answers.first.obs["prompt"], answers.second.obs["prompt"])
    assert agent.reward_model.remembers


# Saved and made again


@pytest.mark.filterwarnings("ignore:.*still running")
@pytest.mark.parametrize("what", ["model", "texts", "given", "asking", "asking more", "grpo"])
def test_resumes_are_exact(tmp_path, what):
    whole = dict(whole_episodes=True, num_steps=None, num_minibatches=1, env_kwargs={"length": 2}, num_envs=8)
    file = str(tmp_path / "pairs.jsonl")
    made_up("CartPole-v1").save(file)
    made = {
        "model": lambda: rlcore.RewardModel("CartPole-v1", preferences=file, seed=0, compile=False, num_envs=8),
        "texts": lambda: rlcore.PPO(
            "rlcore/Copy-v0", reward_model=model_of("texts"), reward_kl_coef=0.1, **SMALL, **whole
        ),
        "given": lambda: rlcore.PPO(
            "CartPole-v1", reward_model=likes_ones(activation="relu"), seed=0, compile=False, num_steps=32
        ),
        "asking": lambda: asking(),
        "asking more": lambda: asking(reward_model=likes_ones(num_steps=20)),
        "grpo": lambda: rlcore.GRPO(
            "CartPole-v1", seed=0, compile=False, num_envs=8, num_steps=60, group_size=4, comparisons=20
        ),
    }
    steps = {"model": 100, "texts": 60}.get(what, 600)
    agent = made[what]()
    total = 10 * steps

    def play(agent, until):
        for _ in agent.iterations(total):
            if agent.global_step >= until:
                return

    play(agent, steps)
    agent.save(tmp_path / "agent.pt")
    again = rlcore.load(tmp_path / "agent.pt")
    play(agent, 2 * steps)
    play(again, 2 * steps)
    assert torch.equal(agent.parameters.vector, again.parameters.vector)
    assert agent.iteration == again.iteration
    if agent.queries is not None:
        assert torch.equal(agent.queries.model.parameters.vector, again.queries.model.parameters.vector)
        assert torch.equal(agent.queries.model.pairs.label, again.queries.model.pairs.label)
        assert agent.queries.asked == again.queries.asked > 0


def test_a_stored_model_is_learned_from_wherever_its_files_went(tmp_path):
    likes_ones().save(tmp_path / "model.pt")
    agent = rlcore.PPO("CartPole-v1", reward_model=str(tmp_path / "model.pt"), seed=0, compile=False)
    assert agent.config.reward_model == str(tmp_path / "model.pt")
    agent.learn(512)
    agent.save(tmp_path / "agent.pt")
    (tmp_path / "model.pt").unlink()
    again = rlcore.load(tmp_path / "agent.pt")
    assert again.config == agent.config
    for name, x in agent.reward_model.state_dict().items():
        assert torch.equal(again.reward_model.state_dict()[name], x)


def test_a_model_may_begin_with_the_torso_of_a_policy(tmp_path):
    policy = rlcore.PPO("CartPole-v1", seed=3, compile=False, hidden_sizes=(8,)).learn(512)
    policy.save(tmp_path / "policy.pt")
    model = model_of("choices", init=str(tmp_path / "policy.pt"))
    for trunk in model.network.trunks:
        for name, x in policy.network.actor.state_dict().items():
            assert torch.equal(trunk.state_dict()[name], x)
    model.save(tmp_path / "model.pt")
    same = model_of("choices", init=str(tmp_path / "model.pt"), seed=5)
    assert torch.equal(same.parameters.vector, model.parameters.vector)
    with pytest.raises(CheckpointError, match="does not fit this environment or network"):
        model_of("choices", init=str(tmp_path / "policy.pt"), hidden_sizes=(9,))


# Bad input


def wrong():
    pairs = made_up("CartPole-v1")
    return {
        "a RewardModel": (lambda: asking(reward_model=asking()), "reward_model is a PPO, but must be a RewardModel"),
        "not from rewards": (
            lambda: rlcore.BC("CartPole-v1", reward_model=model_of("choices")),
            "a reward model is given to BC, which does not learn from rewards|has no expert",
        ),
        "another environment": (
            lambda: asking(reward_model=model_of("numbers")),
            "the reward model is of an environment with other observations or actions",
        ),
        "memory": (lambda: asking(reward_model=model_of("memory")), "the reward model has a memory.*whole_episodes"),
        "no preference": (
            lambda: rlcore.RewardModel("CartPole-v1", preferences=pairs[[2, 5, 8]]),
            "of 3 pairs, held_out = 0.1 leaves none to measure on with a preference",
        ),
        "odd": (lambda: model_of("choices", num_envs=5), "num_envs is 5, but must be even, two for each pair"),
        "none": (lambda: rlcore.RewardModel("CartPole-v1"), "preferences is none, but may be a file of pairs"),
        "held out": (lambda: model_of("choices", held_out=0.0), "held_out is 0.0, but must be at least 0.01"),
        "act": (lambda: model_of("choices").act(np.zeros((1, 4))), "a reward model does not act"),
        "own environments": (
            lambda: rlcore.PPO(gymnasium.make_vec("CartPole-v1", 4), comparisons=5),
            "comparisons are for an environment id, unless a reward_model is given",
        ),
    }


@pytest.mark.parametrize("name", wrong())
def test_bad_input_is_one_sentence(name):
    make, message = wrong()[name]
    with pytest.raises(UsageError, match=message):
        make()


def test_own_environments_may_be_given_a_model():
    envs = gymnasium.make_vec("CartPole-v1", 4)
    agent = rlcore.PPO(envs, reward_model=likes_ones(), comparisons=4, seed=0, compile=False, num_steps=64)
    agent.learn(300)
    assert agent.queries.asked >= 1


@pytest.mark.parametrize("damage", [lambda state: state.pop("queries"), lambda state: state["queries"].pop("model"),
                                    lambda state: state["queries"]["pairs"].update(label=torch.zeros(3)),
                                    lambda state: state.update(reward_model_config={"ensemble": 0})])  # fmt: skip
def test_a_damaged_state_is_refused(tmp_path, damage):
    agent = asking()
    agent.learn(256)
    agent.save(tmp_path / "agent.pt")
    payload = torch.load(tmp_path / "agent.pt")
    damage(payload["agent"])
    torch.save(payload, tmp_path / "agent.pt")
    with pytest.raises(rlcore.RlcoreError):
        rlcore.load(tmp_path / "agent.pt")


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made_up("CartPole-v1").save("pairs.jsonl")
    few = ["--no-progress", "--total-steps", "600", "--compile", "false"]
    assert (
        main(["train", "rewardmodel", "CartPole-v1", "--preferences", "pairs.jsonl", "--run-dir", "model", *few]) == 0
    )
    told = capsys.readouterr().out
    assert "32 pairs of segments of CartPole-v1 a step" in told and "over 2 pairs held out" in told
    report = json.loads((tmp_path / "model" / "evaluation.json").read_text())
    assert report["algo"] == "rewardmodel" and report["mean"] in (0, 0.5, 1)
    assert main(["eval", "model"]) == 0
    assert capsys.readouterr().out.startswith("accuracy ")
    assert main(["train", "--resume", "model", "--total-steps", "1200", "--no-progress"]) == 0
    small = [*few, "--eval-episodes", "0"]
    assert main(["train", "ppo", "CartPole-v1", "--reward-model", "model", "--run-dir", "ppo", *small]) == 0
    assert main(["train", "--resume", "ppo", "--total-steps", "5000", "--no-progress"]) == 0
    asked = ["--comparisons", "5", "--run-dir", "a2c"]
    assert main(["train", "a2c", "CartPole-v1", *asked, *small]) == 0
    assert main(["train", "--resume", "a2c", "--total-steps", "900", "--no-progress"]) == 0
    capsys.readouterr()
    assert main(["train", "ppo", "CartPole-v1", "--reward-model", "ppo", *small]) == 2
    assert "reward_model is a PPO, but must be a RewardModel" in capsys.readouterr().err
    assert main(["train", "ppo", "CartPole-v1", "--reward-model", "nowhere", *small]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
