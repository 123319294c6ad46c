"""Tokens per second of GRPO over texts, its rollout and its learning apart: rlcore, and TRL's GRPOTrainer, in one run.

    python benchmarks/speed_text.py                                  every technique, 3 repetitions of 20 s
    python benchmarks/speed_text.py --techniques python trl --seconds 5 --repetitions 1
    python benchmarks/speed_text.py --techniques                     the losses of both alone

The work is that of rlcore/presets/text.toml for rlcore/Addition-v0, from random weights on: 256 responses of at most 5
tokens in groups of 8, 2 epochs × 2 minibatches, a KL penalty to the first policy. As in speed.py, each repetition is a
fresh process that trains, unmeasured, for a few iterations and then, measured, for some seconds; the techniques
alternate and ratios are taken within a repetition. Every process has one thread and stays on one core. A token is one
of a response, its end among them: what stands behind the end is not counted. Random weights write hardly any right
answer, so what is timed is work, not progress. Where others use the core too, compare tokens per second of `cpu`, which
is the processor's time, not the clock's; the result file says which share of the core each process had.

Techniques:
    python           rlcore as Python
    compiled         rlcore with everything compiled
    trl              TRL on a random GPT-NeoX of the sizes of rlcore's transformer
    trl-compiled     the same with its option torch_compile

TRL logs, saves and evaluates nothing, keeps activations, and has PyTorch's own attention, which is faster here than the
eager one. Its rollout is generation and reward; all else, the log-probabilities of the old policy and of the reference
among it, is learning, as in rlcore. `DIFFERS` says what is not the same, and the result file repeats it. That file also
has TRL's losses of one small batch of random numbers beside rlcore's.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import machine
from speed import WARM_UP

ENV, PROMPTS = "rlcore/Addition-v0", 8192
PEERS: dict[str, dict[str, Any]] = {"trl": {}, "trl-compiled": dict(torch_compile=True)}
WAYS: dict[str, dict[str, Any]] = {"python": dict(compile=False), "compiled": dict(compile=True)}
TECHNIQUES = [*PEERS, *WAYS]
BASES = ("trl", "trl-compiled", "python")  # what ratios are taken to
SECONDS = ("whole", "collect", "learn", "cpu")  # cpu: of the process, which others on the same core do not lengthen
LAYERS, HEADS, SIZE = 2, 4, 64  # of rlcore's transformer
LOSSES = {  # TRL's name and rlcore's length_norm; "by group": each group is a batch of its own
    "grpo": "episode",
    "dr_grpo": "constant",
    "bnpo": "batch",
    "dapo": "batch",
    "dapo by group": "token",
}
GROUPS, GROUP, LONGEST = 4, 4, 6  # of the batch on which losses are compared
SWITCHES = dict(clip_coef=0.2, kl_coef=0.04)
DIFFERS = (
    "rlcore keeps the log-probability of each token as it is drawn; TRL runs the old policy once more over all "
    "responses, as it does on every backend where a rollout is learned from more than once",
    "TRL draws its prompts from a list of texts and tokenises them anew in each iteration, and its reward is a Python "
    "function of lists of tokens; rlcore makes prompts and rewards as tensors",
    "a pass over prompt and response has 11 columns in TRL, which reads the last token too, and 10 in rlcore",
    "rlcore's transformer has a bias in the embedding and in the head, and a head for values, which GRPO leaves alone; "
    "the rest is GPT-NeoX's: rotary positions, layer norms in front, GELU, an embedding and a head of their own",
    "TRL divides by the unbiased standard deviation + 1e-4, rlcore by that of the population",
    "TRL's optimiser is AdamW, fused, without decay; rlcore's is Adam on one vector of parameters",
    "rlcore's minibatches are drawn anew in each epoch, TRL's once in each iteration",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--techniques", nargs="*", choices=TECHNIQUES, default=TECHNIQUES)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="that every process stays on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:  # empty caches: the first repetition compiles, the others load
        text = Path(folder) / "text.json"
        text.write_text(json.dumps(describe_text()))

        def process(technique: str, peer: str | None) -> Any:
            task = {"technique": technique, "text": str(text), "seconds": options.seconds, "core": options.core}
            compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"} if peer else {}
            return harness.worker(__file__, task, peer, threads=1, cache=f"{folder}/programs", **compiled)

        def measure(technique: str, _: int) -> dict[str, Any]:
            return process(technique, "trl" if technique in PEERS else None)

        rows = harness.alternate(options.techniques, options.repetitions, measure, told)
        losses = losses_beside(process("trl losses", "trl"), process("rlcore losses", None))
    report(rows, losses)


def describe_text() -> dict[str, Any]:
    """What TRL's processes, which have no rlcore, are told: the preset, the vocabulary, and prompts with the tokens of
    their right responses."""
    import torch

    from rlcore.envs.text import END, TEXT_TASKS
    from rlcore.presets import find_preset

    task = next(task for task in TEXT_TASKS if task.id == ENV)
    prompts, answers = task.problem(torch.rand(PROMPTS, task.problem_draws, generator=torch.Generator().manual_seed(1)))
    return {
        "work": {name: x for name, x in find_preset("grpo", ENV).items() if name != "total_steps"},
        "vocabulary": task.vocabulary, "end": END, "response_length": task.response_length,
        "prompts": [task.decode(prompt) for prompt in prompts], "answers": answers.tolist(),
    }  # fmt: skip


def told(row: dict[str, Any]) -> str:
    speeds = ", ".join(f"{name} {row['tokens'] / row['seconds'][name]:,.0f}" for name in SECONDS)
    return f"tokens/s: {speeds}; ready after {row['ready_seconds']:.1f} s"


def report(rows: dict[str, list[dict[str, Any]]], losses: dict[str, Any]) -> None:
    speeds = {
        name: {part: [row["tokens"] / row["seconds"][part] for row in own] for part in SECONDS}
        for name, own in rows.items()
    }
    bases = [name for name in BASES if name in rows]
    table = {name: kept(own, speeds[name], {base: speeds[base] for base in bases}) for name, own in rows.items()}
    for part in SECONDS if rows else ():
        heads = [f"tokens/s, {part}", "median", *(f"× {base}" for base in bases)]
        harness.table([heads, *([name, *told_of(row, part)] for name, row in table.items())])
    harness.table([["loss", "TRL", "rlcore", "gradients differ by"], *map(told_loss, losses, losses.values())])
    machine.write(
        f"speed_text_{ENV.split('/')[-1]}_1thread",
        {"algo": "grpo", "env_id": ENV, "threads": 1, "differs": DIFFERS, "techniques": table, "losses": losses},
    )


def kept(own: list[dict[str, Any]], speeds: dict[str, list[float]], bases: dict[str, Any]) -> dict[str, Any]:
    """What the result file has of a technique's repetitions, with ratios to the speeds of the `bases`."""
    cold, *warm = [row["ready_seconds"] for row in own]
    iterations, parts = sum(row["iterations"] for row in own), own[0]["seconds"]
    return {
        "tokens_per_second": {part: harness.with_median("value", speeds[part]) for part in SECONDS},
        "ratio": {
            base: {part: harness.with_median("value", harness.ratios(speeds[part], x[part])) for part in SECONDS}
            for base, x in bases.items()
        },
        "milliseconds_per_iteration": {
            part: 1000 * sum(row["seconds"][part] for row in own) / iterations for part in parts
        },
        "tokens_per_iteration": sum(row["tokens"] for row in own) / iterations,
        "share_of_the_core": [row["seconds"]["cpu"] / row["seconds"]["whole"] for row in own],
        "ready_seconds_cold": cold, "ready_seconds_warm": statistics.median(warm or [cold]),
        **{name: own[0][name] for name in ("parameters", "work", "versions")},
    }  # fmt: skip


