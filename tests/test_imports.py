"""The import graph of the design: cli -> runs -> agents -> core -> buffer, distributions, environments."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlcore"
# Each layer may import itself (but see the agents) and what stands below it.
LAYERS = [
    {"errors", "version", "tracing"},
    {"spaces", "storage", "presets", "programs.matmul"},
    {"envs", "programs.passes"},
    {"buffer", "programs.program"},
    {"estimators", "diagnostics"},
    {"networks", "optim"},
    {"programs.acting"},
    {"collect"},
    {"programs.rollout", "programs.learning"},
    {"agents"},
    {"runs"},
    {"cli"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The modules of rlcore that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("rlcore."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rlcore":
            direct = node.module == "rlcore"
            yield from (f"rlcore.{alias.name}" for alias in node.names) if direct else (node.module,)


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


def test_an_agent_file_imports_no_other_agent_and_no_infrastructure():
    others = ("__init__", "agent", "config", "engine", "setup", "stored")
    algorithms = [f for f in (PACKAGE / "agents").glob("*.py") if f.stem not in others]
    assert algorithms
    for path in algorithms:
        allowed = {
            "agents.agent",
            "agents.config",
            "buffer",
            "diagnostics",
            "estimators",
            "networks",
            "distributions",
            "errors",
            "optim",
            "tracing",
        }
        assert {m.removeprefix("rlcore.") for m in imported(path)} <= allowed, path.name
