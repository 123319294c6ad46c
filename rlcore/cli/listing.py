"""rlcore list: what there is, in short, and in detail by a word."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rlcore.cli.flags import Parser, add_switch, agent_class, default_values, say, shown, summaries, summary
from rlcore.errors import UsageError, did_you_mean
from rlcore.presets import all_presets, find_preset
from rlcore.suites import shipped_suites

if TYPE_CHECKING:
    from rlcore.agents import Agent

MOST_OF_A_FAMILY = 20  # environments, of which more are one line where no word is given
NEEDS = {"box2d": "Box2D", "mujoco": "mujoco", "phys2d": "jax", "tabular": "jax"}  # gymnasium's families: a module each


def list_all(arguments: list[str]) -> int:
    """rlcore list | rlcore list presets|agents|envs [WORD] | rlcore list ALGO [WORD]"""
    usage = "rlcore list [presets|agents|envs|ALGO] [WORD] [--json]"
    parser = Parser(prog="rlcore list", usage=usage, description="List algorithms, presets and environments.")
    what = "presets, agents, envs, or an algorithm, in detail; none: an overview"
    parser.add_argument("what", metavar="WHAT", nargs="?", help=what)
    parser.add_argument("word", metavar="WORD", nargs="?", help="only what has this in its name, in any case")
    add_switch(parser, "--json", "print it as JSON")
    values = vars(parser.parse(arguments))
    what, word = values.get("what"), values.get("word")
    if what is None and not values["json"]:
        _tell_overview()
        return 0
    listed, tell = KINDS[what or "agents"](word) if what in {None, *KINDS} else _algorithm(what, word)
    print(json.dumps(listed)) if values["json"] else tell(listed)
    return 0


def _tell_overview() -> None:
    told, count = summaries(), sum(map(len, all_presets().values()))
    print("algorithms, for rlcore train ALGO ENV_ID:")
    for name, text in told.items():
        say(f"  {name:<12}{text}", 14)
    print("\nmore of them:")
    for line in (
        "  rlcore list ALGO            its presets and defaults",
        "  rlcore list agents [WORD]   what each has of its own",
        f"  rlcore list presets [WORD]  {count} sets of tuned hyperparameters",
        "  rlcore list envs [WORD]     environments installed here",
    ):
        say(line, 30)
    print()
    say(f"suites of rlcore bench: {', '.join(shipped_suites())}")


def _has(word: str | None, *texts: str) -> bool:
    return word is None or any(word.lower() in text.lower() for text in texts)


def _refuse_nothing(found: Any, kind: str, word: str | None, known: Iterable[str]) -> None:
    if not found:
        near = did_you_mean(word or "", dict.fromkeys(known))
        raise UsageError(f"no {kind} has '{word}' in its name{near}; rlcore list {kind}s names all")


# Agents.


def _described(agents: "dict[str, type[Agent]]") -> dict[str, Any]:
    presets = all_presets()
    return {
        name: {"summary": summary(agent), "presets": presets.get(name, {}), "defaults": default_values(agent.Config)}
        for name, agent in agents.items()
    }


def _agents(word: str | None) -> tuple[dict[str, Any], Any]:
    from rlcore.agents import AGENTS

    found = {name: agent for name, agent in AGENTS.items() if _has(word, name, summary(agent))}
    _refuse_nothing(found, "agent", word, AGENTS)
    return _described(found), lambda listed: _tell_agents(found, listed)


def _tell_agents(agents: "dict[str, type[Agent]]", listed: dict[str, Any]) -> None:
    from rlcore.agents.config import Config

    common = default_values(Config)
    for name, agent in agents.items():
        say(f"{name}: {listed[name]['summary']}")
        own = [f"{field} {shown(x)}" for field, x in default_values(agent.Config).items() if field not in common]
        say(f"  of its own: {', '.join(own)}", 4)
        say(f"  presets: {', '.join(listed[name]['presets']) or 'none'}", 4)


def _algorithm(name: str, word: str | None) -> tuple[dict[str, Any], Any]:
    """An agent by its name, or module:Class; a word chooses among its presets and hyperparameters."""
    known = [] if ":" in name else [*KINDS, *summaries()]
    if known and name not in known:
        raise UsageError(f"'{name}' is nothing to list{did_you_mean(name, known)}; there are {', '.join(known)}")
    agent = agent_class(name)
    listed = _described({agent.__name__.lower(): agent})
    (entry,) = listed.values()
    fields = entry["defaults"]
    entry["presets"] = {env_id: preset for env_id, preset in entry["presets"].items() if _is_for(word, env_id)}
    entry["defaults"] = {field: value for field, value in fields.items() if _has(word, field)}
    if word and not entry["presets"] and not entry["defaults"]:
        near = did_you_mean(word, [*fields, *all_presets().get(name, {})])
        raise UsageError(f"neither a preset nor a hyperparameter of {name} has '{word}' in its name{near}")
    return listed, lambda listed: _tell_algorithm(agent, listed)


def _tell_algorithm(agent: "type[Agent]", listed: dict[str, Any]) -> None:
    from rlcore.agents.config import field_help, grouped

    ((name, entry),) = listed.items()
    helps, defaults = field_help(agent.Config), entry["defaults"]
    say(f"{name}: {entry['summary']}")
    if entry["presets"]:
        print()
        say("environments with presets (any other gymnasium id trains with the defaults):", 0)
        _tell_presets(entry["presets"])
    for group, names in grouped(agent.Config).items():
        kept = [field for field in names if field in defaults]
        if kept:
            print(f"\ndefaults, {group}:")
        for field in kept:
            say(f"  {field:<20} {shown(defaults[field]):<10} {helps.get(field, '')}", 34)


# Presets.


def _is_for(word: str | None, env_id: str) -> bool:
    return _has(word, env_id) or fnmatchcase(word, env_id)


def _presets(word: str | None) -> tuple[dict[str, Any], Any]:
    presets = all_presets()
    found = {
        algo: {env_id: preset for env_id, preset in by_env.items() if _has(word, algo) or _is_for(word, env_id)}
        for algo, by_env in presets.items()
    }
    found = {algo: by_env for algo, by_env in found.items() if by_env}
    _refuse_nothing(found, "preset", word, [*presets, *(env_id for by_env in presets.values() for env_id in by_env)])
    return found, _tell_all_presets


def _tell_all_presets(listed: dict[str, Any]) -> None:
    for algo, by_env in listed.items():
        print(f"{algo}:")
        _tell_presets(by_env)


def _tell_presets(by_env: dict[str, Any]) -> None:
    for env_id, preset in by_env.items():
        rest = ", ".join(f"{k} {shown(v)}" for k, v in preset.items() if k != "total_steps")
        say(f"  {env_id}: {preset['total_steps']:,} steps; {rest}", 4)


# Environments.


@dataclasses.dataclass
class Environment:
    """One of gymnasium's registry: the family that it is told of in, whether rlcore has it in tensors, and the
    algorithms that have a preset for it."""

    family: str
    native: bool
    presets: list[str]


def _envs(word: str | None) -> tuple[dict[str, Any], Any]:
    import gymnasium

    from rlcore.envs.make import register_families
    from rlcore.envs.native import NATIVE_TASKS

    register_families()
    specs = [spec for spec in gymnasium.registry.values() if _is_installed(spec)]
    newest = {(spec.namespace, spec.name): spec.version or 0 for spec in sorted(specs, key=lambda s: s.version or 0)}
    found = {}
    for spec in specs:
        family, is_newest = _family(spec), (spec.version or 0) == newest[spec.namespace, spec.name]
        if _has(word, spec.id, family) and (word or is_newest):
            presets = [algo for algo in all_presets() if find_preset(algo, spec.id)]
            found[spec.id] = Environment(family, spec.id in NATIVE_TASKS, presets)
    _refuse_nothing(found, "env", word, (spec.id for spec in specs))
    listed = {env_id: dataclasses.asdict(env) for env_id, env in found.items()}
    return listed, lambda listed: _tell_envs(listed, word is not None)


def _family(spec: Any) -> str:
    """The namespace of an id, or the folder of gymnasium, or the module that the environment is of."""
    if spec.namespace:
        return spec.namespace
    entry = spec.entry_point or spec.vector_entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else entry.__module__
    return module.removeprefix("gymnasium.envs.").partition(".")[0]


def _is_installed(spec: Any) -> bool:
    """Whether what the environment needs is here; what gymnasium has as a function raises that it is gone."""
    entry = spec.entry_point or spec.vector_entry_point
    if callable(entry) and entry.__module__.startswith("gymnasium.envs"):
        return False
    needed = NEEDS.get(_family(spec))
    return needed is None or importlib.util.find_spec(needed) is not None


def _tell_envs(listed: dict[str, Any], whole: bool) -> None:
    families: dict[str, list[str]] = {}
    for env_id, env in listed.items():
        families.setdefault(env["family"], []).append(env_id)
    say("native: rlcore has it in tensors, which is compiled with the agent; presets: for these algorithms", 0)
    print()
    for family, ids in families.items():
        if len(ids) > MOST_OF_A_FAMILY and not whole:
            env = listed[ids[0]]
            say(f"{family}: {len(ids)}, such as {ids[0]}{_told(env)}; rlcore list envs {family} names all")
            continue
        print(f"{family}:")
        width = max(map(len, ids)) + 2
        for env_id in ids:
            say(f"  {env_id:<{width}}{_told(listed[env_id]).removeprefix(', ')}".rstrip(), 4)


def _told(env: dict[str, Any]) -> str:
    native = ", native" if env["native"] else ""
    return native + (f", presets: {', '.join(env['presets'])}" if env["presets"] else "")


KINDS = {"presets": _presets, "agents": _agents, "envs": _envs}