def told_of(row: dict[str, Any], part: str) -> list[str]:
    ratios = [harness.spread(x[part]["value"]) for x in row["ratio"].values()]
    return [harness.spread(row["tokens_per_second"][part]["value"], ",.0f"), *ratios]


def told_loss(name: str, row: dict[str, Any]) -> list[str]:
    return [name, f"{row['trl']:.7f}", f"{row['rlcore']:.7f}", f"{row['gradients_differ_by']:.1e}"]


def losses_beside(trl: dict[str, Any], rlcore: dict[str, Any]) -> dict[str, Any]:
    """Each loss as TRL and as rlcore have it, and how far apart their gradients by log-probabilities are anywhere, as a
    share of the largest."""
    return {name: {"length_norm": norm, **beside(trl[name], rlcore[name])} for name, norm in LOSSES.items()}


def beside(trl: dict[str, Any], rlcore: dict[str, Any]) -> dict[str, float]:
    far = max(abs(a - b) for a, b in zip(trl["gradient"], rlcore["gradient"], strict=True))
    return {"trl": trl["loss"], "rlcore": rlcore["loss"], "gradients_differ_by": far / max(map(abs, trl["gradient"]))}


# In processes of their own.


def work(technique: str, text: str, seconds: float, core: int) -> dict[str, Any]:
    """One repetition of a technique, or the losses of one library."""
    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {core})
    known = json.loads(Path(text).read_text(encoding="utf-8"))
    if technique.endswith("losses"):
        return trl_losses(known) if technique.startswith("trl") else rlcore_losses()
    if technique in PEERS:
        return train_trl(known, seconds, **PEERS[technique])
    return train_rlcore(known, seconds, **WAYS[technique])


