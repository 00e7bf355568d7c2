"""Say what real Gemmas take of each core of a TPU v5e-8 (16 GB), and how the compiler was asked.

    python benchmarks/v5e8_memory.py
    python benchmarks/v5e8_memory.py --compilers cpu --save no

Nothing is loaded and no accelerator is needed: the step that training takes is compiled with
shapes in place of numbers, one setup at a time, each in a process of its own. Two compilers are
asked.

- **cpu**: this machine, pretending to be eight devices, with the plain program for attention.
  XLA computes products of bfloat16 in float32 there, so its temporaries are an upper bound.
- **tpu**: XLA's own compiler for TPU v5e out of libtpu, for a v5e-8 that is only described, with
  splash attention as training would use it. `pip install libtpu` in the version that
  `pip install "jax[tpu]"` would take (or set TPU_LIBRARY_PATH); it is left out where it is missing.

Beside each stands what `training.plan` had said, which takes a moment and no compiler. All must
stay below 14 GiB on each device. A last table compiles the same layers as a stack and as a list.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT, Contender, markdown_table, save
from workload import RESULT

HERE = Path(__file__).resolve().parent
LIMIT = 14 * 2**30  # Bytes on each device; what is left is for the program and what nobody foresaw
PARTS = ("arguments", "temporaries", "outputs", "aliased")
SUMS = {"together": "total", "planned": "planned"}
TITLE = """# Memory of a TPU v5e-8, by abstract compilation

The step that training takes, of real Gemmas: rows of 1,024 tokens, four on each of eight devices
of 16 GB (32 in a batch), computed in bfloat16, every layer computed again on the way back (remat
full), layers as a stack, AdamW. What is trained, and AdamW's memory of it, is float32; the base
that LoRA only reads is bfloat16. Nothing was run and nothing loaded: these are the bytes that the
compiler means to allocate. Outputs that are aliased are written over arguments, because the state
is donated; together means arguments, temporaries and the outputs that are not.

Where all devices hold a whole base (data 8), the processor's compiler also makes a float32 copy of
it before the loop over layers, 10 GB that no TPU needs: its figure is an upper bound that says
nothing about fitting. What counts is TPU's compiler, where it was asked.

