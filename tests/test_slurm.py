"""Runs that a worker submits to Slurm itself: two nodes on this machine, one of them killed.

Nightly: apt install slurmctld slurmd slurm-client munge. Without them it is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from test_launch import NIGHTLY, TRAINED, environment, free_port, losses, same, wait_for
from test_launch import place as place
from test_launch import slurm as slurm
from test_ray import TUNIX_RT

from tunix_rt.core.settings import settings
from tunix_rt.jobs.logs import read_log
from tunix_rt.jobs.queue import enqueue, get_queued, request_cancel
from tunix_rt.jobs.slurm_jobs import SlurmJobs
from tunix_rt.jobs.submit import SubmittedRuns
from tunix_rt.jobs.worker import work
from tunix_rt.runs.run_spec import make_spec
from tunix_rt.store.engine import Store, open_store

pytestmark = NIGHTLY


@pytest.fixture
def queue(
    place: Path, slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    "A queue in SQLite, on a machine that submits to that Slurm."
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "tunix-rt").write_text(TUNIX_RT)
    (programs / "tunix-rt").chmod(0o755)
    address = f"127.0.0.1:{free_port()}"  # n1 is no name of this machine
    path = f"{programs}:{os.environ['PATH']}"
    known = environment(place, PATH=path, JAX_COORDINATOR_ADDRESS=address, **slurm)
    for name, value in known.items():
        monkeypatch.setenv(name, value)  # sbatch hands it on to the job
    settings.cache_clear()
    store = open_store(f"sqlite:///{tmp_path / 'tunix_rt.db'}")
    yield store
    store.close()
    settings.cache_clear()


def ask(*words: str) -> str:
    "Run a command of Slurm."
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def submit(queue: Store, hosts: int) -> tuple[UUID, threading.Thread]:
    "Queue a training, and start a worker that submits it."
    words = [word for word in TRAINED.split() if word != "-p"]
    spec = make_spec("train", dict(word.split("=") for word in words), as_text=True)
    run_id = enqueue(queue, spec).id
    options = {"hosts": hosts, "partition": "cpu", "grace_seconds": 120}
    runs = SubmittedRuns(SlurmJobs(), options, poll_seconds=0.5)
    given = {"once": True, "attempt": runs, "lease_seconds": 60.0}
    thread = threading.Thread(target=work, args=(queue,), kwargs=given, daemon=True)
    thread.start()
    return run_id, thread


def printed(queue: Store, run_id: UUID) -> str:
    "What our queue has of a run's output."
    return "".join(line.chunk for line in read_log(queue, run_id))


def folder_of(queue: Store, place: Path, run_id: UUID) -> Path:
    "The run folder of a queued run, when it has one."
    return place / (get_queued(queue, run_id).folder or ".nowhere")


def test_a_queued_run_is_a_job_whose_log_and_end_reach_the_queue(queue: Store, place: Path) -> None:
    run_id, worker = submit(queue, 2)
    wait_for(lambda: get_queued(queue, run_id).status == "running", 300)
    worker.join(900)
    row = get_queued(queue, run_id)
    assert row.status == "completed", (row.message, row.stderr)
    assert row.message == "completed as Slurm job 1"
    assert "submitted to Slurm as job 1" in printed(queue, run_id)
    assert "8/8" in printed(queue, run_id)
    assert same(losses(place / row.folder), losses(place / "outputs/runs/alone"))


def test_a_cancellation_lets_the_job_save(queue: Store, place: Path) -> None:
    run_id, worker = submit(queue, 2)
    wait_for(lambda: (folder_of(queue, place, run_id) / "metrics.jsonl").is_file(), 600)
    request_cancel(queue, run_id)
    worker.join(300)
    row = get_queued(queue, run_id)
    assert row.status == "cancelled", (row.message, row.stderr)
    assert (place / row.folder / "checkpoints").is_dir()
    assert json.loads((place / row.folder / "run.json").read_text())["status"] == "cancelled"
    wait_for(lambda: not ask("squeue", "--noheader"), 60)  # and it does not come back


def processes_of(node: str, conf: str) -> list[int]:
    "Everything that runs on one of the pretended nodes: its daemon, job steps and tasks."
    found = []
    for each in Path("/proc").iterdir():
        try:
            command = (each / "cmdline").read_bytes().decode().replace("\0", " ")
            known = (each / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        ours = f"SLURM_CONF={conf}" in known
        daemon = f"-N {node} -f {conf}" in command
        if daemon or (ours and (f"SLURMD_NODENAME={node}" in known or "slurmstepd" in command)):
            found.append(int(each.name))
    return found


def test_a_node_dies_and_slurm_starts_the_run_on_the_other(
    queue: Store, place: Path, slurm: dict[str, str]
) -> None:
    run_id, worker = submit(queue, 1)
    wait_for(lambda: (folder_of(queue, place, run_id) / "checkpoints/4").is_dir(), 600)
    node = ask("squeue", "--noheader", "--format=%N")
    assert node in ("n1", "n2")
    for pid in processes_of(node, slurm["SLURM_CONF"]):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    state: Any = lambda: ask("squeue", "--noheader", "--format=%T")  # noqa: E731
    wait_for(lambda: state() == "PENDING", 120)  # the controller missed it, and requeued the job
    ask("scontrol", "update", "JobId=1", "StartTime=now")  # else it waits for two minutes
    wait_for(lambda: ask("squeue", "--noheader", "--format=%N") not in ("", node), 120)
    worker.join(600)
    row = get_queued(queue, run_id)
    assert (row.status, row.message) == ("completed", "completed as Slurm job 1"), row.stderr
    assert same(losses(place / row.folder), losses(place / "outputs/runs/alone"))
    facts = json.loads((place / row.folder / "run.json").read_text())
    assert facts["results"]["resumed_from"] == 4
