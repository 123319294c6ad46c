"""What the documentation is made of beside its Markdown, and the checker of the built site; `.ci/run` builds it."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from rlcore.agents import AGENTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
pytest.importorskip("mkdocs")


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


hooks, check_site, field_comments = (module(name) for name in ("hooks", "check_site", "field_comments"))


@pytest.mark.parametrize("algo", ["reinforce", "a2c", "ppo", "trpo", "grpo", "bc", "dpo", "rewardmodel"])
def test_the_page_of_an_algorithm_has_all_that_it_should(algo):
    text = (DOCS / "pages" / "algorithms" / f"{algo}.md").read_text()
    wanted = ["Equations", "Pseudocode", "Hyperparameters", "Scores", "Caveats", "References"]
    assert [title for title in re.findall(r"^## (.+)$", text, re.MULTILINE) if title in wanted] == wanted
    assert "| quick facts |" in text and "$$" in text and f"<!-- hyperparameters: {algo} -->" in text
    table = hooks.hyperparameters(algo)
    for field in dataclasses.fields(AGENTS[algo].Config):
        assert len(re.findall(rf"^ *\| `{field.name}` \| `", table, re.MULTILINE)) == 1, field.name


def test_a_hyperparameter_has_its_default_its_range_and_its_comment():
    table = hooks.hyperparameters("ppo")
    assert "| `clip_coef` | `0.2` | > 0 | ε, how far the ratio may leave 1; of the value clipping too |" in table
    assert "| `gae_lambda` | `0.95` | 0 to 1 |" in table and "| `hidden_sizes` | `64,64` | integers 1 to" in table
    assert "| `objective` | `clip` | `clip`, `kl` |" in table and "| `target_kl` | `none` | > 0, or `none` |" in table
    assert "| `fisher_fraction` | `1` | > 0, ≤ 1 |" in hooks.hyperparameters("trpo")


def test_scores_and_presets_are_of_the_algorithm():
    scores = hooks.scores("trpo").splitlines()
    assert len(scores) >= 7 and all("| trpo |" in row for row in scores[2:])
    assert "../files/" in scores[2] or ".json" not in scores[2]
    assert "| `CartPole-v1` | 50,000 | `num_envs = 64`, " in hooks.presets("ppo")
    with pytest.raises(ValueError, match="no scores of bc"):
        hooks.scores("bc")


def test_links_out_of_the_pages_lead_to_copies_in_the_site():
    text = "[a](../../../rlcore/agents/ppo.py) [b](../../../benchmarks/results/x.json#y) [c](../index.md#z) [d](https://x.y)"
    assert hooks.relinked(text, "docs/pages/guides", "guides/x.md") == (
        "[a](../files/rlcore/agents/ppo.py.md) [b](../files/benchmarks/results/x.json#y) [c](../index.md#z) [d](https://x.y)"
    )
    assert hooks.linked_files(text, "docs/pages/guides") == {"rlcore/agents/ppo.py", "benchmarks/results/x.json"}
    note = "[a](02_b.ipynb) [b](../docs/pages/details.md) [c](../rlcore/buffer.py)"
    assert hooks.relinked(note, "notebooks", "notebooks/01_a.md") == (
        "[a](02_b.md) [b](../details.md) [c](../files/rlcore/buffer.py.md)"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_becomes_a_page_with_its_pictures(path):
    text, pictures = hooks.page_of(path)
    alts = dict(re.findall(r'<div class="picture"><img alt="([^"]+)" src="([^"]+)">', text))
    assert len(pictures) >= 4 and list(alts.values()) == list(pictures)
    assert text.count('??? example "Solution"') == 3 and "data:image/png" not in text
    assert f"notebooks/{path.stem}.md" in (DOCS / "mkdocs.yml").read_text()


def test_examples_in_docstrings_become_code():
    text = "A sum:\n\n>>> 1 + 1\n2\n>>> 2\n2\n\nMore."
    assert field_comments.fenced_examples(text) == "A sum:\n\n```pycon\n>>> 1 + 1\n2\n>>> 2\n2\n```\n\nMore."


def test_formulas_fonts_and_search_come_from_the_site_itself():
    config = (DOCS / "mkdocs.yml").read_text()
    assert "font: false" in config and not re.search(r"https?://", config)
    for file in re.findall(r"assets/[\w./-]+", config):
        assert (DOCS / "pages" / file).is_file(), file
    style = (DOCS / "pages" / "assets" / "katex" / "katex.min.css").read_text()
    fonts = re.findall(r"url\(([^)]+)\)", style)
    assert len(fonts) == 20 and all((DOCS / "pages" / "assets" / "katex" / font).is_file() for font in fonts)


def test_the_checker_of_the_site_finds_what_is_broken(tmp_path):
    (tmp_path / "there.html").write_text('<h1 id="title">There</h1>')
    (tmp_path / "page.html").write_text(
        '<link rel="stylesheet" href="https://elsewhere.org/x.css"><link rel="next" href="https://elsewhere.org">'
        '<a href="there.html#title">a</a><a href="there.html#gone">b</a><a href="gone.html">c</a><a href="#here">d</a>'
        '<img src="gone.png"><img src="data:image/gif;base64,"><a href="https://elsewhere.org">e</a><b id="here"></b>'
    )
    assert list(check_site.problems(tmp_path)) == [
        "page.html loads https://elsewhere.org/x.css",
        "page.html leads to there.html#gone, where that place is not",
        "page.html leads to gone.html, which is not there",
        "page.html leads to gone.png, which is not there",
    ]
    assert check_site.main(str(tmp_path)) == 1
