"""Native tasks made of tokens: a prompt is given, an episode is the response, and a verifier says whether it is right.

| id | prompt | response | a step of reasoning |
| --- | --- | --- | --- |
| rlcore/Addition-v0 | 37+58= | 5190, from the last column on its digit and carry | a column |
| rlcore/Sort-v0 | 4192> | 1249 | an element |
| rlcore/Copy-v0 | 4192> | 4192 | an element |
| rlcore/Reverse-v0 | 4192> | 2914 | an element |
| rlcore/CountTo-v0 | 4 | 1 2 3 4 | a number |

The observation is the text so far, an action its next token, and with the end token or the last place the episode is
over. Of the prompts one in five is held out, for evaluation: `prompts="held_out"`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlcore.envs.native import NativeTask
from rlcore.errors import UsageError, did_you_mean, shown
from rlcore.spaces import Field
from rlcore.tracing import Constant

PAD, END = 0, 1  # the tokens that every vocabulary begins with
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
REWARDS, PROMPTS = ("outcome", "process"), ("train", "held_out", "all")
HELD_OUT = 5  # one prompt in so many


class TextTask(NativeTask):
    """A task made of tokens.

    The reward is 1 at the end where the whole response, end token included, is right, else 0, so that a mean return is
    the accuracy. With `rewards="process"` each step of the reasoning has a reward beside it, 1 where it is right, at
    its last token, and the field `step_ends` says which tokens these are; the outcome comes at the end as before.

    Observations are a Dict of `prompt [P]`, padded in front, `response [R]`, padded behind, and of both one after the
    other `mask [P + R]`, 1 where a token stands, and `positions [P + R]`, counted from the first. The state is prompt,
    response, the right response `[R]`, tokens in the response, and whether the verifier errs.

    Attributes:
        vocabulary: the tokens as texts, by id.
        prompt_length, response_length: P and R, the most tokens that either has.
        steps: `[R]`, which step of the reasoning each token of a response belongs to, the end aside.

    Args:
        id: its gymnasium id.
        rewards: "outcome" or "process".
        noise: the probability that the verifier's outcome is the opposite of what is right.
        prompts: "train", "held_out" or "all".

    Raises:
        UsageError: for another value.
    """

    max_episode_steps = None
    arguments: tuple[str, ...] = ("rewards", "noise", "prompts")
    vocabulary: tuple[str, ...]
    prompt_length: int
    response_length: int

    def __init__(self, id: str, rewards: str = "outcome", noise: float = 0.0, prompts: str = "train"):
        for name, value, choices in (("rewards", rewards, REWARDS), ("prompts", prompts, PROMPTS)):
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise UsageError(f"{name} is {shown(value)}, but may be one of {', '.join(choices)}{hint}")
        if not isinstance(noise, int | float) or not 0 <= noise <= 1:
            raise UsageError(f"noise is {shown(noise)}, but must be a number from 0 to 1")
        self.id, self.rewards, self.noise, self.prompts = id, rewards, float(noise), prompts
        self.draws = self.problem_draws + 1
        P, R, V = self.prompt_length, self.response_length, len(self.vocabulary)
        self.longest = R
        self.observation_space = spaces.Dict(
            prompt=spaces.MultiDiscrete(np.full(P, V)), response=spaces.MultiDiscrete(np.full(R, V)),
            mask=spaces.MultiBinary(P + R), positions=spaces.Box(0, P + R - 1, (P + R,), np.float32),
        )  # fmt: skip
        self.action_space = spaces.Discrete(V)
        steps = torch.tensor(self.steps())
        self._steps = Constant(steps)
        self._closes = Constant(torch.cat([steps[1:] != steps[:-1], torch.ones(1, dtype=torch.bool)]))
        self.fields = [Field("step_ends", (), torch.bool)] if rewards == "process" else ()

    # What a task provides.

    problem_draws: int  # uniform numbers that a problem takes

    def problem(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts `[N, P]` and right responses `[N, R]`, with their end, padded, from `uniform [N, problem_draws]`."""
        raise NotImplementedError

    def steps(self) -> Sequence[int]:
        """Which step of the reasoning each place of a response belongs to; by default each to its own."""
        return range(self.response_length)

    # The environment.

    def initial(self, uniform: Tensor) -> Tensor:
        prompt, answer = (x.to(uniform.dtype) for x in self.problem(uniform[:, 1:]))
        errs = (uniform[:, :1] < self.noise).to(uniform.dtype)
        return torch.cat((prompt, torch.zeros_like(answer), answer, torch.zeros_like(errs), errs), 1)

    def observe(self, state: Tensor) -> dict[str, Tensor]:
        prompt, response, _, count, _ = self._parts(state)
        places = torch.arange(self.response_length, device=state.device)
        # Of bool, torch 2.13 cannot compile this.
        mask = torch.cat(((prompt != PAD).to(torch.int8), (places < count).to(torch.int8)), 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0).float()
        return {"prompt": prompt.long(), "response": response.long(), "mask": mask, "positions": positions}

    def extras(self, state: Tensor) -> dict[str, Tensor]:
        """At `state [N, S]`, `step_ends [N]`: whether the next token is the last of a step of the reasoning."""
        return {"step_ends": self._closing(state)} if self.fields else {}

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prompt, response, answer, count, errs = self._parts(state)
        closes = self._closing(state)
        places = torch.arange(self.response_length, device=state.device)
        response = torch.where(places == count, action.unsqueeze(1).to(state.dtype), response)
        agrees = response == answer
        count = count + 1
        ended = (action == END) | (count.squeeze(1) >= self.response_length)
        rewards = (ended & (agrees.all(1) != (errs.squeeze(1) > 0))).float()
        if self.fields:
            steps = self._steps.like(state)
            here = steps == ((places == count - 1) * steps).sum(1, keepdim=True)  # [N, R], of the step at hand
            rewards = rewards + (closes & (agrees | ~here).all(1)).float()
        return torch.cat((prompt, response, answer, count, errs), 1), rewards, ended

    def expert(self, state: Tensor) -> Tensor:
        """The token `[N]` int64 with which a right response goes on at `state [N, S]`."""
        _, _, answer, count, _ = self._parts(state)
        places = torch.arange(self.response_length, device=state.device)
        return ((places == count) * answer).sum(1).long()

    def _closing(self, state: Tensor) -> Tensor:
        """Whether the next token `[N]` is the last of a step, the end aside."""
        places = torch.arange(self.response_length, device=state.device)
        closes = ((places == self._parts(state)[3]) * self._closes.like(state)).sum(1)
        return (closes > 0) & (self.expert(state) > END)

    def _parts(self, state: Tensor) -> tuple[Tensor, ...]:
        R = self.response_length
        return state.split((self.prompt_length, R, R, 1, 1), 1)

    # Texts.

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, written as `decode` writes it; a UsageError names what is no token."""
        parts = text.split() if self._is_spaced else list(text)
        for part in parts:
            if part not in self.vocabulary[END + 1 :]:
                known = " ".join(self.vocabulary)
                raise UsageError(f"{part!r} in {shown(text)} is no token of {self.id}; it has {known}")
        return [self.vocabulary.index(part) for part in parts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as a text, without padding and end."""
        return (" " if self._is_spaced else "").join(self.vocabulary[int(x)] for x in tokens if int(x) > END)

    @property
    def _is_spaced(self) -> bool:
        return any(len(token) > 1 for token in self.vocabulary[END + 1 :])

    def text(self, state: Tensor) -> list[str]:
        """Prompt and response at `state [N, S]` for people, with a dot where the response has ended."""
        prompt, response, _, count, _ = self._parts(state)
        gap = " " if self._is_spaced else ""
        lines = []
        for asked, answered, n in zip(prompt.tolist(), response.tolist(), count.flatten().long().tolist(), strict=True):
            over = "." if n and (answered[n - 1] == END or n == self.response_length) else ""
            lines.append(f"{self.decode(asked)}{gap}{self.decode(answered[:n])}{over}")
        return lines

    def _symbols(self, uniform: Tensor, count: int) -> Tensor:
        """Numbers `[N, k]` from 0 to `count` − 1, all but the last free; that is drawn so that a weighted sum is
        divisible by 5 in prompts that are held out and in no other."""
        free = _whole(uniform, count)
        if self.prompts == "all":
            return free
        k = uniform.shape[1]
        weights = 1 + torch.arange(k - 1, 0, -1, device=uniform.device) % (HELD_OUT - 1)  # none is a multiple of 5
        rest = -(free[:, :-1] * weights).sum(1) % HELD_OUT  # what the last one is by 5 where the prompt is held out
        held = (count - 1 - rest).div(HELD_OUT, rounding_mode="floor") + 1  # so many numbers are
        if self.prompts == "held_out":
            last = rest + HELD_OUT * _whole(uniform[:, -1], held)
        else:  # skip those
            last = _whole(uniform[:, -1], count - held)
            last = last + torch.where(last >= rest, (last - rest).div(HELD_OUT - 1, rounding_mode="floor") + 1, 0)
        return torch.cat((free[:, :-1], last.unsqueeze(1)), 1)


