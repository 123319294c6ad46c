"""Ranges and what does not enter programs are declared beside the field, also by agents from outside the package."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from rlcore.agents import AGENTS, PPO, Config, PPOConfig
from rlcore.agents.config import Apart, Count, Range, Search, enters_programs, field_help, field_metadata, field_types
from rlcore.errors import UsageError


@dataclass(frozen=True)
class ForeignConfig(PPOConfig):
    temperature: Annotated[float, Range(0, 5, closed=False)] = 1.0  # of the weights
    widths: tuple[Annotated[int, Range(2, 8)], ...] = (4,)  # of something
    delay: Count | None = None  # iterations; none: no delay
    note: Apart[str] = "#1"  # for the reader
    patience: Apart[Annotated[int | None, Range(3)]] = None  # seconds
    mood: Annotated[
        Literal["good", "bad"],
        "metadata of somebody else",
    ] = "good"  # over several lines
    beta: float = 1.0  # without a range
    kl_coef: float = 1.0  # named as one of rlcore's, which has a range


class Foreign(PPO):
    Config = ForeignConfig


@pytest.mark.parametrize(
    "values, sentence",
    [
        (dict(temperature=0), "temperature is 0.0, but must be more than 0 and at most 5"),
        (dict(temperature=5.5), "temperature is 5.5, but must be more than 0 and at most 5"),
        (dict(temperature=float("nan")), "temperature is nan, but must be more than 0 and at most 5"),
        (dict(widths=[4, 9]), "widths is (4, 9), but must be at least 2 and at most 8"),
        (dict(delay=0), "delay is 0, but must be at least 1 and at most 2,147,483,647"),
        (dict(delay=0.5), "delay is 0.5, but must be a whole number or none"),
        (dict(patience=2), "patience is 2, but must be at least 3"),
        (dict(gamma=2), "gamma is 2.0, but must be at least 0 and at most 1"),
    ],
)
def test_a_foreign_range_is_kept_in_the_words_of_rlcores_own(values, sentence):
    with pytest.raises(UsageError) as refused:
        ForeignConfig(**values)
    assert str(refused.value) == sentence


def test_within_its_range_or_without_one_a_value_is_accepted():
    values = dict(temperature=5.0, widths=(2, 8), delay=1, patience=3, beta=-1e300)
    config = ForeignConfig(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert ForeignConfig(delay=None, patience=None).delay is None
    for kind in (PPOConfig, ForeignConfig):  # which declares the field anew, and keeps its range
        with pytest.raises(UsageError, match=r"^kl_coef is -1\.0"):
            kind(kl_coef=-1.0)


def test_what_stands_apart_does_not_enter_programs():
    names = enters_programs(ForeignConfig)
    assert {"temperature", "widths", "delay", "beta", "gamma"} <= set(names)
    assert not {"note", "patience", "seed", "learning_rate", "device"} & set(names)


def test_types_and_comments_of_annotated_fields():
    kinds, helps = field_types(ForeignConfig), field_help(ForeignConfig)
    assert kinds["temperature"] is float and kinds["widths"] == tuple[int, ...] and kinds["delay"] == int | None
    assert kinds["note"] is str and kinds["patience"] == int | None and kinds["mood"] == Literal["good", "bad"]
    assert helps["temperature"] == "of the weights" and helps["note"] == "for the reader"
    assert helps["mood"] == "over several lines" and helps["beta"] == "without a range"


@pytest.mark.parametrize("agent", AGENTS.values(), ids=list(AGENTS))
def test_what_an_agent_of_rlcore_declares_anew_keeps_range_and_mark(agent):
    base, own = field_metadata(Config), field_metadata(agent.Config)

    def kept(marks):
        return [mark for mark in marks if not isinstance(mark, Search)]

    assert all(kept(own[name]) == kept(base[name]) for name in own.keys() & base.keys())
    assert base.keys() - own.keys() <= {"whole_episodes"}  # for some it is no choice
    apart = {field.name for field in dataclasses.fields(agent.Config)} - set(enters_programs(agent.Config))
    expected = {"seed", "learning_rate", "anneal_lr", "compile", "device", "backend", "env_timeout", "on_env_error"}
    files = {"init", "reference", "demonstrations", "preferences", "reward_model"}
    assert apart - {*files, "reference_every", "comparisons", "held_out"} == expected
