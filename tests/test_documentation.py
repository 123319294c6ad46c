"""Every public name is documented, with shapes, errors and source; examples and links hold."""

import doctest
import importlib
import inspect
import json
import re
from functools import cache
from pathlib import Path

import pytest

import rlcore

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
# What a user may call. A package or module with `__all__` offers that, any other its names without an underscore.
MODULES = [
    "agents", "agents.a2c", "agents.bc", "agents.callbacks", "agents.dpo",
    "agents.evaluation", "agents.export", "agents.grpo",
    "agents.ppo", "agents.reinforce", "agents.rewardmodel", "agents.trpo", "buffer", "collect", "diagnostics",
    "distributed.together", "envs",
    "envs.memory_tasks",
    "envs.rock_paper_scissors", "envs.text", "errors", "estimators", "networks", "networks.distributions",
    "networks.memory", "networks.normalize", "networks.recurrent", "networks.reward", "networks.text",
    "networks.torsos", "networks.transformer", "optim", "preferences.bradley_terry",
    "preferences.data", "preferences.reference", "preferences.sampling",
    "presets", "runs.from_python", "spaces", "state", "storage.checkpoint", "tracing",
]  # fmt: skip
TENSORS = {"Tensor", "Tensor | None", "Obs", "Tensor | dict[str, Tensor]", "np.ndarray"}
PAPER = re.compile(r"[A-Z]\w+(?: et al\.| & [A-Z]\w+| and [A-Z]\w+)? (?:19|20)\d\d")


def module(name):
    return importlib.import_module(f"rlcore.{name}")


def offered(name):
    """The public classes and functions of a module, by name; of a module without `__all__`, those it defines."""
    home = module(name)
    names = getattr(home, "__all__", [n for n in vars(home) if not n.startswith("_")])
    found = {n: getattr(home, n) for n in names}
    found = {n: x for n, x in found.items() if inspect.isclass(x) or inspect.isfunction(x)}
    return found if hasattr(home, "__all__") else {n: x for n, x in found.items() if x.__module__ == home.__name__}


def members(cls):
    """Public methods and properties that a class defines itself."""
    for name, x in vars(cls).items():
        if not name.startswith("_") and isinstance(x, property | staticmethod | classmethod | type(members)):
            yield name, x


@cache
def public():
    """(path, object, owner) of every public class, function, method and property; owner is a method's class."""
    found = {}
    for name in MODULES:
        for own, x in offered(name).items():
            found[f"{name}.{own}"] = (x, None)
            if inspect.isclass(x):
                found |= {f"{name}.{own}.{method}": (y, x) for method, y in members(x)}
    return found


def function_of(x):
    return x.fget if isinstance(x, property) else getattr(x, "__func__", x)


def documentation(path):
    """The docstring of a public name, or of what stands for it.

    A method may have the one of the method it overrides. An agent's page is the docstring of its file, its class's and
    config's too. What a class or its file describes in a list of members ("name(...)" or "name: ...") counts as well.
    """
    x, owner = public()[path]
    if inspect.isclass(x):
        own = x.__doc__ or ""
        generated = own.startswith(f"{x.__name__}(")  # what @dataclass writes where there is none
        in_agent_file = re.match(r"rlcore\.agents\.(reinforce|a2c|ppo|trpo|grpo|bc|dpo|rewardmodel)$", x.__module__)
        return (inspect.getmodule(x).__doc__ if in_agent_file else "") if generated or not own else own
    if owner is None:
        return function_of(x).__doc__ or ""
    name = path.rsplit(".", 1)[1]
    inherited = [getattr(base, name, None) for base in owner.__mro__[1:]]
    texts = [function_of(y).__doc__ for y in [x, *inherited] if y is not None and function_of(y).__doc__]
    if texts:
        return texts[0]
    for text in (owner.__doc__, inspect.getmodule(owner).__doc__):
        line = re.search(rf"^ +{name}(?:\(.*|:.*|  .*)$", text or "", re.MULTILINE)
        if line:
            return line[0]
    is_forward = name == "forward"  # of a torch module: what its class says that it turns into what
    return owner.__doc__ if is_forward and "[" in (owner.__doc__ or "") else ""


def own_functions():
    """Public functions, methods and constructors with the docstring that has to describe their arguments."""
    for path, (x, _) in public().items():
        if inspect.isclass(x):
            if "__init__" in vars(x):
                yield path, x.__init__, documentation(path)
        elif function_of(x).__doc__:
            yield path, function_of(x), documentation(path)


def test_the_list_of_modules_is_complete():
    private = {"cli", "__main__", "version", "runs", "suites"}
    inner = {
        "distributed", "distributed.ranks",
        "agents.agent", "agents.config", "agents.engine", "agents.rewards", "agents.setup", "agents.stored",
        "envs.adapter", "envs.async_vector", "envs.atari", "envs.envpool", "envs.faults", "envs.frames",
        "envs.guard", "envs.make",
        "envs.masks", "envs.native", "envs.native_vector", "envs.pettingzoo", "envs.standing", "envs.state",
        "networks.actor_critic", "programs", "programs.matmul", "programs.passes", "programs.program",
        "programs.numbers", "programs.recording", "programs.recurrent", "programs.stacking", "programs.watch",
        "progress",
        "preferences", "preferences.collector", "preferences.demonstrations",
        "storage", "storage.archive", "storage.files", "storage.toml",
    }  # fmt: skip
    files = [f.relative_to(ROOT / "rlcore").with_suffix("").as_posix() for f in (ROOT / "rlcore").rglob("*.py")]
    names = {f.removesuffix("/__init__").replace("/", ".") for f in files if f != "__init__"}
    rest = {n for n in names if n.split(".")[0] not in private} - inner - set(MODULES)
    assert not rest, f"add to MODULES and to a page of docs/, or to what is not for users: {sorted(rest)}"


