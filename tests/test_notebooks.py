"""The notebooks as they are stored, and their exercises; `.ci/run` executes them whole, from a clean kernel."""

import base64
import contextlib
import io
import json
import re
import struct
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXERCISES = [(path, number) for path in NOTEBOOKS for number in (1, 2, 3)]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_exercise = pytest.mark.parametrize("path, number", EXERCISES, ids=lambda x: getattr(x, "stem", str(x)))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def tagged(path, tag, number=None):
    """The sources of the cells with a tag, and of one exercise where its number is given."""
    found = [cell for cell in cells(path) if tag in cell["metadata"].get("tags", [])]
    return [source(cell) for cell in found if number is None or cell["metadata"].get("exercise") == number]


def source(cell):
    return "".join(cell["source"])


def outputs(path):
    return [output for cell in cells(path) for output in cell["outputs"]]


def texts(path):
    """All that an output says in letters; pictures left out."""
    for output in outputs(path):
        yield "".join(output.get("text", ""))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield re.sub(r'src="data:[^"]*"', "", "".join(data))


def run(sources):
    """Execute cells one after the other in a namespace of their own; what they print is dropped."""
    namespace = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for text in sources:
            exec(compile(text, "cell", "exec"), namespace)
    return namespace


def test_they_are_all_there():
    assert [path.stem for path in NOTEBOOKS][:7] == [
        "01_policy_gradient", "02_actor_critic_and_gae", "03_ppo", "04_grpo", "05_speed", "06_memory_masks_and_bonuses",
        "07_rlhf",
    ]  # fmt: skip


@each_notebook
def test_it_is_stored_as_one_execution_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert all(output["output_type"] != "error" for output in outputs(path))
    assert sum("image/png" in output.get("data", {}) for output in outputs(path)) >= 4


@each_notebook
def test_its_figures_are_told_in_words_and_sharp(path):
    figures = [output for output in outputs(path) if "image/png" in output.get("data", {})]
    alts = [figure["metadata"].get("image/png", {}).get("alt", "") for figure in figures]
    assert all(len(alt.split()) >= 12 and alt.endswith(".") for alt in alts) and len(set(alts)) == len(alts)
    for figure in figures:
        png = base64.b64decode("".join(figure["data"]["image/png"]))
        per_metre = struct.unpack(">II", png[png.index(b"pHYs") + 4 :][:8])
        assert [round(0.0254 * x) for x in per_metre] == [120, 120]  # dpi


@each_notebook
def test_its_outputs_hold_no_warnings_and_no_paths_of_the_machine(path):
    assert all(output.get("name") != "stderr" for output in outputs(path))
    for text in texts(path):
        assert not re.search(r"/(tmp|work|home|root|usr|opt|Users|private)/|Warning", text), text[:200]


def test_the_readmes_picture_is_the_one_that_the_ppo_notebook_draws():
    shown = "".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs(FOLDER / "03_ppo.ipynb"))
    drawn = re.search(r'src="data:image/gif;base64,([^"]+)"', shown)[1]
    assert base64.b64decode(drawn) == (FOLDER.parent / "docs" / "pages" / "rollout.gif").read_bytes()


@each_notebook
def test_it_has_three_exercises_whose_solutions_are_collapsed(path):
    for tag in ("check", "exercise", "solution"):
        numbers = [c["metadata"]["exercise"] for c in cells(path) if tag in c["metadata"].get("tags", [])]
        assert numbers == [1, 2, 3], tag
    for cell in cells(path):
        hidden = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        assert hidden == ("solution" in cell["metadata"].get("tags", []))


@each_exercise
def test_the_solution_passes(path, number):
    namespace = run(tagged(path, "setup") + tagged(path, "check", number) + tagged(path, "solution", number))
    assert f"solution_{number}" in namespace and f"check_{number}(" in tagged(path, "solution", number)[0]


@each_exercise
def test_the_unsolved_form_fails(path, number):
    namespace = run(tagged(path, "setup") + tagged(path, "check", number) + tagged(path, "exercise", number))
    answer, check = namespace[f"answer_{number}"], namespace[f"check_{number}"]
    with pytest.raises(AssertionError, match="nothing is returned yet"):
        check(*answer) if isinstance(answer, tuple) else check(answer)


def test_a_wrong_answer_fails():
    """The checks look at the numbers: answers that are nearly right."""
    wrong = {
        ("01_policy_gradient", 1): "lambda logits, a: softmax_score(logits, a) + logits.softmax(0)",
        ("01_policy_gradient", 2): "lambda r, ends, gamma: reward_to_go(r, ends & False, gamma)",
        ("01_policy_gradient", 3): "lambda p, R, g: p @ R",
        ("02_actor_critic_and_gae", 1): "lambda r, v, n, te, tr, *rest: gae(r, v, n, te | tr, tr, *rest)",
        ("02_actor_critic_and_gae", 2): "lambda c, gamma, lam, p: offset(c, gamma, lam, 0.0)",
        ("02_actor_critic_and_gae", 3): "lambda te, tr, before: real_rows(te, tr & False, before)",
        ("03_ppo", 1): "lambda r, A, eps: r.clamp(1 - eps, 1 + eps) * A",
        ("03_ppo", 2): "lambda r, A, eps: abs(r - 1) > eps",
        ("03_ppo", 3): "lambda logratio: 0.5 * logratio**2",
        ("04_grpo", 1): "lambda scores, size: outcome_advantages(scores, len(scores))",
        ("04_grpo", 2): "(lambda scores, size: leave_one_out(scores, size) * (size - 1) / size, factor)",
        ("04_grpo", 3): "lambda kind, *rest: step_weight('episode', *rest)",
        ("05_speed", 1): "(lambda s, o, n: eager_seconds(s, o, n) - o, fused_seconds)",
        ("05_speed", 2): "standardize",  # looks at the data, so it cannot be recorded, or for one mask alone
        ("05_speed", 3): "lambda slow, fast, cold, warm, runs: break_even_steps(slow, fast, cold, 0.0, runs)",
        ("06_memory_masks_and_bonuses", 1): "lambda x, h, first, *w: gru_scan(x, h, first & False, *w)",
        ("06_memory_masks_and_bonuses", 2): "lambda x, y, allowed: masked_entropy_and_kl(x, y, allowed | True)",
        ("06_memory_masks_and_bonuses", 3): "lambda b, te, m, *rest: bonus_return(b, te, m | True, *rest)",
        ("07_rlhf", 1): "lambda r, m, s, size: process_advantages(r, m, m, size)",
        ("07_rlhf", 2): "lambda s, l, ref, m, beta: shaped_rewards(s, l, ref, m | True, beta)",
        ("07_rlhf", 3): "lambda f, s, y, beta, eps: dpo_loss(f, s, y, beta, 0.0)",
    }
    solved = {}
    for (stem, number), text in wrong.items():
        path = FOLDER / f"{stem}.ipynb"
        if stem not in solved:
            every = [tagged(path, tag) for tag in ("setup", "check", "solution")]
            solved[stem] = run([*every[0], *every[1], *every[2]])
        answer = eval(text, solved[stem])
        with pytest.raises(AssertionError):
            check = solved[stem][f"check_{number}"]
            check(*answer) if isinstance(answer, tuple) else check(answer)