def train_rlcore(text: dict[str, Any], seconds: float, **how: Any) -> dict[str, Any]:
    import rlcore

    work = {**text["work"], **how}
    start = time.perf_counter()
    agent = rlcore.GRPO(ENV, seed=1, device="cpu", **work)
    iterations = agent.iterations(harness.FAR)
    for _ in range(WARM_UP):
        next(iterations)
    ready, cpu = time.perf_counter() - start, time.process_time()
    measured = harness.stretch(agent, functools.partial(next, iterations), seconds)
    parts = {"whole": measured.seconds, "cpu": time.process_time() - cpu}
    return {
        "tokens": measured.steps, "iterations": measured.calls, "ready_seconds": ready, "work": work,
        "seconds": {**parts, **{phase: measured.phases[phase] for phase in ("collect", "learn")}},
        "parameters": sum(p.numel() for p in agent.network.parameters()), "versions": machine.describe()["versions"],
    }  # fmt: skip


def train_trl(text: dict[str, Any], seconds: float, **how: Any) -> dict[str, Any]:
    from importlib import metadata

    work = {**trl_work(text["work"], text["response_length"]), **how}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(text, folder, **work)
        clock = trainer.clock = Clock(start, seconds)
        trainer.add_callback(at_ends(clock, work["num_iterations"] * work["steps_per_generation"]))
        trainer.train()
    return {
        **clock.measured(), "work": work, "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "versions": {name: metadata.version(name) for name in ("trl", "transformers", "accelerate", "torch", "numpy")},
    }  # fmt: skip


def trl_work(preset: dict[str, Any], response_length: int) -> dict[str, Any]:
    """The preset, and rlcore's defaults, in TRL's words."""
    minibatches = preset["num_minibatches"]
    return dict(
        per_device_train_batch_size=preset["num_envs"] // minibatches, steps_per_generation=minibatches,
        num_iterations=preset["update_epochs"], num_generations=preset["group_size"],
        max_completion_length=response_length, loss_type="grpo", beta=preset["kl_coef"], use_bias_correction_kl=False,
        learning_rate=preset["learning_rate"], lr_scheduler_type="constant", adam_epsilon=1e-5, max_grad_norm=0.5,
    )  # fmt: skip


def make_trainer(text: dict[str, Any], folder: str, **work: Any) -> Any:
    """A GRPOTrainer that tells its `clock`; its random model and the reference are read from `folder`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Trainer(GRPOTrainer):
        def _generate(self, prompts: Any) -> Any:
            with self.clock.timed("collect"):
                result = super()._generate(prompts)
            self.clock.counts["tokens"] += sum(map(len, result[1]))
            return result

        def _calculate_rewards(self, *args: Any) -> Any:
            with self.clock.timed("collect"):
                return super()._calculate_rewards(*args)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            with self.clock.timed("before_steps"):
                return super()._generate_and_score_completions(inputs)

    save_model(text, folder)
    options = GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=harness.FAR, seed=1,
        logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False, **work,
    )  # fmt: skip
    prompts = Dataset.from_dict({"prompt": text["prompts"], "answer": text["answers"]})
    return Trainer(folder, exact, options, prompts, processing_class=tokenizer(text))


def exact(completion_ids: list[list[int]], answer: list[list[int]], **_: Any) -> list[float]:
    """1 for each right response, its end included."""
    return [float(written == right) for written, right in zip(completion_ids, answer, strict=True)]


def save_model(text: dict[str, Any], folder: str) -> None:
    """A random GPT-NeoX of the sizes of rlcore's transformer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=len(text["vocabulary"]), hidden_size=SIZE, intermediate_size=4 * SIZE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=64, rotary_pct=1.0, use_parallel_residual=False,
        hidden_act="gelu", tie_word_embeddings=False, bos_token_id=None, eos_token_id=text["end"], pad_token_id=0,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)


