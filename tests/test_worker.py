"Workers on both databases: real notebooks in real processes, and what happens when those die."

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from small_model import small_model

from tunix_rt.core.settings import settings
from tunix_rt.jobs import leases, worker
from tunix_rt.jobs.logs import read_log
from tunix_rt.jobs.queue import enqueue, get_queued, request_cancel
from tunix_rt.jobs.worker import work
from tunix_rt.runs.folder import read_run, start_run
from tunix_rt.runs.lock import held

CHECKOUT = Path(__file__).resolve().parent.parent
LEASE = 2.0
WORKER = f"""
import sys
from tunix_rt.jobs.worker import work
from tunix_rt.store.engine import open_store
work(open_store(sys.argv[1]), worker=sys.argv[2], lease_seconds={LEASE}, poll_seconds=0.2)
"""
TRAINING = {  # Of a small model: many steps that cost little, so that there is time for a kill
    "model": "small", "optimizer": "adamw", "learning_rate": 0.01, "max_steps": 80,
    "checkpoint_every": 8, "log_every": 1, "validation_traces": 2, "validate_every": 16,
    "seq_length": 64, "batch_size": 2,
}  # fmt: skip
LINES = 50_000  # Printed by a notebook that talks much

ACT = """
import os, signal, sys, time
from tunix_rt.core.errors import DatasetError
from tunix_rt.runs.folder import open_run
run = open_run("act", run_dir, {"act": act})
"""
ACTS = """
if act == "print":
    for number in range(lines):
        print("line", number)
    print("x" * 2**20)
    sys.stdout.flush()
    print("a\\0b", file=sys.stderr, flush=True)
if act == "refuse":
    raise DatasetError("golden-v9 was never built")
if act == "die" and not run.facts["resumed_at"]:
    print("about to die", flush=True)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
if act == "die always":
    os.kill(os.getpid(), signal.SIGKILL)
if act in ("sleep", "ignore", "late"):
    print("asleep", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("woken", flush=True)
            if act != "ignore":
                raise
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "A root with one dataset, a small model, and a notebook with many talents."
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(CHECKOUT / "data/datasets/golden-v2", root / "data/datasets/golden-v2")
    small_model(root / "small")
    ask = f"act: str = 'print'  # What to do\nrun_dir: str = ''  # Where\nlines = {LINES}"
    cells = [new_code_cell(ask, metadata={"tags": ["parameters"]})]
    cells += map(new_code_cell, (ACT, ACTS, "run.finish({'acted': 1})"))
    nbformat.write(new_notebook(cells=cells), root / "act.ipynb")
    return root


@pytest.fixture(autouse=True)
def root(shared, monkeypatch):
    "The shared root, as the one of this process."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(shared))
    monkeypatch.setattr(leases, "BACKOFF", 0.1)
    monkeypatch.setattr(worker, "GRACE", 5.0)
    settings.cache_clear()
    yield shared
    settings.cache_clear()


@pytest.fixture(scope="module")
def uninterrupted(shared):
    "The folder of a training that nobody has interrupted."
    command = "from tunix_rt.cli.app import main; main()"
    given = [word for name, value in TRAINING.items() for word in ("-p", f"{name}={value}")]
    where = ["--run-dir", str(shared / "uninterrupted")]
    subprocess.run(
        [sys.executable, "-c", command, "train", "-p", "dataset=golden-v2", *given, *where],
        cwd=shared, env=os.environ | {"TUNIX_RT_ROOT": str(shared)}, check=True,
        capture_output=True,
    )  # fmt: skip
    return shared / "uninterrupted"


@pytest.fixture
def begin(database_url):
    "A way to start workers as processes; those still there at the end are killed."
    started = []

    def start(name):
        command = [sys.executable, "-c", WORKER, database_url, name]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def losses(folder):
    "The part of metrics.jsonl that must not depend on luck."
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def until(condition, seconds=300.0, pause=0.05):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(pause)


def put_off(store, run, moment):
    with store.writing() as session:
        session.get_one(leases.RunRow, run.id).available_at = moment


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def printed(store, run_id, stream="stdout"):
    lines = read_log(store, run_id, limit=10_000)
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    return "".join(line.chunk for line in lines if line.stream == stream)


def test_each_run_ends_as_it_should(store):
    acts = ["print", "refuse", "die", "ignore", "late"]
    acts += ["die always", "sleep"] if store.dialect == "sqlite" else []  # slow, and no news
    runs = {
        act: enqueue(
            store, "act.ipynb", {"act": act}, max_attempts=2,
            timeout_seconds=6 if act == "late" else None,
        ).id
        for act in acts
    }  # fmt: skip

    def over():
        return all(get_queued(store, run_id).ended for run_id in runs.values())

    with ThreadPoolExecutor(2) as pool:
        options = {"until": over, "poll_seconds": 0.1, "lease_seconds": 30.0}
        workers = [pool.submit(work, store, worker=f"w:{n}", **options) for n in range(2)]
        for act in {"sleep", "ignore"} & set(acts):
            until(lambda: "asleep" in printed(store, runs[act]))  # noqa: B023
            assert request_cancel(store, runs[act]).status == "cancel_requested"
        assert sum(future.result() for future in workers) == len(runs) + sum(
            "die" in act for act in acts
        )

    ended = {act: get_queued(store, run_id) for act, run_id in runs.items()}
    found = {act: (run.status, run.exit_code, run.attempts) for act, run in ended.items()}
    expected = {
        "print": ("completed", 0, 1),
        "refuse": ("failed", 1, 1),
        "die": ("completed", 0, 2),
        "die always": ("failed", 1, 2),
        "sleep": ("cancelled", 130, 1),
        "ignore": ("cancelled", 130, 1),
        "late": ("timeout", 124, 1),
    }
    assert found == {act: expected[act] for act in runs}
    for act, run in ended.items():
        facts = read_run(run.path)
        assert facts.run_id == str(run.id) and not held(run.path), act
        assert facts.status == run.status and run.started_at < run.completed_at
    assert ended["print"].metrics == {"acted": 1}
    assert ended["refuse"].message == "golden-v9 was never built"
    if "die always" in ended:
        assert "died without a word" in ended["die always"].message
    assert "woken" in printed(store, runs["ignore"])
    assert printed(store, runs["die"]).count("about to die") == 1

    text = "".join(f"line {number}\n" for number in range(LINES)) + "x" * 2**20 + "\n"
    assert printed(store, runs["print"]) == text and text.endswith(ended["print"].stdout)
    assert "a\ufffdb" in printed(store, runs["print"], "stderr") and ended["print"].stderr


def test_training_stopped_once_and_killed_once_ends_with_the_same_losses_and_weights(
    store, begin, root, uninterrupted
):
    run = enqueue(store, "train", TRAINING, dataset_key="golden-v2")
    folder = root / leases.folder_for(run)

    if store.dialect == "sqlite":  # once is enough: what it writes is tested on both
        stopped = begin("stopped:1")
        until((folder / "checkpoints").is_dir)  # it listens, and compiles its first step
        stopped.terminate()
        assert stopped.wait(300) == 0
        back = get_queued(store, run.id)
        assert (back.status, back.attempts, back.ended) == ("pending", 0, False)
        assert 0 < len(losses(folder)) < TRAINING["max_steps"]

    def past(step):
        saved = [path.name for path in folder.glob("checkpoints/*") if path.name.isdigit()]
        return any(int(name) >= step for name in saved)

    killed = begin("killed:2")
    until(lambda: past(TRAINING["checkpoint_every"]), pause=0.02)
    killed.kill()
    killed.wait()
    left = get_queued(store, run.id)
    assert (left.status, left.worker) == ("running", "killed:2")
    assert read_run(folder).facts["status"] == "running"
    assert not (folder / "model").exists(), "half a model is visible"
    until(lambda: work(store, worker="third:3", once=True) == 1)

    ended = get_queued(store, run.id)
    assert (ended.status, ended.attempts, ended.worker) == ("completed", 2, "third:3"), (
        ended.message
    )
    assert ended.metrics["steps"] == TRAINING["max_steps"]
    assert losses(folder) == losses(uninterrupted)
    assert weights(folder) == weights(uninterrupted)
    assert ended.metrics["loss"] == losses(uninterrupted)[-1][1]
    assert ended.last_seq == read_log(store, run.id, limit=10_000)[-1].seq
    resumed = read_run(folder).facts["resumed_at"]
    assert len(resumed) == (2 if store.dialect == "sqlite" else 1)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_paused_worker_that_wakes_up_too_late_leaves_the_run_to_the_other(store, begin):
    run = enqueue(store, "act.ipynb", {"act": "sleep"})
    paused = begin("paused:1")
    until(lambda: "asleep" in printed(store, run.id))
    paused.send_signal(signal.SIGSTOP)
    until(lambda: leases.expire_leases(store) == 1)
    put_off(store, run, run.queued_at)
    work(store, worker="other:2", once=True, lease_seconds=0.4)
    waiting = get_queued(store, run.id)  # its notebook is still alive, and holds the folder
    assert (waiting.status, waiting.attempts) == ("pending", 1) and "in use" in waiting.message

    put_off(store, run, run.queued_at + timedelta(hours=1))  # or the woken one takes it again
    paused.send_signal(signal.SIGCONT)
    until(lambda: not held(waiting.path))
    paused.terminate()
    assert paused.wait(300) == 0
    put_off(store, run, run.queued_at)
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work, store, worker="other:2", until=over.is_set, poll_seconds=0.1)
        until(lambda: get_queued(store, run.id).status == "running")
        request_cancel(store, run.id)
        until(lambda: get_queued(store, run.id).ended)
        over.set()
    assert get_queued(store, run.id).status == "cancelled"


def test_a_run_that_was_done_before_its_worker_died_is_not_done_again(store):
    run = enqueue(store, "act.ipynb", {"act": "refuse"})
    taken = leases.claim(store, "dead:1", 0.01)
    done = start_run("act", taken.run.path, {"act": "refuse"}, run_id=str(run.id))
    done.finish({"acted": 7})
    time.sleep(0.02)
    assert leases.expire_leases(store) == 1
    until(lambda: work(store, worker="next:2", once=True) == 1)
    ended = get_queued(store, run.id)
    assert (ended.status, ended.metrics, ended.attempts) == ("completed", {"acted": 7}, 2)


def test_a_run_is_scored_before_anybody_sees_it_completed(store):
    seen = []

    def score(store, run):
        seen.append(get_queued(store, UUID(run.run_id)).status)
        return "not scored: its questions are elsewhere"

    run = enqueue(store, "act.ipynb", {"act": "print"})
    assert work(store, once=True, on_completed=score) == 1
    ended = get_queued(store, run.id)
    assert (seen, ended.status) == (["running"], "completed")
    assert ended.message.endswith("; not scored: its questions are elsewhere")


def test_a_score_that_goes_wrong_does_not_stop_the_worker(store):
    def broken(store, run):
        raise TypeError("a judge of somebody else's")

    runs = [enqueue(store, "act.ipynb", {"act": "print"}).id for _ in range(2)]

    def over():
        return all(get_queued(store, run_id).ended for run_id in runs)

    assert work(store, worker="one", until=over, poll_seconds=0.1, on_completed=broken) == 2
    assert {get_queued(store, run_id).status for run_id in runs} == {"completed"}
    assert "on_completed failed: TypeError" in get_queued(store, runs[0]).message
