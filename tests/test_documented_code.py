"""The blocks of code in the README and on the pages of the documentation run, each alone, as pasted.

Training is cut short: `learn` takes at most a few hundred steps, whatever the block asks for, and `learn_together`
none, since its program takes long to record. A block that needs what is not installed here says so in front of it,
`<!-- not run: WHY -->`; lines of shell are read by the command line's own parsers, and a few are run.
"""

import contextlib
import importlib.util
import itertools
import re
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import gymnasium
import pytest

import rlcore
from rlcore.cli import flags, main
from rlcore.distributed import together
from rlcore.envs import NATIVE_TASKS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- ([\w ]+): ([^\n]+) -->\n)?^( *)```(\w+)\n(.*?)^\3```$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^ *```", re.MULTILINE)
MOST_STEPS = 600
PLACEHOLDERS = {"...": "x", "my_agents:MonteCarloPPO": "ppo", "rlcore_awr:AWR": "ppo", "awr": "ppo"}


def blocks(path, *kinds):
    """(name, mark, text) of the blocks of a page, as they would be pasted."""
    found = [m for m in BLOCK.finditer(path.read_text()) if m[4] in kinds]
    stem = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/pages/").replace("/", "_")
    return [(f"{stem}-{k}", (m[1], m[2]), textwrap.dedent(m[5])) for k, m in enumerate(found, 1)]


def of_all(*kinds):
    return [block for path in PAGES for block in blocks(path, *kinds)]


PYTHON = of_all("python")
each_block = pytest.mark.parametrize("name, mark, text", PYTHON, ids=[name for name, *_ in PYTHON])


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Trainings that end soon, in a folder of their own."""
    whole = rlcore.agents.Agent.iterations
    monkeypatch.setattr(rlcore.agents.Agent, "iterations", lambda self, steps: whole(self, min(steps, MOST_STEPS)))
    monkeypatch.setattr(together, "iterations_together", lambda agents, steps: together._check(agents) or iter(()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = gymnasium.registry, NATIVE_TASKS  # to which a block may add
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@each_block
def test_a_block_of_python_runs_as_pasted(name, mark, text, short, monkeypatch):
    if mark[0] == "not run":
        compile(text, name, "exec")
        pytest.skip(mark[1])
    file = short / f"{name.replace('-', '_')}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)


def test_few_blocks_are_not_run():
    left_out = [name for name, mark, _ in PYTHON if mark[0] == "not run"]
    assert len(PYTHON) > 25 and len(left_out) <= 1, left_out


def test_every_block_says_what_it_is_in():
    """And no block goes unseen, because its fence has no kind."""
    for path in PAGES:
        fences, found = len(FENCE.findall(path.read_text())), len(BLOCK.findall(path.read_text()))
        assert fences == 2 * found, path


@pytest.mark.parametrize("name, mark, text", of_all("toml"), ids=lambda x: x if isinstance(x, str) else "")
def test_a_block_of_toml_can_be_read(name, mark, text):
    assert tomllib.loads(text)


# Lines of shell.


def commands(text):
    """The arguments of each `rlcore` in a block of shell, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for place in itertools.compress(itertools.count(), [Path(word).name == "rlcore" for word in words]):
            end = next((k for k in range(place, len(words)) if words[k] in ("&&", "|")), len(words))
            yield words[place + 1 : end]


LINES = [(name, words) for name, _, text in of_all("bash") for words in commands(text)]


class Read(Exception):
    """A command line was understood."""


@pytest.fixture
def only_read(monkeypatch):
    whole = flags.Parser.parse

    def parse(self, arguments):
        whole(self, arguments)
        raise Read

    monkeypatch.setattr(flags.Parser, "parse", parse)


@pytest.mark.parametrize("name, words", LINES, ids=[f"{name}-{' '.join(words)[:40]}" for name, words in LINES])
def test_a_line_of_shell_is_understood(name, words, only_read, capsys):
    words = [PLACEHOLDERS.get(word, word) for word in words if word != "..."]
    if words == ["list"] or "--help" in words:
        words = [*words[:2], "--help"]
        with contextlib.nullcontext() if words[0] == "train" else contextlib.suppress(Read):
            assert main(words) == 0
    elif words[:2] == ["train", "--config"]:  # which is read first
        assert len(words) == 3 and words[2].endswith("config.toml")
    elif len(words) > 1:
        with pytest.raises(Read):
            main(words)


def test_there_are_many_lines_of_shell():
    assert len(LINES) > 50


def marked(page, kind, name):
    """The text of the block of a page that has this mark."""
    found = blocks(ROOT / "docs" / "pages" / page, "python", "bash")
    return next(text for _, mark, text in found if mark == (kind, name))


def test_the_environment_of_the_guide_trains_and_is_evaluated_from_the_command_line(short, capsys):
    (short / "corridor.py").write_text(marked("guides/environment.md", "file", "corridor.py"))
    for words in commands(marked("guides/environment.md", "command", "corridor")):
        assert main([*words, "--no-progress", "--eval-episodes", "5"] if words[0] == "train" else words) == 0
    assert "return" in capsys.readouterr().out


# The README.


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


def test_the_readmes_commands_are_where_ci_looks_for_them():
    assert [mark[1] for _, mark, _ in blocks(README, "bash") if mark[0] == "command"] == ["train", "test"]