Depth costs a stack nothing to compile, since its program is a loop."""


@dataclass(frozen=True)
class Case:
    "One setup."

    name: str  # What the table calls it
    options: dict[str, object]  # Of compile_step.py


def case(name: str, model: str, mesh: str, **options: object) -> Case:
    "Describe a setup: rows of 1,024 tokens, four of them on each device."
    base = "bfloat16" if options.get("rank") else "float32"
    return Case(name, {"model": model, "mesh": mesh, "rows": 4, "base_dtype": base, **options})


CASES = [
    case("Gemma-2-2B, LoRA 64, fsdp 8", "gemma-2-2b", "1,8,1", rank=64),
    case("Gemma-2-2B, LoRA 16, data 8", "gemma-2-2b", "8,1,1", rank=16),
    case("Gemma-3-1B, all of it, fsdp 8", "gemma-3-1b", "1,8,1"),
]
DEPTHS = [
    case(
        f"{layers} layers, {how}",
        "gemma-2-2b",
        "8,1,1",
        rank=16,
        layers=layers,
        scan_layers=scan_layers,
    )
    for layers, how, scan_layers in (
        (2, "a stack", 1),
        (6, "a stack", 1),
        (26, "a stack", 1),
        (2, "a list", 0),
        (6, "a list", 0),
    )
]
NOTES = {
    "cpu": "this machine, pretending to be eight devices, the plain program for attention; XLA "
    "computes products of bfloat16 in float32 here, so temporaries are an upper bound",
    "tpu": "XLA's compiler for TPU v5e out of libtpu, for a v5e-8 that is only described, splash "
    "attention",
    "planned": "`training.plan`, for a TPU, without any compiler",
}


def environment(
    compiler: str,  # "cpu" or "tpu"
) -> dict[str, str]:
    "Set up a process that compiles for eight devices."
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    if compiler == "cpu":
        return given | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    described = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    return given | described | {"TPU_SKIP_MDS_QUERY": "1"}


def compile_case(
    each: Case,  # What to compile
    compiler: str,  # "cpu" or "tpu"
) -> dict:  # What compile_step.py reported, or {"error": ...}
    "Compile one setup in a process of its own, and give it all the memory there is."
    fixed = {"platform": compiler, "attention": "splash" if compiler == "tpu" else "xla"}
    fixed |= {"seq_length": 1024, "remat": "full", "dtype": "bfloat16"}
    words = [f"--{name}={value}" for name, value in {**fixed, **each.options}.items()]
    print(f"{each.name}, by {compiler} ...", flush=True)
    command = [sys.executable, HERE / "compile_step.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(compiler))
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        return {"error": reason, "name": each.name, "compiler": compiler}
    found = json.loads(lines[-1].removeprefix(RESULT))
    return {"name": each.name, "compiler": compiler, **found, "options": each.options}


def remembered(
    each: Case,  # What to compile
    compiler: str,  # "cpu" or "tpu"
    notes: Path,  # What was compiled before, one JSON a line
) -> dict:  # As from `compile_case`
    "Look a setup up among those that were compiled before an interruption, or compile it."
    known = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    for found in known:
        if (found["name"], found["compiler"]) == (each.name, compiler):
            return found
    found = compile_case(each, compiler)
    if "error" not in found:
        with notes.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return found


def memory_row(
    found: dict,  # From `compile_case`
) -> dict:
    "Set the bytes of each device beside what was planned, in GiB."
    row = {"setup": found["name"], "compiler": found["compiler"]}
    if "error" in found:
        return (
            row
            | dict.fromkeys((*PARTS, "together", "planned", "off by"))
            | {"below 14 GiB": f"failed: {found['error']}"}
        )
    row |= {part: f"{found[part] / 2**30:.2f}" for part in PARTS}
    row |= {name: f"{found[key] / 2**30:.2f}" for name, key in SUMS.items()}
    met = max(found["total"], found["planned"]) < LIMIT
    off = found["planned"] / found["total"] - 1
    return row | {"off by": f"{off:+.0%}", "below 14 GiB": "yes" if met else "no"}


def depth_row(
    found: dict,  # From `compile_case`
) -> dict:
    "Say how long compiling took."
    row = {"Gemma-2-2B, LoRA 16, data 8": found["name"]}
    lines, seconds = found.get("lines"), found.get("processor_seconds")
    row["lines of the compiled program"] = lines and f"{lines:,}"
    return row | {"processor seconds to trace and compile": seconds and round(seconds)}


def main() -> None:
    "Compile everything, one after the other, and keep what was found."
    parser = argparse.ArgumentParser()
    parser.add_argument("--compilers", default="cpu,tpu", help="which to ask")
    parser.add_argument("--save", default="yes", choices=("yes", "no"))
    parser.add_argument("--notes", help="file of finished setups, to go on after an interruption")
    options = parser.parse_args()
    compilers = options.compilers.split(",")
    there = importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")
    if "tpu" in compilers and not there:
        print("libtpu is not installed, so TPU's compiler is left out")
        compilers.remove("tpu")
    notes = Path(options.notes or Path(tempfile.mkdtemp()) / "v5e8.jsonl")
    found = [remembered(each, compiler, notes) for each in CASES for compiler in compilers]
    depths = [remembered(each, "cpu", notes) for each in DEPTHS]
    tables = {
        "GiB on each device": [memory_row(each) for each in found],
        "Compiling deep models, by the processor's compiler": [depth_row(each) for each in depths],
    }
    if options.save == "yes":
        asked = [Contender(name, "ours", "compile_step.py", note=NOTES[name]) for name in compilers]
        asked.append(Contender("planned", "ours", "compile_step.py", note=NOTES["planned"]))
        raw = {"setups": found, "depths": depths}
        save("v5e8-memory", TITLE, tables, asked, raw, vars(options))
    else:
        print("\n\n".join(markdown_table(rows) for rows in tables.values()))
    judge = "tpu" if "tpu" in compilers else "cpu"
    judged = [each for each in found if each["compiler"] == judge]
    failed = [each for each in judged if "error" in each or each["total"] >= LIMIT]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
