"""Measure the HTTP API: one server process on loopback, on SQLite and on Postgres.

    .venv/bin/python benchmarks/api.py
    .venv/bin/python benchmarks/api.py --databases sqlite --scale 0.05 --rounds 1 --name api-trial
    .venv/bin/python benchmarks/api.py --million --rounds 1 --name api-million

The server is `tunix-rt serve` in a process of its own, with what a deployment has: durable commits
(SQLite with synchronous=FULL, Postgres with fsync), checks, logs. Server, database and client share
two cores. A trace has four steps and about a kilobyte. Every loop ends by count, so a slow machine
takes longer and measures the same.

Posts are one trace a request, on connections that stay open. Batches hold a thousand. Ingest reads
files from the folder of imports: twenty of a thousand lines, and one of twenty thousand. Lists are
read with 100,000 traces stored, the deep page beginning at nine tenths of them. Searches are for
common words, rare ones, phrases and none, with filters and in two orders, counts and facets
included; the index is timed from when the last trace was stored. The dataset is of the twenty
thousand that one filter finds among them; its export is read to the end. The peak is the server's
largest resident set, with everything above behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.metadata
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from harness import ROOT, Contender, middle, quiet_machine, save, two_cores

BEFORE = {  # What the predecessor did, on Postgres and two shared cores
    "POST/s, one client": 166.0,
    "POST/s, eight clients": 219.0,
    "traces/s in batches of 1000": 3793.0,
    "traces/s ingested, 20 files": 4019.0,
    "traces/s ingested, one file": 4019.0,
    "traces/s built, filtered": 1832.0,
    "MB/s exported": 14.0,
    "list, first page, ms": 4.4,
    "list, deep page, ms": 91.0,
    "peak RSS, MB": 656.0,
}
TIMES = 3  # How many times as fast each throughput should be
LIMITS = {"search, ms": 100.0, "page of hits, ms": 300.0, "page of a trace, ms": 300.0}
DEEPEST = 2.0  # Of the first page's time
PEAK = 250.0  # MB
WANTED = "wanted"  # The source that the dataset is made of


def traces(
    count: int,  # How many
    seed: int,  # Other traces for another seed
) -> Iterator[dict]:
    "Make traces of about a kilobyte, all of them different."
    chance = random.Random(seed)
    for _ in range(count):
        a, b = chance.randrange(10**9), chance.randrange(10**9)
        work = "the digits are added from the right, and what is over ten is carried to the left; "
        steps = [
            {"i": i, "type": "work", "content": f"step {i} of {a} + {b}: {work * 2}"}
            for i in range(4)
        ]
        yield {
            "trace_version": "1.0",
            "prompt": f"What is {a} + {b}?",
            "final_answer": str(a + b),
            "steps": steps,
            "meta": {"category": "addition", "difficulty": a % 5},
        }


class Client:
    "One connection that stays open."

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        "Send a request, and read the answer to its end."
        self.connection.request(method, path, body, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        read = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {read[:500]!r}")
        return read

    def length(self, path: str) -> int:
        "Read an answer piece by piece, and count its bytes."
        self.connection.request("GET", path)
        answer, count = self.connection.getresponse(), 0
        while piece := answer.read(1 << 16):
            count += len(piece)
        return count


def seconds(
    work: Callable[[], object],  # What is measured
) -> float:
    "Time one call."
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def post(
    port: int,  # Of the server
    count: int,  # Requests in all
    clients: int,  # That share them
) -> float:  # Requests a second
    "Post traces one by one."
    bodies = [json.dumps(each).encode() for each in traces(count, seed=clients)]

    def one(mine: list[bytes]) -> None:
        client = Client(port)
        for body in mine:
            client.ask("POST", "/api/traces", body)

    with ThreadPoolExecutor(clients) as threads:
        shares = [bodies[number::clients] for number in range(clients)]
        return count / seconds(lambda: list(threads.map(one, shares)))


def post_batches(
    port: int,  # Of the server
    batches: int,  # Of a thousand traces
) -> float:  # Traces a second
    "Post traces by the thousand."
    made = list(traces(1000 * batches, seed=1000))
    bodies = [json.dumps(made[n : n + 1000]).encode() for n in range(0, len(made), 1000)]
    client = Client(port)

    def work() -> None:
        for body in bodies:
            client.ask("POST", "/api/traces/batch", body)

    return len(made) / seconds(work)


def ingest(
    port: int,  # Of the server
    imports: Path,  # Its folder of imports
    files: int,  # How many
    lines: int,  # In each
    source: str,  # Kept in every trace
) -> float:  # Traces a second
    "Take files in."
    imports.mkdir(parents=True, exist_ok=True)
    names = [f"{source}-{number}.jsonl" for number in range(files)]
    for number, name in enumerate(names):
        with (imports / name).open("w") as file:
            for each in traces(lines, seed=zlib.crc32(f"{source} {number}".encode())):
                file.write(json.dumps(each) + "\n")
    client = Client(port)

    def work() -> None:
        for name in names:
            asked = {"path": name, "source_name": source}
            client.ask("POST", "/api/datasets/ingest", json.dumps(asked).encode())

    took = seconds(work)
    for name in names:
        (imports / name).unlink()
    return files * lines / took


def page_ms(
    client: Client,  # Of the server
    offset: int,  # Where the page begins
) -> float:  # Milliseconds, the median of thirty
    "Time one page of the list."
    path = f"/api/traces?limit=20&offset={offset}"
    client.ask("GET", path)
    return 1000 * median(seconds(lambda: client.ask("GET", path)) for _ in range(30))


SEARCHES = ("text=carried", "text=%22to+the+left%22", "text={answer}", "text=digits+{answer}",
            "text=answer%3A{answer}", "text=carried&source=wanted", "text=carried&sort=relevance",
            "text=xyzzy", "source=wanted", "text={start}*")  # fmt: skip


def indexed(
    client: Client,  # Of the server
    count: int,  # Traces stored
) -> float:  # Traces a second, since the last of them was stored
    "Wait until the index of words has all traces."
    start = time.perf_counter()
    while json.loads(client.ask("GET", "/api/traces/search?limit=1"))["pending"]:
        time.sleep(0.1)
    return count / (time.perf_counter() - start)


def search_ms(
    client: Client,  # Of the server
    path: str,  # Of a page or an endpoint
) -> tuple[float, float]:  # Milliseconds: the median of ten searches, and of the slowest of them
    "Time searches for common words, rare ones, phrases and none, with filters and in two orders."
    answer = str(next(traces(1, seed=zlib.crc32(b"rest 0")))["final_answer"])
    asked = [each.format(answer=answer, start=answer[:6]) for each in SEARCHES]
    times: dict[str, list[float]] = {each: [] for each in asked}
    for each in asked * 6:
        times[each].append(1000 * seconds(lambda query=each: client.ask("GET", f"{path}?{query}")))
    kept = [rounds[1:] for rounds in times.values()]
    return median(sum(kept, [])), max(map(median, kept))


def trace_page_ms(
    client: Client,  # Of the server
) -> float:  # Milliseconds, the median of twenty
    "Time the page of one trace, on the way along a search."
    hits = json.loads(client.ask("GET", "/api/traces/search?text=carried"))["data"]
    pages = [f"/traces/{each['id']}?text=carried" for each in hits]
    return 1000 * median(seconds(lambda page=each: client.ask("GET", page)) for each in pages)


def peak_mb(
    process: int,  # Its id
) -> float:  # Megabytes; nan where the system does not say
    "Read the largest resident set that a process has had."
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


@contextlib.contextmanager
def server(
    address: str,  # Of the database
    root: Path,  # Everything lands here
) -> Iterator[tuple[int, int]]:  # Its port, and the id of its process
    "Run `tunix-rt serve` for a while."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"TUNIX_RT_ROOT": str(root), "DATABASE_URL": address, "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from tunix_rt.cli.app import main; main()"]
    subprocess.run([*command, "db", "upgrade"], env=environment, check=True, capture_output=True)
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "serve", "--port", str(port)],
            env=environment, stdout=log, stderr=log, preexec_fn=two_cores,
        )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                Client(port).ask("GET", "/api/health")
                break
            if process.poll() is not None:
                raise SystemExit((root / "server.log").read_text()[-2000:])
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def database(
    kind: str,  # "sqlite" or "postgresql"
    root: Path,  # For the file
) -> Iterator[str]:  # Its address
    "Give the address of an empty database whose commits wait for the disk."
    if kind == "sqlite":
        yield f"sqlite:///{root / 'benchmark.db'}"
        return
    os.environ.setdefault("TUNIX_RT_TEST_FSYNC", "1")
    sys.path.insert(0, str(ROOT / "tests"))
    from databases import empty_database

    with empty_database() as address:
        yield address


def measure(
    kind: str,  # "sqlite" or "postgresql"
    scale: float,  # 1 is the full size
    million: bool,  # Ingest a million lines as well
) -> dict[str, float]:  # Figure to value
    "Measure everything once, on a fresh database."

    def sized(count: int) -> int:
        return max(1, round(count * scale))

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tunix-rt-api-") as name:
        root = Path(name)
        imports = root / "data/imports"
        with database(kind, root) as address, server(address, root) as (port, process):
            client = Client(port)
            post(port, sized(100), 1)  # so that nothing is met for the first time
            found["POST/s, one client"] = post(port, sized(1000), 1)
            found["POST/s, eight clients"] = post(port, sized(2000), 8)
            found["traces/s in batches of 1000"] = post_batches(port, sized(20))
            many = sized(1000)
            found["traces/s ingested, 20 files"] = ingest(port, imports, 20, many, "files")
            wanted = sized(20_000)
            found["traces/s ingested, one file"] = ingest(port, imports, 1, wanted, WANTED)
            stored = sized(3100) + 1000 * sized(20) + 20 * many + wanted
            rest = sized(100_000) - stored
            if rest > 0:
                ingest(port, imports, 1, rest, "rest")
            found["list, first page, ms"] = page_ms(client, 0)
            found["list, deep page, ms"] = page_ms(client, round(0.9 * sized(100_000)))
            found["traces/s indexed"] = indexed(client, sized(100_000))
            middle_one, slowest = search_ms(client, "/api/traces/search")
            found |= {"search, ms": middle_one, "slowest search, ms": slowest}
            found["page of hits, ms"] = search_ms(client, "/traces")[0]
            found["page of a trace, ms"] = trace_page_ms(client)
            asked = {
                "dataset_name": "wanted", "dataset_version": "v1", "limit": wanted,
                "filters": {"source": WANTED},
            }  # fmt: skip
            body, built = json.dumps(asked).encode(), b""

            def build() -> None:
                nonlocal built
                built = client.ask("POST", "/api/datasets/build", body)

            found["traces/s built, filtered"] = wanted / seconds(build)
            if json.loads(built)["trace_count"] != wanted:
                raise SystemExit(f"the dataset does not hold {wanted} traces: {built!r}")
            start = time.perf_counter()
            size = client.length("/api/datasets/wanted-v1/export.jsonl?format=trace")
            found["MB/s exported"] = size / 1e6 / (time.perf_counter() - start)
            if million:
                rate = ingest(port, imports, 1, sized(1_000_000), "million")
                found["traces/s ingested, a million lines"] = rate
            found["peak RSS, MB"] = peak_mb(process)
    return found


def compare(
    results: list[dict],  # Of one database, one a round
) -> list[dict]:  # Rows of the table
    "Set our figures beside the predecessor's and the targets."
    rows = []
    for name in results[0]:
        value, before = middle(results, name), BEFORE.get(name)
        target: float | None
        if name in LIMITS:
            target = LIMITS[name]
        elif name == "list, deep page, ms":
            target = DEEPEST * (middle(results, "list, first page, ms") or 0.0)
        elif name == "peak RSS, MB":
            target = PEAK
        else:
            target = before * TIMES if before and not name.endswith("ms") else before
        less = name.endswith(("ms", "MB"))
        met = None if target is None or value is None else (value <= target) == less
        ratio = (before / value if less else value / before) if before and value else None
        rows.append(
            {
                "figure": name,
                "measured": value,
                "before": before,
                "times as good": None if ratio is None else f"{ratio:.1f}",
                "target": target,
                "met": None if met is None else ("yes" if met else "no"),
            }
        )
    return rows


def note() -> str:  # For the record
    "Say which versions were at work."
    packages = ("fastapi", "uvicorn", "pydantic", "sqlalchemy", "psycopg")
    told = []
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            told.append(f"{package} {importlib.metadata.version(package)}")
    return "one `tunix-rt serve`; " + ", ".join(told)


def main() -> None:
    "Measure, tabulate and save."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--databases", default="sqlite,postgresql", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each database")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--million", action="store_true", help="ingest a million lines as well")
    parser.add_argument("--name", default="api", help="first part of the result files' names")
    options = parser.parse_args()
    two_cores()
    kinds = options.databases.split(",")
    if unknown := set(kinds) - {"sqlite", "postgresql"}:
        sys.exit(f"unknown databases {sorted(unknown)}; there are sqlite and postgresql")
    results: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        for kind in kinds:
            with quiet_machine():
                found = measure(kind, options.scale, options.million)
            results[kind].append(found | {"load": os.getloadavg()[0]})
            print(f"round {number + 1}: {kind}: {json.dumps(results[kind][-1])}", flush=True)
    figures = {kind: [{k: v for k, v in one.items() if k != "load"} for one in rounds]
               for kind, rounds in results.items()}  # fmt: skip
    sections = {kind: compare(rounds) for kind, rounds in figures.items()}
    title = f"# The HTTP API, median of {options.rounds} rounds"
    explanation = (__doc__ or "").split("\n\n", 2)[-1].strip()
    ours = Contender("ours", "ours", "api.py", note=note())
    save(options.name, f"{title}\n\n{explanation}", sections, [ours], results, vars(options))


if __name__ == "__main__":
    main()
