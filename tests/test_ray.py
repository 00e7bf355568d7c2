"""Runs on a Ray cluster of two nodes: two processes, a node that is killed, a stop, and jobs.

Both are on this machine. Nightly, with the extra `ray`: pip install "tunix_rt[ray]".
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from test_launch import COMMAND, NIGHTLY, TRAINED, environment, free_port, losses, same, wait_for
from test_launch import place as place

from tunix_rt.core.settings import settings
from tunix_rt.jobs.logs import read_log
from tunix_rt.jobs.queue import enqueue, get_queued, request_cancel
from tunix_rt.jobs.ray_jobs import RayJobs
from tunix_rt.jobs.submit import SubmittedRuns
from tunix_rt.jobs.worker import work
from tunix_rt.runs.run_spec import make_spec
from tunix_rt.store.engine import Store, open_store

pytestmark = NIGHTLY
STORE = 100 * 2**20  # Bytes of shared memory for a node's objects
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
TUNIX_RT = f"""#!/bin/sh
exec {sys.executable} -c 'from tunix_rt.cli.app import main; main()' "$@"
"""


class TwoNodes:
    "A Ray cluster on this machine, with one processor core a node."

    def __init__(self, root: Path) -> None:
        utils = pytest.importorskip("ray.cluster_utils")
        (root / "bin").mkdir()
        (root / "bin/tunix-rt").write_text(TUNIX_RT)
        (root / "bin/tunix-rt").chmod(0o755)
        known = environment(root, PATH=f"{root / 'bin'}:{os.environ['PATH']}")
        self.before = dict(os.environ)
        os.environ.update(known, RAY_USAGE_STATS_ENABLED="0")  # inherited by what Ray starts
        os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # else others' memory ends our workers
        dashboard = {"include_dashboard": True, "dashboard_port": free_port()}
        self.client = f"ray://127.0.0.1:{free_port()}"
        door = {"ray_client_server_port": int(self.client.rpartition(":")[2])}
        head = {**self._node(), **dashboard, **door}
        self.cluster = utils.Cluster(initialize_head=True, connect=False, head_node_args=head)
        self.second = self.add()
        self.variables = {**known, "RAY_ADDRESS": self.cluster.address}
        self.jobs = f"http://127.0.0.1:{dashboard['dashboard_port']}"

    def _node(self) -> dict[str, int]:
        named = {name: free_port() for name in (*PORTS, "runtime_env_agent_port")}
        return {"num_cpus": 1, "object_store_memory": STORE, **named}

    def add(self) -> Any:
        "Start one more node."
        return self.cluster.add_node(**self._node())

    def kill_second(self) -> None:
        "Let one node die as if its machine had lost power."
        self.cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        "Stop all nodes."
        self.cluster.shutdown()
        os.environ.clear()
        os.environ.update(self.before)

    def launch(self, run: Path, *options: str) -> subprocess.Popen[str]:
        "Launch the training of all tests."
        words = ["launch", "train", "--on", "ray", "--run-dir", str(run), "--name", run.name]
        return subprocess.Popen(
            [*COMMAND, *words, *TRAINED.split(), *options], env=self.variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def nodes(place: Path) -> Iterator[TwoNodes]:
    "A cluster of two nodes."
    started = TwoNodes(place)
    yield started
    started.stop()


def end(launched: subprocess.Popen[str]) -> str:
    "Wait for a launched run, and return what it printed."
    printed = launched.communicate(timeout=900)[0]
    assert launched.returncode == 0, printed[-5000:]
    return printed


def test_two_hosts_write_the_losses_of_one(nodes: TwoNodes, place: Path) -> None:
    run = place / "outputs/runs/ray-two"
    end(nodes.launch(run, "--hosts", "2"))
    assert same(losses(run), losses(place / "outputs/runs/alone"))
    assert len(list((run / ".hosts").iterdir())) == 1
    assert "completed" in end(nodes.launch(run, "--hosts", "2"))  # it was done already
    assert len(list((run / ".hosts").iterdir())) == 1


@pytest.mark.parametrize("elastic", [True, False])
def test_a_node_dies_and_the_run_is_finished_with_the_same_numbers(
    nodes: TwoNodes, place: Path, elastic: bool
) -> None:
    run = place / "outputs/runs" / ("ray-fewer" if elastic else "ray-replaced")
    options = ("--hosts", "2", "--min-hosts", "1" if elastic else "0")
    launched = nodes.launch(run, *options)
    wait_for(lambda: (run / "checkpoints/4").is_dir() or launched.poll() is not None, 600)
    nodes.kill_second()
    if not elastic:
        nodes.second = nodes.add()
    end(launched)
    if elastic:
        nodes.second = nodes.add()
    assert same(losses(run), losses(place / "outputs/runs/alone"))
    facts = json.loads((run / "run.json").read_text())
    assert facts["results"]["resumed_from"] == 4 and facts["resumed_at"]


def test_a_launched_run_saves_when_it_is_asked_to_stop_and_resumes(
    nodes: TwoNodes, place: Path
) -> None:
    run = place / "outputs/runs/ray-stopped"
    launched = nodes.launch(run, "--hosts", "2")
    wait_for(lambda: (run / "metrics.jsonl").is_file() and losses(run), 600)
    launched.send_signal(signal.SIGTERM)
    printed = launched.communicate(timeout=300)[0]
    assert launched.returncode == 75, printed[-5000:]
    assert json.loads((run / "run.json").read_text())["status"] == "cancelled"
    end(nodes.launch(run, "--hosts", "2"))
    assert same(losses(run), losses(place / "outputs/runs/alone"))


def test_a_run_is_launched_from_outside_through_the_client_server(
    nodes: TwoNodes, place: Path
) -> None:
    run = place / "outputs/runs/ray-client"
    output = end(nodes.launch(run, "--hosts", "2", "--on", nodes.client))
    assert "completed on Ray" in output
    assert same(losses(run), losses(place / "outputs/runs/alone"))


@pytest.fixture
def queue(nodes: TwoNodes, place: Path, tmp_path: Path) -> Iterator[Store]:
    "A queue in SQLite, with the root of the cluster."
    settings.cache_clear()
    store = open_store(f"sqlite:///{tmp_path / 'tunix_rt.db'}")
    yield store
    store.close()
    settings.cache_clear()


def submit(queue: Store, address: str) -> tuple[UUID, threading.Thread]:
    "Queue a training, and start a worker that submits it."
    words = [word for word in TRAINED.split() if word != "-p"]
    spec = make_spec("train", dict(word.split("=") for word in words), as_text=True)
    run_id = enqueue(queue, spec).id
    runs = SubmittedRuns(RayJobs(address), {"hosts": 2, "grace_seconds": 120}, poll_seconds=0.5)
    options = {"once": True, "attempt": runs, "lease_seconds": 60.0}
    thread = threading.Thread(target=work, args=(queue,), kwargs=options, daemon=True)
    thread.start()
    return run_id, thread


def printed(queue: Store, run_id: UUID) -> str:
    "What our queue has of a run's output."
    return "".join(line.chunk for line in read_log(queue, run_id))


@pytest.mark.parametrize("door", ["jobs", "client"])
def test_a_queued_run_is_a_job_whose_log_and_end_reach_the_queue(
    nodes: TwoNodes, place: Path, queue: Store, door: str
) -> None:
    run_id, worker = submit(queue, getattr(nodes, door))
    worker.join(900)
    row = get_queued(queue, run_id)
    assert row.status == "completed", (row.message, row.stderr)
    assert row.message == f"completed as Ray job run-{run_id.hex[:12]}-1"
    assert "submitted to Ray" in printed(queue, run_id) and "8/8" in printed(queue, run_id)
    assert same(losses(place / row.folder), losses(place / "outputs/runs/alone"))


def test_a_cancellation_lets_the_job_save(nodes: TwoNodes, place: Path, queue: Store) -> None:
    run_id, worker = submit(queue, nodes.jobs)

    def begun() -> bool:
        folder = get_queued(queue, run_id).folder
        return bool(folder and (place / folder / "metrics.jsonl").is_file())

    wait_for(begun, 600)
    request_cancel(queue, run_id)
    worker.join(300)
    row = get_queued(queue, run_id)
    assert row.status == "cancelled", (row.message, row.stderr)
    assert (place / row.folder / "checkpoints").is_dir()
    assert json.loads((place / row.folder / "run.json").read_text())["status"] == "cancelled"