def _whole(uniform: Tensor, count: int | Tensor) -> Tensor:
    """Whole numbers from 0 to `count` − 1 out of [0, 1]: a number just below 1 may have become 1 as a float32."""
    number = (uniform * count).floor().long()
    return number.clamp(max=count - 1) if isinstance(count, int) else torch.minimum(number, count - 1)


class Addition(TextTask):
    """Two numbers to add, written as one learns it: from the last column on, the digit of the sum and the carry. The
    last carry is the sum's first digit.

    Args:
        id: its gymnasium id.
        digits: of each number, from 1 on.
        options: as for `TextTask`.
    """

    arguments = ("digits", *TextTask.arguments)

    def __init__(self, id: str, digits: int = 2, **options: Any):
        self.digits = check_count("digits", digits, 1, 6)
        self.vocabulary = ("<pad>", "<end>", "+", "=", *LETTERS[:10])
        self.prompt_length, self.response_length, self.problem_draws = 2 * digits + 2, 2 * digits + 1, 2 * digits
        super().__init__(id, **options)

    def steps(self) -> Sequence[int]:
        return [place // 2 for place in range(self.response_length)]

    def problem(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        n, digits = self.digits, self._symbols(uniform, 10)
        plus, equals, end = (torch.full_like(digits[:, :1], token) for token in (2, 3, END))
        prompt = torch.cat((digits[:, :n] + 4, plus, digits[:, n:] + 4, equals), 1)
        answer, carry = [], torch.zeros_like(digits[:, 0])
        for column in reversed(range(n)):
            total = digits[:, column] + digits[:, n + column] + carry
            carry = (total >= 10).long()
            answer += [total - 10 * carry + 4, carry + 4]
        return prompt, torch.cat((torch.stack(answer, 1), end), 1)


class Rewriting(TextTask):
    """Symbols to write again in some order.

    Args:
        id: its gymnasium id.
        length: the most symbols of a prompt.
        shortest: the fewest; None: as many.
        symbols: how many there are to choose from, 5 to 62.
        options: as for `TextTask`.
    """

    arguments = ("length", "shortest", "symbols", *TextTask.arguments)

    def __init__(self, id: str, length: int = 4, shortest: int | None = None, symbols: int = 10, **options: Any):
        self.length, self.symbols = check_count("length", length, 1, 64), check_count("symbols", symbols, 5, 62)
        self.shortest = length if shortest is None else check_count("shortest", shortest, 1, length)
        self.vocabulary = ("<pad>", "<end>", ">", *LETTERS[:symbols])
        self.prompt_length, self.response_length, self.problem_draws = length + 1, length + 1, length + 1
        super().__init__(id, **options)

    def problem(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        k, count = self.length, self.shortest + _whole(uniform[:, :1], self.length - self.shortest + 1)  # [N, 1]
        places = torch.arange(k + 1, device=uniform.device)
        items = self._symbols(torch.where(places[:k] < k - count, 0.0, uniform[:, 1:]), self.symbols)
        there = places[:k] >= k - count
        prompt = torch.cat((torch.where(there, items + 3, PAD), torch.full_like(count, 2)), 1)
        order = torch.where(there, self.place(items, there, count), -1)  # of each item in the response
        written = (order.unsqueeze(2) == places) * (items + 3).unsqueeze(2)  # [N, k, k + 1]
        return prompt, written.sum(1) + torch.where(places == count, END, PAD)

    def place(self, items: Tensor, there: Tensor, count: Tensor) -> Tensor:
        """Where each of `items [N, k]` that is `there` stands in the response, of `count [N, 1]` from 0 on."""
        raise NotImplementedError


class Copy(Rewriting):
    """The symbols as they stand."""

    def place(self, items: Tensor, there: Tensor, count: Tensor) -> Tensor:
        return there.long().cumsum(1) - 1


class Reverse(Rewriting):
    """The symbols from the last to the first."""

    def place(self, items: Tensor, there: Tensor, count: Tensor) -> Tensor:
        return count - there.long().cumsum(1)


class Sort(Rewriting):
    """The symbols from the smallest on."""

    def place(self, items: Tensor, there: Tensor, count: Tensor) -> Tensor:
        places = torch.arange(items.shape[1], device=items.device)
        mine, other = items.unsqueeze(2), items.unsqueeze(1)  # [N, k, 1], [N, 1, k]
        before = (other < mine) | (other == mine) & (places < places.unsqueeze(1))
        return (before & there.unsqueeze(1)).sum(2)


class CountTo(TextTask):
    """A number, each of which is a token, to count to, from 1 on.

    Args:
        id: its gymnasium id.
        highest: the largest number of a prompt, from 5 on.
        options: as for `TextTask`.
    """

    arguments = ("highest", *TextTask.arguments)
    problem_draws = 1

    def __init__(self, id: str, highest: int = 10, **options: Any):
        self.highest = check_count("highest", highest, 5, 100)
        self.vocabulary = ("<pad>", "<end>", *(f"{n}" for n in range(1, highest + 1)))
        self.prompt_length, self.response_length = 1, highest + 1
        super().__init__(id, **options)

    def problem(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        asked = self._symbols(uniform, self.highest) + 1  # [N, 1]
        numbers = torch.arange(1, self.highest + 2, device=uniform.device)
        end = torch.where(numbers == asked + 1, END, PAD)
        return asked + END, torch.where(numbers <= asked, numbers + END, end)


def check_count(name: str, value: int, low: int, high: int) -> int:
    """A whole number in these bounds, or a UsageError."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} is {shown(value)}, but must be a whole number from {low} to {high}")
    return value


TEXT_TASKS: tuple[TextTask, ...] = (
    Addition("rlcore/Addition-v0"),
    Sort("rlcore/Sort-v0"),
    Copy("rlcore/Copy-v0"),
    Reverse("rlcore/Reverse-v0"),
    CountTo("rlcore/CountTo-v0"),
)
