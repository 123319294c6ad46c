"""`rlcore.runs.report`: a page about runs and the same as Markdown."""

import json
import math
import re

import numpy as np
import pytest

from rlcore.errors import UsageError
from rlcore.runs import charts, report
from rlcore.runs.charts import Chart, Series
from rlcore.runs.results import INDEX, Result, curve_of
from tests.browser import driven, narrow, needs_chromium

EVIL = "<script>alert(1)</script>"
ENVS = ("CartPole-v1", "Acrobot-v1")


def made(agent, env_id, seed, score=100.0, **more):
    """A record of a run whose return rises to its score."""
    steps = np.linspace(0, 10_000, 21)[1:]
    returns = [None, *np.linspace(score / 2, score, 19).tolist()]
    curve = {"steps": steps.astype(int).tolist(), "seconds": (steps / 1000).tolist(), "returns": returns}
    known = dict(
        state="done", algo="ppo", folder=f"{agent}-{seed}", total_steps=10_000,
        hyperparameters={"lr": 0.1, "seed": seed}, steps=10_000, seconds=10.0, returns=[score - 1.0, score + 1.0],
        curve=curve, machine={"cpu": "A fast one"},
    )  # fmt: skip
    return Result(agent, env_id, seed, **{**known, **more})


def bench(folder, results):
    folder.mkdir()
    (folder / INDEX).write_text("".join(result.line() for result in results))
    return folder


def two_agents():
    rng = np.random.default_rng(0)
    return [
        made(agent, env_id, seed, float(base + rng.normal()), hyperparameters={"lr": lr, "gamma": 0.9, "seed": seed})
        for agent, base, lr in (("ppo", 100, 0.1), ("a2c", 90, 0.2))
        for env_id in ENVS
        for seed in range(5)
    ]


def written(tmp_path, results, **options):
    """What is returned, the page and the Markdown."""
    out = tmp_path / "report.html"
    told = report.write_report([bench(tmp_path / "bench", results)], out, **options)
    return told, out.read_text(), out.with_suffix(".md").read_text()


# What is told.


def test_both_files_tell_the_same_in_order(tmp_path):
    results = [*two_agents(), made("a2c", ENVS[0], 5, state="failed", error="it broke", hyperparameters={})]
    expected = [*(("ppo", ENVS[0], seed) for seed in (0, 7, 8, 9, 11)), ("trpo", ENVS[1], 0)]
    told, page, text = written(tmp_path, results, expected=expected)
    assert told["done"] == 20 and told["failed"] == 1 and told["not_run"] == 5
    assert told["agents"] == ["a2c", "ppo"] and told["environments"] == sorted(ENVS)
    titles = ["Scores over environments", "Performance profiles", "Probability of improvement", "Acrobot-v1"]
    titles += ["CartPole-v1", "Hyperparameters that differ", "Failed runs", "Not run", "Every run"]
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == titles == re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert "2 agents × 2 environments × 6 seeds: 20 runs done, 1 failed, 5 not run." in page
    assert "| lr | 0.2 | 0.1 |" in text and "| gamma" not in text
    assert "| a2c | CartPole-v1 | 5 | it broke | a2c-5 |" in text and "<td>it broke</td>" in page
    assert "| ppo | CartPole-v1 | 7–9, 11 |" in text and "| trpo | Acrobot-v1 | 0 |" in text
    assert "500 ± 0 at 100k" in text and "RL Baselines3 Zoo" in text and "A fast one" in text
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    lines = {line.replace("\\", "") for line in text.splitlines()}
    for row in filter(None, rows):
        assert f"| {' | '.join(cell for cell in row if '<svg' not in cell)} |" in lines


