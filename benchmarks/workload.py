"""What every contender is asked to do: the model sizes, the sequences, and how work is counted.

Imported by scripts that run in three different environments, so it needs numpy and nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

PAD, EOS, BOS, FIRST_TOKEN = 0, 1, 2, 4  # Gemma's special ids; random tokens start after them
PROMPTS, PROMPT_LENGTH, NEW_TOKENS = 16, 64, 128  # What the samplers are asked for
GENERATIONS, ANSWER_TOKENS = 8, 96  # Answers to each prompt of a GRPO step, and their length
SHORTEST = 40  # Tokens in the shortest training sequence
BLOCK = 64  # Any aligned run of this many sequences has the same lengths, in another order
RESULT = "BENCHMARK_RESULT "  # Marks the one line of output that the orchestrator reads


@dataclass(frozen=True)
class Size:
    "A Gemma-2 shaped model and the batch it trains on."

    name: str  # What the tables call it
    vocabulary: int  # Tokens, embedding tied to the head
    width: int  # Residual stream
    layers: int  # Alternating local and global; the window covers every sequence here
    heads: int  # Query heads
    kv_heads: int  # Key and value heads
    head_width: int  # Features of one head
    mlp: int  # Hidden features of the gated MLP
    seq: int  # Longest sequence, and the length of a packed row
    batch: int  # Rows an optimizer step sees: sequences when padded, packed rows when packed
    steps: int  # Optimizer steps timed, unless told otherwise

    @property
    def matmul_parameters(self) -> int:
        "Count weights that multiply activations: the layers and the head, not the token lookup."
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp) + self.vocabulary * self.width


SIZES = {
    size.name: size
    for size in (
        Size("S", 512, 128, 4, 4, 2, 32, 512, seq=256, batch=16, steps=20),
        Size("M", 8192, 384, 6, 6, 2, 64, 1536, seq=512, batch=8, steps=8),
        Size("gemma-2-2b", 256_000, 2304, 26, 8, 4, 256, 9216, seq=2048, batch=4, steps=10),
        Size("toy", 512, 64, 2, 4, 2, 16, 128, seq=128, batch=2, steps=2),
    )
}


def sequences(
    size: Size,  # Sets the vocabulary and the longest length
    count: int | None = None,  # How many; by default the fifty batches TRL groups by length
    seed: int = 0,  # Fixes every token and every length
) -> list[np.ndarray]:  # int32 token ids, each [T]
    "Draw random tokens, with lengths uniform from `SHORTEST` to `size.seq` in every block."
    random = np.random.default_rng(seed)
    count = count or -(-50 * size.batch // BLOCK) * BLOCK
    block = np.linspace(SHORTEST, size.seq, BLOCK).round().astype(int)
    blocks = [random.permutation(block) for _ in range(-(-count // BLOCK))]
    lengths = np.concatenate(blocks)[:count]
    draw = [random.integers(FIRST_TOKEN, size.vocabulary, length) for length in lengths]
    return [tokens.astype(np.int32) for tokens in draw]


def prompts(
    size: Size,  # Sets the vocabulary
) -> np.ndarray:  # int32 token ids, [PROMPTS, PROMPT_LENGTH]
    "Draw the prompts that every sampler continues."
    return rows_of_prompts(size, PROMPTS)


def rows_of_prompts(
    size: Size,  # Sets the vocabulary
    rows: int,  # How many
) -> np.ndarray:  # int32 token ids, [rows, PROMPT_LENGTH]
    "Draw any number of prompts; the first of them are always the same."
    shape = (rows, PROMPT_LENGTH)
    return np.random.default_rng(1).integers(FIRST_TOKEN, size.vocabulary, shape, dtype=np.int32)


def loss_mask(
    lengths: Iterable[int],  # Tokens of each sequence trained on
) -> dict[str, int]:
    "Count tokens, and the (query, key) pairs that a causal mask leaves visible."
    lengths = np.asarray(list(lengths), dtype=np.int64)
    return {"tokens": int(lengths.sum()), "pairs": int((lengths * (lengths + 1) // 2).sum())}


def useful_flops(
    size: Size,  # The model
    tokens: int,  # Non-pad tokens trained on
    pairs: int,  # Visible (query, key) pairs of those tokens
) -> float:  # Floating-point operations, forward and backward
    """Count the arithmetic that training needs, whatever a contender spends.

    Weights: 2 operations forward and 4 backward for each weight and token. Attention: a score
    and a weighted sum, 2 operations each per head feature and visible pair, and twice that
    backward. Pads, masked pairs, rematerialization, softmax and optimizer count nothing.
    """
    attention = 12 * size.layers * size.heads * size.head_width * pairs
    return 6.0 * size.matmul_parameters * tokens + attention


def peak_rss_mb() -> float:
    "Read the largest memory this process ever held, in MB (2^20 bytes)."
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def report(
    **values: object,  # What was measured
) -> None:
    "Hand the measurement, and the peak memory, to the orchestrator."
    print(RESULT + json.dumps({**values, "rss_mb": round(peak_rss_mb())}), flush=True)


def arguments(
    **defaults: object,  # Options beside --size, each with its default
) -> argparse.Namespace:
    "Read the options that the orchestrator passes to a contender."
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, required=True)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    return parser.parse_args()


def even_share(
    tokens: Iterable[int],  # Token ids of an answer
) -> float:  # From 0 to 1, different for nearly all answers
    "Reward an answer with the share of even token ids."
    parity = np.asarray(list(tokens)) % 2 == 0
    return float(parity.mean())


@dataclass
class StepClock:
    "Wall and processor seconds of every step, and of the sampling inside it."

    steps: list[dict[str, float]] = field(default_factory=list)

    def start(self) -> None:
        "Begin the first step."
        self.began = time.perf_counter(), time.process_time()
        self.sampling = [0.0, 0.0]

    def timed(
        self,
        sample: Callable[..., Any],  # Function that samples and rewards the answers of a step
    ) -> Callable[..., Any]:  # The same, with its time counted as sampling
        "Count the time of a function as sampling."

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            wall, core = time.perf_counter(), time.process_time()
            found = sample(*args, **kwargs)
            self.sampling[0] += time.perf_counter() - wall
            self.sampling[1] += time.process_time() - core
            return found

        return wrapped

    def step_done(self) -> None:
        "End a step, and begin the next."
        wall, core = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        times = {"step": wall, "core": core, "sample": self.sampling[0]}
        self.steps.append(times | {"sample_core": self.sampling[1]})
        self.start()

    def report(
        self,
        warm_up: int,  # Steps at the start that are not counted
        answer_tokens: int,  # Tokens of all answers of a step
    ) -> None:
        "Hand over the first step, and the median of the steps after the warm-up."
        counted = self.steps[warm_up:]
        report(
            first_step=self.steps[0]["step"],
            first_core_seconds=self.steps[0]["core"],
            step_seconds=median(one["step"] for one in counted),
            core_seconds=median(one["core"] for one in counted),
            sample_seconds=median(one["sample"] for one in counted),
            sample_core_seconds=median(one["sample_core"] for one in counted),
            update_seconds=median(one["step"] - one["sample"] for one in counted),
            update_core_seconds=median(one["core"] - one["sample_core"] for one in counted),
            answer_tokens=answer_tokens,
            steps=self.steps,
        )
