"""rlcore list."""

import dataclasses
import json

from rlcore.cli.flags import Parser, add_switch, shown, summary
from rlcore.presets import all_presets


def list_all(arguments: list[str]) -> int:
    """rlcore list"""
    parser = Parser(prog="rlcore list", description="List agents, presets and default hyperparameters.")
    add_switch(parser, "--json", "print it as JSON")
    as_json, presets = parser.parse(arguments).json, all_presets()

    from rlcore.agents import AGENTS
    from rlcore.agents.config import field_help
    from rlcore.runs.suite import shipped_suites

    if as_json:
        listed = {}
        for name, agent in AGENTS.items():
            defaults = {field.name: field.default for field in dataclasses.fields(agent.Config)}
            listed[name] = {"summary": summary(agent), "presets": presets.get(name, {}), "defaults": defaults}
        print(json.dumps(listed))
        return 0
    for name, agent in AGENTS.items():
        helps = field_help(agent.Config)
        print(f"{name}: {summary(agent)}\n")
        print("  environments with presets (any other gymnasium id trains with the defaults):")
        for env_id, preset in presets.get(name, {}).items():
            rest = ", ".join(f"{k} {shown(v)}" for k, v in preset.items() if k != "total_steps")
            print(f"    {env_id}: {preset['total_steps']:,} steps; {rest}")
        print("\n  defaults:")
        for field in dataclasses.fields(agent.Config):
            print(f"    {field.name:<20} {shown(field.default):<10} {helps.get(field.name, '')}")
    print(f"suites of rlcore bench: {', '.join(shipped_suites())}")
    return 0