def test_scores_of_a_table_are_those_of_the_runs(tmp_path):
    scores = [10.0, 20.0, 30.0, 40.0, 90.0]
    _, _, text = written(tmp_path, [made("mine", "Mine-v0", n, score) for n, score in enumerate(scores)])
    (row,) = re.findall(r"^\| mine \| 5 \| .*$", text, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "30" and cells[4:7] == ["38", "30", "10"] and cells[7:10] == ["10,000", "10", "1,000"]
    low, high = report.statistics.interval(report.statistics.interquartile_mean, [np.array(scores)])
    assert cells[3] == rf"\[{charts.number(low)}, {charts.number(high)}\]"


def test_normalised_scores(tmp_path):
    """Of a task that is given with the report, of one with published references, and none of one that is not known."""
    results = [made("ppo", env_id, n, 60.0) for env_id in ("Mine-v0", "CartPole-v1", "Other-v0") for n in range(3)]
    _, _, text = written(tmp_path, results, references={"Mine-v0": (50.0, 60.0)})
    random, reference, _ = report.normalization("CartPole-v1")
    mean = (1 + (60 - random) / (reference - random)) / 2
    assert re.search(rf"^\| ppo \| 6 \| .* \| {charts.number(mean)} \\\[.*$", text, re.MULTILINE)
    assert "the environments Other-v0" in text
    assert report.normalization("ALE/Pong-v5")[:2] == (-20.7, 14.6) and report.normalization("Other-v0") is None


def test_environments_that_not_all_agents_have(tmp_path):
    results = [made("ppo", env_id, n) for env_id in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1") for n in range(2)]
    results += [made("a2c", env_id, n) for env_id in ("CartPole-v1", "Acrobot-v1") for n in range(2)]
    results += [made("one", "Pendulum-v1", n) for n in range(2)]
    _, _, text = written(tmp_path, results)
    assert "over 2 environments" in text and "the agents one" in text and "the environments Pendulum-v1" in text


def test_curves_are_means_over_seeds():
    short = made("a", "b", 1, 50.0)
    short = Result(**{**vars(short), "curve": {name: column[:10] for name, column in short.curve.items()}})
    curve = report.mean_curve([made("a", "b", 0, 100.0), short], 0)
    assert math.isnan(curve.y[0]) and curve.y[5] == pytest.approx(np.mean(
        [made("a", "b", 0, 100.0).curve["returns"][5], short.curve["returns"][5]]
    ))  # fmt: skip
    assert curve.y[-1] == 100 and math.isnan(curve.low[-1]) and curve.low[5] < curve.y[5] < curve.high[5]
    assert curve.x[-1] == 10_000 and (np.diff(curve.times) >= 0).all()
    assert report.mean_curve([made("a", "b", 0, curve={})], 0) is None


def test_a_run_that_is_under_way_has_a_curve_and_no_score(tmp_path):
    _, page, text = written(tmp_path, [made("ppo", "CartPole-v1", 0, returns=[])], refresh_seconds=30)
    assert "1 run without an evaluation" in text and '<meta http-equiv="refresh" content="30">' in page
    assert '<path class="line"' in page


@pytest.mark.parametrize("results", [[], [made("a", "b", 0, state="failed", error="no", returns=[], curve={})]])
def test_pages_of_nothing(tmp_path, results):
    told, page, _ = written(tmp_path, results, expected=[("a", "b", 1)])
    assert told["not_run"] == 1 and "Not run" in page and "refresh" not in page


def test_a_run_folder_is_a_page_too(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run.joinpath("config.toml").write_text(
        'algo = "ppo"\nenv_id = "CartPole-v1"\ntotal_steps = 100\n[hyperparameters]\nseed = 3\ngamma = 0.5\n'
    )
    run.joinpath("episodes.csv").write_text("global_step,env,return,length,seconds\n10,0,9.0,9,1.0\n30,0,11,9,2.00\n")
    run.joinpath("evaluation.json").write_text(json.dumps({"returns": [1.0, 2.0, 2.0], "measure": "return"}))
    report.write_report([run], tmp_path / "a.html")
    text = (tmp_path / "a.md").read_text()
    assert "# ppo on CartPole-v1" in text and "| gamma | 0.5 |" in text and "### Evaluation" in text
    assert (
        "| 3 | 1.667 |" in text and "| ppo | 30 | 11 |" in text and 'class="bar"' in (tmp_path / "a.html").read_text()
    )


def test_agents_of_several_folders_are_told_apart(tmp_path):
    def labels(*found):
        return sorted({r.agent for r in report.labelled([(tmp_path / folder, r) for folder, r in found])})

    one, two, other = made("ppo", "b", 0), made("ppo", "b", 1), made("a2c", "b", 0)
    assert labels(("x", one), ("y", two)) == ["ppo"]
    assert labels(("x", one), ("y", one), ("y", other)) == ["a2c", "ppo (x)", "ppo (y)"]
    assert labels(("x/0", one), ("x/1", two), ("y/0", one), ("y/1", two)) == ["ppo (x)", "ppo (y)"]
    assert labels(("x/same", one), ("y/z/same", one)) == ["ppo (x)", "ppo (z)"]
    assert labels(("x/a/0", one), ("y/a/0", one)) == ["ppo (x/a)", "ppo (y/a)"]
    once = bench(tmp_path / "once", [one])
    assert report.write_report([once, tmp_path / "." / "once"], tmp_path / "a.html")["agents"] == ["ppo"]


def test_many_agents_are_compared_with_the_best(tmp_path):
    results = [made(f"agent{n}", "b", seed, 10.0 + n) for n in range(12) for seed in range(2)]
    _, _, text = written(tmp_path, results)
    assert len(re.findall(r"^\| agent11 \| agent\d+ \| 1 ", text, re.MULTILINE)) == 11


def test_names_are_sorted_as_people_do():
    names = ["b", "agent10", "agent9", "agent2b", "²", "9" * 5000, ""]
    assert report.names_of([made(name, "b", 0) for name in names], "agent")[-5:-1] == [
        "agent2b", "agent9", "agent10", "b"
    ]  # fmt: skip


# Texts of strangers.


def test_strangers_are_escaped(tmp_path):
    names = [EVIL, "a|b`c`", "{{data}}", "line\nbreak\u202e", "\ud800", '"><img src=x>', "</script>"]
    results = [made(name, f"{name}-v0", 0, machine={name: name}, hyperparameters={name: name}) for name in names]
    results += [made(names[0], name, 1, state="failed", error=name, folder=name) for name in names]
    _, page, text = written(tmp_path, results, expected=[(name, name, 5) for name in names])
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "<img" not in page
    assert "&lt;script&gt;alert(1)" in page and "{{data}}" in page
    assert json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert "<script" not in text and "<img" not in text and "\u202e" not in page + text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, block
    assert not re.search(r"(?<!\\)`", text)


def test_a_page_loads_nothing(tmp_path):
    _, page, _ = written(tmp_path, two_agents())
    assert "default-src 'none'" in page and not re.search(r"https?:|url\(|\bsrc=|@import", page)


# Charts.


def test_numbers():
    told = [charts.number(x) for x in (math.nan, 0.0, -0.00001, 0.12345, -1.5, 99.99, 123456.7, 5.0, 2e12, None)]
    assert told == ["–", "0", "0", "0.123", "−1.500", "99.99", "123,457", "5", "2e+12", "–"]
    assert [charts.compact(x) for x in (0.5, 9000.0, 20_000.0, 1.5e6, -3e9)] == ["0.5", "9,000", "20k", "1.5M", "−3G"]


@pytest.mark.parametrize("low, high", [(0, 1), (-499.3, -80), (0, 1e7), (1e-4, 3e-4), (5, 5)])
def test_ticks_are_round_and_inside(low, high):
    ticks = charts.nice_ticks(low, high)
    assert 1 <= len(ticks) <= 7 and min(ticks) >= low - 1e-9 and max(ticks) <= high + 1e-9
    assert len({charts.compact(x) for x in ticks}) == len(ticks) or high < 1e-3


def test_lines_have_gaps_where_nothing_is():
    y = np.array([1.0, math.nan, 2.0, 3.0])
    series = Series("a", 9, np.arange(4.0), y, y - 1, y + 1)
    drawn = charts.chart_html(Chart("t", "x", "y", [series]), "c")
    (line,) = re.findall(r'class="line" d="(.*?)"', drawn)
    assert line.count("M") == 2 and line.count("h0") == 1 and "nan" not in drawn and 'class="c1 d2"' in drawn
    assert charts.chart_data(Chart("t", "x", "y", [series]))["series"][0]["y"] == [1.0, None, 2.0, 3.0]


# Bad input.


def test_bad_input_is_one_sentence(tmp_path):
    folder = bench(tmp_path / "bench", two_agents())
    for paths, out, more, words in (
        ([], "a.html", {}, "the folders to report on are none"),
        ([folder], "a.txt", {}, "a.txt, but the name of a page must end in .html"),
        ([folder], "a.html", {"refresh_seconds": 0}, "refresh_seconds is 0, but must be at least 1"),
        ([folder], "no/a.html", {}, "cannot be written: No such file or directory"),
        ([tmp_path / "gone"], "a.html", {}, "gone does not exist"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            report.write_report(paths, tmp_path / out, **more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench"]


def test_only_reports_are_overwritten(tmp_path):
    folder, out = bench(tmp_path / "bench", two_agents()), tmp_path / "README.html"
    for other in (out, out.with_suffix(".md")):
        other.write_text("precious")
        with pytest.raises(UsageError, match="exists already and is no report; choose another --out"):
            report.write_report([folder], out)
        assert other.read_text() == "precious"
        other.unlink()
    report.write_report([folder], out)
    report.write_report([folder], out)


@pytest.mark.parametrize(
    "name, value",
    [
        ("curve", {"steps": 5, "seconds": [], "returns": []}),
        ("curve", {"steps": [1, 2], "seconds": [1], "returns": [1, 2]}),
        ("curve", {"steps": [10**400], "seconds": [1], "returns": [1]}),
        ("curve", {"seconds": [1], "returns": [1]}),
        ("returns", [10**400]),
        ("returns", ["1"]),
        ("seconds", math.inf),
        ("steps", 10**400),
        ("agent", None),
    ],
)
def test_records_that_no_run_has(name, value):
    entry = {**json.loads(made("a", "b", 0).line()), name: value}
    with pytest.raises(UsageError, match=r"line 1 (has|is)"):
        Result.of_line(json.dumps(entry), "line 1")


def test_an_evaluation_that_no_run_has(tmp_path):
    (tmp_path / "config.toml").write_text('algo = "a"\nenv_id = "b"\ntotal_steps = 100\n[hyperparameters]\n')
    for returns in ("abc", [math.nan], [[1.0]], {"a": 1}):
        (tmp_path / "evaluation.json").write_text(json.dumps({"returns": returns}))
        with pytest.raises(UsageError, match="returns"):
            report.write_report([tmp_path], tmp_path / "a.html")


def test_settings_of_any_shape(tmp_path):
    deep = value = {}
    for _ in range(300):
        value["x"] = value = {}
    settings = {"deep": deep, "long": "x" * 10_000, "list": [[1], True], "flag": True, "none": None, "whole": 10**300}
    _, page, text = written(tmp_path, [made("a", "b", 0, hyperparameters=settings, machine=settings)])
    assert "| flag | true |" in text and "x" * 400 not in page and len(page) < 60_000


def test_a_record_is_read_as_it_was_written():
    result = made("a", "b", 0, curve=curve_of({name: np.zeros(0) for name in ("global_step", "return", "seconds")}, 10))
    assert Result.of_line(result.line(), "here") == result and result.score == 100


# In a browser.


@pytest.fixture
def page(tmp_path):
    folder = bench(tmp_path / "bench", [*two_agents(), *(made(EVIL, ENVS[0], seed) for seed in range(2))])
    report.write_report([folder], tmp_path / "report.html")
    return tmp_path / "report.html"


STEPS = """
const seen = {}, plots = all(".chart").filter((one) => one.querySelector(".switch")), figure = plots[1];
const plot = figure.querySelector(".plot"), reading = () => figure.querySelector(".reading").textContent;
const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
seen.before = reading();
plot.focus();
seen.focused = document.activeElement === plot;
press("End");
seen.end = reading();
press("ArrowLeft");
seen.left = reading();
seen.cursor = !plot.querySelector(".cursor").hidden;
const box = plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + 5 }));
seen.middle = reading();
plot.dispatchEvent(new PointerEvent("pointerleave"));
seen.left_alone = reading();
const button = all("[data-toggle]", figure).find((one) => one.textContent === "ppo");
seen.button = [button.tagName, button.getAttribute("aria-pressed")];
const group = figure.querySelector(`[data-series="${button.dataset.toggle}"]`);
const visible = () => getComputedStyle(group).display !== "none";
seen.visible = visible();
button.click();
seen.hidden = !visible();
seen.pressed = button.getAttribute("aria-pressed");
press("End");
seen.without = reading();
all("[data-axis=time]", figure)[0].click();
seen.axes = all(".axes", figure).map((one) => one.hidden);
button.click();
seen.again = visible();
seen.names = all("td").map((one) => one.textContent).includes("<script>alert(1)<" + "/script>");
seen.requests = performance.getEntriesByType("resource").length;
told(JSON.stringify(seen));
"""


@needs_chromium
def test_values_are_read_and_series_hidden(page, tmp_path):
    text, _, console = driven(page, tmp_path, STEPS)
    seen = json.loads(text)
    assert not console, console
    assert seen["focused"] and seen["cursor"] and seen["before"] == "" == seen["left_alone"] and seen["requests"] == 0
    assert seen["end"].startswith("steps 10000") or seen["end"].startswith("steps 10,000")
    assert f"{EVIL}: 100" in seen["end"] and "ppo: " in seen["end"] and "[" in seen["end"]
    assert seen["left"].startswith("steps 9,500") and re.match(r"steps 5,(0|5)00", seen["middle"])
    assert seen["button"] == ["BUTTON", "true"] and seen["visible"] and seen["hidden"] and seen["pressed"] == "false"
    assert "ppo" not in seen["without"] and "a2c: " in seen["without"]
    assert seen["axes"] == [True, False] and seen["again"] and seen["names"]


@needs_chromium
@pytest.mark.parametrize("width", [400, 320])
def test_narrow_screens(page, tmp_path, width):
    steps = """frame.onload = () => { const page = frame.contentDocument;
      told(JSON.stringify([page.documentElement.scrollWidth, page.querySelectorAll(".plot svg").length,
      [...page.querySelectorAll(".x-ticks span")].map((one) => parseFloat(getComputedStyle(one).fontSize))])); };"""
    text, _, console = driven(narrow(page, tmp_path, width), tmp_path, steps)
    wide, plots, sizes = json.loads(text)
    assert wide <= width and plots == 5 and min(sizes) >= 12 and not console
