"""Does a small model check, or does it only say so? Every row of docs/checking.md.

Every row but `from fresh weights` starts from the model that the demo trains: it works sums out,
and has never seen a check. A row trains it on worked sums with checks, puts an error into 500
held-out workings, and counts what the model finds, corrects and imagines. The row `verifier` trains
a model that solves about half of its questions and a step verifier, and lets the verifier choose
among eight answers.

    python benchmarks/checking.py                      # all rows that the results do not have yet
    python benchmarks/checking.py dense-0 --again      # one row, measured again

The budget of a row is its number of steps, so a busy machine changes its seconds and nothing else.
A row that was interrupted resumes from its checkpoint. Results are written after each row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tunix_rt as rt
from tunix_rt.data.error_injection import ERROR_KINDS, CheckSpec, verifier_trace
from tunix_rt.data.generators import generate_traces
from tunix_rt.evaluation.error_detection import ErrorDetection, detect_errors, detection_figures
from tunix_rt.evaluation.predict import predict
from tunix_rt.evaluation.statistics import Figure
from tunix_rt.evaluation.step_verifier import best_of_n, verify_predictions
from tunix_rt.inference.engine import SamplingParams
from tunix_rt.traces.schema import Step, Trace

HERE = Path(__file__).resolve().parent
HELD_OUT = 500
TWO = ("addition", "subtraction")
THREE = (*TWO, "multiplication")
FOUR = (*THREE, "word_problem")
COLUMNS = ("detection", "localization", "correction", "caught and corrected")
# Totals that are off by one are the hardest to find, so they are half of the errors in a column.
HARDER = (*ERROR_KINDS, "off_by_one", "off_by_one")
DENSE = CheckSpec(errors=0.8, placement="step", kinds=HARDER, wrong_steps=0.3)


@dataclass(frozen=True)
class Row:
    "One model: what it reads, for how long, and from which seed."

    what: str  # Row of the table
    checks: CheckSpec  # Checks and errors of the training traces
    families: Sequence[str] = TWO  # Families, equally often
    steps: int = 450  # Updates
    batch_size: int = 4  # Packed rows in an update
    seq_length: int = 512  # Tokens in a row
    train: int = 8000  # Training traces
    seed: int = 0  # Seed of fresh weights and of the order of the data
    fresh: bool = False  # Start from fresh weights
    measured: Sequence[str] = ()  # Families to measure one by one as well


ROWS = {
    "control": Row("no error in any trace", CheckSpec(errors=0.0, placement="step")),
    "one": Row("one error in a trace", CheckSpec(errors=0.8, placement="step")),
    "dense-0": Row("an error in every third step", DENSE),
    "dense-1": Row("an error in every third step", DENSE, seed=1),
    "dense-2": Row("an error in every third step", DENSE, seed=2),
    "families": Row("an error in every third step", DENSE, FOUR, measured=FOUR),
    "end": Row("one error, checks at the end", CheckSpec(errors=0.8, kinds=HARDER)),
    "fresh": Row("an error in every third step, from fresh weights", DENSE, steps=600, fresh=True),
}


def base_model(folder: Path) -> tuple[Path, set[str]]:
    "Train the demo's model once, and list the sums that it has read."
    data, test_set = rt.make_dataset("arithmetic-steps", version="demo", train=20_000, held_out=500)
    if not (folder / "model").is_dir():
        model = rt.create_model("tiny", data.train_traces(), seed=42)
        rt.sft(
            model, data, evaluation_set=test_set, max_steps=800, learning_rate=0.02, seed=42,
            run_dir=str(folder),
        )  # fmt: skip
    return folder, {key for trace in data.train_traces() for key in sums_in(trace)}


def sums_in(trace: Trace) -> list[str]:
    "Name what a trace works out, however it is worded: sums by their numbers, else the prompt."
    results = [step.content.split(" = ")[0] for step in trace.steps if step.type == "result"]
    if any(step.type == "plan" for step in trace.steps) or not results:
        return [trace.prompt]
    left, sign, right = (results[0].split(" ") + ["", ""])[:3]
    return [" ".join([sign, *sorted((left, right))])]


def held_out(row: Row, known: set[str]) -> tuple[list[Trace], list[Trace]]:
    "Make the training traces of a row, and held-out ones without an error in the same form."
    train, asked = generate_traces(
        "arithmetic-checks", train=row.train, held_out=4 * HELD_OUT, checks=row.checks,
        mix=dict.fromkeys(row.families, 1.0),
        options={name: {"digits": (2, 3)} for name in row.families if name != "word_problem"},
    )  # fmt: skip
    clean = [trace for trace in asked if not known.intersection(sums_in(trace))]
    return train, clean[:HELD_OUT]


def trained(traces: Sequence[Trace], row: Row, folder: Path, base: Path) -> rt.Model:
    "Train a fresh model, resume an interrupted training, or load a finished one."
    if (folder / "model").is_dir():
        return rt.load_model(str(folder))
    fresh = rt.create_model("tiny", traces, seed=row.seed) if row.fresh else None
    model = fresh or rt.load_model(str(base))
    rt.sft(
        model, traces, max_steps=row.steps, batch_size=row.batch_size, seq_length=row.seq_length,
        optimizer="muon", learning_rate=0.02 if row.fresh else 0.01,
        checkpoint_every=100, log_every=25, validate_every=200, seed=row.seed, run_dir=str(folder),
    )  # fmt: skip
    return model


def numbers(figure: Figure) -> dict[str, Any]:
    "A figure as numbers."
    return {"share": figure.mean, "low": figure.low, "high": figure.high, "n": figure.count}


def detection_row(found: ErrorDetection) -> dict[str, Any]:
    "What a measurement found, as numbers."
    kinds = found.by_kind.items()
    return {
        **{name: numbers(found.injected[name]) for name in COLUMNS},
        "false alarms": numbers(found.false_alarms),
        "checks": numbers(found.checks),
        "right without an error": numbers(found.control_correct),
        "by kind": {kind: numbers(by["caught and corrected"]) for kind, by in kinds},
        "verdict": found.verdict,
    }


def measure_row(row: Row, folder: Path, base: Path, known: set[str]) -> dict[str, Any]:
    "Train the model of a row, and put errors into its working."
    train, asked = held_out(row, known)
    model = trained(train, row, folder, base)
    found = detect_errors(model.module, model.tokenizer, asked, name=folder.name)
    (folder / "detection.json").write_text(found.model_dump_json())
    figures = detection_row(found)
    halves = found.results[: len(asked)], found.results[len(asked) :]
    for family in row.measured:
        here = [i for i, trace in enumerate(asked) if (trace.meta or {})["family"] == family]
        injected, controls = ([part[i] for i in here] for part in halves)
        alone = detection_figures(injected, controls, name=family)
        figures.setdefault("by family", {})[family] = detection_figures(alone)
    return figures


def without_checks(trace: Trace) -> Trace:
    "Take the checks out of a working without an error."
    kept = [step for step in trace.steps if step.type != "check"]
    steps = tuple(Step(i=i, type=s.type, content=s.content) for i, s in enumerate(kept))
    return trace.model_copy(update={"steps": steps})


def choose_by_verifier(folder: Path, base: Path, known: set[str]) -> dict[str, Any]:
    "Let a step verifier choose among eight answers of a model that is right half of the time."
    clean = Row("", CheckSpec(errors=0.0), THREE, SOLVER_STEPS, 8, 256, fresh=True)
    solved, asked = held_out(clean, known)
    questions = [without_checks(trace) for trace in asked]
    solver = trained([without_checks(trace) for trace in solved], clean, folder / "solver", base)
    spec = CheckSpec(errors=0.8, kinds=HARDER)
    judged = Row("", spec, THREE, train=12_000)
    working, _ = held_out(judged, known)
    verifier = trained(
        [verifier_trace(trace) for trace in working], judged, folder / "verifier", base
    )
    sampling = SamplingParams(max_new_tokens=128, temperature=1.0, samples=8)
    samples = predict(solver.module, solver.tokenizer, questions, sampling)
    verdicts = verify_predictions(verifier.module, verifier.tokenizer, samples)
    found = best_of_n(questions, samples, verdicts)
    print(found)
    pairs = zip(samples, verdicts, strict=True)
    kept = [said.model_dump(mode="json") | {"verdict": verdict} for said, verdict in pairs]
    (folder / "samples.json").write_text(json.dumps(kept))
    gain = found.difference
    return {
        **{name: numbers(getattr(found, name)) for name in CHOICES},
        "gain": {"difference": gain.difference, "low": gain.low, "high": gain.high},
        "better": gain.better, "worse": gain.worse, "n": gain.count,
    }  # fmt: skip


def as_text(one: dict[str, Any]) -> str:
    "Write a figure with its interval."
    return f"{one['share']:.1%} [{100 * one['low']:.0f}, {100 * one['high']:.0f}]"


def table(known: dict[str, dict[str, Any]]) -> str:
    "Write all rows as tables."
    heads = ("detection", "localization", "caught and corrected", "false alarms")
    heads = (*heads, "right without an error")
    rows = {name: found for name, found in known.items() if name in ROWS}
    rows |= {
        f"{name}, {family}": found["by family"][family] | {"row": found["row"]}
        for name, found in rows.items()
        for family in found.get("by family", ())
    }
    lines = ["| row | trained on | steps | " + " | ".join(heads) + " | n |", "|---" * 9 + "|"]
    for name, found in rows.items():
        row = found["row"]
        cells = [name, row["what"], f"{row['steps']} of {row['batch_size']} x {row['seq_length']}"]
        cells += [as_text(found[head]) for head in heads] + [str(found["detection"]["n"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Caught and corrected, by kind of error:", ""]
    lines += ["| row | " + " | ".join(ERROR_KINDS) + " |", "|---" * (1 + len(ERROR_KINDS)) + "|"]
    for name, found in rows.items():
        cells = [as_text(found["by kind"][k]) if k in found["by kind"] else "" for k in ERROR_KINDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "verifier" in known:
        found = known["verifier"]
        gain = " ".join(f"{100 * value:+.1f}" for value in found["gain"].values())
        lines += ["", "| best of 8 | right |", "|---|---|"]
        lines += [f"| {name} | {as_text(found[name])} |" for name in CHOICES]
        lines += ["", f"Verified against plain majority: {gain} points (difference, low, high), "]
        lines[-1] += f"{found['better']} better, {found['worse']} worse, n = {found['n']}."
    return "\n".join(lines)


HEAD = """# Does it check, or does it only say so?

