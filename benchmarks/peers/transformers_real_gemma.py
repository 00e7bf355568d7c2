"A real Gemma with transformers and peft; started by `python benchmarks/real_gemma.py`."

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from workload import report

REPEATS = 2
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def padded(rows: list[list[int]], fill: int, left: bool) -> torch.Tensor:
    "Pad rows to the longest."
    longest = max(map(len, rows))
    found = []
    for row in rows:
        pad = [fill] * (longest - len(row))
        found.append(pad + row if left else row + pad)
    return torch.tensor(found)


def load(folder: str) -> torch.nn.Module:
    "Load the model in float32."
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def sampled(given: dict, drawn: bool) -> dict:
    "Sample from the model, once to warm up, then against the clock."
    start = time.perf_counter()
    model = load(given["folder"]).eval()
    model.generation_config.eos_token_id = None
    loaded = time.perf_counter() - start
    tokens = padded(given["prompts"], 0, left=True)
    mask = padded([[1] * len(row) for row in given["prompts"]], 0, left=True)
    settings = {"max_new_tokens": 64, "do_sample": False}
    if drawn:
        settings = {"max_new_tokens": 16, "do_sample": True, "top_k": 64, "top_p": 0.95}

    def call() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(tokens, attention_mask=mask, pad_token_id=0, **settings)
        return time.perf_counter() - start

    first = call()
    seconds = [call() for _ in range(REPEATS)]
    new = len(tokens) * settings["max_new_tokens"]
    return {"load": loaded, "first_call": first, "seconds": seconds, "tokens": new}


def trained(given: dict) -> dict:
    "Train adapters; each update reads every example once."
    from peft import LoraConfig, get_peft_model

    start = time.perf_counter()
    config = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(load(given["folder"]), config).train()
    loaded = time.perf_counter() - start
    examples = sorted(given["examples"], key=lambda one: len(one["tokens"]))
    batches = []
    for first in range(0, len(examples), 4):
        some = examples[first : first + 4]
        tokens = padded([one["tokens"] for one in some], 0, left=False)
        mask = padded([[1] * len(one["tokens"]) for one in some], 0, left=False)
        learned = padded([one["learned"] for one in some], 0, left=False).bool()
        batches.append((tokens, mask, tokens.masked_fill(~learned, -100)))
    counted = sum(int((labels[:, 1:] >= 0).sum()) for *_, labels in batches)
    trainable = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)

    def update() -> float:
        start = time.perf_counter()
        for tokens, mask, labels in batches:
            share = int((labels[:, 1:] >= 0).sum()) / counted
            (model(input_ids=tokens, attention_mask=mask, labels=labels).loss * share).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    first = update()
    seconds = [update() for _ in range(REPEATS)]
    tokens = sum(len(one["tokens"]) for one in examples)
    return {"load": loaded, "first_call": first, "seconds": seconds, "tokens": tokens}


def main() -> None:
    "Run one task."
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--workload", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    given = json.loads(options.workload.read_text())
    train = options.task == "train"
    report(**(trained(given) if train else sampled(given, options.task == "drawn")))


if __name__ == "__main__":
    main()
