"""What a bench compares: agents × environments × seeds, out of a suite that is shipped, a TOML file, or flags.

    seeds = 10                    # 0 to 9, or a text such as "100-104"
    eval_episodes = 100           # greedy ones after training
    total_steps = 100_000         # of every run; where it is left out, the preset's
    imports = ["my_envs"]         # modules that register environments, installed or in the current folder

    agents = ["ppo", "a2c"]       # names of algorithms or module:Class, or a table of each:
    [agents.ppo-wide]
    algo = "ppo"                  # where it is not the name; "module:Class" of your own
    preset = "none"
    hidden_sizes = [256, 256]     # any hyperparameter
    after = "ppo"                 # begin with the network of that agent's run with the same environment and seed

    envs = ["CartPole-v1"]        # ids, or a table of each:
    [envs."Pendulum-v1"]
    total_steps = 200_000
    env_kwargs = { g = 9.81 }
    gamma = 0.9                   # hyperparameters of every agent there

In the place of `algo` an agent may have `command`, a list of words, for what is none of rlcore, see `Cell.command`.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from rlcore.agents import find_agent
from rlcore.agents.config import check_names, check_type, choice_word, field_types, inner_type
from rlcore.envs.make import find_spec, import_module
from rlcore.errors import UsageError, did_you_mean, shown
from rlcore.runs.settings import from_toml
from rlcore.storage.toml import check_values, read_toml
from rlcore.suites import shipped_suites

MOST_SEEDS = 10_000
OF_RUNS = {"total_steps": int, "preset": str}  # what a suite, an agent or an environment says of its runs
OF_SUITES = {
    "seeds": int | str | list, "eval_episodes": int, "imports": list, "agents": list | dict, "envs": list | dict,
}  # fmt: skip
NO_HYPERPARAMETERS = (*OF_RUNS, "algo", "command", "after", "env_kwargs")
NAME = re.compile(r"[\w.+-]{1,80}")  # of an agent: it is also that of a folder


@dataclass(frozen=True)
class Cell:
    """One run of a bench.

    Attributes:
        agent: the name that it is compared under.
        env_id: of the environment.
        seed: of the run.
        command: how it is run, without the folder: `rlcore train` with all its flags; for an agent that is none of
            rlcore its own command, with ENV_ID --seed S [--total-steps K] [--eval-episodes K]. Such a command is given
            `--out FOLDER` and must write FOLDER/result.json with `returns`, and may add `steps`, `seconds`, `curve`,
            `hyperparameters` and `machine`, each as in `rlcore.runs.results.Result`.
        folder: of its run, as a path from the bench.
        after: that of the run whose network it begins with, which must end before.
    """

    agent: str
    env_id: str
    seed: int
    command: tuple[str, ...]
    folder: Path
    after: Path | None = None

    @property
    def is_own(self) -> bool:
        """Whether rlcore runs it."""
        return self.command[1:3] == ("-m", "rlcore")


def read_suite(name: str | Path) -> dict[str, Any]:
    """A suite by its name, or out of a file; a UsageError tells what cannot be read."""
    if str(name) in shipped_suites():
        return tomllib.loads(resources.files("rlcore.suites").joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    if not Path(name).exists():
        near, known = did_you_mean(str(name), shipped_suites()), ", ".join(shipped_suites())
        raise UsageError(f"SUITE is {name}, but there is no such file, and it is none of rlcore's{near}: {known}")
    suite = read_toml(Path(name), "a suite")
    check_values(suite, str(name), "a suite")
    return suite


def completed(suite: dict[str, Any]) -> dict[str, Any]:
    """A suite with its agents and environments as tables and its seeds as a list, checked.

    Raises:
        UsageError: for what it lacks, an unknown entry, agent, environment or hyperparameter, or a value out of range.
    """
    for name, value in suite.items():
        if name not in OF_SUITES | OF_RUNS:
            raise UsageError(f"'{name}' is no entry of a suite{did_you_mean(name, [*OF_SUITES, *OF_RUNS])}")
        kind = (OF_SUITES | OF_RUNS)[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{name} of the suite is {shown(value)}, but must be {_words(kind)}")
    for name in suite.get("imports", []):
        import_module(str(name))
    suite = tabled(suite)
    if suite["eval_episodes"] < 1:
        raise UsageError(f"eval_episodes is {suite['eval_episodes']}, but a bench needs at least 1 to compare by")
    for name, agent in suite["agents"].items():
        _check_agent(name, agent, suite["envs"])
        _check_after(name, suite["agents"])
    for env_id, env in suite["envs"].items():
        if not isinstance(env.get("env_kwargs", {}), dict):
            raise UsageError(f"env_kwargs of {env_id} is {shown(env['env_kwargs'])}, but must be a table")
        find_spec(env_id)
    if len({_folder_of(env_id) for env_id in suite["envs"]}) < len(suite["envs"]):
        raise UsageError(f"the environments {', '.join(suite['envs'])} would have the same folders")
    return suite


def tabled(suite: dict[str, Any]) -> dict[str, Any]:
    """A suite with its agents and environments as tables and its seeds as a list; nothing is imported."""
    tables = {kind: _tables(kind, suite.get(kind, [])) for kind in ("agents", "envs")}
    return {"eval_episodes": 100, "imports": [], **suite, **tables, "seeds": seeds_of(suite.get("seeds", 10))}


def _words(kind: Any) -> str:
    words = {int: "a whole number", str: "a text", list: "a list", list | dict: "a list of names or a table"}
    return words.get(kind, 'a whole number or a text such as "100-104"')


def _tables(kind: str, value: Any) -> dict[str, dict[str, Any]]:
    """Agents or environments, each with what is said of it."""
    named = _agent if kind == "agents" else lambda env_id: (env_id, {})
    tables = value if isinstance(value, dict) else dict(named(str(name)) for name in value)
    if not tables:
        raise UsageError(f"the suite has no {kind}; it needs at least one")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{kind}.{name} is {shown(table)}, but must be a table")
        for key, expected in OF_RUNS.items():
            if key in table and (not isinstance(table[key], expected) or isinstance(table[key], bool)):
                raise UsageError(f"{key} of {name} is {shown(table[key])}, but must be {_words(expected)}")
        if table.get("total_steps", 1) < 1:
            raise UsageError(f"total_steps of {name} is {table['total_steps']}, but must be at least 1")
    return tables


def _agent(name: str) -> tuple[str, dict[str, Any]]:
    """The table of an agent of a list; "module:Class" has its class's name."""
    module, _, own = name.rpartition(":")
    return (own.lower(), {"algo": name}) if module else (name, {})


