"""Suites of benches, see `rlcore.runs.suite`."""

from importlib import resources


def shipped_suites() -> list[str]:
    """Names of the suites that come with rlcore."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))
