"""Compare a real Gemma 3 270M here and in transformers (+ peft): sampling and LoRA training.

    make .venv/real.stamp
    .venv/bin/python benchmarks/real_gemma.py
    .venv/bin/python benchmarks/real_gemma.py --tasks greedy --contenders ours

Same weights (the test model, dequantized), same token ids, float32, two threads, one process for
each task. Sampling: the prompts below in the chat template, 64 new tokens each and no early stop;
`drawn` samples with top-k 64 and top-p 0.95, as Gemma's own generation config asks for, 16 new
tokens. Training: LoRA of rank 8 on all linear layers with AdamW; an update reads the same worked
examples once. Ours packs them into rows of 256 tokens; peft pads each batch to its longest. The
figure is the median of the calls after the first, which holds the compiling.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import ROOT, Contender, choose, measure, save

sys.path += [str(ROOT), str(ROOT / "tests")]
TASKS = ("greedy", "drawn", "train")
EXAMPLES, ROW = 16, 256
CONTENDERS = [
    Contender(
        "transformers",
        "torch",
        "peers/transformers_real_gemma.py",
        note="generate with its default growing cache, left-padded batch; peft LoRA, 4 batches of "
        "4 examples sorted by length in an update; eager attention",
    ),
    Contender(
        "ours",
        "ours",
        "ours_real_gemma.py",
        note="tunix_rt.inference.engine.generate; rt.sft with packed rows",
    ),
]
QUESTIONS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?",
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
    "How much did she earn?",
    "Write a haiku about rain.",
    "What is 47 plus 86?",
    "Explain why the sky is blue to a child.",
    "Name three prime numbers above 100.",
    "Translate 'good morning' into French, German and Japanese.",
    "Write a Python function that reverses a string.",
]


def workload(
    folder: Path,  # Model folder
) -> dict:  # Token ids that every contender gets
    "Encode the prompts and the worked examples, once for all."
    from tunix_rt.data.datasets import load_dataset
    from tunix_rt.models.tokenizer import encode_prompts, load_tokenizer
    from tunix_rt.training.packing import tokenize_traces

    words = load_tokenizer(folder)
    traces = list(load_dataset("dev-reasoning-v1").traces())[:EXAMPLES]
    found = tokenize_traces(words, traces, seq_length=ROW)
    examples = [
        {"tokens": list(map(int, one.tokens)), "learned": list(map(int, one.loss_mask))}
        for one in found.examples
    ]
    return {
        "folder": str(folder),
        "prompts": encode_prompts(words, QUESTIONS),
        "examples": examples,
        "row": ROW,
    }


def tabulate(
    results: dict[str, dict],  # Measurement by contender
) -> list[dict]:
    "Turn the measurements of a task into rows."
    rows = []
    for name, one in results.items():
        if "error" in one:
            rows.append({"contender": name, "tokens/s": None, "seconds a call": one["error"][-80:]})
            continue
        seconds = median(one["seconds"])
        rows.append(
            {
                "contender": name,
                "tokens/s": one["tokens"] / seconds,
                "seconds a call": seconds,
                "first call s": one["first_call"],
                "load s": one["load"],
                "peak RSS MB": one["rss_mb"],
                "cores taken by others": one["others"],
            }
        )
    rates = {row["contender"]: row["tokens/s"] for row in rows}
    if rates.get("ours") and rates.get("transformers"):
        ratio = rates["ours"] / rates["transformers"]
        rows.append({head: None for head in rows[0]} | {"contender": "ours / transformers"})
        rows[-1]["tokens/s"] = round(ratio, 2)
    return rows


def main() -> None:
    "Measure each task, and save the tables."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--contenders", default="all")
    parser.add_argument("--label", default="", help="what this run is, such as 'before'")
    options = parser.parse_args()
    from real_model import REMEDY, real_model

    from tunix_rt.models.weights import find_model

    file = real_model()
    if file is None:
        sys.exit(REMEDY)
    contenders = choose(CONTENDERS, options.contenders)
    load = f"{os.getloadavg()[0]:.1f}"
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "workload.json"
        given.write_text(json.dumps(workload(find_model(file))))
        raw: dict[str, dict[str, dict]] = {}
        for task in options.tasks.split(","):
            raw[task] = {}
            for one in contenders:
                raw[task][one.name] = measure(one, ["--task", task, "--workload", str(given)])
                print(f"{task}: {one.name}: {json.dumps(raw[task][one.name])}", flush=True)
    sections = {task: tabulate(results) for task, results in raw.items()}
    title = f"# A real Gemma 3 270M{', ' + options.label if options.label else ''}\n\n"
    title += (__doc__ or "").split("\n\n")[2].strip() + f"\n\nLoad average before: {load}."
    save("real-gemma", title, sections, contenders, raw, vars(options))


if __name__ == "__main__":
    main()