def tokenizer(text: dict[str, Any]) -> Any:
    """One token for each character, numbered as in rlcore."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = text["vocabulary"]
    characters = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=characters, pad_token=names[0], eos_token=names[text["end"]])


class Clock:
    """Times TRL's training from the end of the warm-up on, whole iterations until `seconds` are over.

    Args:
        start: when making the trainer began.
    """

    def __init__(self, start: float, seconds: float):
        self.start, self.seconds = start, seconds
        self.counts = {"tokens": 0, "iterations": 0, "collect": 0.0, "before_steps": 0.0}
        self.begun: dict[str, float] = {}
        self.now: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.counts[phase] += time.perf_counter() - start

    def tick(self) -> bool:
        """An iteration is over; returns whether all are."""
        self.counts["iterations"] += 1
        self.now = {**self.counts, "whole": time.perf_counter(), "cpu": time.process_time()}
        if self.counts["iterations"] == WARM_UP:
            self.begun = self.now
        return bool(self.begun) and self.now["whole"] - self.begun["whole"] >= self.seconds

    def measured(self) -> dict[str, Any]:
        passed = {name: x - self.begun[name] for name, x in self.now.items()}
        whole, collect = passed["whole"], passed["collect"]
        learn = {"learn": whole - collect, "learn_before_steps": passed["before_steps"] - collect}
        return {
            "tokens": passed["tokens"], "iterations": passed["iterations"],
            "ready_seconds": self.begun["whole"] - self.start,
            "seconds": {"whole": whole, "cpu": passed["cpu"], "collect": collect, **learn},
        }  # fmt: skip


def at_ends(clock: Clock, steps: int) -> Any:
    """A callback that tells the clock of each iteration's end, which has so many `steps` of gradient."""
    from transformers import TrainerCallback

    class AtEnds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                control.should_training_stop = clock.tick()

    return AtEnds()


# Losses.


def small_batch() -> dict[str, Any]:
    """Numbers of a few responses, `[N, T]`, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = GROUPS * GROUP, LONGEST
    lengths = torch.randint(1, LONGEST + 1, (GROUPS * GROUP, 1), generator=generator)
    logprobs, advantages = -2 * torch.rand(shape, generator=generator), torch.randn(shape[0], generator=generator)
    old, reference = (logprobs + 0.3 * torch.randn(shape, generator=generator) for _ in range(2))
    return {
        "mask": torch.arange(LONGEST) < lengths, "logprobs": logprobs.requires_grad_(), "advantages": advantages,
        "old": old, "reference": reference,
    }  # fmt: skip


def with_gradient(loss: Any, logprobs: Any) -> dict[str, Any]:
    import torch

    return {"loss": loss.item(), "gradient": torch.autograd.grad(loss, logprobs)[0].flatten().tolist()}


def trl_losses(text: dict[str, Any]) -> dict[str, Any]:
    work = trl_work({**text["work"], **SWITCHES}, LONGEST) | dict(steps_per_generation=1, epsilon=SWITCHES["clip_coef"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(text, folder, **work)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return {name: trl_loss(trainer, *name.split(maxsplit=1)) for name in LOSSES}


def trl_loss(trainer: Any, kind: str, by_group: str = "") -> dict[str, Any]:
    """Of the whole batch, or the mean over groups, each a batch of its own."""
    import torch

    trainer.loss_type, batch = kind, small_batch()
    parts = torch.arange(GROUPS * GROUP).split(GROUP if by_group else GROUPS * GROUP)
    losses = [trl_loss_of(trainer, {name: x[rows] for name, x in batch.items()}) for rows in parts]
    return with_gradient(sum(losses) / len(losses), batch["logprobs"])


def trl_loss_of(trainer: Any, batch: dict[str, Any]) -> Any:
    """TRL's own loss, of a model that gives these log-probabilities."""
    import torch

    logprobs, mask = batch["logprobs"], batch["mask"].long()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
    inputs = {
        "prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1], "completion_ids": mask, "completion_mask": mask,
        "advantages": batch["advantages"], "num_items_in_batch": mask.sum(), "old_per_token_logps": batch["old"],
        "ref_per_token_logps": batch["reference"],
    }  # fmt: skip
    return trainer._compute_loss(trainer.model, inputs)


def rlcore_losses() -> dict[str, Any]:
    return {name: rlcore_loss(norm) for name, norm in LOSSES.items()}


def rlcore_loss(length_norm: str) -> dict[str, Any]:
    """GRPO's own loss, of a policy that gives these log-probabilities."""
    import torch

    from rlcore import estimators
    from rlcore.agents.grpo import GRPO, GRPOConfig
    from rlcore.buffer import Batch

    numbers = small_batch()
    flat = {name: numbers[name].T.flatten() for name in ("mask", "logprobs", "old", "reference")}  # [T · N]
    weight = estimators.group_step_weights(numbers["mask"].T, GROUP, length_norm).flatten()
    fields = {
        "mask": flat["mask"], "logprobs": flat["old"], "reference_logprobs": flat["reference"], "obs": None,
        "actions": None, "advantages": numbers["advantages"].repeat(LONGEST),
    }  # fmt: skip
    entropy = torch.zeros_like(flat["logprobs"])
    policy = SimpleNamespace(log_prob=lambda _: flat["logprobs"], entropy=lambda: entropy)
    agent = SimpleNamespace(config=GRPOConfig(length_norm=length_norm, **SWITCHES))
    loss, _ = GRPO.loss(agent, SimpleNamespace(policy=lambda _: policy), Batch(fields, weight))
    return with_gradient(loss, numbers["logprobs"])


if __name__ == "__main__":
    harness.start(main, work)