Made by `benchmarks/checking.py`. The budget of a row is its steps: the machine was shared, so its
seconds, in the JSON file, say little. 95% intervals over questions; each row is one training.
"""
CHOICES = ("single", "majority", "verified", "any_right", "accepted_right", "rejected_wrong")
ALL = [*ROWS, "verifier"]
SOLVER_STEPS = 160  # Of a schedule this long the solver is right about half of the time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ALL)}; all by default")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".bench" / "checking")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "checking.json")
    given = parser.parse_args()
    os.environ["TUNIX_RT_ROOT"] = str(given.folder.resolve())
    base, known_sums = base_model(given.folder.resolve() / "base")
    known = json.loads(given.results.read_text()) if given.results.is_file() else {}
    for name in given.rows or ALL:
        if name in known and not given.again:
            continue
        folder, began, clock = given.folder.resolve() / name, time.monotonic(), time.process_time()
        folder.mkdir(parents=True, exist_ok=True)
        row = ROWS.get(name)
        how = (folder, base, known_sums)
        found = measure_row(row, *how) if row else choose_by_verifier(*how)
        known[name] = found | {
            "row": asdict(row) if row else {},
            "seconds": time.monotonic() - began, "core_seconds": time.process_time() - clock,
            "load": os.getloadavg()[2], "machine": platform.processor() or platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        given.results.write_text(json.dumps(known, indent=1, default=str) + "\n")
        given.results.with_suffix(".md").write_text(f"{HEAD}\n{table(known)}\n")
        print(json.dumps({name: known[name]}, indent=1, default=str), flush=True)


if __name__ == "__main__":
    main()
