"""Run contenders in processes and environments of their own, and set their figures side by side.

Peak memory belongs to a process, so each contender gets one. Machines drift, so rounds interleave
(A B C A B C ...) and every figure is a median over rounds.

"others" is how many cores' worth of work unrelated processes did meanwhile: a figure taken beside
0.0 is worth more than one beside 1.5. On a busy machine, tokens per core-second (of processor
time, not of the clock) are the better witness for JAX; torch's threads spin while they wait, so
for TRL and transformers nothing replaces a calm machine.

Environments are made on first use under `.bench/` in the repository root. Where they are there
already, or nothing can be downloaded, name an interpreter: TUNIX_RT_BENCH_TORCH=/path/to/python
is used for the environment "torch", and so for the others. Set TUNIX_RT_BENCH_LOCK to a file to
hold its lock while a contender is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from workload import RESULT

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
THREADS = 2
CALM = 0.2  # Cores that unrelated processes may take before a measurement is repeated
INSTALLS = {
    # torch first and alone: this version comes as a CPU build, others with gigabytes of CUDA.
    "trl": [["torch==2.13.0"], ["trl", "transformers", "datasets", "accelerate"]],
    "tunix": [["google-tunix==0.1.7"]],
    "torch": [["torch==2.13.0"], ["transformers", "peft", "accelerate"]],
    "ray": [["-e", f"{ROOT}[ray]"]],
}
PACKAGES = {
    "torch": ["torch", "transformers", "peft"],
    "trl": ["torch", "transformers", "trl"],
    "tunix": ["google-tunix", "jax", "flax"],
    "ours": ["jax", "flax", "optax"],
    "ray": ["ray", "pyarrow", "jax"],
}


@dataclass(frozen=True)
class Contender:
    "One row of the table."

    name: str  # What the table calls it
    environment: str  # "trl", "tunix", "torch", or "ours": the project's own
    script: str  # Relative to this folder
    options: tuple[str, ...] = ()  # Beside --size and --steps
    note: str = ""  # How it was set up
    accelerator: bool = False  # Whether it may use a GPU or TPU, and every core


def python_of(
    environment: str,  # "trl", "tunix", "torch" or "ours"
) -> Path:  # Its interpreter
    "Find an environment's interpreter, making the environment when it is missing."
    if environment == "ours":
        return Path(sys.executable)
    if named := os.environ.get(f"TUNIX_RT_BENCH_{environment.upper()}"):
        return Path(named)
    folder = ROOT / ".bench" / environment
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists():
        print(f"making {folder.relative_to(ROOT)}: this downloads up to 1.5 GB", flush=True)
        venv.create(folder, with_pip=True)
        for packages in INSTALLS[environment]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.touch()
    return python


@contextlib.contextmanager
def quiet_machine() -> Iterator[None]:
    "Hold the lock named by TUNIX_RT_BENCH_LOCK, if there is one."
    path = os.environ.get("TUNIX_RT_BENCH_LOCK")
    if not path:
        yield
        return
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def two_cores() -> None:
    "Keep a contender on two cores, where the system can."
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def processor_seconds() -> tuple[float, float]:
    "Read the seconds all processors were busy, and those our finished children used."
    with contextlib.suppress(OSError):
        fields = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
        busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        children = os.times()
        return busy, children.children_user + children.children_system
    return 0.0, 0.0


def measure(
    contender: Contender,  # Whom to run
    options: Iterable[str],  # More arguments
) -> dict:  # What its script reported, or {"error": ...}
    "Run one contender once."
    path = os.pathsep.join(map(str, (HERE, HERE / "peers", ROOT)))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
    environment = {**os.environ, "PYTHONPATH": path}
    if not contender.accelerator:
        environment |= threads | {"JAX_PLATFORMS": "cpu"}
    elif kept := os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] += os.pathsep + kept
    python = python_of(contender.environment)
    command = [python, HERE / contender.script, *contender.options, *options]
    with quiet_machine():
        start, busy, ours = time.perf_counter(), *processor_seconds()
        done = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,
            preexec_fn=None if contender.accelerator else two_cores,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        after = processor_seconds()
    others = max(0.0, (after[0] - busy) - (after[1] - ours)) / seconds
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            found = json.loads(line.removeprefix(RESULT))
            return found | {"process_seconds": round(seconds, 1), "others": round(others, 2)}
    return {"error": done.stderr.strip()[-800:] or f"exit {done.returncode}"}


def calmest(
    contender: Contender,  # Whom to run
    options: Iterable[str],  # More arguments
    tries: int,  # At most so many runs
) -> dict:  # The measurement that others disturbed least
    "Measure again while unrelated processes disturb: chosen by their work, not by the figure."
    found: list[dict] = []
    while len(found) < tries:
        found.append(measure(contender, options))
        if found[-1].get("others", 0.0) <= CALM or "error" in found[-1]:
            break
    return min(found, key=lambda one: one.get("others", 0.0))


def run_rounds(
    contenders: list[Contender],  # In the order of each round
    options: list[str],  # Arguments for all of them
    rounds: int,  # Measurements of each
    tries: int = 1,  # Runs to make for one measurement, while the machine is not calm
) -> dict[str, list[dict]]:  # By name, one measurement a round
    "Measure every contender once a round; one that fails is not asked again."
    results: dict[str, list[dict]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            earlier = results[contender.name]
            if earlier and "error" in earlier[-1]:
                continue
            result = calmest(contender, options, tries)
            earlier.append(result)
            print(f"round {number + 1}: {contender.name}: {json.dumps(result)}", flush=True)
    return results


def middle(
    results: list[dict],  # One contender's measurements
    key: str,  # Which figure
) -> float | None:  # None where nothing was measured
    "Take the median of a figure over the rounds."
    values = [result[key] for result in results if key in result]
    return median(values) if values else None


def choose(
    contenders: list[Contender],  # All there are
    names: str,  # Comma-separated, or "all"
) -> list[Contender]:
    "Pick contenders by name."
    known = {contender.name: contender for contender in contenders}
    if names == "all":
        return contenders
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"unknown contenders {unknown}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def versions(
    contenders: list[Contender],  # Whose environments to look into
) -> dict[str, str]:  # Package to version
    "Ask each environment what it has installed."
    found = {}
    for environment in dict.fromkeys(contender.environment for contender in contenders):
        script = "import importlib.metadata as m, sys; print(*[m.version(p) for p in sys.argv[1:]])"
        packages = PACKAGES[environment]
        command = [python_of(environment), "-c", script, *packages]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = [f"{environment}: {package}" for package in packages]
        found |= dict(zip(names, output.split(), strict=True))
    return found


def read_options(
    description: str | None,  # Docstring of the benchmark
    name: str,  # First part of the result files' names
    *,
    steps: int | None = None,  # Steps against the clock; None if the benchmark has none
) -> argparse.Namespace:
    "Read the options that benchmarks of two sizes share."
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="S,M", help="comma-separated: S, M")
    parser.add_argument("--contenders", default="all", help="comma-separated names")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender")
    if steps is not None:
        help_text = "steps against the clock" if steps else "optimizer steps (0: by size)"
        parser.add_argument("--steps", type=int, default=steps, help=help_text)
    parser.add_argument("--tries", type=int, default=3, help="runs, while others disturb")
    parser.add_argument("--name", default=name, help="first part of the result files' names")
    return parser.parse_args()


def processor() -> str:
    "Name the processor."
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def markdown_table(
    rows: list[dict],  # The same keys in each; None prints as a dash
) -> str:
    "Lay rows out as a Markdown table."

    def cell(value: object) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return str(value)

    heads = list(rows[0])
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    lines += [" | ".join(cell(row[head]) for head in heads) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def save(
    name: str,  # First part of the file names
    title: str,  # Heading and what was asked, in Markdown
    sections: dict[str, list[dict]],  # Heading to table
    contenders: list[Contender],  # For their notes and versions
    raw: dict,  # Every measurement
    settings: dict,  # The arguments of this run
    device: str = "",  # What it ran on, if not on the processor
) -> None:
    "Print the tables, and save them with every measurement under benchmarks/results."
    now = datetime.datetime.now(datetime.UTC)
    machine = {"processor": processor(), "system": platform.system()}
    machine |= {"device": device} if device else {"threads": THREADS}
    found = versions(contenders)
    where = device or f"{machine['processor']}, {THREADS} threads"
    text = [title, f"{now:%Y-%m-%d %H:%M} UTC, {where}."]
    for heading, rows in sections.items():
        if rows:
            text += [f"## {heading}", markdown_table(rows)]
    notes = [f"- **{one.name}**: {one.note}" for one in contenders if one.note]
    text += ["## How each was set up", "\n".join(notes)]
    text += ["Versions: " + ", ".join(f"{key} {value}" for key, value in found.items()) + "."]
    page = "\n\n".join(text) + "\n"
    record = {
        "benchmark": name,
        "measured_at": now.isoformat(timespec="seconds"),
        "machine": machine,
        "versions": found,
        "settings": settings,
        "tables": sections,
        "measurements": raw,
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    stem = f"{name}-{now:%Y-%m-%d}"
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(page)
    print(f"\n{page}\nsaved benchmarks/results/{stem}.json and .md")
