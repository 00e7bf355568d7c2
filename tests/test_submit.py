"""A worker that submits runs instead of executing them, against commands that answer as Slurm's do.

The commands are one shell script on the path, which starts a job as a process, and `tunix-rt` is a
script that keeps a real record of a run without training. The queue and the worker are real.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tunix_rt.core.settings import settings
from tunix_rt.jobs.logs import read_log
from tunix_rt.jobs.queue import enqueue, get_queued, request_cancel
from tunix_rt.jobs.slurm_jobs import SlurmJobs
from tunix_rt.jobs.submit import SubmittedRuns
from tunix_rt.jobs.worker import work
from tunix_rt.runs.folder import read_run
from tunix_rt.runs.run_spec import make_spec
from tunix_rt.store.engine import Store, open_store

CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # Seconds; it takes one on a machine that is not busy
SCHEDULER = r"""#!/bin/sh
# Jobs are numbered files in $JOBS: N.name, N.pid, and N.code when the job is over.
name=$(basename "$0")
echo "$name $*" >> "$JOBS/calls"
if [ -e "$JOBS/away" ] && [ "$name" != srun ]; then
    echo "$name: error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
case "$name" in
sbatch)
    for word; do case "$word" in --chdir=*) cd "${word#--chdir=}";; esac; done
    job=$(($(ls "$JOBS" | grep -c 'name$') + 1))
    cat > "$JOBS/$job.script"
    sed -n 's/^#SBATCH --job-name=//p' "$JOBS/$job.script" > "$JOBS/$job.name"
    output=$(sed -n 's/^#SBATCH --output=//p' "$JOBS/$job.script")
    act="trap : TERM; bash '$JOBS/$job.script' >> '$output' 2>&1; echo \$? > '$JOBS/$job.code'"
    SLURM_JOB_ID=$job setsid sh -c "$act" > /dev/null 2>&1 &
    echo $! > "$JOBS/$job.pid"
    echo "$job";;
