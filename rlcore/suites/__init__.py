"""Suites of benches, see `rlcore.runs.suite`."""
