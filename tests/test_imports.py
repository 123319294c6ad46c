"""The import graph of the design: cli -> runs -> agents -> collect -> networks -> buffer -> environments -> state."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlcore"
# Each layer may import itself (but see the agents) and what stands below it.
LAYERS = [
    {"errors", "version", "tracing", "progress"},
    {"spaces", "storage", "suites"},
    {"state", "envs", "presets"},
    {"buffer", "optim"},
    {"estimators", "diagnostics", "programs"},  # programs know no network and no algorithm
    {"networks"},
    {"collect"},
    {"preferences"},
    {"agents"},
    {"distributed"},
    {"runs"},
    {"cli"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """The imports of modules of rlcore in a file: node, module, names; those for type checkers left out."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, []) for alias in node.names if alias.name.startswith("rlcore."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rlcore":
            yield node, node.module, [alias.name for alias in node.names]


def imported(path):
    """The modules of rlcore that a file imports, lazily or not."""
    for _, module, names in imports(path):
        yield from (f"rlcore.{name}" for name in names) if module == "rlcore" else (module,)


def level(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize(
    "path", [f for f in FILES if unit(f) not in ("__init__", "__main__")], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_imports_point_downward(path):
    for module in imported(path):
        target = module.split(".")[1]
        if target in ("__version__", "rlcore"):
            continue
        assert target == unit(path) or level(target) < level(unit(path)), f"{path.name} imports {module}"


def file_of(module):
    """The file of a module of rlcore, None where the name is of something in a module."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


def files_imported(path):
    """The files that must have been run for a file's imports, the folders' own on the way there included."""
    for _, module, names in imports(path):
        parts = module.split(".")
        ways = [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
        for found in map(file_of, [*ways, *(f"{module}.{name}" for name in names)]):
            inside = found is not None and found.name == "__init__.py" and found.parent in path.parents
            if found is not None and not inside:  # who stands in a folder is imported by way of it
                yield found


def test_no_module_imports_itself_by_way_of_others():
    graph = {path: set(files_imported(path)) for path in FILES}
    assert sum(map(len, graph.values())) > 150
    done, under_way = set(), []

    def visit(path):
        if path in under_way:
            names = [str(p.relative_to(PACKAGE)) for p in [*under_way[under_way.index(path) :], path]]
            raise AssertionError(" -> ".join(names))
        if path in done:
            return
        under_way.append(path)
        for other in graph[path]:
            visit(other)
        done.add(under_way.pop())

    for path in FILES:
        visit(path)


def test_only_the_engine_knows_programs():
    """What learns and collects is recorded, and knows nothing of it; torch's compiler is imported where it is used."""
    for path in FILES:
        for _, module, _ in imports(path):
            if (
                module.startswith("rlcore.programs") and module != "rlcore.programs.recurrent"
            ):  # operations, no programs
                is_engine = path.name in ("engine.py", "together.py")  # of one agent, and of several
                assert is_engine or unit(path) == "programs", path.name
    code = "import sys, rlcore.agents; assert 'torch._inductor.graph' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_agent_file_imports_no_other_agent_and_no_infrastructure():
    others = (
        "__init__",
        "agent",
        "callbacks",
        "config",
        "engine",
        "evaluation",
        "export",
        "rewards",
        "setup",
        "stored",
    )
    algorithms = [f for f in (PACKAGE / "agents").glob("*.py") if f.stem not in others]
    assert algorithms
    allowed = {
        *("agents.agent", "agents.config", "buffer", "diagnostics", "estimators", "networks", "errors", "optim"),
        "tracing",
    }
    for_pairs = {"agents.evaluation", "networks.reward", "preferences.bradley_terry", "preferences.data"}
    for path in algorithms:
        more = for_pairs if path.stem in ("dpo", "rewardmodel") else set()
        assert {m.removeprefix("rlcore.") for m in imported(path)} <= allowed | more, path.name


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_an_agent_is_known_by_its_type(path):
    """What takes any object for an agent knows nothing of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg) and node.arg == "agent" and node.annotation is not None:
            assert "Any" not in ast.unparse(node.annotation), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_are_read_in_the_same_letters_whatever_the_locale(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            named = any(k.arg == "encoding" for k in node.keywords)
            least = {"read_text": 1, "write_text": 2}.get(node.func.attr, 0)
            assert named or len(node.args) >= least, f"line {node.lineno}: no encoding"