squeue)
    for word; do
        case "$word" in
        --name=*) for file in "$JOBS"/*.name; do
                job=$(basename "$file" .name)
                [ -e "$file" ] && [ "$(cat "$file")" = "${word#--name=}" ] \
                    && [ ! -e "$JOBS/$job.code" ] && echo "$job"
            done; exit 0;;
        --jobs=*) if [ -e "$JOBS/${word#--jobs=}.code" ]; then
                echo "slurm_load_jobs error: Invalid job id specified" >&2
                exit 1
            fi; echo RUNNING;;
        esac
    done;;
scancel)
    for job; do :; done
    kill -TERM -"$(cat "$JOBS/$job.pid")";;
scontrol) ;;
srun) shift; exec "$@";;
esac
"""
RUN = f"""#!{sys.executable}
import os, signal, sys, time
sys.path.insert(0, {str(CHECKOUT)!r})
from pathlib import Path
from tunix_rt.runs.folder import start_run
from tunix_rt.runs.run_spec import make_spec

words = sys.argv[1:]
given = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-p")
spec = make_spec(words[0], given, as_text=True)
run = start_run(spec.pipeline, words[words.index("--run-dir") + 1], spec.parameters, reuse=True)

def say(line):
    with run.log.open("a") as log:
        print(line, file=log)

def stop(number, frame):
    run.fail(KeyboardInterrupt())
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
say(f"step 1 of run {{run.run_id}}")
act = spec.parameters["seed"]
if act == 2:
    print("CUDA error: a device is lost", flush=True)
    run.fail(ValueError("the data ran out"))
    sys.exit(1)
if act == 3:
    os.kill(os.getpid(), signal.SIGKILL)
while act == 4 and not Path(run.folder / ".go").exists():
    time.sleep(0.05)
say("step 2")
run.finish({{"loss": 0.5}})
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "A scheduler on the path; the folder of its jobs."
    programs, jobs = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    jobs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun", "tunix-rt"):
        (programs / name).write_text(RUN if name == "tunix-rt" else SCHEDULER)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    yield jobs
    settings.cache_clear()


@pytest.fixture
def queue(jobs: Path, tmp_path: Path) -> Iterator[Store]:
    "A queue in SQLite."
    store = open_store(f"sqlite:///{tmp_path / 'tunix_rt.db'}")
    yield store
    store.close()


def submit(queue: Store, seed: int, **options: Any) -> UUID:
    "Queue a training; its seed says what becomes of it."
    return enqueue(queue, make_spec("train", {"seed": seed}), **options).id


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def start_worker(queue: Store) -> threading.Thread:
    "Start a worker that does one run."
    runs = SubmittedRuns(SlurmJobs(), {"partition": "cpu"}, poll_seconds=0.05)
    options = {"once": True, "attempt": runs, "lease_seconds": 30.0}
    thread = threading.Thread(target=work, args=(queue,), kwargs=options, daemon=True)
    thread.start()
    return thread


def printed(queue: Store, run_id: UUID, stream: str = "stdout") -> str:
    "What our queue has of a run's output."
    return "".join(line.chunk for line in read_log(queue, run_id) if line.stream == stream)


def test_a_run_is_submitted_once_and_its_log_and_results_reach_the_queue(
    queue: Store, jobs: Path
) -> None:
    run_id = submit(queue, 1)
    start_worker(queue).join(PATIENCE)
    row = get_queued(queue, run_id)
    assert (row.status, row.exit_code, row.metrics) == ("completed", 0, {"loss": 0.5}), row.message
    assert row.message == "completed as Slurm job 1"
    assert "submitted to Slurm as job 1" in printed(queue, run_id)
    assert f"step 1 of run {run_id}\nstep 2" in printed(queue, run_id)
    assert "#SBATCH --partition=cpu" in (jobs / "1.script").read_text()
    assert not (jobs / "2.name").exists()


def test_a_run_that_fails_is_failed_with_what_its_job_printed(queue: Store, jobs: Path) -> None:
    run_id = submit(queue, 2)
    start_worker(queue).join(PATIENCE)
    row = get_queued(queue, run_id)
    assert (row.status, row.message) == ("failed", "ValueError: the data ran out")
    assert "CUDA error: a device is lost" in row.stderr


def test_a_job_that_dies_without_a_word_is_an_attempt_that_is_repeated(queue: Store) -> None:
    run_id = submit(queue, 3, max_attempts=2)
    start_worker(queue).join(PATIENCE)
    row = get_queued(queue, run_id)
    assert (row.status, row.attempts) == ("pending", 1)
    assert row.message == "Slurm job 1 ended without a word"


def test_a_cancellation_lets_the_job_save_and_does_not_let_it_come_back(
    queue: Store, jobs: Path
) -> None:
    run_id = submit(queue, 4)
    worker = start_worker(queue)
    until(lambda: "step 1" in printed(queue, run_id))
    request_cancel(queue, run_id)
    worker.join(PATIENCE)
    row = get_queued(queue, run_id)
    assert (row.status, row.exit_code) == ("cancelled", 130), row.message
    calls = (jobs / "calls").read_text()
    assert "scontrol update JobId=1 Requeue=0\nscancel --signal=TERM 1\n" in calls
    assert read_run(settings().root / row.folder).status == "cancelled"


def test_a_scheduler_that_is_away_is_asked_again_and_the_run_is_none_the_worse(
    queue: Store, jobs: Path
) -> None:
    (jobs / "away").touch()
    run_id = submit(queue, 4)
    worker = start_worker(queue)
    until(lambda: "Unable to contact slurm controller" in printed(queue, run_id))
    (jobs / "away").unlink()
    until(lambda: "step 1" in printed(queue, run_id))
    (jobs / "away").touch()  # while the job is at work
    until(lambda: printed(queue, run_id).count("Unable to contact") == 2)
    (settings().root / get_queued(queue, run_id).folder / ".go").touch()
    assert get_queued(queue, run_id).status == "running"
    (jobs / "away").unlink()
    worker.join(PATIENCE)
    row = get_queued(queue, run_id)
    assert (row.status, row.attempts) == ("completed", 1), row.message
    assert not (jobs / "2.name").exists()


def test_another_worker_finds_the_job_of_one_that_is_gone(queue: Store, jobs: Path) -> None:
    run_id = submit(queue, 4)
    attempt = SubmittedRuns(SlurmJobs(), {"partition": "cpu"}, poll_seconds=0.05)
    over = threading.Event()

    def leaving(claim: Any, on_output: Any, grace_seconds: Any) -> Any:
        return attempt(claim, on_output, lambda: 0.0 if over.is_set() else None)

    options = {"once": True, "attempt": leaving}
    first = threading.Thread(target=work, args=(queue,), kwargs=options, daemon=True)
    first.start()
    until(lambda: "step 1" in printed(queue, run_id))
    over.set()
    first.join(PATIENCE)
    assert "job 1 goes on" in get_queued(queue, run_id).message
    second = start_worker(queue)
    until(lambda: get_queued(queue, run_id).status == "running")
    (settings().root / get_queued(queue, run_id).folder / ".go").touch()
    second.join(PATIENCE)
    row = get_queued(queue, run_id)
    assert (row.status, row.message) == ("completed", "completed as Slurm job 1")
    assert not (jobs / "2.name").exists()
