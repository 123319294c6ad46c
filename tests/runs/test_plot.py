"""Plots for papers: what is drawn, formats and sizes, names of strangers."""

import struct
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")

from rlcore.cli import main
from rlcore.errors import UsageError
from rlcore.runs.plot import write_plot
from rlcore.runs.results import Result


def results(agent, env_id, seeds=3, slope=1.0):
    steps = [10 * k for k in range(1, 101)]
    for seed in range(seeds):
        curve = {"steps": steps, "seconds": [0.5 * x for x in steps], "returns": [slope * x + seed for x in steps]}
        yield Result(agent, env_id, seed, "done", returns=[1.0], curve=curve)


@pytest.fixture
def bench(tmp_path):
    runs = [*results("ppo", "CartPole-v1"), *results("a_$2c", "CartPole-v1", slope=2), *results("ppo", "Acrobot-v1")]
    (tmp_path / "results.jsonl").write_text("".join(run.line() for run in runs))
    return tmp_path


def test_each_environment_is_a_panel_and_each_agent_a_line(bench):
    out = bench / "curves.svg"
    made = write_plot([bench], out)
    assert made == {"path": str(out), "agents": ["ppo", "a_$2c"], "environments": ["Acrobot-v1", "CartPole-v1"]}
    texts = ["".join(node.itertext()) for node in ElementTree.parse(out).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Acrobot-v1", "CartPole-v1", "ppo", "a_$2c", "environment steps", "return"} <= set(texts)


def test_lines_are_the_means_over_seeds_against_steps_or_time(bench):
    from rlcore.runs.plot import _figure, _panels
    from rlcore.runs.report import labelled, read_folders

    panels = _panels(labelled(read_folders([bench])))
    for x, scale, label in (("steps", 1.0, "environment steps"), ("time", 0.5 / 60, "minutes")):
        ax = _figure(panels, x, 5.5, None, 8.0).axes[1]
        lines = {line.get_label(): line for line in ax.get_lines()}
        assert lines["ppo"].get_xdata() == pytest.approx([scale * 10 * k for k in range(1, 101)])
        assert lines["ppo"].get_ydata() == pytest.approx([10 * k + 1 for k in range(1, 101)])  # seeds add 0, 1 and 2
        assert ax.get_xlabel() == label and len(ax.collections) == 2


def test_pictures_have_the_size_asked_for(bench):
    assert main(["plot", str(bench), "--width", "3", "--height", "2", "--out", str(bench / "x.png")]) == 0
    width, height = struct.unpack(">II", (bench / "x.png").read_bytes()[16:24])
    assert (width, height) == (900, 600)
    assert main(["plot", str(bench), "--x", "time", "--font", "serif"]) == 0 and (bench / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x.bmp"], "--out is x.bmp, but must end in .png, .svg, .pdf"),
        (["--x", "hours"], "--x is 'hours', but may be steps or time"),
        (["--width", "wide"], "--width is 'wide', but must be a number"),
        (["--font-size", "900"], "--font-size is 900, but must be from 0.5 to 100"),
        (["--out", "no/such/folder.png"], "which cannot be written"),
    ],
)
def test_mistakes(bench, arguments, sentence, capsys):
    assert main(["plot", str(bench), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_runs_without_episodes_cannot_be_plotted(tmp_path):
    (tmp_path / "results.jsonl").write_text(Result("ppo", "CartPole-v1", 0, "failed", "it broke").line())
    with pytest.raises(UsageError, match="there is nothing to plot"):
        write_plot([tmp_path], tmp_path / "x.png")
