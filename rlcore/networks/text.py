"""Policies over texts: a causal transformer that reads a prompt, then writes, and sees each token once.

prompt ─┐
        ├─ tokens, one after the other ─ transformer ─┬─ policy head ─> distribution of the next token
response┘          └─ keys and values ─┘              └─ value head

Acting reads the newest token, and keeps keys and values of those before; learning reads prompt and response at once,
and what is padding in front of a prompt belongs, to the transformer, to a text before it, at which it does not look.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.networks.actor_critic import Torso
from rlcore.networks.memory import Memory, RecurrentActorCritic
from rlcore.networks.transformer import Transformer
from rlcore.spaces import Field, Part, Sequences
from rlcore.tracing import is_recording, loop

TEXT = ("prompt", "response", "mask", "positions")  # the parts of an observation that is a text


def is_text(parts: Part | dict[str, Part]) -> bool:
    """Whether observations of such parts are texts, see `rlcore.envs.text`."""
    return isinstance(parts, dict) and tuple(sorted(parts)) == tuple(sorted(TEXT))


class TextTrunk(nn.Module):
    """Features `[B, H]` of the newest token of texts `[B, ...]`; stands where a MemoryTrunk does.

    Args:
        vocabulary: V, number of tokens.
        make_memory: makes a Memory from V.
    """

    def __init__(self, vocabulary: int, make_memory: Callable[[int], Memory]):
        super().__init__()
        self.vocabulary, self.memory = vocabulary, make_memory(vocabulary)
        self.features = self.memory.features
        self.names: dict[str, str] = {}  # in the policy's carry, of what the memory hands on

    def forward(self, obs: Sequences) -> Tensor:
        """Of rows that each stand alone, or of sequences that each are one episode from its first row on."""
        text = obs.obs
        if obs.length == 1:
            read = self._read(torch.cat([text["prompt"], text["response"]], 1), text["mask"])
            columns = torch.arange(len(read), device=read.device)
            newest = columns == (text["mask"] * columns).amax(1, keepdim=True)  # [B, C]
            return (read * newest.T.unsqueeze(2)).sum(0)
        prompt, response = (obs.by_sequence(text[name]) for name in ("prompt", "response"))  # [L, S, ...]
        P, before = prompt.shape[2], torch.arange(obs.length - 1, device=prompt.device)
        written = response[before + 1, :, before.clamp(max=response.shape[2] - 1)]  # [L - 1, S], newest of each row
        tokens = torch.cat([prompt[0], written.T], 1)  # [S, P + L - 1]
        mask = torch.cat([obs.by_sequence(text["mask"])[0, :, :P], torch.ones_like(written.T)], 1)
        return obs.by_row(self._read(tokens, mask)[P - 1 :])

    def _read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features `[C, S, H]` at each of the `tokens [S, C]`, of texts that begin where `mask [S, C]` does."""
        sizes = {} if isinstance(self.memory, Transformer) else self.memory.sizes
        carry = {name: torch.zeros(len(tokens), *shape, device=tokens.device) for name, shape in sizes.items()}
        return self.memory(self._one_hot(tokens.T), carry, _begins(mask.bool()).T)

    def step(self, obs: dict[str, Tensor], carry: dict[str, Tensor], first: Tensor | None) -> tuple[Tensor, dict]:
        """One row, as `MemoryTrunk.step`: the newest token, and where nothing is written yet, the prompt before it.
        Whose text that is, is seen by itself; `first [N]` may be None where everybody has read it."""
        prompt = obs["prompt"]
        count = obs["mask"][:, prompt.shape[1] :].long().sum(1)  # tokens written
        if first is not None and (is_recording() or (count == 0).any()):
            carry = self.read_first(obs, carry, count == 0)
        own = {part: carry[name] for name, part in self.names.items()}
        tokens = torch.cat([prompt[:, -1:], obs["response"]], 1)
        newest = (tokens * (torch.arange(tokens.shape[1], device=tokens.device) == count.unsqueeze(1))).sum(1)
        begins = (count == 0) & (obs["mask"][:, : prompt.shape[1]].sum(1) <= 1)  # a prompt of one token
        y, own = self.memory.row(self._one_hot(newest), own, begins)
        return y, {name: own[part] for name, part in self.names.items()}

    def read_first(self, obs: dict[str, Tensor], carry: dict[str, Tensor], who: Tensor) -> dict[str, Tensor]:
        """The policy's carry, where those `who [N]` begin have read all but the last token of their prompts."""
        P = obs["prompt"].shape[1]
        if P == 1:
            return carry

        def read(carry: dict[str, Tensor], column: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return self.memory.row(self._one_hot(column["tokens"]), carry, column["first"])[1], {}

        own = {part: carry[name] for name, part in self.names.items()}
        columns = {"tokens": obs["prompt"].T[:-1], "first": _begins(obs["mask"][:, :P].bool()).T[:-1]}
        after, _, _ = loop(read, own, columns)
        wide = {part: who.view(-1, *(1 for _ in x.shape[1:])) for part, x in own.items()}
        return {**carry, **{name: torch.where(wide[part], after[part], own[part]) for name, part in self.names.items()}}

    def _one_hot(self, tokens: Tensor) -> Tensor:
        return (tokens.unsqueeze(-1) == torch.arange(self.vocabulary, device=tokens.device)).float()


def _begins(there: Tensor) -> Tensor:
    """The first column in which something is `there [S, C]`."""
    return there & (there.long().cumsum(1) == 1)


class TextActorCritic(RecurrentActorCritic):
    """An ActorCritic over texts; arguments as for `RecurrentActorCritic`. An observation holds all that was written, so
    what is remembered need not be stored."""

    parts: Any
    reads_first = True

    def _parts_seen(self) -> dict[str, Part]:
        return {name: self.parts[name] for name in TEXT[:2]}

    def _trunk(self, torso: Torso | str, hidden_sizes: Sequence[int], activation: str, precision: str) -> TextTrunk:
        return TextTrunk(self.parts["prompt"].categories[0], self.make_memory)

    def fields(self) -> list[Field]:
        return []

    def read_first(self, obs: dict[str, Tensor], carry: dict[str, Tensor]) -> dict[str, Tensor]:
        everybody = torch.ones_like(obs["prompt"][:, 0], dtype=torch.bool)
        for trunk in [self.actor] if self.shared else [self.actor, self.critic]:
            carry = trunk.read_first(obs, carry, everybody)
        return carry
