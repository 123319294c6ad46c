"""`rlcore compare`: pairs of clips for a person to judge, or judged by their return."""

import base64
import json
import os
import re
import shlex
from contextlib import closing
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import rlcore
from rlcore.cli import main
from rlcore.envs import find_native
from rlcore.errors import UsageError
from rlcore.preferences.data import read_preferences
from rlcore.runs import compare
from tests.browser import driven, needs_chromium

TINY = dict(num_envs=2, num_steps=8, num_minibatches=1, hidden_sizes=(8,), compile=False, seed=3, device="cpu")
COPY = dict(env_kwargs={"length": 3, "rewards": "process"}, whole_episodes=True)
AGENTS = {
    "CartPole-v1": {},
    "Pendulum-v1": dict(squash=True),
    "rlcore/Copy-v0": {**COPY, "num_steps": 4},
    "rlcore/Catch-v0": {},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files of agents that have learned nothing yet, by the id of their environment."""
    folder, files = tmp_path_factory.mktemp("agents"), {}
    for env_id, options in AGENTS.items():
        files[env_id] = folder / f"{env_id.replace('/', '-')}.pt"
        with closing(rlcore.PPO(env_id, **{**TINY, **options})) as agent:
            agent.save(files[env_id])
    return files


def run(capsys, *arguments):
    """What a command prints, and tells as an error."""
    code = main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 0 and not err, err
    return out


def refused(capsys, *arguments):
    """The one sentence of a command that must fail as bad input does."""
    assert main(["compare", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("rlcore: ") and "Traceback" not in err, err
    return err


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def read_answered(lines, path, agent, answers=(1, 0, 0.5)):
    """The lines of a page with preferences, as a file that is read."""
    labelled = [{**line, "preference": answers[n % len(answers)]} for n, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in labelled))
    return read_preferences(path, agent.adapter, compare.text_task(agent))


def frames_of(film):
    imageio = pytest.importorskip("imageio")
    head, data = film.split(",", 1)
    suffix = {"data:video/mp4;base64": ".mp4", "data:image/gif;base64": ".gif"}[head]
    return imageio.mimread(base64.b64decode(data), memtest=False, format=suffix)


@pytest.fixture(scope="module")
def page(stored, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "pairs.html"
    assert main(["compare", str(stored["CartPole-v1"]), "--pairs", "4", "--length", "12", "--out", str(path)]) == 0
    return path


# The page.


def test_the_lines_of_a_page_are_the_segments_that_were_played(stored, page, tmp_path):
    data = data_of(page)
    lines = [pair["line"] for pair in data["pairs"]]
    assert [set(line) for line in lines] == [{"first", "second"}] * 4
    with closing(rlcore.load(stored["CartPole-v1"])) as agent:
        read = read_answered(lines, tmp_path / "answers.jsonl", agent)
        played = compare._pairs(agent, 4, 12, seed=0, deterministic=False)
    assert read.label.tolist() == [1, 0, 0.5, 1]
    for side, segments in enumerate((read.first, read.second)):
        for k, pair in enumerate(played):
            clip, there = pair[side], segments.mask[k]
            assert there.sum() == len(clip) == data["pairs"][k]["rows"][side]
            np.testing.assert_array_equal(segments.obs[k][there].numpy(), np.stack(clip.obs))
            np.testing.assert_array_equal(segments.actions[k][there].numpy(), np.stack(clip.actions))


def test_rows_of_a_segment_follow_one_another_and_end_where_the_episode_does(page):
    task, seen = find_native("CartPole-v1"), set()
    for line in (pair["line"][name] for pair in data_of(page)["pairs"] for name in ("first", "second")):
        obs, actions = torch.tensor(line["obs"], dtype=torch.float64), torch.tensor(line["actions"])
        following, _, over = task.step(obs, actions)
        np.testing.assert_allclose(following[:-1], obs[1:], atol=1e-5)
        ended = len(actions) < 12
        assert not over[:-1].any() and line.get("ended", False) is ended and (over[-1] or not ended)
        seen.add((ended, bool((obs[0].abs() < 0.05).all())))
    assert len(seen) > 2  # some ended and some did not, some are beginnings and some are not


def test_a_clip_shows_its_rows(page):
    """As many frames, each nearest to what is drawn of the observation in its row."""
    pytest.importorskip("imageio_ffmpeg")
    from PIL import Image

    env = gymnasium.make("CartPole-v1", render_mode="rgb_array").unwrapped
    env.reset()
    for pair in data_of(page)["pairs"][:2]:
        for name in ("first", "second"):
            frames, drawn = np.array(frames_of(pair[name]), np.float32), []
            for obs in pair["line"][name]["obs"]:
                env.state = np.array(obs)
                drawn.append(Image.fromarray(env.render()).resize((400, 266)))
            drawn = np.array([np.asarray(one) for one in drawn], np.float32)
            assert frames.shape == drawn.shape
            distance = np.array([[np.abs(a - b).mean() for b in drawn] for a in frames])
            assert (distance.diagonal() <= distance.min(1) + 0.02).all() and distance.diagonal().max() < 1
            assert distance.max() > 2 * distance.diagonal().max()
    env.close()


def test_without_ffmpeg_clips_are_gifs(capsys, stored, tmp_path, monkeypatch):
    pytest.importorskip("imageio")
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    run(capsys, stored["CartPole-v1"], "--pairs", 1, "--length", 6, "--out", tmp_path / "a.html")
    (pair,) = data_of(tmp_path / "a.html")["pairs"]
    for name, rows in zip(("first", "second"), pair["rows"], strict=True):
        assert pair[name].startswith("data:image/gif;base64,") and rows <= 6
        assert 1 <= len(frames_of(pair[name])) <= rows  # equal frames in a row are one that lasts longer


def test_a_page_loads_nothing(page):
    text = page.read_text()
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?https?:|https?://", text)
    assert "default-src 'none'" in text and "</script>" in text


def test_texts_on_a_page_answer_the_same_prompt(capsys, stored, tmp_path):
    out = run(capsys, stored["rlcore/Copy-v0"], "--pairs", 6, "--out", tmp_path / "a.html")
    assert out.endswith(
        "--preferences preferences.jsonl --env-arg length=3 --env-arg rewards=process --hidden-sizes 8\n"
    )
    data = data_of(tmp_path / "a.html")
    lines = [pair["line"] for pair in data["pairs"]]
    assert all(set(line) == {"prompt", "first", "second"} for line in lines) and "symbols" in data["about"]
    assert len({line["prompt"] for line in lines}) > 3 and any(line["first"] != line["second"] for line in lines)
    with closing(rlcore.load(stored["rlcore/Copy-v0"])) as agent:
        pairs = read_answered(lines, tmp_path / "answers.jsonl", agent)
        assert torch.equal(pairs.first.obs["prompt"], pairs.second.obs["prompt"]) and len(pairs) == 6


HELPERS = """
function press(...names) { for (const key of names) dispatchEvent(new KeyboardEvent("keydown", { key })); }
function saved() {
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { blob.text().then(told); return make.call(URL, blob); };
  document.querySelector("#save").click();
}
function reloaded(before, after) {
  if (sessionStorage.reloaded) { after(); } else { sessionStorage.reloaded = 1; before(); location.reload(); }
}
"""


def answers(page, tmp_path, steps):
    """What a browser has saved of the page, and its document, after some steps of JavaScript."""
    text, dom, _ = driven(page, tmp_path, HELPERS + steps)
    return text, dom


@needs_chromium
def test_keys_answer_and_answers_are_saved_as_they_are_read(stored, page, tmp_path):
    keys = 'press("ArrowLeft", "ArrowRight", "Backspace", "Backspace", " ", "x", "ArrowRight", "ArrowDown");'
    text, dom = answers(page, tmp_path, f"reloaded(() => {{ {keys} }}, saved);")
    assert re.search(r'id="count"[^>]*>4 of 4<', dom)  # the last is not answered yet
    (tmp_path / "preferences.jsonl").write_text(text)
    lines, shown = [json.loads(line) for line in text.splitlines()], data_of(page)["pairs"]
    assert [line.pop("preference") for line in lines] == [0.5, 0, 0.5]
    assert lines == [pair["line"] for pair in shown[:3]]
    with closing(rlcore.load(stored["CartPole-v1"])) as agent:
        assert read_preferences(tmp_path / "preferences.jsonl", agent.adapter).label.tolist() == [0.5, 0, 0.5]


@needs_chromium
def test_the_last_answer_leads_to_the_end(page, tmp_path):
    buttons = "for (let n = 0; n < 9; n++) document.querySelector(\"[data-answer='1']\").click();"
    text, dom = answers(page, tmp_path, buttons + "saved();")
    assert [json.loads(line)["preference"] for line in text.splitlines()] == [1] * 4
    assert "4 of 4 answered" in dom and '<main id="pair" hidden="">' in dom and '<main id="end">' in dom
    assert "rlcore train dpo CartPole-v1 --init" in dom and "--preferences preferences.jsonl" in dom
    text, _ = answers(page, tmp_path, 'press("Backspace", "ArrowRight"); saved();')  # of another visit to the same page
    assert [json.loads(line)["preference"] for line in text.splitlines()] == [1, 1, 1, 0]


# Labels by reward.


def labels(path):
    return [json.loads(line)["preference"] for line in path.read_text().splitlines()]


def pendulum_returns(line):
    """Of both segments, from what gymnasium says of its rewards."""
    totals = []
    for name in ("first", "second"):
        cos, sin, speed = np.array(line[name]["obs"]).T
        torque = 2 * np.tanh(np.array(line[name]["actions"])[:, 0])
        totals.append(-(np.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * torque**2).sum())
    return totals


def test_what_was_worth_more_is_preferred(capsys, stored, tmp_path):
    file, out = stored["Pendulum-v1"], tmp_path / "a.jsonl"
    told = run(capsys, file, "--label", "reward", "--pairs", 60, "--length", 7, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    returns = np.array([pendulum_returns(line) for line in lines])
    difference = returns[:, 0] - returns[:, 1]
    assert np.abs(difference).min() > 1e-3  # no doubt about who
    assert labels(out) == (difference > 0).astype(int).tolist() and 10 < sum(labels(out)) < 50
    counts = f"60 pairs, {sum(labels(out))} with the first preferred, {60 - sum(labels(out))} the second, 0 neither"
    command = told.removeprefix(f"{out}: {counts}; next: rlcore ")
    assert command.startswith(f"train dpo Pendulum-v1 --init {file} --preferences {out}")
    few = ["--total-steps", "100", "--eval-episodes", "0", "--no-progress", "--run-dir", str(tmp_path / "dpo")]
    assert main([*shlex.split(command), *few]) == 0
    with closing(rlcore.load(file)) as agent:
        assert len(read_preferences(out, agent.adapter)) == 60

    judge = ("--label", "reward", "--pairs", 60, "--length", 7)
    middle = float(np.median(np.abs(difference)))
    run(capsys, file, *judge, "--indifference", middle + 1e-4, "--out", tmp_path / "b")
    unsure = np.where(np.abs(difference) <= middle, 0.5, difference > 0)
    assert labels(tmp_path / "b") == unsure.tolist() and labels(tmp_path / "b").count(0.5) == 30
    run(capsys, file, *judge, "--noise", 1, "--out", tmp_path / "c")
    assert labels(tmp_path / "c") == [1 - x for x in labels(out)]
    run(capsys, file, *judge, "--noise", 0.25, "--out", tmp_path / "d")
    wrong = np.array(labels(tmp_path / "d")) != labels(out)
    assert 6 <= wrong.sum() <= 25
    for other in "bcd":  # the same clips
        assert [json.loads(x)["first"] for x in (tmp_path / other).read_text().splitlines()] == [
            line["first"] for line in lines
        ]


def test_texts_are_labelled_by_their_verifier(capsys, stored, tmp_path):
    """With a reward for each right element, and one for the whole."""
    out = tmp_path / "a.jsonl"
    run(capsys, stored["rlcore/Copy-v0"], "--label", "reward", "--pairs", 200, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(line["prompt"][-1] == ">" and len(line["prompt"]) == 4 for line in lines)
    with closing(rlcore.load(stored["rlcore/Copy-v0"])) as agent:
        pairs = compare._pairs(agent, 200, compare._length(agent, None), 0, False)
    scores = [[score(line["prompt"], clip) for clip in pair] for line, pair in zip(lines, pairs, strict=True)]
    assert labels(out) == [0.5 if a == b else float(a > b) for a, b in scores] and {0, 0.5, 1} == set(labels(out))


def score(prompt, clip):
    vocabulary = ("<pad>", "<end>", ">", *"0123456789")
    tokens = [vocabulary[int(token)] for token in clip.actions]
    right = sum(a == b for a, b in zip(tokens, prompt[:-1], strict=False))
    return right + (tokens == [*prompt[:-1], "<end>"])


def test_what_cannot_be_drawn_can_be_judged(capsys, stored, tmp_path):
    out = tmp_path / "a"
    run(capsys, stored["rlcore/Catch-v0"], "--label", "reward", "--out", out, "--pairs", 30)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {len(line["first"]["actions"]) for line in lines} == {9}  # whole episodes
    assert set(labels(out)) == {0, 0.5, 1}


def test_the_same_seed_gives_the_same_file(capsys, stored, tmp_path):
    for kind in (("--label", "reward", "--noise", 0.3), ()):
        texts = []
        for n, more in enumerate(((), (), ("--seed", 1), ("--greedy",))):
            out = tmp_path / f"{len(kind)}-{n}.html"
            run(capsys, stored["CartPole-v1"], "--pairs", 3, "--length", 5, *kind, *more, "--out", out)
            texts.append(out.read_text().replace(out.name, ""))
        assert texts[0] == texts[1] and len(set(texts)) == 3


def test_greedy_actions_are_the_most_probable(capsys, stored, tmp_path):
    with closing(rlcore.load(stored["CartPole-v1"])) as agent:
        for flags, equal in ((("--greedy",), True), ((), False)):
            out = tmp_path / f"{equal}"
            run(capsys, stored["CartPole-v1"], "--label", "reward", "--pairs", 5, *flags, "--out", out)
            first = read_preferences(out, agent.adapter).first
            best = agent.network.policy(first.obs).mode()
            assert bool((best == first.actions)[first.mask].all()) is equal


def test_a_policy_with_memory_remembers_its_episode_and_no_other(capsys, tmp_path):
    file, differs = tmp_path / "gru.pt", False
    with closing(rlcore.PPO("CartPole-v1", memory="gru", **TINY)) as agent:
        with torch.no_grad():
            for weights in agent.network.parameters():
                weights.mul_(10)  # so that actions depend on what is remembered
        agent.save(file)
        for clip in (clip for pair in compare._pairs(agent, 4, 500, 0, True) for clip in pair):
            obs = np.stack(clip.obs)[:, None]
            remembered = [agent.act(row, True, first=t == 0) for t, row in enumerate(obs)]
            differs |= [agent.act(row, True, first=True) for row in obs] != remembered
            np.testing.assert_array_equal(np.concatenate(remembered), np.stack(clip.actions))
    assert differs
    for kind in ((), ("--label", "reward")):
        run(capsys, file, "--pairs", 2, "--length", 6, "--out", tmp_path / f"{len(kind)}.html", *kind)


def test_spaces_of_many_parts(capsys, tmp_path, monkeypatch):
    """Indices counted from 0, as the policy sees and the buffer stores them, masks among the observations."""
    from tests.environments import Echo

    spaces = gymnasium.spaces
    seen = spaces.Dict({
        "camera": spaces.Box(0, 255, (2, 2), np.uint8), "place": spaces.Discrete(3, start=5),
        "bits": spaces.MultiBinary(2), "action_mask": spaces.MultiBinary(5),
    })  # fmt: skip

    class Masked(Echo):
        def __init__(self):
            super().__init__(seen, spaces.MultiDiscrete([2, 3], start=[1, 1]))

        def reset(self, **how):
            obs, info = super().reset(**how)
            return {**obs, "action_mask": np.ones(5, np.int8)}, info

        def step(self, action):
            obs, *rest = super().step(action)
            return {**obs, "action_mask": np.array([1, 0, 0, 1, 1], np.int8)}, *rest

    gymnasium.register("RlcoreMasked-v0", Masked)
    monkeypatch.setitem(gymnasium.registry, "RlcoreMasked-v0", gymnasium.registry.pop("RlcoreMasked-v0"))
    with closing(rlcore.PPO("RlcoreMasked-v0", **TINY)) as agent:
        agent.save(tmp_path / "a.pt")
        run(capsys, tmp_path / "a.pt", "--label", "reward", "--pairs", 30, "--length", 2, "--out", tmp_path / "b")
        pairs = read_preferences(tmp_path / "b", agent.adapter)
    both = [pairs.first, pairs.second]
    assert set(torch.cat([x.obs["place"][x.mask] for x in both]).tolist()) == {0, 1, 2}
    actions = torch.cat([x.actions[x.mask] for x in both])
    masks = torch.cat([x.obs["action_mask"][x.mask] for x in both])
    barred = masks[:, 1] == 0
    assert (actions[barred, 0] == 0).all() and (actions[barred, 1] > 0).all()
    assert set(actions[~barred, 0].tolist()) == {0, 1} and barred.any()


def test_what_has_no_policy_is_refused():
    with pytest.raises(UsageError, match="but must be of an agent with a policy"):
        compare._length(SimpleNamespace(network=torch.nn.Linear(1, 1)), None)


def test_stacked_frames_are_refused(capsys, tmp_path):
    pytest.importorskip("ale_py")
    with closing(rlcore.PPO("ALE/Pong-v5", **{**TINY, "num_envs": 1})) as agent:
        agent.save(tmp_path / "a.pt")
    assert "observations are stacked frames" in refused(capsys, tmp_path / "a.pt", "--label", "reward")


def test_clips_are_from_all_over_episodes():
    """Whole where they are short; else they begin at any row, not at multiples of their length."""
    rng = np.random.default_rng(0)
    for rows, length in ((9, 50), (500, 50)):
        cutter, begun, t = compare.Cutter(length, rng, 30), [], 0
        while len(cutter.clips) < 100:
            if not len(cutter.under_way) and not cutter.gap:
                begun.append(t)
            cutter.add(np.zeros(1), np.zeros(1), 0.0, t == rows - 1, None)
            t = (t + 1) % rows
        assert all(len(clip) == min(rows, length, rows - at) for clip, at in zip(cutter.clips, begun, strict=False))
        assert len(set(begun)) == 1 if rows == 9 else len(set(begun)) > 60 and max(begun) > 450


# Bad input.


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--pairs", "0"), "--pairs is 0, but must be at least 1"),
        (("--pairs", "many"), "--pairs is 'many', but must be a whole number"),
        (("--pairs", "1e9"), "--pairs is 1e9, but must be at most 10,000"),
        (("--length", "0"), "--length is 0, but must be at least 1"),
        (("--length", "501"), "--length is 501, but must be from 1 to 500 for CartPole-v1"),
        (("--seed", "-1"), "--seed is -1"),
        (("--label", "human"), "--label is 'human', but may be reward, or left out for a page"),
        (("--noise", "0.1"), "--noise is 0.1, but a person judges; it is for --label reward"),
        (("--label", "reward", "--noise", "1.5"), "--noise is 1.5, but must be at least 0 and at most 1"),
        (("--label", "reward", "--noise", "x"), "--noise is 'x', but must be a number"),
        (("--label", "reward", "--noise", "nan"), "--noise is nan"),
        (("--label", "reward", "--indifference", "-1"), "--indifference is -1.0, but must be at least 0"),
        (("--out", "a.mp4"), "--out is a.mp4, but the name of a page must end in .html"),
        (("--out", "there.html"), "the file there.html exists already; choose another --out"),
        (("--label", "reward", "--out", "there.html"), "the file there.html exists already; choose another --out"),
        (("--out", "no/a.html"), "the file no/a.html cannot be written: No such file or directory"),
        (("--stochastic",), "'--stochastic' is not known to rlcore compare"),
        (("--device", "gpu"), "device is 'gpu'"),
    ],
)
def test_bad_input_is_one_sentence(capsys, stored, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("precious")
    assert words in refused(capsys, stored["CartPole-v1"], *arguments)
    assert os.listdir() == ["there.html"] and (tmp_path / "there.html").read_text() == "precious"


def test_runs_that_are_not_there_or_not_for_this(capsys, stored, tmp_path):
    assert "the run folder nowhere does not exist" in refused(capsys, "nowhere")
    undrawn = refused(capsys, stored["rlcore/Catch-v0"], "--out", tmp_path / "a.html")
    assert "the environment cannot be drawn" in undrawn and "--label reward needs no pictures" in undrawn
    whole = refused(capsys, stored["rlcore/Copy-v0"], "--length", 2, "--out", tmp_path / "a.html")
    assert "--length is 2, but texts of rlcore/Copy-v0 are compared whole; leave it out" in whole
    assert not os.listdir(tmp_path)


def test_a_file_that_somebody_else_was_quicker_to_write(capsys, stored, tmp_path, monkeypatch):
    out, pairs = tmp_path / "a", compare._pairs

    def slow(*arguments, **options):
        out.write_text("quicker")
        return pairs(*arguments, **options)

    monkeypatch.setattr(compare, "_pairs", slow)
    command = (stored["CartPole-v1"], "--pairs", 1, "--label", "reward", "--out", out)
    assert "exists already; choose another --out" in refused(capsys, *command)
    assert os.listdir(tmp_path) == ["a"] and out.read_text() == "quicker"


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_numbers_that_are_not_finite(capsys, tmp_path, monkeypatch, what):
    from tests.environments import BreaksAt

    gymnasium.register("RlcoreBreaks-v0", lambda: BreaksAt(30, what))
    monkeypatch.setitem(gymnasium.registry, "RlcoreBreaks-v0", gymnasium.registry.pop("RlcoreBreaks-v0"))
    with closing(rlcore.PPO("RlcoreBreaks-v0", **TINY)) as agent:
        agent.save(tmp_path / "a.pt")
    message = refused(capsys, tmp_path / "a.pt", "--label", "reward", "--out", tmp_path / "b")
    assert f"not finite in {'an observation' if what == 'observation' else 'its reward'}" in message
    assert os.listdir(tmp_path) == ["a.pt"]


def test_help_and_overview(capsys):
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: rlcore compare" in text and "--indifference" in text
    main([])
    assert "compare" in capsys.readouterr().out
    assert main(["compar"]) == 2 and "did you mean 'compare'?" in capsys.readouterr().err


def test_the_page_is_part_of_the_package():
    text = (compare.resources.files("rlcore.runs") / "compare.html").read_text()
    assert text.count("DATA") == 1
    packaged = (compare.Path(rlcore.__file__).parent.parent / "setup.cfg").read_text()
    assert "*.html" in re.search(r"^rlcore.runs = (.*)$", packaged, re.MULTILINE)[1]