def seeds_of(value: Any) -> list[int]:
    """Seeds from a number of them, or from "first-last"."""
    if isinstance(value, list) and all(type(seed) is int for seed in value):
        return value
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", str(value).strip())
    if not match:
        raise UsageError(f'seeds is {shown(value)}, but must be a whole number or a text such as "100-104"')
    first, last = (0, int(match[1]) - 1) if match[2] is None else (int(match[1]), int(match[2]))
    if not 1 <= last - first + 1 <= MOST_SEEDS:
        raise UsageError(f"seeds is {shown(value)}, but must be from 1 to {MOST_SEEDS:,} of them")
    return list(range(first, last + 1))


def _check_agent(name: str, table: dict[str, Any], envs: dict[str, dict[str, Any]]) -> None:
    """Refuse an agent that does not exist, and hyperparameters that it has not, or not of that type."""
    if not NAME.fullmatch(name):
        raise UsageError(f"agents.{shown(name)} may only have letters, digits and . + - _ in its name")
    if "command" in table:
        words = table["command"]
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise UsageError(f"command of {name} is {shown(words)}, but must be a list of words")
        return
    config = find_agent(table.get("algo", name)).Config
    for values in (table, *envs.values()):
        _typed(config, values)


def _check_after(name: str, agents: dict[str, dict[str, Any]]) -> None:
    """Refuse an agent that would have to wait for one that is not there, or for itself."""
    seen, after = [name], agents[name].get("after")
    while after is not None:
        if not isinstance(after, str) or after not in agents:
            raise UsageError(f"after of {seen[-1]} is {shown(after)}, but may be one of {', '.join(agents)}")
        if after in seen:
            raise UsageError(f"after of {seen[-1]} is '{after}', which itself waits for {seen[-1]}")
        seen.append(after)
        after = agents[after].get("after")


def _typed(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters in a table, as their types."""
    own = {name: v for name, v in values.items() if name not in NO_HYPERPARAMETERS}
    check_names(config, own)
    kinds = field_types(config)
    return {name: check_type(name, value, kinds[name]) for name, value in from_toml(own).items()}


def cells_of(suite: dict[str, Any]) -> Iterator[Cell]:
    """The runs of a suite that is `completed`: all agents and environments with the first seed, then with the next."""
    pairs = [
        (env_id, name, agent.get("after"), *(_foreign if "command" in agent else _own)(name, agent, suite, env))
        for env_id, env in suite["envs"].items()
        for name, agent in suite["agents"].items()
    ]
    for seed in suite["seeds"]:
        for env_id, name, after, head, flags in pairs:
            folder, before = (Path(_folder_of(env_id), of, f"seed-{seed}") if of else None for of in (name, after))
            yield Cell(name, env_id, seed, (*head, env_id, f"--seed={seed}", *flags), folder, before)


def _folder_of(env_id: str) -> str:
    return re.sub(r"[^\w.+-]", "-", env_id)


def _own(
    name: str, table: dict[str, Any], suite: dict[str, Any], env: dict[str, Any]
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The words of a command before the environment, and those behind it, of an agent of rlcore."""
    algo = table.get("algo", name)
    imports, config = [*suite["imports"], *algo.split(":")[:-1]], find_agent(algo).Config
    kinds, runs = field_types(config), _of_runs(suite, table, env)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in runs.items()]
    flags += [f"--eval-episodes={suite['eval_episodes']}", *(f"--import={module}" for module in imports)]
    for key, value in {**_typed(config, table), **_typed(config, env)}.items():
        flags.append(_flag(key.replace("_", "-"), value, is_switch=inner_type(kinds[key]) is bool))
    for key, value in env.get("env_kwargs", {}).items():
        flags.append(f"--env-arg={key}={tomli_w.dumps({'x': value}).removeprefix('x = ').strip()}")
    return [sys.executable, "-m", "rlcore", "train", algo], [*flags, "--no-progress"]


def _of_runs(*tables: dict[str, Any]) -> dict[str, Any]:
    """What is said of runs, later tables before earlier ones."""
    return {key: table[key] for table in tables for key in OF_RUNS if key in table}


def _flag(name: str, value: Any, is_switch: bool) -> str:
    if is_switch and value is not None:
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, tuple):
        return f"--{name}={','.join(map(str, value))}"
    return f"--{name}={'none' if value is None else choice_word(value)}"


def _foreign(
    name: str, table: dict[str, Any], suite: dict[str, Any], env: dict[str, Any]
) -> tuple[list[str], list[str]]:  # fmt: skip
    """As `_own`, of an agent that has a command."""
    runs = _of_runs(suite, table, env)
    flags = [f"--total-steps={runs['total_steps']}"] if "total_steps" in runs else []
    return table["command"], [*flags, f"--eval-episodes={suite['eval_episodes']}"]
