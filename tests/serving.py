"What the tests of the server share: an app in a folder of its own, and runs to look into."

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tunix_rt.core.settings import Settings, settings
from tunix_rt.data.datasets import build_dataset, load_dataset
from tunix_rt.runs.folder import start_run
from tunix_rt.scoring.predictions import make_prediction, write_predictions
from tunix_rt.store.tables import RunRow
from tunix_rt.traces.schema import Trace

TOKEN = "correct-horse-battery-staple"


def accept_ctrl_c() -> None:
    "Undo the ignored SIGINT that a process inherits from a background job (`preexec_fn`)."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sum_trace(number: int, **meta) -> dict:
    "A trace as one would send it."
    step = {"i": 0, "type": "sum", "content": f"{number} + {number} = {2 * number}"}
    fields = {"prompt": f"What is {number} + {number}?", "final_answer": str(2 * number)}
    return {**fields, "steps": [step], "meta": {"source": "tests", "category": "sum", **meta}}


def make_root(monkeypatch, folder: Path) -> None:
    "Let a folder be the root, with one dataset in it."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(folder))
    settings.cache_clear()
    traces = [Trace.model_validate(sum_trace(number)) for number in range(8)]
    build_dataset(traces, name="sums", version="v1")
    (folder / "data" / "imports").mkdir()


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A root of our own, with one dataset."
    make_root(monkeypatch, tmp_path)
    yield tmp_path
    settings.cache_clear()


@contextmanager
def serving(store, **options):
    "Give a client of an app that runs in this process."
    from fastapi.testclient import TestClient

    from tunix_rt.serve.app import create_app

    app = create_app(Settings(**options), store)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def api(store, root):
    "A client of an app on each of the two databases."
    with serving(store) as client:
        yield client


SAID = "<reasoning>sums</reasoning>\n<answer>{}</answer>"


def register(store, root: Path, run, **fields) -> UUID:
    "Let the store know a run folder."
    known = {"id": UUID(run.run_id), "pipeline": run.pipeline, "status": "completed"}
    row = RunRow(folder=str(run.folder.relative_to(root)), **known, **fields)
    with store.writing() as session:
        session.add(row)
    return row.id


def make_run(store, root: Path, right: int, **fields) -> UUID:
    "A run that left a model, which was asked eight questions and knew so many answers."
    home = root / "outputs" / "runs"
    trained = start_run("train", home / f"train-{right}", {"model": "tiny"})
    trained.model.mkdir()
    (trained.model / "config.json").write_text(json.dumps({"right": right}))
    (trained.model / "model.safetensors").write_bytes(bytes(100_000))
    (trained.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss')
    trained.record(dataset={"key": "other-v1", "sha256": "5" * 64})
    trained.finish({"loss": 0.5})
    id = register(store, root, trained, **fields)

    exam = load_dataset("sums-v1")
    asked = start_run("evaluate", home / f"evaluate-{right}", {"model": str(trained.folder)})
    predictions = [
        make_prediction(
            trace,
            SAID.format(trace.final_answer if number < right else "no idea"),
            finish_reason="stop",
            prompt_tokens=9,
            completion_tokens=9,
            sample=0,
        )
        for number, trace in enumerate(exam)
    ]
    write_predictions(asked.predictions, predictions)
    asked.record(dataset={"key": exam.key, "sha256": exam.fingerprint})
    asked.finish({})
    register(store, root, asked, parent_run_id=id)
    return id


def free_port() -> int:
    "Find a port that nobody listens on."
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server_process(database_url: str, root: Path, **environment):
    "Start a server in a process of its own, and give the process and its address."
    port = free_port()
    code = f"from tunix_rt.serve.server import serve; serve(port={port})"
    known = {"DATABASE_URL": database_url, "TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"}
    with (root / "server.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **known, **environment},
            cwd=root,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/api/health")
                break
            except httpx.TransportError:
                assert process.poll() is None, (root / "server.log").read_text()
                time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()
