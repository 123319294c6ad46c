"""Agents train as those of commit 2e745ff did: the same episodes, and weights and metrics within rounding."""

from pathlib import Path

import pytest

from tests.agents.trajectories import CASES, COMPILED, distances, play, read, versions

FROZEN, MADE_WITH = read(Path(__file__).with_name("trajectories.npz"))


def compare(name, compile):
    expected = FROZEN[name]
    note = f"{name}, made with {MADE_WITH}, played with {versions()}"
    try:
        found = distances(expected, play(name, compile))
    except AssertionError as error:
        error.add_note(note)
        raise
    beyond = {key: f"{x:.1e} > {expected['tolerances'][key]:.1e}" for key, x in found.items()
              if not x <= expected["tolerances"][key]}  # fmt: skip
    assert not beyond, note


def test_every_case_is_frozen():
    assert set(FROZEN) == set(CASES) and set(COMPILED) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_python_goes_the_way_it_went(name):
    compare(name, compile=False)


@pytest.mark.parametrize("name", CASES)
def test_recorded_operations_go_the_way_python_went(name):
    compare(name, compile="record")


@pytest.mark.parametrize("name", COMPILED)
def test_programs_for_the_compiler_go_the_way_python_went(name, not_compiled):
    compare(name, compile=True)