def test_every_name_of_the_public_face_can_be_imported_and_is_documented():
    assert set(dir(rlcore)) == set(rlcore.__all__)
    for name in rlcore.__all__:
        x = getattr(rlcore, name)
        if name == "__version__":
            assert re.fullmatch(r"\d+\.\d+.*", x)
            continue
        if inspect.ismodule(x):
            assert x.__doc__
            continue
        home = x.__module__.removeprefix("rlcore.")
        assert any(y is x for y, _ in public().values()), f"rlcore.{name} of {home} is on no page"


def test_every_module_begins_with_a_docstring():
    for name in MODULES:
        assert (module(name).__doc__ or "").strip(), name


def test_every_public_name_has_a_docstring():
    assert len(public()) > 150
    missing = [path for path in public() if not documentation(path).strip()]
    assert not missing, missing


def test_tensor_arguments_have_shapes():
    """`name [...]` in a sentence, or the shape in the argument's own entry."""
    missing, seen = [], 0
    for path, function, text in own_functions():
        for name, parameter in inspect.signature(function).parameters.items():
            kind = parameter.annotation
            kind = kind if isinstance(kind, str) else inspect.formatannotation(kind).replace("torch.", "")
            if kind.replace("numpy", "np") in TENSORS:
                seen += 1
                if not re.search(rf"\b{name}\b[^\n]*\[", text):
                    missing.append(f"{path}: {name}")
    assert seen > 50 and not missing, missing


def test_errors_are_said():
    """Where a public function raises by itself, its docstring says so."""
    missing, seen = [], 0
    for path, function, text in own_functions():
        if function.__code__.co_filename == "<string>":  # made by @dataclass
            continue
        raised = set(re.findall(r"^\s+raise (\w+)", inspect.getsource(function), re.MULTILINE))
        raised -= {"NotImplementedError", "AttributeError"}
        if raised:
            seen += 1
            if not re.search(r"Raises:|[Rr]efuse|Error\b|Fault\b|Raises where|NotCapturable", text):
                missing.append(f"{path} raises {', '.join(sorted(raised))}")
    assert seen > 10 and not missing, missing


def test_estimators_and_algorithms_name_their_source():
    for name, function in offered("estimators").items():
        assert PAPER.search(function.__doc__), f"estimators.{name} names no paper"
    for name in ("reinforce", "a2c", "ppo", "trpo", "grpo", "bc", "dpo", "rewardmodel"):
        assert PAPER.search(module(f"agents.{name}").__doc__), f"{name} names no paper"


def test_every_hyperparameter_is_explained():
    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_help

    for agent in AGENTS.values():
        assert set(field_help(agent.Config)) >= set(agent.Config.__dataclass_fields__)


def test_every_public_name_is_on_a_page_and_every_page_is_in_the_menu():
    shown = re.findall(r"^::: rlcore\.(\S+)$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    menu = (ROOT / "docs" / "mkdocs.yml").read_text()
    for page in PAGES:
        assert page.relative_to(ROOT / "docs" / "pages").as_posix() in menu
    covered = set()
    for entry in shown:
        home, _, name = entry.rpartition(".")
        x = getattr(module(home), name, None) if home else None
        if x is None or inspect.ismodule(x):
            covered |= {id(y) for y in vars(module(entry)).values() if inspect.isclass(y) or inspect.isfunction(y)}
        else:
            covered.add(id(x))
    inner = {
        "networks": ("MLP", "Preprocess", "Trunk", "orthogonal"),
        "tracing": ("in_places", "leaves_of", "numbered", "recording"),
    }
    missing = [
        path
        for path, (x, owner) in public().items()
        if owner is None and id(x) not in covered and path.split(".")[-1] not in inner.get(path.split(".")[0], ())
    ]
    assert not missing, missing


def test_examples_in_docstrings_hold():
    results = {name: doctest.testmod(module(name)) for name in MODULES}
    assert sum(result.attempted for result in results.values()) >= 8
    assert not any(result.failed for result in results.values()), results


# Links.


def heading_anchors(text):
    """Anchors as GitHub makes them from headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def markdown_of(path):
    if path.suffix == ".ipynb":
        return "\n\n".join(
            "".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] != "code"
        )
    return path.read_text()


def links(path):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown_of(path), flags=re.DOTALL | re.MULTILINE)
    return [target for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", text) if not re.match(r"[a-z]+:", target)]


def broken_links(path):
    for target in links(path):
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if not goal.exists() or (anchor and anchor not in heading_anchors(markdown_of(goal))):
            yield target


DOCUMENTS = [
    ROOT / "README.md", ROOT / "benchmarks" / "plugins" / "rnd" / "README.md",
    *PAGES, *sorted((ROOT / "notebooks").glob("*.ipynb"))
]  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path):
    assert not list(broken_links(path))


def test_the_link_checker_finds_what_is_broken(tmp_path):
    (tmp_path / "there.md").write_text("# A title, with `code`\n")
    text = "[a](there.md) [b](there.md#a-title-with-code) [c](gone.md) [d](there.md#gone) ![e](x.png) [f](https://x.y)"
    (tmp_path / "page.md").write_text(f"{text}\n\n`[g](code.md)`\n")
    assert list(broken_links(tmp_path / "page.md")) == ["gone.md", "there.md#gone", "x.png"]
    assert len(links(ROOT / "README.md")) > 20
