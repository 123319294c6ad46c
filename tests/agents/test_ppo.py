import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlcore
from rlcore import PPO
from rlcore.errors import DivergenceError, UsageError
from tests.agents.float64 import as_float64, hold
from tests.environments import MODES, Echo, Scripted, vectorize


def agent_with_rollout(action_space=None, mode=MODES[0], **hyperparameters):
    """A PPO agent in float64 with one rollout in its buffer."""
    action_space = action_space or spaces.Discrete(3)
    settings = dict(num_steps=12, seed=1, hidden_sizes=(8,), num_minibatches=1) | hyperparameters
    agent = PPO(vectorize(lambda n: Echo(action_space=action_space), 4, mode), **settings)
    agent.collect()
    as_float64(agent)
    for name, field in vars(agent.buffer).items():
        if isinstance(field, torch.Tensor) and field.is_floating_point():
            hold(agent.buffer, **{name: field.double()})
    return agent


def batch_of(agent):
    batch = agent.buffer.flatten(*agent.estimate(agent.buffer))
    return batch.take(torch.arange(len(batch.weight)))


def moved(agent, scale=0.05):
    """Move the policy away from the one that acted, so that ratios leave 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in agent.network.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return agent


def reference_loss(agent, batch):
    """PPO's loss written out transition by transition."""
    cfg, eps = agent.config, agent.coefs["clip_coef"]
    rows = [i for i in range(len(batch.mask)) if batch.mask[i]]
    logits = agent.network.policy(batch.obs).params.detach().numpy()
    values = agent.network.value(batch.obs).detach().numpy()
    adv = np.array([batch.advantages[i] for i in rows])
    if cfg.norm_adv:
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    policy_loss = value_loss = entropy = kl = 0.0
    for a, i in zip(adv, rows, strict=True):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        q = np.exp(batch.dist_params[i].numpy())
        q /= q.sum()
        ratio = p[batch.actions[i]] / q[batch.actions[i]]
        if cfg.objective == "clip":
            policy_loss -= min(ratio * a, min(max(ratio, 1 - eps), 1 + eps) * a)
        else:
            policy_loss -= ratio * a - agent.coefs["kl_coef"] * (q * np.log(q / p)).sum()
        old, target = batch.values[i].item(), batch.returns[i].item()
        error = (values[i] - target) ** 2
        if cfg.clip_vloss:
            clipped = old + min(max(values[i] - old, -eps), eps)
            error = max(error, (clipped - target) ** 2)
        value_loss += 0.5 * error
        entropy -= (p * np.log(p)).sum()
        kl += ratio - 1 - np.log(ratio)
    n = len(rows)
    total = (policy_loss + cfg.vf_coef * value_loss - cfg.ent_coef * entropy) / n
    return total, {
        "policy_loss": policy_loss / n,
        "value_loss": value_loss / n,
        "entropy": entropy / n,
        "approx_kl": kl / n,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "switches",
    [
        {},
        dict(clip_vloss=False),
        dict(norm_adv=False),
        dict(objective="kl", kl_coef=0.7),
        dict(clip_coef=0.05, ent_coef=0.1),
    ],
)
def test_loss_equals_a_float64_loop_over_transitions(switches, mode):
    agent = moved(agent_with_rollout(mode=mode, **switches), 0.3)
    batch = batch_of(agent)
    loss, metrics = agent.loss(agent.network, batch)
    expected, parts = reference_loss(agent, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for name, value in parts.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert 0 < metrics["clip_fraction"] < 1


def gradient(agent, loss):
    grads = torch.autograd.grad(loss, list(agent.network.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("objective", ["clip", "kl"])
def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient(objective):
    agent = agent_with_rollout(objective=objective, vf_coef=0.0, ent_coef=0.0, norm_adv=False)
    batch = batch_of(agent)
    logprobs = agent.network.policy(batch.obs).log_prob(batch.actions)
    plain = gradient(agent, -batch.mean(logprobs * batch.advantages))
    torch.testing.assert_close(gradient(agent, agent.loss(agent.network, batch)[0]), plain, atol=1e-7, rtol=1e-5)
    assert plain.norm() > 0


def test_the_clipped_side_has_no_gradient_and_the_other_side_has():
    agent = moved(agent_with_rollout(vf_coef=0.0, ent_coef=0.0, norm_adv=False, clip_coef=0.02), 0.3)
    batch = batch_of(agent)
    ratio = (agent.network.policy(batch.obs).log_prob(batch.actions) - batch.logprobs).exp()
    for sign, outside in ((1.0, ratio > 1.02), (-1.0, ratio < 0.98)):
        assert 0 < outside.sum() < len(outside)
        clipped = batch.take(torch.nonzero(outside).flatten()).replace(
            advantages=torch.full((int(outside.sum()),), sign).double()
        )
        assert gradient(agent, agent.loss(agent.network, clipped)[0]).abs().max() == 0
        pessimistic = clipped.replace(advantages=-clipped.advantages)
        assert gradient(agent, agent.loss(agent.network, pessimistic)[0]).abs().max() > 0


@pytest.mark.parametrize("poison", [float("nan"), 1e20])
def test_poisoned_padding_changes_no_gradient(poison):
    """Through the whole way from buffer to gradient: estimate, batch, minibatch, loss, normalisation."""
    agents = [moved(agent_with_rollout(mode=MODES[0], norm_obs=True)) for _ in range(2)]
    assert str(MODES[0]) == "AutoresetMode.NEXT_STEP"
    buffer = agents[1].buffer
    padding = ~buffer.mask
    assert 0 < padding.sum() < padding.numel()
    for name, field in vars(buffer).items():
        if isinstance(field, torch.Tensor) and field.is_floating_point():
            getattr(buffer, name)[padding] = poison
    buffer.actions[padding] = 2
    buffer.terminated[padding] = buffer.truncated[padding] = True
    grads = []
    for agent in agents:
        advantages, returns = agent.estimate(agent.buffer)
        whole = agent.buffer.flatten(advantages, returns)
        order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
        grads.append([gradient(agent, agent.loss(agent.network, whole.take(i))[0]) for i in order.split(12)])
        agent.network.update_normalizer(agent.buffer.obs, agent.buffer.mask)
    for clean, poisoned in zip(*grads, strict=True):
        assert torch.equal(clean, poisoned) and clean.norm() > 0
    assert torch.equal(agents[0].network.preprocess[0].norm.mean, agents[1].network.preprocess[0].norm.mean)


def test_update_goes_through_every_transition_once_per_epoch_in_new_order():
    agent = agent_with_rollout(num_minibatches=4, update_epochs=3)
    seen = []
    agent.step = lambda batch: seen.append(batch) or {"loss": torch.zeros(())}
    buffer = agent.buffer
    ids = torch.arange(48.0).view(12, 4)
    agent.update(buffer.flatten(ids, ids))
    epochs = [torch.cat([b.advantages for b in seen[e * 4 : e * 4 + 4]]) for e in range(3)]
    mask = buffer.mask.flatten()
    expected = torch.where(mask, ids.flatten(), mask.int().argmax())  # a real one in the place of padding
    assert not mask.all()
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(expected.tolist())
    assert not torch.equal(epochs[0], epochs[1])
    assert all(len(b.weight) == 12 for b in seen)


def test_target_kl_stops_the_epochs():
    def steps(target, **switches):
        agent = PPO(
            "CartPole-v1", seed=0, backend="sync", learning_rate=0.05, update_epochs=8, target_kl=target, **switches
        )
        count, step = [0], agent.step
        agent.step = lambda batch: count.__setitem__(0, count[0] + 1) or step(batch)
        agent.learn(512)
        return count[0]

    assert steps(None) == 32
    assert steps(1e-4) == 4
    assert steps(1e-4, objective="kl") == 32  # there β holds the KL, and every epoch is gone through


def test_adaptive_kl_coefficient_doubles_and_halves():
    def coefficient(target, steps=512):
        agent = PPO("CartPole-v1", seed=0, backend="sync", objective="kl", target_kl=target, learning_rate=1e-3)
        return agent.learn(steps).coefs["kl_coef"]

    assert coefficient(1e-9) == 2.0
    assert coefficient(1e3) == 0.5
    assert coefficient(None) == 1.0
    assert coefficient(1e3, steps=14 * 512) == 1 / 1024  # bounded


def test_kl_objective_learns_cartpole():
    settings = dict(objective="kl", target_kl=0.03, update_epochs=10, clip_vloss=False, ent_coef=0.0)
    agent = PPO("CartPole-v1", seed=0, num_envs=8, learning_rate=1e-3, **settings).learn(60_000)
    assert agent.evaluate(20, seed=0).mean > 300


def test_annealing_follows_the_steps():
    agent = PPO("CartPole-v1", seed=0, num_envs=2, num_steps=50, num_minibatches=1, anneal_clip=True, backend="sync")
    rates, clips = [], []
    for metrics, _ in agent.iterations(400):
        rates.append(metrics["learning_rate"] / agent.config.learning_rate)
        clips.append(agent.coefs["clip_coef"] / agent.config.clip_coef)
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25])
    assert clips == pytest.approx([1, 0.75, 0.5, 0.25])


def test_gradient_norm_is_clipped():
    norms = []
    for limit in (None, 0.1):
        agent = PPO("CartPole-v1", seed=0, max_grad_norm=limit)
        agent.collect()
        batch = agent.buffer.flatten(*agent.estimate(agent.buffer)).take(torch.arange(64))
        taken, step = [], agent.optimizer.step
        agent.optimizer.step = lambda gradient, taken=taken, step=step: (taken.append(gradient), step(gradient))
        reported = agent.step(batch)["grad_norm"].item()
        norms.append((reported, taken[0].norm().item()))
    assert norms[0][0] == pytest.approx(norms[0][1]) and norms[0][0] == pytest.approx(norms[1][0]) and norms[0][0] > 0.1
    assert norms[1][1] == pytest.approx(0.1, rel=1e-4)


def test_one_environment_one_step():
    agent = PPO(vectorize(lambda n: Scripted([(2, "t")]), 1, MODES[0]), num_steps=1, num_minibatches=1, seed=0)
    agent.learn(5)
    assert agent.global_step == 5 and agent.iteration > 5  # dead rows are iterations without a step


def test_a_loss_that_is_not_finite_stops_the_run():
    agent = PPO(vectorize(lambda n: Scripted([(2, "t")]), 2, MODES[0]), num_steps=8, seed=0)
    with torch.no_grad():
        agent.parameters.vector[3] = float("nan")
    with pytest.raises(DivergenceError, match="loss became nan in iteration 1"):
        agent.learn(100)


def test_normalisation_changes_in_training_and_not_in_evaluation():
    agent = PPO("CartPole-v1", seed=0, norm_obs=True, norm_reward=True)
    agent.learn(512)
    norm = agent.network.preprocess[0].norm
    assert norm.count == agent.global_step
    before = {k: v.clone() for k, v in agent.network.state_dict().items()}
    scale = agent.reward_scaler.stats.count.clone()
    result = agent.evaluate(5, seed=0)
    assert all(torch.equal(before[k], v) for k, v in agent.network.state_dict().items())
    assert agent.reward_scaler.stats.count == scale == agent.global_step
    assert (result.returns == result.lengths).all()  # unscaled


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(lerning_rate=1e-3), "'lerning_rate' is not a hyperparameter of PPO, did you mean 'learning_rate'?"),
        (dict(gamma=1.5), "gamma is 1.5, but must be at least 0 and at most 1"),
        (dict(clip_coef=0.0), "clip_coef is 0.0, but must be more than 0"),
        (dict(learning_rate=float("nan")), "learning_rate is nan"),
        (dict(num_steps=2.5), "num_steps is 2.5, but must be a whole number"),
        (dict(norm_adv=1), "norm_adv is 1, but must be true or false"),
        (
            dict(num_envs=3, num_steps=5, num_minibatches=4),
            "num_minibatches is 4, but must divide num_envs × num_steps = 3 × 5 = 15",
        ),
        (dict(activation="relo"), "activation is 'relo', but may be one of tanh, relu"),
        (dict(objective="trust"), "objective is 'trust'"),
        (dict(device="cuda:99"), "cuda:99"),
        (dict(device="tpu"), "device is 'tpu', but may be cpu, cuda, cuda:K or auto"),
        (dict(hidden_sizes=(64, 0)), "hidden_sizes"),
        (dict(hidden_sizes="64"), "hidden_sizes is '64', but must be a list of whole numbers"),
        (dict(seed=-1), "seed is -1, but must be at least 0"),
    ],
)
def test_bad_hyperparameters_get_one_sentence(arguments, words):
    with pytest.raises(UsageError) as caught:
        PPO("CartPole-v1", **arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_vector_environments_of_ones_own():
    envs = vectorize(lambda n: Echo(), 3, MODES[0])
    with pytest.raises(UsageError, match="num_envs is 4, but the VectorEnv has 3"):
        PPO(envs, num_envs=4)
    with pytest.raises(UsageError, match="env_kwargs"):
        PPO(envs, env_kwargs={"a": 1})
    with pytest.raises(UsageError, match=r"env is a single environment .*; pass its id"):
        PPO(Echo())
    agent = PPO(envs, seed=0, num_steps=8).learn(24)
    with pytest.raises(UsageError, match=r"evaluate\(env=\.\.\.\)"):
        agent.evaluate(2)
    assert len(agent.evaluate(5, seed=0, env=vectorize(lambda n: Echo(), 2, MODES[1])).returns) == 5


def test_config_is_frozen_and_records_the_drawn_seed():
    agent = PPO("CartPole-v1")
    assert isinstance(agent.config.seed, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        agent.config.seed = 3


def test_the_readme_example_of_the_public_face(tmp_path):
    agent = rlcore.PPO("CartPole-v1", num_envs=8, seed=1)
    agent.learn(total_steps=2_000)
    result = agent.evaluate(episodes=10, seed=0)
    assert result.returns.shape == result.lengths.shape == (10,)
    assert result.mean == result.returns.mean() and result.std == result.returns.std()
    obs, _ = agent.envs.reset(seed=5)
    agent.save(tmp_path / "cartpole.pt")
    again = rlcore.load(tmp_path / "cartpole.pt")
    np.testing.assert_array_equal(agent.act(obs, deterministic=True), again.act(obs, deterministic=True))
    np.testing.assert_array_equal(result.returns, again.evaluate(episodes=10, seed=0).returns)
    again.learn(total_steps=4_000)
    assert again.global_step >= 4_000
