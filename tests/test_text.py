"""Tasks made of tokens, policies over them, and what is learned from experts, pairs and a reference."""

import itertools
import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rlcore
from rlcore.buffer import Batch
from rlcore.cli import main
from rlcore.envs.text import END, PAD, TEXT_TASKS
from rlcore.errors import UsageError
from rlcore.networks import GRU, Transformer
from rlcore.preferences.data import Preferences, Segments, read_demonstrations, read_preferences, response_segment
from rlcore.preferences.reference import kl_to_reference
from rlcore.preferences.sampling import pairs_of, segments_of
from rlcore.spaces import Sequences, map_parts

IDS = [task.id for task in TEXT_TASKS]
SMALL = dict(memory="transformer", memory_size=16, num_envs=8, seed=0, compile=False, backend="native")
WHOLE = dict(whole_episodes=True, num_steps=None)


def task_of(env_id, **arguments):
    return rlcore.envs.find_native(env_id).varied(**arguments)


def starts(task, n=500, seed=0, dtype=torch.float64):
    return task.initial(torch.rand(n, task.draws, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def texts(task, state):
    P, R = task.prompt_length, task.response_length
    prompts = [task.decode(row) for row in state[:, :P].long().tolist()]
    return prompts, [task.decode(row) for row in state[:, P + R : P + 2 * R].long().tolist()]


def answer(env_id, prompt):
    """What is right, by other means."""
    if "Addition" in env_id:
        a, b = prompt.rstrip("=").split("+")
        digits, carry, written = len(a), 0, ""
        for column in range(1, digits + 1):
            total = int(a[-column]) + int(b[-column]) + carry
            carry = total // 10
            written += f"{total % 10}{carry}"
        assert int(written[1::2][-1] + written[0::2][::-1]) == int(a) + int(b)
        return written
    if "CountTo" in env_id:
        return " ".join(str(n) for n in range(1, int(prompt) + 1))
    symbols = prompt.rstrip(">")
    return {"Sort": "".join(sorted(symbols)), "Copy": symbols, "Reverse": symbols[::-1]}[env_id[7:-3]]


VARIED = [(env_id, {}) for env_id in IDS] + [
    ("rlcore/Addition-v0", {"digits": 3}),
    ("rlcore/Addition-v0", {"digits": 1, "prompts": "held_out"}),
    ("rlcore/Sort-v0", {"length": 6, "shortest": 2, "symbols": 12}),
    ("rlcore/Reverse-v0", {"length": 5, "shortest": 1, "prompts": "all"}),
    ("rlcore/Copy-v0", {"shortest": 1, "symbols": 5, "prompts": "held_out"}),
    ("rlcore/CountTo-v0", {"highest": 30, "rewards": "process"}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("env_id", "arguments"), VARIED)
def test_answers_are_right(env_id, arguments, dtype):
    task = task_of(env_id, **arguments)
    prompts, answers = texts(task, starts(task, dtype=dtype))
    assert answers == [answer(env_id, prompt) for prompt in prompts]
    assert len(set(prompts)) > 3 or arguments.get("digits") == 1 or "Count" in env_id


@pytest.mark.parametrize(("env_id", "arguments"), VARIED)
def test_a_fifth_of_the_prompts_is_held_out(env_id, arguments):
    arguments = {name: x for name, x in arguments.items() if name != "prompts"}
    found = {}
    for prompts in ("train", "held_out", "all"):
        task = task_of(env_id, prompts=prompts, **arguments)
        found[prompts] = set(texts(task, starts(task, 30_000))[0])
    assert not found["train"] & found["held_out"]
    if task.problem_draws <= 2 or arguments.get("digits") == 2:  # few enough to have seen all
        assert found["train"] | found["held_out"] == found["all"]
    if task.draws <= 5:
        assert len(found["held_out"]) / len(found["all"]) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("symbols", [5, 7, 10, 13])
@pytest.mark.parametrize("free", list(itertools.product(range(3), repeat=2)))
def test_each_last_symbol_is_drawn_alike(symbols, free):
    """For all that may stand before it, against counting."""
    for prompts in ("train", "held_out"):
        task = task_of("rlcore/Copy-v0", length=3, symbols=symbols, prompts=prompts)
        uniform = torch.linspace(0, 1 - 1e-9, 6000, dtype=torch.float64).unsqueeze(1)
        before = (torch.tensor([free], dtype=torch.float64) + 0.5) / symbols
        last = task._symbols(torch.cat([before.expand(len(uniform), 2), uniform], 1), symbols)[:, 2]
        weights = 1 + np.array([2, 1]) % 4
        is_held = [(np.dot(weights, free) + x) % 5 == 0 for x in range(symbols)]
        allowed = [x for x in range(symbols) if is_held[x] == (prompts == "held_out")]
        values, counts = last.unique(return_counts=True)
        assert values.tolist() == allowed and counts.max() - counts.min() <= 2


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("rewards", ["outcome", "process"])
def test_an_expert_gets_all_and_a_wrong_token_loses(env_id, rewards):
    task = task_of(env_id, rewards=rewards)
    state, total, over, steps = starts(task), 0, torch.zeros(500, dtype=torch.bool), 0
    spoiled, lost = state.clone(), 0
    for t in range(task.response_length):
        assert rewards == "outcome" or task.extras(state)["step_ends"].shape == (500,)
        steps = steps + (task.extras(state)["step_ends"] & ~over if rewards == "process" else torch.zeros(500))
        action = task.expert(state)
        after, reward, terminated = task.step(state, action)
        wrong = task.step(spoiled, torch.where(action == 3, 4, 3) if t == 0 else task.expert(spoiled))
        total, lost = total + reward * ~over, lost + wrong[1] * ~over
        state, spoiled, over = torch.where(over.unsqueeze(1), state, after), wrong[0], over | terminated
    assert over.all() and (total == 1 + steps).all()
    assert (lost == (steps - 1 if rewards == "process" else 0)).all()
    if rewards == "process":
        lengths = [len(text.split() if "Count" in env_id else text) for text in texts(task, state)[1]]
        assert steps.tolist() == [n // 2 if "Addition" in env_id else n for n in lengths]


def test_the_end_comes_with_the_end_token_or_the_last_place():
    task = task_of("rlcore/Addition-v0", rewards="process")
    state = starts(task, 2)
    _, reward, terminated = task.step(state, torch.full((2,), END))
    assert terminated.all() and (reward == 0).all()
    for t in range(5):
        state, reward, terminated = task.step(state, torch.full((2,), PAD))
        assert terminated.all() == (t == 4) and (reward == 0).all()


def test_a_verifier_errs_as_often_as_asked():
    task = task_of("rlcore/Copy-v0", noise=0.3)
    state = starts(task, 20_000)
    for _ in range(task.response_length):
        state, reward, _ = task.step(state, task.expert(state))
    assert reward.mean() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_finds_nothing_wrong(env_id):
    env = gym.make(env_id, render_mode="ansi", rewards="process")
    check_env(env.unwrapped)
    env.reset(seed=0)
    before = env.render()
    env.step(END)
    assert env.render() == before + "."


def test_an_observation_is_the_text_so_far_with_its_mask_and_positions():
    task = task_of("rlcore/Sort-v0", length=4, shortest=2)
    state = starts(task, 50)
    for _ in range(2):
        state, _, _ = task.step(state, task.expert(state))
    obs = task.observe(state)
    for row in range(50):
        prompt, response, mask = (obs[name][row].tolist() for name in ("prompt", "response", "mask"))
        real = [x for x, there in zip([*prompt, *response], mask, strict=True) if there]
        assert task.decode(prompt) == texts(task, state)[0][row] and sum(mask[5:]) == 2
        assert real == [x for x in prompt if x != PAD] + response[:2]
        assert obs["positions"][row][obs["mask"][row].bool()].tolist() == list(range(len(real)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task_of("rlcore/Sort-v0", rewards="both"), "rewards is 'both', but may be one of outcome, process"),
        (lambda: task_of("rlcore/Sort-v0", noise=2), "noise is 2, but must be a number from 0 to 1"),
        (lambda: task_of("rlcore/Sort-v0", prompts="test"), "prompts is 'test', but may be one of train, held_out"),
        (lambda: task_of("rlcore/Sort-v0", symbols=4), "symbols is 4, but must be a whole number from 5 to 62"),
        (lambda: task_of("rlcore/Sort-v0", shortest=5), "shortest is 5, but must be a whole number from 1 to 4"),
        (lambda: task_of("rlcore/Sort-v0", digits=2), "has no argument 'digits'.*it has length"),
        (lambda: rlcore.make_vec("rlcore/Sort-v0", 2, lenght=2), "no argument 'lenght', did you mean 'length'"),
        (lambda: task_of("rlcore/Addition-v0").encode("3+x"), "'x' in '3.x' is no token of rlcore/Addition-v0"),
        (lambda: rlcore.PPO("rlcore/Copy-v0", **SMALL), "whole_episodes is false.*it may be true"),
        (lambda: rlcore.BC("CartPole-v1"), "CartPole-v1 has no expert that could be copied"),
        (lambda: rlcore.DPO("rlcore/Copy-v0"), "preferences is none, but may be a file of pairs"),
        (lambda: rlcore.PPO("CartPole-v1", preferences=object()), "'preferences' is not a hyperparameter of PPO"),
        (lambda: rlcore.PPO("CartPole-v1", memory="gru", reward_kl_coef=0.1), "needs whole episodes; whole"),
        (lambda: rlcore.DPO("rlcore/Copy-v0", num_envs=3, preferences="x"), "num_envs is 3, but must be even"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# The policy


def gru(features):
    return GRU(features, 16)


def flat(agent):
    nothing = torch.zeros_like(agent.buffer.rewards)
    return agent.buffer.flatten(nothing, nothing)


def make_ends_likely(agent):
    """So that episodes differ in length; and not all in the same token."""
    with torch.no_grad():
        agent.network.policy_head.weight.mul_(50)
        agent.network.policy_head.bias[END] += 1.5


AGENTS = {
    "grpo": (rlcore.GRPO, {"group_size": 4}),
    "ppo": (rlcore.PPO, WHOLE),
    "ppo shared": (rlcore.PPO, {**WHOLE, "shared": True}),
    "ppo gru": (rlcore.PPO, {**WHOLE, "memory": gru}),
    "a2c": (rlcore.A2C, WHOLE),
    "trpo": (rlcore.TRPO, WHOLE),
    "reinforce": (rlcore.REINFORCE, {}),
}
VARIED_LENGTHS = {"length": 5, "shortest": 2}


@pytest.mark.parametrize("backend", ["native", "sync"])
@pytest.mark.parametrize("name", AGENTS)
def test_reading_at_once_is_reading_token_by_token(name, backend):
    kind, options = AGENTS[name]
    agent = kind("rlcore/Sort-v0", env_kwargs=VARIED_LENGTHS, **{**SMALL, "backend": backend, **options})
    make_ends_likely(agent)
    for _ in range(2):  # from the second on, every episode begins after another
        agent.collect()
        agent.iteration += 1
        batch, buffer, real = flat(agent), agent.buffer, agent.buffer.mask[: agent.buffer.length]
        policy, values = agent.network(batch.obs)
        logprobs, wanted = policy.log_prob(batch.actions), buffer.logprobs[: buffer.length]
        assert (logprobs.view_as(wanted) - wanted)[real].abs().max() < 1e-5
        alone, _ = agent.network(map_parts(lambda x: x[: buffer.length], buffer.obs))  # noqa: B023
        assert (alone.log_prob(buffer.actions[: buffer.length]) - wanted)[real].abs().max() < 1e-5
        if agent.needs_values:
            assert (values.view_as(wanted) - buffer.values[: buffer.length])[real].abs().max() < 1e-5
    assert buffer.mask.sum(0).unique().numel() > 1
    agent.learn(300)
    agent.evaluate(5, seed=0)


def answers_to(agent, task, prompt, response="4"):
    """What the policy says after a prompt, and after the first token of a response."""
    segment = response_segment(task, task.encode(prompt), [*task.encode(response), END])
    return agent.network.policy(map_parts(lambda x: x[0, :2], segment.obs)).params


def test_padding_in_front_changes_nothing_and_every_token_something():
    """A short prompt has the same answer in a task with room for longer ones."""
    agents = [
        rlcore.GRPO("rlcore/Copy-v0", env_kwargs={"length": n, "shortest": 2}, group_size=4, num_steps=3, **SMALL)
        for n in (2, 6)
    ]
    agents[1].network.load_state_dict(agents[0].network.state_dict())
    assert agents[1].network.actor.memory.context == 7 + 7  # all of the longest text
    tasks = [task_of("rlcore/Copy-v0", length=n, shortest=2) for n in (2, 6)]
    tight, roomy = (answers_to(agent, task, "42>") for agent, task in zip(agents, tasks, strict=True))
    torch.testing.assert_close(tight, roomy, atol=1e-6, rtol=0)
    for prompt, response, rows in (("52>", "4", [0, 1]), ("43>", "4", [0, 1]), ("42>", "5", [1])):
        for agent, task in zip(agents, tasks, strict=True):
            other = answers_to(agent, task, prompt, response)
            assert ((other - tight).abs().amax(1) > 1e-5).nonzero().flatten().tolist() == rows


def test_what_stands_behind_the_end_changes_no_gradient():
    agent = rlcore.PPO("rlcore/Sort-v0", shared=True, env_kwargs=VARIED_LENGTHS, **SMALL, **WHOLE)
    make_ends_likely(agent)
    agent.collect()
    gradients = []
    for noise in (False, True):
        buffer = agent.buffer
        dead = ~buffer.mask
        assert dead.any()
        if noise:
            with torch.inference_mode():
                for name in ("prompt", "response"):
                    buffer.obs[name][dead] = torch.randint(0, 13, buffer.obs[name][dead].shape)
                buffer.obs["mask"][dead] = 0
                for name in ("actions", "logprobs", "values"):
                    getattr(buffer, name)[dead] = 3
                buffer.rewards[dead] = torch.nan
        batch = buffer.flatten(*agent.estimate(buffer))
        loss, _ = agent.loss(agent.network, batch.take(batch.units()))
        gradients.append(torch.autograd.grad(loss, list(agent.network.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


def test_members_of_a_group_have_the_same_prompt():
    agent = rlcore.GRPO("rlcore/Addition-v0", group_size=4, **SMALL)
    for _ in range(2):
        agent.collect()
        agent.iteration += 1
        prompts = agent.buffer.obs["prompt"][0]
        assert (prompts[:4] == prompts[0]).all() and (prompts[4:] == prompts[4]).all()
        assert (prompts[0] != prompts[4]).any()


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_each_rollout_is_of_whole_episodes(backend):
    """Also where two are collected with nothing learned in between: from the same start, with other noise."""
    agent = rlcore.GRPO("rlcore/Copy-v0", env_kwargs={"length": 2}, group_size=4, **{**SMALL, "backend": backend})
    agent.collect()
    prompts, actions = agent.buffer.obs["prompt"][0].clone(), agent.buffer.actions.clone()
    agent.collect()
    assert torch.equal(agent.buffer.obs["prompt"][0], prompts) and not torch.equal(agent.buffer.actions, actions)
    assert not agent.buffer.obs["response"][0].any() and agent.buffer.mask[0].all()
    b, L = agent.buffer, agent.buffer.length
    logprobs = agent.network.policy(b.observations()).log_prob(b.actions[:L].flatten()).view(L, -1)
    torch.testing.assert_close(logprobs[b.mask[:L]], b.logprobs[:L][b.mask[:L]])


def test_a_policy_is_asked_token_by_token():
    agent = rlcore.GRPO("rlcore/Addition-v0", group_size=4, **SMALL)
    envs = rlcore.make_vec("rlcore/Addition-v0", 3, "native", seed=0)
    obs, _ = envs.reset(seed=5)
    for t in range(3):
        action = agent.act(obs, deterministic=True, first=t == 0)
        whole = map_parts(torch.as_tensor, obs)
        np.testing.assert_array_equal(action, agent.network.policy(whole).mode())
        obs, _, over, _, _ = envs.step(np.where(action == END, 4, action))
        assert not over.any()


def one_layer(features):
    """What takes half as long to compile."""
    return Transformer(features, size=16, context=24, layers=1)


WAYS = {
    "grpo": lambda file, **how: rlcore.GRPO("rlcore/Sort-v0", group_size=4, kl_coef=0.1, **SHORT, **how),
    "grpo process": lambda file, **how: rlcore.GRPO(
        "rlcore/Addition-v0", group_size=4, supervision="process", env_kwargs={"rewards": "process"}, **SHORT, **how
    ),
    "grpo process sync": lambda file, **how: rlcore.GRPO(
        "rlcore/Addition-v0",
        group_size=4,
        supervision="process",
        env_kwargs={"rewards": "process"},
        **{**SHORT, "backend": "sync"},
        **how,
    ),
    "ppo": lambda file, **how: rlcore.PPO("rlcore/Sort-v0", reward_kl_coef=0.1, **SHORT, **WHOLE, **how),
    "ppo shared": lambda file, **how: rlcore.PPO("rlcore/Sort-v0", shared=True, **SHORT, **WHOLE, **how),
    "bc": lambda file, **how: rlcore.BC("rlcore/CountTo-v0", **SHORT, **how),
    "dpo": lambda file, **how: rlcore.DPO(
        "rlcore/Copy-v0", env_kwargs={"length": 2}, preferences=file, reference="initial", **SHORT, **how
    ),
}
SHORT = {name: x for name, x in SMALL.items() if name not in ("compile", "memory_size", "memory_context")}
SHORT["memory"] = one_layer


@pytest.mark.filterwarnings("ignore:.*still running")
@pytest.mark.parametrize(("name", "compile"), [*((name, "record") for name in WAYS), ("one layer", True)])
def test_all_ways_to_run_agree(tmp_path, name, compile):
    file = pairs_of_texts(tmp_path / "pairs")
    short = {**SHORT, "memory": one_layer, "env_kwargs": {"length": 2, "rewards": "process"}}
    ways = {
        **WAYS,
        "one layer": lambda _, **how: rlcore.GRPO("rlcore/Copy-v0", group_size=4, kl_coef=0.1, **short, **how),
    }
    agents = [ways[name](file, compile=how) for how in (compile, False)]
    runs = [[metrics for metrics, _ in agent.iterations(100)] for agent in agents]
    assert len(runs[0]) == len(runs[1]) > 1
    for found, expected in zip(*runs, strict=True):
        names = expected.keys() - {"steps_per_second"}
        assert {n: found[n] for n in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(agents[0].parameters.vector, agents[1].parameters.vector, atol=1e-4, rtol=1e-3)


# Learning from an expert


@pytest.mark.parametrize("compile", [False, "record"])
def test_cloning_an_expert(compile):
    options = {**SMALL, "num_envs": 64, "memory_size": 32, "compile": compile}
    agent = rlcore.BC("rlcore/Copy-v0", env_kwargs={"length": 2}, learning_rate=5e-3, **options)
    losses = [metrics["loss"] for metrics, episodes in agent.iterations(64 * 3 * 80) if not episodes.returns]
    assert len(losses) == 80 and losses[0] == pytest.approx(math.log(13), abs=0.1)
    assert agent.evaluate(100, seed=3).mean > 0.9
    held_out = rlcore.make_vec("rlcore/Copy-v0", 10, length=2, prompts="held_out")
    assert agent.evaluate(100, seed=3, env=held_out).mean > 0.3
    del agent


def test_demonstrations_from_a_file(tmp_path):
    file = tmp_path / "demonstrations.jsonl"
    lines = [{"prompt": f"{a}{b}>", "response": f"{b}{a}"} for a in range(4) for b in range(4)]
    file.write_text("\n".join(map(json.dumps, lines)))
    options = {**SMALL, "num_envs": 16, "memory_size": 32, "env_kwargs": {"length": 2}, "learning_rate": 1e-2}
    agent = rlcore.BC("rlcore/Copy-v0", demonstrations=str(file), **options).learn(16 * 3 * 60)
    task = task_of("rlcore/Copy-v0", length=2)
    obs = response_segment(task, task.encode("31>"), [*task.encode("13"), END]).obs
    shown = agent.network.policy(map_parts(lambda x: x[0], obs)).mode()
    assert task.decode(shown.tolist()) == "13"


def test_an_agent_copies_an_expert_before_it_learns(tmp_path):
    agent = rlcore.GRPO("rlcore/Copy-v0", env_kwargs={"length": 2}, group_size=4, kl_coef=0.1, **SMALL)
    before = agent.evaluate(50, seed=0).mean
    vector = agent.parameters.vector.clone()
    teacher = rlcore.pretrain(agent, 8_000, learning_rate=1e-2)
    assert agent.evaluate(50, seed=0).mean > before + 0.5
    assert not torch.equal(agent.parameters.vector, vector)
    assert torch.equal(agent.parameters.vector, teacher.parameters.vector)
    for name, x in agent.network.state_dict().items():
        assert torch.equal(agent.reference.state_dict()[name], x)
    agent.learn(50)
    line = {"prompt": "12>", "response": "12"}
    (tmp_path / "shown.jsonl").write_text(json.dumps(line) + "\n")
    told = rlcore.pretrain(agent, 100, str(tmp_path / "shown.jsonl"))
    assert told.config.demonstrations is not None and told.collector.segments.actions.shape[0] == 1
    own = rlcore.PPO("CartPole-v1", torso=torch.nn.Linear(4, 8), seed=0, compile=False)
    with pytest.raises(UsageError, match="CartPole-v1 has no expert that could be copied"):
        rlcore.pretrain(own, 100)


def test_training_goes_on_from_another_run(tmp_path):
    first = rlcore.BC("rlcore/Copy-v0", **SMALL).learn(200)
    first.save(tmp_path / "bc.pt")
    agent = rlcore.GRPO("rlcore/Copy-v0", init=str(tmp_path / "bc.pt"), kl_coef=0.1, group_size=4, **SMALL)
    for name, x in first.network.state_dict().items():
        assert torch.equal(agent.network.state_dict()[name], x) and torch.equal(agent.reference.state_dict()[name], x)
    agent.learn(100)
    agent.save(tmp_path / "grpo.pt")
    (tmp_path / "bc.pt").unlink()
    again = rlcore.load(tmp_path / "grpo.pt")
    assert again.config.init == agent.config.init
    assert torch.equal(again.parameters.vector, agent.parameters.vector)
    assert torch.equal(again.reference.policy_head.weight, first.network.policy_head.weight)


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--memory-size", "16", "--eval-episodes", "2", "--no-progress", "--total-steps", "300"]
    assert main(["pretrain", "rlcore/Addition-v0", "--run-dir", "start", *small]) == 0
    for algo in ("grpo", "ppo"):
        assert main(["train", algo, "rlcore/Addition-v0", "--init", "start", "--run-dir", algo, *small]) == 0
        assert main(["train", "--resume", algo, "--total-steps", "2000", "--no-progress"]) == 0
    assert main(["eval", "grpo", "--env-arg", "prompts=held_out", "--episodes", "2"]) == 0
    assert "return 0.000" in capsys.readouterr().out
    file = pairs_of_addition(tmp_path / "pairs")
    short = ["--run-dir", "dpo", "--memory", "transformer", "--shared", *small]
    assert main(["train", "dpo", "rlcore/Addition-v0", "--init", "start", "--preferences", file, *short]) == 0
    assert main(["train", "dpo", "rlcore/Addition-v0", "--preferences", "none.jsonl"]) == 2
    assert "the file none.jsonl cannot be read" in capsys.readouterr().err
    assert main(["train", "grpo", "rlcore/Addition-v0", "--init", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def pairs_of_addition(path):
    line = {"prompt": "37+58=", "first": "5190", "second": "5180", "preference": 1}
    path.write_text("\n".join([json.dumps(line)] * 3))
    return str(path)


def resumed(make, path, steps):
    """Parameters after twice as many steps, in one go and with a file in between."""
    whole = make().learn(steps)
    whole.save(path)
    again = rlcore.load(path)
    return whole.learn(2 * steps).parameters.vector, again.learn(2 * steps).parameters.vector


# The reference


@pytest.mark.parametrize(("estimator", "compile"), [("k1", False), ("k2", False), ("k3", False), ("k3", "record")])
def test_rewards_less_the_kl_to_a_reference(estimator, compile):
    agent = rlcore.PPO(
        "rlcore/Sort-v0", env_kwargs=VARIED_LENGTHS, reward_kl_coef=0.3, reward_kl_estimator=estimator, shared=True,
        learning_rate=1e-2, **{**SMALL, "compile": compile}, **WHOLE,
    )  # fmt: skip
    metrics = [metrics for metrics, _ in agent.iterations(200)]
    assert metrics[0]["reference_kl"] == pytest.approx(0, abs=1e-5) and metrics[-1]["reference_kl"] > 1e-4
    agent.collect()
    buffer = agent.buffer
    score, real = buffer.rewards.clone(), buffer.mask
    policy = agent.reference.policy(map_parts(lambda x: x, buffer.obs))
    logratio = (policy.log_prob(buffer.actions) - buffer.logprobs).double()
    kl = {"k1": -logratio, "k2": logratio**2 / 2, "k3": logratio.exp() - 1 - logratio}[estimator]
    p = buffer.dist_params.double().log_softmax(-1)
    exact = (p.exp() * (p - policy.params.double().log_softmax(-1))).sum(-1)
    shaped = agent.rewards(buffer)
    torch.testing.assert_close(
        (buffer.rewards * real).sum().double(), (score * real).sum() - 0.3 * (kl * real).sum(), atol=1e-4, rtol=1e-4
    )
    assert shaped["reference_kl"].item() == pytest.approx((exact * real).sum().item() / 8, abs=1e-4)
    assert (buffer.rewards[~real] == score[~real]).all()


def test_beta_follows_its_target():
    options = {**SMALL, **WHOLE, "reward_kl_coef": 0.1, "learning_rate": 0.0}
    agent = rlcore.PPO("rlcore/Copy-v0", reward_kl_target=1.0, **options).learn(120)
    assert agent.coefs["reward_kl_coef"] == pytest.approx(0.1 * 0.98**agent.iteration, rel=1e-4)
    agent = rlcore.PPO("rlcore/Copy-v0", **options).learn(120)
    assert agent.coefs["reward_kl_coef"] == 0.1


def test_the_kl_of_masked_rows_is_nothing():
    agent = rlcore.PPO("rlcore/Copy-v0", **SMALL, **WHOLE)
    agent.collect()
    agent.buffer.logprobs[~agent.buffer.mask] = 5
    other = rlcore.PPO("rlcore/Copy-v0", **{**SMALL, "seed": 1}, **WHOLE)
    for kl in kl_to_reference(agent.buffer, other.network, "k1"):
        assert (kl[~agent.buffer.mask] == 0).all() and (kl[agent.buffer.mask] != 0).any()


# Pairs


def pairs_of_texts(path, count=12):
    lines = [
        {"prompt": f"{n % 5}{n % 7}>", "first": f"{n % 5}{n % 7}", "second": f"{n % 3}", "preference": n % 3 / 2}
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def pairs_of_cartpole(path, count=10, seed=0):
    rng = np.random.default_rng(seed)

    def segment():
        return {"obs": rng.normal(size=(4, 4)).tolist(), "actions": rng.integers(2, size=4).tolist()}

    lines = [{"first": segment(), "second": segment(), "preference": [1, 0, 0.5][n % 3]} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def sums_of(agent, pairs, network):
    """Σ γ^t log π(a_t|s_t) of each segment, one by one, in float64."""
    sums = []
    for side in (pairs.first, pairs.second):
        for n in range(len(side)):
            rows = int(side.mask[n].sum())
            obs = map_parts(lambda x: x[n, :rows], side.obs)  # noqa: B023
            if agent.config.memory == "gru":
                obs = Sequences(obs, torch.zeros(rows, dtype=torch.bool), network.initial_carry(1), rows, 1)
            policy = network.policy(obs)
            logprobs = policy.log_prob(side.actions[n, :rows]).double()
            sums.append(sum(agent.config.gamma**t * x for t, x in enumerate(logprobs)))
    return torch.stack(sums).view(2, -1)


LOSSES = {
    "dpo": {},
    "dpo smooth": {"label_smoothing": 0.2},
    "ipo": {"objective": "ipo"},
    "cpl": {"objective": "cpl", "gamma": 0.9},
}


@pytest.mark.parametrize("what", ["texts", "cartpole", "cartpole gru"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pairs(tmp_path, name, what):
    """Against the formulas in float64, segment by segment; and that of a policy that is its reference."""
    options = {**SMALL, "num_envs": 24, "beta": 0.3, **LOSSES[name]}
    if what == "texts":
        options |= {"env_kwargs": {"length": 2}, "preferences": pairs_of_texts(tmp_path / "pairs")}
        agent = rlcore.DPO("rlcore/Copy-v0", **options)
    else:
        options |= {"memory": "gru" if "gru" in what else None, "backend": "auto", "num_envs": 20}
        agent = rlcore.DPO("CartPole-v1", preferences=pairs_of_cartpole(tmp_path / "pairs"), **options)
    agent.collector._draw = lambda count, wanted: torch.arange(wanted)
    agent.collect()
    own = LOSSES[name].get("objective", "dpo")
    for is_reference in (True, False):
        if not is_reference:
            with torch.no_grad():
                for x in agent.network.parameters():
                    x.add_(0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
        batch, _ = agent.before_steps(agent.buffer.flatten(*agent.estimate(agent.buffer)))
        loss, metrics = agent.loss(agent.network, batch.take(batch.units()))
        label, smooth, bias = agent.pairs.label.double(), agent.config.label_smoothing, agent.config.bias
        first, second = sums_of(agent, agent.pairs, agent.network)
        if agent.config.use_reference:
            before = sums_of(agent, agent.pairs, agent.reference)
            first, second = first - before[0], second - before[1]
        h, other = first - bias * second, second - bias * first
        if own == "ipo":
            wanted = label * (h - 1 / 0.6) ** 2 + (1 - label) * (other - 1 / 0.6) ** 2
        else:
            y = label * (1 - smooth) + (1 - label) * smooth
            wanted = y * torch.log(1 + torch.exp(-0.3 * h)) + (1 - y) * torch.log(1 + torch.exp(-0.3 * other))
        assert loss.item() == pytest.approx(wanted.mean().item(), rel=1e-5)
        if is_reference and own == "dpo":
            assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
        gradient = torch.autograd.grad(loss, agent.network.policy_head.weight)[0]
        theirs = torch.autograd.grad(wanted.mean(), agent.network.policy_head.weight)[0]
        torch.testing.assert_close(gradient, theirs, atol=1e-6, rtol=1e-4)
    decided = label != 0.5
    right = ((first > second) == (label == 1))[decided].double().mean()
    assert metrics["reward_accuracy"].item() == pytest.approx(right.item())


def test_pairs_come_back_from_a_file(tmp_path):
    agent = rlcore.DPO("rlcore/Copy-v0", env_kwargs={"length": 2}, preferences=pairs_of_texts(tmp_path / "a"), **SMALL)
    agent.pairs.save(tmp_path / "b", task_of("rlcore/Copy-v0", length=2))
    lines = [[json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in "ab"]
    assert lines[0] == lines[1]
    agent = rlcore.DPO("CartPole-v1", preferences=pairs_of_cartpole(tmp_path / "a"), num_envs=8)
    agent.pairs.save(tmp_path / "b")
    again = read_preferences(tmp_path / "b", agent.adapter)
    for a, b in ((again.first, agent.pairs.first), (again.second, agent.pairs.second)):
        assert torch.equal(a.obs, b.obs) and torch.equal(a.actions, b.actions) and torch.equal(a.mask, b.mask)
    assert torch.equal(again.label, agent.pairs.label)


def test_pairs_out_of_a_file_are_as_a_buffer_has_them(tmp_path):
    """So that those of a rollout may follow."""
    agent = rlcore.GRPO("rlcore/Copy-v0", env_kwargs={"length": 2}, group_size=4, **SMALL)
    agent.collect()
    task = task_of("rlcore/Copy-v0", length=2)
    stored = read_preferences(pairs_of_texts(tmp_path / "pairs"), agent.adapter, task)
    played = pairs_of(agent.buffer, 5, group_size=4)
    for name, x in played.first.obs.items():
        assert stored.first.obs[name].dtype == x.dtype == agent.buffer.obs[name].dtype, name
    both = Preferences.join([stored, played])
    again = Preferences.from_state(both.state_dict(), agent.buffer.obs, agent.buffer.actions)
    assert torch.equal(again.first.obs["mask"], both.first.obs["mask"])


def test_learning_from_pairs(tmp_path):
    """Of two answers the preferred one becomes the more probable."""
    for compile in (False, "record"):
        options = {**SMALL, "num_envs": 24, "learning_rate": 1e-2, "env_kwargs": {"length": 2}, "compile": compile}
        agent = rlcore.DPO("rlcore/Copy-v0", preferences=pairs_of_texts(tmp_path / "pairs"), **options)
        metrics = [metrics for metrics, _ in agent.iterations(24 * 3 * 30)]
        assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and metrics[0]["reward_margin"] == 0
        assert metrics[-1]["reward_accuracy"] == 1 and metrics[-1]["loss"] < 0.5
        first, second = sums_of(agent, agent.pairs, agent.network) - sums_of(agent, agent.pairs, agent.reference)
        decided = agent.pairs.label != 0.5
        assert torch.equal((first > second)[decided], (agent.pairs.label == 1)[decided])


def test_resumes_are_exact(tmp_path):
    start = {**SMALL, "env_kwargs": {"length": 2}}
    file = pairs_of_texts(tmp_path / "pairs")
    makers = {
        "bc": lambda: rlcore.BC("rlcore/Copy-v0", **start),
        "dpo": lambda: rlcore.DPO("rlcore/Copy-v0", preferences=file, **start),
        "grpo": lambda: rlcore.GRPO("rlcore/Copy-v0", group_size=4, kl_coef=0.1, **start),
        "ppo": lambda: rlcore.PPO("rlcore/Copy-v0", reward_kl_coef=0.1, reward_kl_target=0.5, **start, **WHOLE),
    }
    for name, make in makers.items():
        whole, again = resumed(make, tmp_path / f"{name}.pt", 120)
        assert torch.equal(whole, again), name


BROKEN = [
    ("{", "line 2 of .* is not a pair: it is not readable as JSON"),
    ("[1]", "line 2 of .* is not a pair: it is .1., but must be an object"),
    ('{"first": "1", "preference": 1}', "line 2 of .* is not a pair: it has no 'second'"),
    ('{"first": "1", "second": "2", "preference": 0.7}', "its preference is 0.7, but may be 1, 0.5 or 0"),
    ('{"first": "1", "second": "2", "preference": true}', "its preference is True, but may be 1, 0.5 or 0"),
    ('{"first": "1", "second": "2", "preference": 1}', "needs texts as 'prompt', 'first' and 'second'"),
    (
        '{"prompt": "12345>", "first": "1", "second": "2", "preference": 1}',
        "the prompt has 6 tokens, but .* room for 3",
    ),
    ('{"prompt": "12>", "first": "1", "second": "2222", "preference": 1}', "the response has 5 tokens, but .* for 3"),
    ('{"prompt": "1?>", "first": "1", "second": "2", "preference": 1}', "'.' in '1.>' is no token"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_file_of_texts(tmp_path, line, message):
    file = tmp_path / "pairs"
    good = '{"prompt": "12>", "first": "1", "second": "2", "preference": 1}'
    file.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UsageError, match=message) as caught:
        rlcore.DPO("rlcore/Copy-v0", preferences=str(file), env_kwargs={"length": 2}, **SMALL)
    assert "\n" not in str(caught.value)


SEGMENT = {"obs": [[0, 0, 0, 0], [1, 1, 1, 1]], "actions": [0, 1]}
BROKEN_SEGMENTS = [
    ({"obs": [[0, 0, 0, 0]], "actions": [0]}, "its segments have 2 and 1 rows, but the shorter one has not ended"),
    ({"obs": [[0, 0, 0, 0]], "actions": [0, 1]}, "obs and actions of 'second' differ in number"),
    ({"obs": [[0, 0, 0], [1, 1, 1]], "actions": [0, 1]}, r"obs of 'second' have shape \[2, 3\], but must have"),
    ({"obs": [[0, 0, 0, 0], [1, 1, 1, "x"]], "actions": [0, 1]}, "obs of 'second' are not numbers of one shape"),
    ({"obs": [[0, 0, 0, 0], [1, 1, 1, math.nan]], "actions": [0, 1]}, "obs of 'second' are not finite"),
    (
        {"obs": [[0, 0, 0, 0], [1, 1, 1, 1]], "actions": [0, 2]},
        "actions of 'second' are .0, 2., but must be from 0 to 1",
    ),
    ({"obs": [[0, 0, 0, 0], [1, 1, 1, 1]], "actions": [0, 0.5]}, "actions of 'second' are not whole numbers"),
    ({"obs": [], "actions": []}, "have shape|there are no actions"),
    ({"obs": [[0, 0, 0, 0]]}, "'obs' and 'actions' of 'second' are missing"),
]


@pytest.mark.parametrize(("segment", "message"), BROKEN_SEGMENTS)
def test_a_broken_file_of_segments(tmp_path, segment, message):
    file = tmp_path / "pairs"
    file.write_text(json.dumps({"first": SEGMENT, "second": segment, "preference": 1}))
    with pytest.raises(UsageError, match=f"line 1 of .*{message}"):
        rlcore.DPO("CartPole-v1", preferences=str(file))
    if "rows" in message:  # one that has ended may be shorter
        ended = {**segment, "ended": True}
        file.write_text(json.dumps({"first": SEGMENT, "second": ended, "preference": 1}))
        agent = rlcore.DPO("CartPole-v1", preferences=str(file), num_envs=2)
        assert agent.config.num_steps == 2 and agent.pairs.second.mask.tolist() == [[True, False]]


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        rlcore.DPO("CartPole-v1", preferences=str(tmp_path / "none"))
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="is empty; it needs at least one line with a pair"):
        rlcore.DPO("CartPole-v1", preferences=str(tmp_path / "empty"))
    (tmp_path / "long").write_text('{"prompt": "1>", "response": "123456"}')
    agent = rlcore.BC("rlcore/Copy-v0", **SMALL)
    with pytest.raises(UsageError, match=r"line 1 of .* is not a demonstration: the response has 7 tokens"):
        read_demonstrations(tmp_path / "long", agent.adapter, task_of("rlcore/Copy-v0"))


def test_a_reference_of_another_shape(tmp_path):
    rlcore.BC("rlcore/Copy-v0", **{**SMALL, "memory_size": 32}).save(tmp_path / "other.pt")
    with pytest.raises(rlcore.RlcoreError, match="does not fit this environment or network"):
        rlcore.GRPO("rlcore/Copy-v0", kl_coef=0.1, reference=str(tmp_path / "other.pt"), group_size=4, **SMALL)
    with pytest.raises(rlcore.RlcoreError, match="does not fit this environment or network"):
        rlcore.GRPO(
            "rlcore/Sort-v0", env_kwargs={"symbols": 20}, init=str(tmp_path / "other.pt"), group_size=4, **SMALL
        )


def test_segments_of_other_lengths_are_padded():
    short, long = (Segments(torch.ones(1, n, 2), torch.ones(1, n), torch.ones(1, n, dtype=torch.bool)) for n in (2, 3))
    both = Segments.join([short, long])
    assert both.mask.tolist() == [[True, True, False], [True, True, True]] and both.obs[0, 2].tolist() == [0, 0]
    pairs = Preferences.join([Preferences(short, short, torch.ones(1)), Preferences(long, long, torch.zeros(1))])
    assert pairs.length == 3 and pairs.label.tolist() == [1, 0] and len(pairs.second) == 2


def test_batches_know_the_preference(tmp_path):
    agent = rlcore.DPO("CartPole-v1", preferences=pairs_of_cartpole(tmp_path / "pairs"), num_envs=8)
    agent.collect()
    batch = flat(agent)
    assert isinstance(batch, Batch) and batch.preference.shape == (4 * 8,)
    assert (agent.buffer.preference == agent.buffer.preference[0]).all()
    assert (agent.buffer.preference[:, ::2] == agent.buffer.preference[:, 1::2]).all()


# Pairs out of rollouts


def cartpole_rollout(num_steps=40, num_envs=6):
    sizes = dict(num_envs=num_envs, num_steps=num_steps, num_minibatches=1)
    agent = rlcore.PPO("CartPole-v1", seed=0, compile=False, backend="native", **sizes)
    agent.collect()
    assert agent.buffer.terminated.any()
    return agent.buffer


def test_a_segment_stops_where_its_episode_does():
    """Each row against the buffer's, one by one."""
    buffer, length = cartpole_rollout(), 15
    rows, envs = torch.arange(30) % 26, torch.arange(30) % 6
    segments, returns = segments_of(buffer, rows, envs, length)
    for k, (t, n) in enumerate(zip(rows.tolist(), envs.tolist(), strict=True)):
        count = 0
        while count < length:
            count += 1
            if buffer.terminated[t + count - 1, n]:
                break
        assert segments.mask[k].tolist() == [True] * count + [False] * (length - count)
        assert torch.equal(segments.obs[k, :count], buffer.obs[t : t + count, n])
        assert torch.equal(segments.actions[k, :count], buffer.actions[t : t + count, n])
        assert returns[k] == count
    assert segments.mask.sum(1).unique().numel() > 3


def test_an_oracle_prefers_what_was_worth_more():
    buffer = cartpole_rollout()

    def draw(**options):
        return pairs_of(buffer, 2000, 15, generator=torch.Generator().manual_seed(1), **options)

    pairs = draw()
    first, second = (side.mask.sum(1) for side in (pairs.first, pairs.second))  # a reward of 1 in each row
    assert torch.equal(pairs.label, torch.where(first == second, 0.5, (first > second).float()))
    unsure = draw(indifference=3).label
    assert torch.equal(unsure, torch.where((first - second).abs() <= 3, 0.5, (first > second).float()))
    wrong = draw(noise=0.25).label != pairs.label
    assert (
        wrong[pairs.label != 0.5].float().mean() == pytest.approx(0.25, abs=0.04) and not wrong[first == second].any()
    )


def test_responses_are_compared_with_those_to_the_same_prompt():
    agent = rlcore.GRPO("rlcore/Copy-v0", env_kwargs={"length": 2}, group_size=4, **SMALL)
    agent.collect()
    pairs = pairs_of(agent.buffer, 50, group_size=4)
    assert torch.equal(pairs.first.obs["prompt"], pairs.second.obs["prompt"]) and pairs.length == 3
    assert not torch.equal(pairs.first.actions, pairs.second.actions)
    prompts = [tuple(x.tolist()) for x in pairs_of(agent.buffer, 40, group_size=4).first.obs["prompt"][:, 0]]
    assert [prompts.count(one) for one in set(prompts)] == [20, 20]  # no group more often than another
    for problem, options in (("length is 4, but must be from 1 to num_steps = 3", {"length": 4}),):
        with pytest.raises(UsageError, match=problem):
            pairs_of(agent.buffer, 5, **options)
