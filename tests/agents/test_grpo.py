"""GRPO and its variants, whole-episode rollouts, and what the agents that collect them refuse."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlcore import A2C, GRPO, PPO, REINFORCE, TRPO, load
from rlcore.agents.grpo import VARIANTS
from rlcore.errors import UsageError
from tests.agents.float64 import as_float64, draw_minibatches, poison
from tests.environments import MODES, Echo, Scripted, vectorize

G, T, N = 3, 7, 12
LENGTHS = np.array([7, 2, 5, 1, 1, 1, 4, 6, 4, 2, 2, 7])
EQUAL_GROUP = slice(3, 6)  # its members have the same score


def randomised(network, seed, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def agent_with_episodes(move=True, **hyperparameters):
    """A GRPO agent in float64 with random ragged episodes in its buffer, poisoned padding, and a moved policy."""
    settings = dict(num_steps=T, seed=1, hidden_sizes=(6,), group_size=G) | hyperparameters
    agent = GRPO(vectorize(lambda n: Echo(action_space=spaces.Discrete(3)), N, MODES[0]), **settings)
    rng, b = np.random.default_rng(5), agent.buffer
    as_float64(agent)
    if agent.reference:
        randomised(agent.reference, 7)
    poison(b)
    b.mask[:] = torch.from_numpy(np.arange(T)[:, None] < LENGTHS)
    obs, rewards = torch.from_numpy(rng.normal(size=(T, N, 2))), torch.from_numpy(rng.normal(size=(T, N)))
    rewards[:, EQUAL_GROUP] = 0.1
    actions = torch.from_numpy(rng.integers(0, 3, (T, N)))
    with torch.no_grad():
        policy = agent.network.policy(obs)
    b.obs[b.mask], b.rewards[b.mask], b.actions[:] = obs[b.mask], rewards[b.mask], actions
    b.dist_params[b.mask], b.logprobs[b.mask] = policy.params[b.mask], policy.log_prob(actions)[b.mask]
    b.terminated[LENGTHS - 1, np.arange(N)] = True
    if move:
        randomised(agent.network, 3)
    return agent


def whole(agent):
    return agent.before_steps(agent.buffer.flatten(*agent.estimate(agent.buffer)))[0]


def gradient(agent, loss):
    grads = torch.autograd.grad(loss, list(agent.network.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def reference_loss(agent):
    """The objective of each paper, episode by episode and step by step."""
    cfg, b = agent.config, agent.buffer

    def logits(network, t, n):
        return network.policy(b.obs[t, n][None]).params[0].detach().numpy()

    def log_softmax(x):
        return x - np.log(np.exp(x).sum())

    rewards = [b.rewards[: LENGTHS[n], n].numpy() for n in range(N)]
    scores = np.array([(cfg.gamma ** np.arange(len(r)) * r).sum() for r in rewards])
    to_go = [np.array([(cfg.gamma ** np.arange(len(r) - t) * r[t:]).sum() for t in range(len(r))]) for r in rewards]
    high = cfg.clip_coef if cfg.clip_coef_high is None else cfg.clip_coef_high
    equal = {n for g in range(0, N, G) if np.ptp(scores[g : g + G]) < 1e-12 for n in range(g, g + G)}
    assert equal == {3, 4, 5}
    total = dict(policy=0.0, kl=0.0, entropy=0.0)
    for n in range(N):
        group = slice(n // G * G, n // G * G + G)
        among = np.concatenate(rewards[group])
        norm = {
            "episode": LENGTHS[n],
            "token": LENGTHS[group].mean(),
            "constant": T,
            "none": 1,
        }[cfg.length_norm]
        episodes = N - len(equal) if cfg.drop_equal_groups else N
        if cfg.drop_equal_groups and n in equal:
            continue
        for t in range(LENGTHS[n]):
            if cfg.supervision == "outcome":
                advantage, std = scores[n] - scores[group].mean(), scores[group].std()
                if cfg.leave_one_out:
                    advantage = scores[n] - (scores[group].sum() - scores[n]) / (G - 1)
                    std = std * G / (G - 1)
            elif cfg.supervision == "process":
                advantage, std = sum(r - among.mean() for r in rewards[n][t:]), among.std()
            else:
                playing = [g[t] for g in to_go[group] if len(g) > t]
                advantage, std = to_go[n][t] - np.mean(playing), np.std(playing)
            if cfg.scale_std:
                advantage = advantage / std if std > 1e-12 else 0.0
            if cfg.correct_equal_groups:
                advantage *= N / (N - len(equal))
            a = b.actions[t, n].item()
            new, old = log_softmax(logits(agent.network, t, n)), log_softmax(b.dist_params[t, n].numpy())
            ratio = np.exp(new[a] - old[a])
            if cfg.ratio:
                objective = min(ratio * advantage, np.clip(ratio, 1 - cfg.clip_coef, 1 + high) * advantage)
            else:
                objective = new[a] * advantage
            share = 1 / norm / episodes
            total["policy"] -= share * objective
            total["entropy"] -= share * (np.exp(new) * new).sum()
            if cfg.kl_coef:
                log_r = log_softmax(logits(agent.reference, t, n))[a] - new[a]  # of eq. 4
                total["kl"] += share * (np.exp(log_r) - log_r - 1)
    return total["policy"] + cfg.kl_coef * total["kl"] - cfg.ent_coef * total["entropy"], total


@pytest.mark.parametrize("kl_coef", [0.0, 0.4])
@pytest.mark.parametrize(
    "switches",
    [
        *(dict(variant=variant) for variant in VARIANTS),
        dict(variant="dapo", clip_coef=0.05, clip_coef_high=0.5),
        dict(variant="rloo", ratio=True, scale_std=True),
        dict(gamma=0.8, scale_std=False),
        dict(gamma=0.8, supervision="process", ent_coef=0.1),
        dict(gamma=0.8, supervision="aligned", length_norm="none", scale_std=False),
        dict(gamma=0.8, supervision="aligned"),
    ],
    ids=str,
)
def test_loss_equals_a_float64_loop_over_steps(switches, kl_coef):
    agent = agent_with_episodes(**switches, kl_coef=kl_coef)
    batch = whole(agent)
    loss, metrics = agent.loss(agent.network, batch.take(torch.arange(T * N)))
    expected, parts = reference_loss(agent)
    assert abs(expected) > 1e-3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["policy_loss"].item() == pytest.approx(parts["policy"], rel=1e-5)
    if kl_coef:
        assert metrics["reference_kl"].item() == pytest.approx(parts["kl"], rel=1e-5) and parts["kl"] > 0
    assert 0 < metrics["clip_fraction"] < 1 and gradient(agent, loss).isfinite().all()


def test_variants_are_defaults_that_can_be_overruled():
    agent = agent_with_episodes(variant="dapo", length_norm="none")
    assert agent.config.clip_coef_high == 0.28 and agent.config.length_norm == "none"
    assert set(VARIANTS) == {"grpo", "dr_grpo", "dapo", "rloo", "gpg"}


@pytest.mark.parametrize("supervision", ["outcome", "process", "aligned"])
@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gpg"])
def test_groups_of_equal_scores_teach_nothing(variant, supervision):
    agent = agent_with_episodes(variant=variant, supervision=supervision, num_minibatches=1, update_epochs=1)
    agent.buffer.mask[:] = torch.arange(T)[:, None] < 3
    agent.buffer.rewards.fill_(0.1)  # whose mean over three need not be 0.1
    agent.buffer.obs.nan_to_num_(0.5), agent.buffer.logprobs.nan_to_num_(-1.0)
    batch, before = agent.before_steps(agent.buffer.flatten(*agent.estimate(agent.buffer)))
    loss, metrics = agent.loss(agent.network, batch.take(torch.arange(T * N)))
    assert gradient(agent, loss).abs().max() == 0 == metrics["policy_loss"]
    assert before["equal_groups"] == 1


def test_dropping_equal_groups_and_correcting_for_them_is_the_same_where_groups_count_alike():
    losses = {}
    for name in ("drop_equal_groups", "correct_equal_groups", "ent_coef"):
        agent = agent_with_episodes(length_norm="episode", **{name: 0.0 if name == "ent_coef" else True})
        batch, before = agent.before_steps(agent.buffer.flatten(*agent.estimate(agent.buffer)))
        losses[name] = agent.loss(agent.network, batch.take(torch.arange(T * N)))[0].item()
        assert before["equal_groups"].item() == pytest.approx(1 / 4)
    assert losses["drop_equal_groups"] == pytest.approx(losses["correct_equal_groups"], rel=1e-6)
    assert losses["drop_equal_groups"] == pytest.approx(losses["ent_coef"] * 4 / 3, rel=1e-6)


# Minibatches.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parts", [1, 3, 6])
def test_the_mean_over_minibatches_is_the_whole(variant, parts):
    """As `update` cuts them: no gradient may grow with how much padding stood beside the episodes."""
    agent = agent_with_episodes(variant=variant, num_minibatches=parts, update_epochs=1, kl_coef=0.3)
    taken = []
    agent.step = lambda batch: taken.append(batch) or {"loss": torch.zeros(())}
    batch = agent.buffer.flatten(*agent.estimate(agent.buffer))
    draw_minibatches(agent)
    agent.update(batch)
    assert [int(b.mask.sum()) for b in taken] == [42 // parts] * parts
    mean = sum(agent.loss(agent.network, b)[0] for b in taken) / parts
    expected = agent.loss(agent.network, whole(agent).take(torch.arange(T * N)))[0]
    assert mean.item() == pytest.approx(expected.item(), rel=1e-5)


def test_reinforces_step_does_not_grow_with_the_longest_episode():
    """The same episodes, once with ten times the rows, all padding but for them."""
    norms = []
    for length in (4, 40):
        envs = vectorize(lambda n: Scripted([(4 if n else length, "t")]), 4, MODES[0])  # noqa: B023
        agent = REINFORCE(envs, num_steps=40, psi="reward_to_go", seed=0, max_grad_norm=None, anneal_lr=False)
        agent.collect()
        assert agent.buffer.length == length
        agent.buffer.mask[:, 0] = False  # the long episode gives length and nothing else
        draw_minibatches(agent)
        norms.append(agent.update(agent.buffer.flatten(*agent.estimate(agent.buffer)))["policy_loss"].item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


# Starts.


@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
def test_members_of_a_group_start_alike_and_every_rollout_anew(backend):
    agent = GRPO(
        "CartPole-v1",
        num_envs=6,
        group_size=3,
        num_steps=20,
        seed=4,
        backend=backend,
        num_minibatches=1,
        update_epochs=1,
    )
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cut episodes
        iterations = agent.iterations(10_000)
        for _ in range(3):
            next(iterations)
            first = agent.buffer.obs[0]
            assert torch.equal(first[:3], first[:1].expand(3, -1)) and torch.equal(first[3:], first[3:4].expand(3, -1))
            seen += [tuple(first[0].tolist()), tuple(first[3].tolist())]
            assert not torch.equal(agent.buffer.obs[1, 0], agent.buffer.obs[1, 3])
            assert agent.buffer.actions[:10, :3].float().std(1).max() > 0  # members act on their own
    assert len(set(seen)) == 6
    agent.close()


class IgnoresSeeds(Echo):
    entropy = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.entropy.uniform(-1, 1, 2).astype(np.float32), {}


def test_an_environment_that_ignores_seeds_is_refused():
    with pytest.raises(UsageError, match="does not reproduce a start from a seed"):
        GRPO(vectorize(lambda n: IgnoresSeeds(), 4, MODES[0]), num_steps=5, group_size=2)
    REINFORCE(vectorize(lambda n: IgnoresSeeds(), 4, MODES[0]), num_steps=5)  # needs no common starts


CARTPOLE = "CartPole-v1"


def scripted(num_envs=4):
    return vectorize(lambda n: Scripted([(3, "t")]), num_envs, MODES[0])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: GRPO(CARTPOLE, backend="vector"), "take backend sync or async"),
        (lambda: GRPO(CARTPOLE, num_envs=10, group_size=4), "group_size is 4, but must divide num_envs = 10"),
        (lambda: GRPO(CARTPOLE, group_size=1), "group_size is 1, but must be at least 2"),
        (lambda: GRPO(scripted(), group_size=2), "give num_steps"),
        (lambda: REINFORCE(scripted()), "give num_steps"),
        (lambda: REINFORCE(CARTPOLE, critic_updates=0), "needs a critic, but critic_updates is 0"),
        (lambda: REINFORCE(CARTPOLE, shared=True), "shared is true"),
        (lambda: TRPO(CARTPOLE, shared=True), "shared is true"),
        (lambda: GRPO(CARTPOLE, leave_one_out=True, supervision="process"), "leave_one_out is for supervision"),
        (lambda: GRPO(CARTPOLE, variant="rloo", supervision="aligned"), "leave_one_out is for supervision"),
        (lambda: GRPO(CARTPOLE, variant="drgrpo"), "did you mean 'dr_grpo'?"),
        (lambda: TRPO(CARTPOLE, max_kl=0.0), "max_kl is 0.0, but must be more than 0"),
        (lambda: TRPO(CARTPOLE, fisher_fraction=0.0), "fisher_fraction is 0.0, but must be more than 0"),
        (lambda: A2C(CARTPOLE, psi="td"), "psi is 'td', but may be one of q, advantage, td_error"),
    ],
)
def test_what_cannot_work_gets_one_sentence(make, words):
    with pytest.raises(UsageError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", [REINFORCE, A2C, PPO, TRPO, GRPO])
def test_a_target_kl_is_obeyed_or_refused(algorithm):
    """It asks for a metric that only agents with a probability ratio report."""
    try:
        agent = algorithm(CARTPOLE, seed=0, num_envs=8, target_kl=0.01)
    except UsageError as error:
        assert "target_kl" in str(error)
        return
    agent.learn(40)


def test_reinforce_without_baseline_needs_no_critic():
    for switches in (dict(psi="reward_to_go"), dict(baseline="mean"), dict(psi="total_return", critic_updates=0)):
        agent = REINFORCE(CARTPOLE, seed=0, num_envs=2, **switches)
        critic = [p.clone() for p in agent.network.critic.parameters()]
        agent.learn(30)
        assert all(torch.equal(p, q) for p, q in zip(critic, agent.network.critic.parameters(), strict=True))


def test_time_limit_of_the_environment_is_the_longest_episode():
    assert REINFORCE(CARTPOLE, num_envs=2).buffer.num_steps == 500
    assert GRPO("CartPole-v0", num_envs=4, group_size=2).buffer.num_steps == 200
    own = vectorize(lambda n: gym.make(CARTPOLE, max_episode_steps=33), 2, MODES[0])
    assert REINFORCE(own).buffer.num_steps == 33


@pytest.mark.parametrize("algorithm", [REINFORCE, TRPO])
def test_a_critic_fitted_apart_never_moves_the_policy_through_a_torso_of_ones_own(algorithm):
    """One module as torso is shared by actor and critic, whatever `shared` says: refused like it."""
    torso = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    with pytest.raises(UsageError, match=r"shared|torso"):
        algorithm(CARTPOLE, torso=torso, seed=0)
    algorithm(CARTPOLE, torso=lambda shape: torch.nn.Linear(shape[0], 8), seed=0)  # one each


# The reference policy.


@pytest.mark.parametrize("every", [None, 1, 2])
def test_the_reference_is_renewed_after_so_many_iterations(every):
    agent = GRPO(
        CARTPOLE, num_envs=4, group_size=2, seed=0, kl_coef=0.1, reference_every=every, update_epochs=1, backend="sync"
    )
    history = [{k: v.clone() for k, v in agent.network.state_dict().items()}]  # [k]: after k iterations
    iterations = agent.iterations(10_000)
    for i in range(5):
        next(iterations)
        history.append({k: v.clone() for k, v in agent.network.state_dict().items()})
        then = 0 if every is None else i // every * every
        used = agent.reference.state_dict()
        assert all(torch.equal(used[k], v) for k, v in history[then].items())
        assert not all(torch.equal(v, history[i][k]) for k, v in history[i + 1].items())
    assert not any(p.requires_grad for p in agent.reference.parameters())


def test_a_checkpoint_may_be_the_reference(tmp_path):
    PPO(CARTPOLE, seed=9).save(tmp_path / "ppo.pt")
    settings = dict(num_envs=4, group_size=2, seed=0)
    agent = GRPO(CARTPOLE, kl_coef=0.1, reference=str(tmp_path / "ppo.pt"), **settings)
    theirs = load(tmp_path / "ppo.pt").network.state_dict()
    assert all(torch.equal(agent.reference.state_dict()[k], v) for k, v in theirs.items())
    assert GRPO(CARTPOLE, **settings).reference is None


def test_a_checkpoint_stays_the_reference_until_its_time_is_over(tmp_path):
    PPO(CARTPOLE, seed=9).save(tmp_path / "ppo.pt")
    agent = GRPO(
        CARTPOLE, num_envs=4, group_size=2, seed=0, kl_coef=0.1, reference=str(tmp_path / "ppo.pt"), reference_every=2
    )
    theirs = load(tmp_path / "ppo.pt").network.state_dict()
    same = []
    iterations = agent.iterations(10_000)
    for _ in range(3):
        next(iterations)
        same.append(all(torch.equal(agent.reference.state_dict()[k], v) for k, v in theirs.items()))
    assert same == [True, True, False]


# Saving.


EXACT = {
    "reinforce": (REINFORCE, dict(num_envs=4, update_epochs=2, num_minibatches=2)),
    "reinforce mean": (REINFORCE, dict(num_envs=4, baseline="mean")),
    "a2c": (A2C, dict(num_envs=4, norm_reward=True)),
    "trpo": (TRPO, dict(num_envs=4, num_steps=32, update_epochs=2)),
    "grpo": (GRPO, dict(num_envs=4, group_size=2)),
    "grpo reference": (GRPO, dict(num_envs=4, group_size=2, kl_coef=0.1, reference_every=3)),
    "grpo old reference": (GRPO, dict(num_envs=4, group_size=2, kl_coef=0.1)),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_saved_agent_learns_on_exactly_as_the_one_that_was_not_saved(tmp_path, name):
    algorithm, settings = EXACT[name]
    settings = dict(seed=3, norm_obs=True, hidden_sizes=(16,), learning_rate=1e-2) | settings
    straight = algorithm(CARTPOLE, **settings).learn(1200)
    saved = algorithm(CARTPOLE, **settings)
    for _ in saved.iterations(1200):
        if saved.global_step > 500:
            break
    saved.save(tmp_path / "half.pt")
    resumed = load(tmp_path / "half.pt")
    assert type(resumed) is algorithm and resumed.global_step == saved.global_step
    resumed.learn(1200)
    assert resumed.global_step == straight.global_step and resumed.iteration == straight.iteration
    assert resumed.coefs == straight.coefs and dataclasses.asdict(resumed.config) == dataclasses.asdict(straight.config)
    for ours, theirs in ((resumed.network, straight.network), (resumed.reference, straight.reference)):
        if theirs is not None:
            ours, theirs = ours.state_dict(), theirs.state_dict()
            assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    filled = straight.buffer.length
    assert torch.equal(resumed.buffer.obs[:filled], straight.buffer.obs[:filled])


# Whole-episode rollouts.

SCRIPTS = [[(3, "t"), (1, "c")], [(1, "c"), (9, "t")], [(5, "tc"), (2, "t")], [(2, "t"), (2, "t")]]


@pytest.mark.parametrize("mode", MODES)
def test_a_rollout_is_the_first_episode_of_each_environment(mode):
    agent = REINFORCE(vectorize(lambda n: Scripted(SCRIPTS[n]), 4, mode), num_steps=12, seed=0, hidden_sizes=(4,))
    agent.buffer.mask.fill_(True)  # of an earlier, longer rollout
    episodes = agent.collector.collect(agent.network)
    b, total = agent.buffer, 0
    assert b.length == 5 and agent.collector.cut_episodes == 0
    for n, script in enumerate(SCRIPTS):
        length, end = script[0]
        total += length
        assert b.mask[:, n].tolist() == [t < length for t in range(12)]
        assert b.obs[:length, n].tolist() == [[1.0, t] for t in range(length)]
        assert b.rewards[:length, n].tolist() == [10.0 + t + 1 for t in range(length)]
        assert b.terminated[:length, n].tolist() == [False] * (length - 1) + ["t" in end]
        assert b.truncated[:length, n].tolist() == [False] * (length - 1) + ["c" in end]
        final = 0.0 if "t" in end else agent.network.value(torch.tensor([[1.0, length]]))[0]
        torch.testing.assert_close(b.next_values[length - 1, n], torch.as_tensor(final))
    assert agent.global_step == total == 11
    assert sorted(zip(episodes.env, episodes.lengths, strict=True)) == [(0, 3), (1, 1), (2, 5), (3, 2)]
    returns = dict(zip(episodes.env, episodes.returns, strict=True))
    assert returns == {n: sum(10 + t for t in range(1, s[0][0] + 1)) for n, s in enumerate(SCRIPTS)}


@pytest.mark.parametrize("mode", MODES)
def test_every_iteration_begins_with_new_episodes(mode):
    envs = vectorize(lambda n: Scripted([(2 + n, "t")]), 3, mode)
    agent = REINFORCE(envs, num_steps=6, seed=0, hidden_sizes=(4,))
    for _, episodes in agent.iterations(3 * (2 + 3 + 4)):
        b = agent.buffer
        assert b.obs[0, :, 1].tolist() == [0, 0, 0] and b.length == 4
        assert sorted(episodes.lengths) == [2, 3, 4]
        assert b.dones[0].tolist() == [agent.iteration > 1] * 3
    assert agent.iteration == 3


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_longer_than_num_steps_is_cut_told_and_counted(mode):
    scripts = [[(3, "t")], [(50, "t")], [(4, "t")], [(50, "t")]]
    envs = vectorize(lambda n: Scripted(scripts[n]), 4, mode)
    agent = REINFORCE(envs, num_steps=4, seed=0, hidden_sizes=(4,))
    with pytest.warns(UserWarning, match="2 of 4 episodes were still running after num_steps = 4") as told:
        for i, (_, episodes) in enumerate(agent.iterations(3 * 15)):
            b = agent.buffer
            assert b.length == 4 and agent.collector.cut_episodes == 2 and agent.global_step == 15 * (i + 1)
            assert b.truncated[3].tolist()[1::2] == [True, True] and not b.terminated[3, 1::2].any()
            assert not b.truncated[3, 2] and b.terminated[3, 2] and not b.truncated[:3, 1].any()
            assert sorted(zip(episodes.env, episodes.lengths, strict=True)) == [(0, 3), (1, 4), (2, 4), (3, 4)]
    assert len([w for w in told if "still running" in str(w.message)]) == 1 and agent.iteration == 3


def test_reinforce_takes_a_cut_episode_as_over():
    """Its returns have no bootstrap, even from a value of 1000."""
    envs = vectorize(lambda n: Scripted([(50, "t")]), 2, MODES[0])
    agent = REINFORCE(envs, num_steps=3, gamma=0.5, seed=0)
    agent.collector.collect(agent.network)
    agent.buffer.next_values.fill_(1000)
    _, returns, weights = agent.estimate(agent.buffer)
    assert returns[:, 0].tolist() == [11 + 0.5 * (12 + 0.5 * 13), 12 + 0.5 * 13, 13]
    assert (weights == 0.5).all()
