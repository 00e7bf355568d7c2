"""How many problems of GSM8K a real Gemma 3 270M solves, before and after a short LoRA training.

    make .venv/real.stamp
    .venv/bin/python benchmarks/gsm8k.py                       # half an hour on two quiet cores
    .venv/bin/python benchmarks/gsm8k.py --problems 20 --steps 20

Everything goes through the commands that a user types: `ingest`, `build`, `train`, `evaluate`. The
same problems of the test set are asked each time, drawn with a fixed seed, greedily and with 160
new tokens at most: alone, and after eight worked examples of the training set. `--folder` keeps the
runs, and what has been finished there is not done again. GSM8K is no part of this project:
`--gsm8k` is a folder with train.jsonl and test.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, markdown_table

sys.path += [str(ROOT), str(ROOT / "tests")]
SHOTS = 8
FORMS = {"zero-shot": {}, f"{SHOTS} examples": {"shots": SHOTS, "shots_dataset": "gsm8k-v1"}}


def command(
    root: Path,  # Root folder of the runs
    *words: str,  # What follows `tunix-rt`
) -> None:
    "Run a command as a user would."
    print("tunix-rt", *words, flush=True)
    start = [sys.executable, "-c", "from tunix_rt.cli.app import main; main()"]
    here = os.environ | {"TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"}
    subprocess.run([*start, *words], env=here, check=True)


def pipeline(
    root: Path,  # Root folder of the runs
    verb: str,  # "train" or "evaluate"
    run: str,  # Name of the run folder
    **given: object,  # Parameters
) -> Path:  # Run folder
    "Run a pipeline, unless it has been finished there."
    folder = root / run
    finished = folder / "run.json"
    if not (finished.is_file() and json.loads(finished.read_text())["status"] == "completed"):
        pairs = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
        command(root, verb, *pairs, "--run-dir", str(folder))
    return folder


def build(
    root: Path,  # Root folder of the runs
    gsm8k: Path,  # Folder with train.jsonl and test.jsonl
    problems: int,  # Problems of the test set
) -> None:
    "Freeze both parts as datasets."
    drawn = ("--limit", str(problems), "--selection", "random", "--seed", "0")
    for part, name, more in (("train", "gsm8k", ()), ("test", "gsm8k-test", drawn)):
        if (root / "data/datasets" / f"{name}-v1").is_dir():
            continue
        file = root / f"{part}.jsonl"
        reading = ("--source", "gsm8k", "--format", "gsm8k", "--output", str(file), "--replace")
        command(root, "ingest", str(gsm8k / f"{part}.jsonl"), *reading)
        command(root, "build", str(file), "--name", name, *more)


def row(
    name: str,  # What was asked, and how
    folder: Path,  # Run folder of an evaluation
) -> dict:  # Row of the table
    "Read the scores of a run."
    found = json.loads((folder / "evaluation.json").read_text())
    shown: dict[str, object] = {"contender": name, "problems": found["prompts"]}
    for score in ("answer_correctness", "answer_lenient", "format", "truncated"):
        one = found["scores"][score]
        low, high = round(100 * one["low"]), round(100 * one["high"])
        shown[score] = f"{100 * one['mean']:.0f} % [{low}, {high}]"
    return shown


def main() -> None:
    "Evaluate, train, evaluate again, and print the table."
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60, help="updates, each of 512 tokens")
    parser.add_argument("--folder", default="", help="of the runs; a temporary one by default")
    parser.add_argument("--gsm8k", type=Path, default=ROOT.parent / "shared/cases/gsm8k")
    options = parser.parse_args()
    from real_model import REMEDY, real_model

    base = real_model()
    if base is None:
        sys.exit(REMEDY)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(options.folder or scratch).resolve()
        build(root, options.gsm8k, options.problems)
        asked = dict(dataset="gsm8k-test-v1", limit=options.problems, max_new_tokens=160)
        rows = []
        trained: object = base
        for when in ("before", "after"):
            if when == "after":
                trained = pipeline(
                    root, "train", "trained", model=base, dataset="gsm8k-v1",
                    evaluation_set="gsm8k-test-v1", lora_rank=8, lora_alpha=16,
                    max_steps=options.steps, batch_size=2, seq_length=256, learning_rate=1e-3,
                    warmup_steps=5, log_every=5, validate_every=30,
                )  # fmt: skip
            for place, (name, more) in enumerate(FORMS.items()):
                folder = pipeline(
                    root, "evaluate", f"{when}{SHOTS * place}", model=trained, batch_size=50,
                    **asked, **more,
                )  # fmt: skip
                rows.append(row(f"{when}, {name}", folder))
                print(f"\n{markdown_table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
