"A real Gemma with tunix_rt; started by `python benchmarks/real_gemma.py`."

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from workload import report

REPEATS = 2


def sampled(given: dict, drawn: bool) -> dict:
    "Sample from the model, once to compile, then against the clock."
    from tunix_rt.inference.engine import SamplingParams, generate
    from tunix_rt.models.loading import load_model, resolve_source

    start = time.perf_counter()
    model, words = load_model(resolve_source(given["folder"]), scan_layers=True)
    loaded = time.perf_counter() - start
    settings = SamplingParams(max_new_tokens=64)
    if drawn:
        settings = SamplingParams(max_new_tokens=16, temperature=1.0, top_k=64, top_p=0.95)

    def call() -> tuple[float, int]:
        start = time.perf_counter()
        done = generate(model, words, given["prompts"], settings)
        return time.perf_counter() - start, sum(one.completion_tokens for one in done)

    first, _ = call()
    again = [call() for _ in range(1 if drawn else REPEATS)]
    seconds = [one for one, _ in again]
    return {"load": loaded, "first_call": first, "seconds": seconds, "tokens": again[0][1]}


def trained(given: dict) -> dict:
    "Train adapters; each update reads every example once."
    from itertools import pairwise

    import tunix_rt as rt
    from tunix_rt.data.datasets import load_dataset
    from tunix_rt.models.lora import LoraConfig
    from tunix_rt.training.sft import prepare_batches

    start = time.perf_counter()
    model = rt.load_model(given["folder"], lora=LoraConfig(rank=8, alpha=16.0))
    loaded = time.perf_counter() - start
    traces = list(load_dataset("dev-reasoning-v1").traces())[: len(given["examples"])]
    rows = len(prepare_batches(model.tokenizer, traces, seq_length=given["row"]).train.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        done = rt.sft(
            model, traces, max_steps=1 + REPEATS, batch_size=rows, seq_length=given["row"],
            validation_traces=0, optimizer="adamw", learning_rate=1e-3, log_every=1,
            export="adapter", quiet=True, run_dir=str(Path(scratch) / "run"),
        )  # fmt: skip
        clock = [0.0, *done.metrics["seconds"]]
    first, *seconds = [after - before for before, after in pairwise(clock)]
    tokens = sum(len(one["tokens"]) for one in given["examples"])
    return {"load": loaded, "first_call": first, "seconds": seconds, "tokens": tokens}


def main() -> None:
    "Run one task."
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--workload", type=Path)
    options = parser.parse_args()
    given = json.loads(options.workload.read_text())
    train = options.task == "train"
    report(**(trained(given) if train else sampled(given, options.task == "drawn")))


if __name__ == "__main__":
    main()
