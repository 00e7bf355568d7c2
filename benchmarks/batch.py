"""Rows that `tunix-rt batch` processes in a core-second, alone and on a Ray cluster of two nodes.

    python benchmarks/batch.py              # score, dedup and sample, alone and on the cluster
    python benchmarks/batch.py --memory     # peak memory of score at 100 k, 300 k and 1 M rows

A core-second is a second of processor time, of all processes that take part: the command, and on
Ray the daemons, drivers and actors of both nodes as well. It is about the same on a busy machine
and on a calm one, which a second of the clock is not. Each job is run with few rows and with many.
What the additional rows cost is the rate; what is left of the small job is the start, which is paid
once for a job: imports, and for `sample` compiling, in each actor; four helpers of Ray Data, which
the first job of a cluster starts, are left out. Overhead is one minus the ratio of the rates.
"idle" is what the daemons of the cluster use while nobody asks them, in the seconds that the rows
took; it is part of the figure on Ray, and grows where the clock runs slower.

Both nodes are on this machine, with a core each. The cluster needs an environment with ray, which
is made on first use; TUNIX_RT_BENCH_RAY names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import HERE, ROOT, Contender, middle, python_of, quiet_machine, save

RUN = "from tunix_rt.cli.app import main; main()"
TICK = 0.1  # Seconds between two looks at the processes of the cluster
STORE = 200 * 2**20  # Bytes of a node's object store
HERTZ, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Job:
    "A command, and how many rows it gets."

    words: str  # Options of `tunix-rt batch`; the source is appended
    few: int  # Rows of the small job, at least two parts an actor
    many: int  # Rows of the large one
    names: str  # Traces it reads: "traces" with working, or "questions"


JOBS = {
    "score": Job("score", 4_000, 64_000, "traces"),
    "dedup": Job("dedup --threshold 0.8", 4_000, 64_000, "traces"),
    "sample": Job(
        "sample --model model --samples 4 --max-new-tokens 48 --batch-size 64 --prompt-length 64 "
        "--part-size 64", 256, 1_280, "questions",
    ),
}  # fmt: skip
LONG = Job("score --scorer format", 0, 0, "traces")  # The quickest, for memory
SIZES = (100_000, 300_000, 1_000_000)  # Rows, for memory


# The processes of a cluster


@dataclass
class Process:
    "One process as /proc knows it."

    parent: int
    seconds: float  # Processor time so far
    resident: int  # Bytes


def processes() -> dict[int, Process]:
    "Read all processes of this machine."
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = (folder / "stat").read_text().rpartition(") ")[2].split()
            seconds = (int(words[11]) + int(words[12])) / HERTZ
            found[int(folder.name)] = Process(int(words[1]), seconds, int(words[21]) * PAGE)
    return found


def high_water(pid: int) -> int:
    "Read the most memory that a process has held, in bytes."
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def is_actor(pid: int) -> bool:
    "Return whether a process is an actor of Ray Data, which says so in its title."
    with contextlib.suppress(OSError):
        return b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def below(all_of_them: dict[int, Process], top: int) -> set[int]:
    "Find the processes that one has started, directly or not."
    children: dict[int, list[int]] = {}
    for pid, each in all_of_them.items():
        children.setdefault(each.parent, []).append(pid)
    found, todo = set(), [top]
    while todo:
        now = todo.pop()
        found.add(now)
        todo += children.get(now, [])
    return found


@dataclass
class Watch:
    "Adds up what the processes below one use, those that end meanwhile included."

    top: int  # Process id
    last: dict[int, float] = field(default_factory=dict)  # Processor seconds last seen
    before: dict[int, float] = field(default_factory=dict)
    actor: int = 0  # Largest memory of an actor, in bytes
    over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        "Note the processor time of every process."
        found = processes()
        for pid in below(found, self.top):
            if pid in found:
                self.last[pid] = found[pid].seconds
                if found[pid].resident > self.actor and is_actor(pid):
                    self.actor = found[pid].resident

    def run(self) -> None:
        "Look until it is over."
        while not self.over.wait(TICK):
            self.look()

    def __enter__(self) -> Watch:
        self.look()
        self.before = dict(self.last)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self.over.set()
        self.thread.join()

    @property
    def seconds(self) -> float:
        "Processor seconds since it began."
        return sum(now - self.before.get(pid, 0.0) for pid, now in self.last.items())


def serve_cluster() -> None:
    "Be a cluster of two nodes until standard input closes; runs in the environment with ray."
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=STORE, include_dashboard=False)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


@dataclass(frozen=True)
class Where:
    "Where a job is computed."

    on: str  # "local" or "ray"
    address: str = ""  # Address of the cluster
    top: int = 0  # Process that started it


@contextlib.contextmanager
def cluster() -> Iterator[Where]:
    "Start a cluster on this machine."
    words = [python_of("ray"), __file__, "--serve-cluster"]
    known = {**environment(Path.cwd()), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        words, env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        time.sleep(5)  # until its daemons have started too
        yield Where("ray", address, process.pid)
    finally:
        process.stdin.close()
        process.wait(60)


def idle(where: Where, seconds: float = 10.0) -> float:
    "Measure the cores' worth of work of a cluster that has none."
    with Watch(where.top) as watch:
        time.sleep(seconds)
    return watch.seconds / seconds


# The jobs


def environment(root: Path) -> dict[str, str]:
    "Variables of every process."
    path = os.pathsep.join([str(ROOT), str(HERE)])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    one_core = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    known = {"PYTHONPATH": path, "TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **threads, **known, "XLA_FLAGS": one_core}


def run_job(root: Path, job: Job, rows: int, where: Where) -> dict[str, float]:
    "Run a job to its end, and measure it."
    output = f"out-{random.randrange(10**9)}"
    words = [job.words.split()[0], f"{job.names}-{rows}.jsonl", *job.words.split()[1:]]
    command = [python_of("ray"), "-c", RUN, "batch", *words, "--output", output, "--on", where.on]
    known = environment(root)
    known.pop("RAY_ADDRESS", None)
    if where.address:
        known["RAY_ADDRESS"] = where.address
    with Watch(where.top) if where.top else contextlib.nullcontext() as watch:
        began = time.perf_counter()
        with (root / "said.txt").open("wb") as said:
            process = subprocess.Popen(
                command, env=known, cwd=root, stdout=said, stderr=subprocess.STDOUT
            )
        ended, peak = 0, 0
        while not ended:
            peak = max(peak, high_water(process.pid))
            time.sleep(TICK / 2)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        clock = time.perf_counter() - began
    assert process.returncode == 0, (root / "said.txt").read_text()[-3000:]
    subprocess.run(["rm", "-rf", str(root / output)], check=True)
    driver = used.ru_utime + used.ru_stime
    found = {"rows": rows, "clock": clock, "driver": driver, "driver_peak": peak}
    theirs = watch.seconds if watch else 0.0
    return {**found, "core_seconds": driver + theirs, "actor_peak": watch.actor if watch else 0}


def write_sources(root: Path, wanted: set[tuple[str, int]]) -> None:
    "Write the rows of all jobs, and a model for the questions."
    from tunix_rt.api import create_model
    from tunix_rt.data.generators import generate_traces
    from tunix_rt.models.weights import save_model
    from tunix_rt.traces.schema import write_traces

    most = min(max(rows for _, rows in wanted), 64_000)
    long = {"digits": (3, 6)}  # enough for as many problems that are not alike
    options = {"addition": long, "subtraction": long}
    mix = dict.fromkeys(options, 1.0)
    traces = generate_traces(train=most, held_out=0, mix=mix, options=options)[0]
    for name, rows in wanted:
        whole, rest = divmod(rows, most)
        with (root / f"{name}-{rows}.jsonl").open("wb") as file:
            write_traces(part := root / "part.jsonl", traces)
            file.write(part.read_bytes() * whole)
            write_traces(part, traces[:rest])
            file.write(part.read_bytes())
    if any(name == "questions" for name, _ in wanted):
        model = create_model("tiny", traces[:2000])
        save_model(root / "model", model.module, model.tokenizer)


# What was asked


def rate_of(few: dict[str, float], many: dict[str, float], key: str) -> float:
    "Compute the rows a second of the rows that the large job has beyond the small one."
    return (many["rows"] - few["rows"]) / (many[key] - few[key])


def measured(root: Path, job: Job, where: Where, still: float) -> dict[str, float]:
    "Measure a job of few rows and one of many."
    with quiet_machine():
        few = run_job(root, job, job.few, where)
        many = run_job(root, job, job.many, where)
    rate = rate_of(few, many, "core_seconds")
    clock = many["clock"] - few["clock"]
    return {
        "rate": rate,
        "start": few["core_seconds"] - job.few / rate,
        "rows_a_second": rate_of(few, many, "clock"),
        "idle": still * clock / (many["core_seconds"] - few["core_seconds"]),
        "driver_rate": rate_of(few, many, "driver"),
        **{f"few_{name}": value for name, value in few.items()},
        **{f"many_{name}": value for name, value in many.items()},
    }


def row_of(name: str, where: str, found: list[dict], alone: list[dict] | None) -> dict:
    "Make a row of the table."
    rate, base = middle(found, "rate"), middle(alone, "rate") if alone else None
    clock, base_clock = middle(found, "rows_a_second"), None
    if alone:
        base_clock = middle(alone, "rows_a_second")
    return {
        "job": name,
        "where": where,
        "rows a core-second": rate,
        "overhead": f"{1 - rate / base:.1%}" if base and rate else None,
        "idle": f"{middle(found, 'idle'):.1%}" if base else None,
        "of the driver": f"{rate / middle(found, 'driver_rate'):.0%}" if base else None,
        "start, core-seconds": middle(found, "start"),
        "rows a second": clock,
        "times one process": clock / base_clock if base_clock else None,
    }


def rates(root: Path, names: list[str], rounds: int) -> tuple[dict, dict]:
    "Measure every job alone and on the cluster, in turns."
    raw: dict[str, list[dict]] = {}
    with cluster() as both:
        run_job(root, JOBS[names[0]], JOBS[names[0]].few, both)  # starts Ray Data's helpers
        still = idle(both)
        for number in range(rounds):
            for name in names:
                for where in (Where("local"), both):
                    found = measured(root, JOBS[name], where, still if where.top else 0.0)
                    raw.setdefault(f"{name}, {where.on}", []).append(found)
                    print(f"round {number + 1}: {name} on {where.on}: {found}", flush=True)
    rows = []
    for name in names:
        alone = raw[f"{name}, local"]
        rows.append(row_of(name, "one process", alone, None))
        rows.append(row_of(name, "two nodes", raw[f"{name}, ray"], alone))
    return {"Rates": rows, "The idle cluster": [{"cores": still}]}, raw


def memory(root: Path, sizes: list[int]) -> tuple[dict, dict]:
    "Measure the peak memory of `score` at several sizes."
    rows, raw = [], {}
    for where in (Where("local"), None):
        with contextlib.nullcontext(where) if where else cluster() as place:
            for size in sizes:
                found = raw[f"{size}, {place.on}"] = run_job(root, LONG, size, place)
                row = {
                    "where": "one process" if place.on == "local" else "two nodes",
                    "rows": f"{size:,}",
                    "command, MB": found["driver_peak"] / 1e6,
                    "largest actor, MB": found["actor_peak"] / 1e6 or None,
                    "seconds": found["clock"],
                }
                rows.append(row)
                print(row, flush=True)
    return {"Peak memory": rows}, raw


def main() -> None:
    "Write the rows, run the jobs, and save the tables."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", default="score,dedup,sample", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each job")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of rates")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="rows, with --memory")
    parser.add_argument("--serve-cluster", action="store_true", help="for the process it starts")
    options = parser.parse_args()
    if options.serve_cluster:
        serve_cluster()
        return
    names, sizes = options.jobs.split(","), [int(each) for each in options.sizes.split(",")]
    jobs = [JOBS[name] for name in names]
    wanted = {(job.names, rows) for job in jobs for rows in (job.few, job.many)}
    if options.memory:
        wanted = {("traces", size) for size in sizes}
    explanation = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    ours = [Contender("ours", "ray", "batch.py", note="`tunix-rt batch`, parts of its own size")]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_sources(root, wanted)
        tables, raw = memory(root, sizes) if options.memory else rates(root, names, options.rounds)
    name = "batch-memory" if options.memory else "batch"
    save(name, f"# Batch jobs\n\n{explanation}", tables, ours, raw, vars(options))


if __name__ == "__main__":
    main()
