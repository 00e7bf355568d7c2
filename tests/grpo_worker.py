"Take the same updates from the same answers on one device and on meshes of eight."

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
from flax import nnx

from tunix_rt.core.files import read_jsonl_log
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.sharding import make_mesh, place
from tunix_rt.models.tokenizer import train_tokenizer
from tunix_rt.rewards.functions import load_rewards
from tunix_rt.rl.grpo import GRPOLoopConfig, train_grpo
from tunix_rt.rl.rollouts import GRPOConfig, encode_questions
from tunix_rt.traces.schema import Trace

TEXTS = ["What is 47 plus 86?\nones: 7 + 6 = 13, write 3, carry 1\n<answer>133</answer>"] * 20
SIDES = {"1 device": None, "data=2 fsdp=2 tensor=2": (2, 2, 2), "fsdp=8": (1, 8, 1)}
WATCHED = ("reward", "gradient_norm", "entropy", "completions/mean_length", "kl")


def spaces(completions: list[str], **columns: Any) -> list[float]:
    "The share of spaces."
    return [text.count(" ") / max(len(text), 1) for text in completions]


def practice(sides: tuple[int, int, int] | None) -> dict[str, list[float]]:
    "A few steps; the figures of each."
    tokenizer = train_tokenizer(TEXTS, vocabulary=128)
    shape = preset("tiny").resized(
        vocabulary=len(tokenizer), width=32, layers=2, query_heads=4, key_heads=2, head_width=16,
        hidden=64, positions=256,
    )  # fmt: skip
    model, mesh = Gemma(shape, nnx.Rngs(0)), None
    if sides is not None:
        mesh = make_mesh(*sides)
        nnx.update(model, place(nnx.state(model), mesh))
    traces = [
        Trace.model_validate({"prompt": f"Double {n}.", "steps": [], "final_answer": str(2 * n)})
        for n in range(16)
    ]
    config = GRPOConfig(
        prompts_per_step=8, num_generations=4, max_new_tokens=8, max_steps=3, max_resample=0,
        beta=0.1, num_iterations=2, generation_batch_size=16,
    )  # fmt: skip
    questions = encode_questions(tokenizer, traces, positions=256, max_new_tokens=8)
    with TemporaryDirectory() as folder:
        train_grpo(
            model, tokenizer, questions, load_rewards([spaces]), config, folder=Path(folder),
            identity={}, loop_config=GRPOLoopConfig(quiet=True, min_mixed=0.0), mesh=mesh,
            micro_batch_size=8, learning_rate=1e-3, scoring={"conversational": False},
        )  # fmt: skip
        lines = read_jsonl_log(Path(folder) / "metrics.jsonl")
    return {name: [line[name] for line in lines] for name in WATCHED}


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    Path(sys.argv[1]).write_text(json.dumps({name: practice(s) for name, s in SIDES.items()}))
