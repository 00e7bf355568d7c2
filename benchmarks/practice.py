"""What practice gains in the same time: GRPO, rejection sampling, more worked examples, nothing.

A model of about a million parameters stops early in reading worked examples. Then each arm has the
same minutes on the same machine: GRPO and rejection sampling see new questions with answers and no
working; "worked" sees the same questions with their working; "nothing" sees none. All are measured
on 500 held-out questions, greedily and with eight samples, and compared in pairs.

    python benchmarks/practice.py --minutes 8 --seeds 0 1 2

Figures depend on how many steps the machine makes in that time, so the report says how many, and
how much processor time an arm had.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import tunix_rt as rt
import tunix_rt.training.loop as training_loop
from tunix_rt.data.datasets import Dataset
from tunix_rt.evaluation.compare import describe_comparison
from tunix_rt.post_training import measure
from tunix_rt.rl.rejection_sampling import RejectionConfig, sample_working
from tunix_rt.rl.rollouts import encode_questions
from tunix_rt.traces.schema import Trace

HERE = Path(__file__).resolve().parent
ROOM = 128  # Longest answer, in tokens
ARMS = ("grpo", "rejection", "worked", "nothing")


def early_model(folder: Path, data: Dataset, test_set: Dataset, stop_at: int) -> Path:
    "Train with the demo's schedule of 800 steps, and stop early."
    if not (folder / "model").is_dir():
        usual = training_loop.reason_to_stop

        def reason_to_stop(loop: Any) -> str:
            return "minutes" if loop.number >= stop_at else usual(loop)

        training_loop.reason_to_stop = reason_to_stop
        model = rt.create_model("tiny", data.train_traces(), seed=42)
        rt.sft(
            model, data, evaluation_set=test_set, max_steps=800, checkpoint_every=100,
            learning_rate=0.02, seed=42, run_dir=str(folder),
        )  # fmt: skip
        training_loop.reason_to_stop = usual
    return folder


def grpo(model: rt.Model, questions: list[Trace], minutes: float, folder: Path, seed: int) -> str:
    "GRPO (Dr.), token by token, without a KL penalty."
    bare = [trace.model_copy(update={"steps": ()}) for trace in questions]
    result = rt.grpo(
        model, bare, max_steps=100_000, max_minutes=minutes, prompts_per_step=32,
        num_generations=8, num_minibatches=4, max_new_tokens=ROOM, learning_rate=2e-4,
        max_resample=0,
        generation_batch_size=64, eval_every=0, validation_traces=8, checkpoint_every=100,
        completions_every=50, seed=seed, run_dir=str(folder),
    )  # fmt: skip
    return f"{result.results['steps']} steps of 32 questions x 8 answers"


def rejection(
    model: rt.Model, questions: list[Trace], minutes: float, folder: Path, seed: int
) -> str:
    "Rounds of sampling, keeping what is right, and one pass over it."
    deadline, rounds, kept, took = time.monotonic() + 60 * minutes, 0, 0, 0.0
    each = 1000
    while time.monotonic() + took < deadline:
        began, first = time.monotonic(), rounds * each % len(questions)
        chosen = questions[first : first + each]
        encoded = encode_questions(
            model.tokenizer, chosen, positions=model.config.positions, max_new_tokens=ROOM
        )
        config = RejectionConfig(
            samples=8, max_new_tokens=ROOM, keep_per_question=4, prefer="any", batch_size=64,
            seed=seed + rounds,
        )  # fmt: skip
        found = sample_working(
            model.module, model.tokenizer, encoded, config, source=f"round {rounds}"
        )
        tokens = sum(len(trace.prompt) + 3 * len(str(trace.steps)) for trace in found.traces)
        rt.sft(
            model, found.traces, validation_traces=0, optimizer="adamw", learning_rate=3e-4,
            warmup_steps=0, final_lr_ratio=1.0, max_steps=max(10, tokens // (8 * 256 * 4)),
            checkpoint_every=10_000, quiet=True, run_dir=f"{folder}-round-{rounds}", seed=seed,
        )  # fmt: skip
        rounds, kept, took = rounds + 1, kept + len(found.traces), time.monotonic() - began
    return f"{rounds} rounds of {each} questions x 8 answers, {kept:,} kept"


def worked(model: rt.Model, questions: list[Trace], minutes: float, folder: Path, seed: int) -> str:
    "More worked examples."
    result = rt.sft(
        model, questions, validation_traces=0, optimizer="muon", learning_rate=0.01,
        max_minutes=minutes, max_steps=2000, warmup_steps=10, seed=seed, quiet=True,
        checkpoint_every=500, run_dir=str(folder),
    )  # fmt: skip
    return f"{result.results['steps']} steps of 8 x 256 tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--stop-at", type=int, default=300, help="steps of reading, of 800")
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".bench" / "practice")
    given = parser.parse_args()
    os.environ["TUNIX_RT_ROOT"] = str(given.folder.resolve())
    data, test_set = rt.make_dataset("arithmetic-steps", version="demo", train=20_000, held_out=500)
    fresh, _ = rt.make_dataset(
        "arithmetic-steps", version="practice", train=10_600, held_out=1, seed=1000
    )
    seen = {trace.prompt for part in (data, test_set) for trace in part.traces()}
    questions = [trace for trace in fresh.train_traces() if trace.prompt not in seen][:10_000]
    base = early_model(given.folder.resolve() / "early", data, test_set, given.stop_at)
    asked: Any = {"max_new_tokens": ROOM, "samples": 8, "batch_size": 64}
    before = measure(
        rt.load_model(str(base)), test_set, base / "measured", name="before", reuse=True, **asked
    )
    rows = []
    for seed in given.seeds:
        for arm in given.arms:
            folder = given.folder.resolve() / f"{arm}-{seed}-{given.minutes:g}"
            model, began, clock = rt.load_model(str(base)), time.monotonic(), time.process_time()
            what = "nothing"
            if arm != "nothing":
                what = globals()[arm](model, questions, given.minutes, folder, seed)
            spent, busy = time.monotonic() - began, time.process_time() - clock
            after = measure(model, test_set, folder / "measured", name=arm, **asked)
            found = rt.compare(before, after)
            rows.append({
                "arm": arm, "seed": seed, "what": what, "seconds": spent, "core_seconds": busy,
                "before": found.main.before, "after": found.main.after, "low": found.main.low,
                "difference": found.main.difference, "high": found.main.high,
                "pass_at_8_before": before.pass_at[8].mean, "pass_at_8": after.pass_at[8].mean,
                "words": describe_comparison(found),
            })  # fmt: skip
            print(json.dumps(rows[-1], indent=1), flush=True)
    write(rows, given.minutes)


def write(rows: list[dict[str, Any]], minutes: float) -> None:
    "Write the results as JSON and as a table."
    date = datetime.date.today().isoformat()
    target = HERE / "results" / f"practice-{date}"
    target.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        f"# Practice for {minutes:g} minutes, {date}", "",
        "| arm | seed | what | greedy before | after | gain, 95% | pass@8 | core-seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        gain = f"{100 * row['difference']:+.1f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        passes = f"{row['pass_at_8_before']:.1%} to {row['pass_at_8']:.1%}"
        lines.append(
            f"| {row['arm']} | {row['seed']} | {row['what']} | {row['before']:.1%} | "
            f"{row['after']:.1%} | {gain} | {passes} | {row['core_seconds']:.0f} |"
        )
    target.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
