"The commands of a team, on both databases, by exit code and by what is printed."

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from uuid import UUID

import nbformat
import numpy as np
import pytest
from databases import empty_database
from nbformat.v4 import new_code_cell, new_notebook
from safetensors.numpy import save_file
from serving import accept_ctrl_c

from tunix_rt.cli.app import main
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import build_dataset
from tunix_rt.jobs.queue import get_queued, list_queued
from tunix_rt.runs.folder import start_run
from tunix_rt.runs.pipelines import check_parameters
from tunix_rt.scoring.predictions import make_prediction, write_predictions
from tunix_rt.store.engine import open_store
from tunix_rt.traces.schema import Trace

ASK = 'steps: int = 3  # How far to count\nrate: float = 0.5\nrun_dir: str = ""  # The run folder'
OPEN = (
    "from tunix_rt.runs.folder import open_run\n"
    "run = open_run('count', run_dir, {'steps': steps, 'rate': rate})"
)
FINISH = "run.finish({'loss': abs(rate - 0.3), 'counted': steps})"
STEPS = [{"i": 0, "type": "work", "content": "1 + 1 = 2"}]


def write(path, *cells):
    first = new_code_cell(ASK, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, cells)]), path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A folder of its own, as a person has who starts."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("TUNIX_RT_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    write(tmp_path / "count.ipynb", OPEN, FINISH)
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def shared(root, database_url, monkeypatch):
    "The same folder, on each of the two databases."
    monkeypatch.setenv("DATABASE_URL", database_url)
    settings.cache_clear()
    return root


@pytest.fixture
def typed(capfd):
    "Type a line in this process: exit code, output, errors."

    def run(line):
        capfd.readouterr()
        try:
            main(line.split())
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run


def start(root, *words):
    return subprocess.Popen(
        [sys.executable, "-c", "from tunix_rt.cli.app import main; main()", *words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_ctrl_c,
    )


def examined(root, name, right, trained=None):
    "Leave the folder of a run that asked forty questions."
    questions = [Trace(prompt=f"{n}?", steps=STEPS, final_answer=str(n)) for n in range(40)]
    exam = build_dataset(questions, name="exam", version="v1")
    parameters = {"model": str(trained.folder) if trained else "tiny", "name": name}
    run = start_run("evaluate", root / "outputs/runs" / name, parameters)
    said = [
        make_prediction(
            trace,
            f"<answer>{trace.final_answer if n < right else 'none'}</answer>",
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
        )  # fmt: skip
        for n, trace in enumerate(questions)
    ]
    write_predictions(run.predictions, said)
    run.record(dataset={"key": exam.key, "sha256": exam.fingerprint})
    run.finish()
    run.write_checksums()
    return run


# Database


def test_tables_are_brought_up_to_date(root, typed, monkeypatch):
    with empty_database() as address:
        monkeypatch.setenv("DATABASE_URL", address)
        settings.cache_clear()
        assert typed("db current")[0] == 1
        assert typed("runs") == (0, "none yet\n", ""), "an empty database gets its tables"
        assert typed("db downgrade 0001 --yes")[0] == 0
        code, _, errors = typed("runs")
        assert code == 1 and "tunix-rt db upgrade" in errors and "Traceback" not in errors
        assert typed("db upgrade")[0] == 0 and typed("db current")[0] == 0
        assert typed("db downgrade base --yes")[0] == 0 and typed("db current")[0] == 1


def test_an_unreachable_database_is_one_paragraph(root, typed, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://team:secret@127.0.0.1:9/tunix")
    settings.cache_clear()
    for line in ("runs", "db current", "worker --once", "backup x.backup"):
        code, output, errors = typed(line)
        assert code == 1 and "127.0.0.1:9" in errors, (line, output, errors)
        assert "secret" not in errors and "Traceback" not in errors


def test_a_backup_comes_back_elsewhere(shared, typed, monkeypatch):
    assert typed("queue count.ipynb")[0] == 0
    assert "1 runs" in typed("backup all.backup")[1]
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{shared}/other.db")
    settings.cache_clear()
    assert "1 runs" in typed("restore all.backup")[1]
    assert "pending" in typed("runs")[1]
    code, _, errors = typed("restore all.backup")
    assert code == 1 and "empty one" in errors


# Queue and workers


def test_asked_for_taken_listed_and_cancelled(shared, typed, database_url, count_calls):
    checks = count_calls(check_parameters)
    code, output, _ = typed("queue count.ipynb -p steps=4 --model-id counter")
    assert code == 0 and len(checks) == 1
    run_id = UUID(output.split()[0])
    code, output, errors = typed("worker --once")
    assert code == 0 and "did one run" in output and f"{run_id}: completed" in errors
    assert len(checks) == 2  # a worker comes later, and reads the notebook as it is then
    assert "nothing was waiting" in typed("worker --once")[1]
    code, output, _ = typed("runs --status completed")
    assert code == 0 and re.search(rf"{str(run_id)[:8]}\s+count\s+completed", output)
    store = open_store(database_url)
    run = get_queued(store, run_id)
    assert (run.metrics["counted"], run.pipeline, run.model_id) == (4, "count.ipynb", "counter")
    code, output, _ = typed(f"show {run.folder}")
    assert code == 0 and "counted" in output

    second = typed("queue count.ipynb")[1].split()[0]
    assert "cancelled" in typed(f"cancel {second[:8]}")[1]
    code, _, errors = typed(f"cancel {second[:8]}")
    assert code == 1 and "cancelled already" in errors
    assert len(list_queued(store).runs) == 2
    store.close()


def test_a_dry_run_says_what_would_happen(root, typed):
    code, output, _ = typed("queue count.ipynb -p rate=0.25 --dry-run")
    assert code == 0 and "rate = 0.25" in output and "steps = 3" in output
    assert "pending" not in typed("runs")[1]


def test_a_worker_that_is_told_to_stop_lets_its_run_save(root, typed):
    wait = "import time; print('begun', flush=True); time.sleep(600)"
    write(root / "long.ipynb", OPEN, wait)
    typed("queue long.ipynb")
    worker = start(root, "worker", "--name", "anna", "--lease-seconds", "30")
    store, until = open_store(), time.monotonic() + 60
    while not (runs := list_queued(store).runs)[0].last_seq and time.monotonic() < until:
        time.sleep(0.1)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0 and "anna takes runs" in errors and "anna stops" in errors
    assert get_queued(store, runs[0].id).status == "pending"
    store.close()


def test_refusals_are_one_paragraph_without_a_traceback(root, typed):
    (root / "bad.json").write_text('{"name": "x"}')
    refused = {
        "queue count.ipynb -p stepz=3": "did you mean 'steps'?",
        "queue nowhere.ipynb": "there is no notebook",
        "queue count.ipynb --parent 123abc": "there is no run '123abc'",
        "cancel 123abc": "tunix-rt runs",
        "runs --status asleep": "choose one of",
        "import-run nowhere": "nowhere",
        "restore nowhere": "does not exist",
        "gate nobody main": "there is no run",
        "promote reasoner nobody": "there is no run",
        "verify nothing v1": "nothing",
        "models nothing": "nothing",
        "tune bad.json": "does not say dataset_key",
        "tune x -s rate=a...b": "write two numbers",
        "tuning nobody": "there is no search 'nobody'",
        "serve --host 0.0.0.0": "TUNIX_RT_TOKEN",
    }
    for line, reason in refused.items():
        code, _, errors = typed(line)
        assert code == 1 and reason in errors and "Traceback" not in errors, (line, errors)
    assert "none yet" in typed("models")[1]
    for line in ("queue", "gate x", "promote x", "tune", "db fly", "serve --port x"):
        code, _, errors = typed(line)
        assert code == 2 and "Usage:" in errors, line


# From a run to a model


def test_scored_held_to_a_bar_and_promoted(shared, typed):
    trained = start_run("train", shared / "outputs/runs/trained", {"dataset": "sums-v1"})
    trained.model.mkdir()
    (trained.model / "config.json").write_text('{"model_type": "gemma3_text"}')
    save_file({"weight": np.zeros(4)}, trained.model / "model.safetensors")
    trained.finish({"loss": 0.25})
    trained.write_checksums()
    careful, careless = examined(shared, "careful", 30, trained), examined(shared, "bad", 5)
    code, _, errors = typed("gate trained main")
    assert code == 1 and f"tunix-rt import-run {trained.folder}" in errors
    for run in (trained, careful):
        assert typed(f"import-run {run.folder}")[0] == 0
    shutil.make_archive(str(shared / "bad"), "zip", careless.folder)
    shutil.rmtree(careless.folder)
    code, output, _ = typed("import-run bad.zip")
    assert code == 0 and careless.run_id in output

    code, output, _ = typed("leaderboard --evaluation-set exam-v1")
    lines = output.splitlines()
    assert code == 0 and len(lines) == 3  # the examination stands there, not the trained run too
    assert " 75.0 " in lines[1] and "best" in lines[1]
    assert " 12.5 " in lines[2] and "behind" in lines[2]
    code, output, _ = typed("score trained")
    assert code == 0 and "40 of exam-v1" in output and "pass" in output
    assert typed("baseline main trained")[0] == 0
    assert typed("gate trained main")[0] == 0
    code, output, _ = typed(f"gate {careless.run_id[:8]} main")
    assert code == 1 and output.startswith("fail")
    assert typed(f"gate {careless.run_id[:8]} main --tolerance 90")[0] == 0

    code, output, errors = typed("promote reasoner trained --gate main --alias champion")
    assert code == 0 and "v1, champion" in output, errors
    folder = Path(re.search(r"folder\s+(\S+)", output)[1])
    assert (folder / "config.json").is_file() and "and only aliases move" not in output
    assert "and only aliases move" in typed("promote reasoner trained --description better")[1]
    assert "champion = v1" in typed("models")[1] and "v1" in typed("models reasoner")[1]
    assert typed("verify reasoner champion")[0] == 0
    (folder / "extra").write_text("slipped in")
    code, output, _ = typed("verify reasoner v1")
    assert code == 1 and "NOT as it was promoted" in output and "extra" in output


# Searches


def test_a_search_from_one_line_and_from_a_file(root, typed):
    build_dataset([Trace(prompt="?", steps=STEPS, final_answer="2")], name="sums", version="v1")
    fixed = "--dataset sums-v1 --metric loss --pipeline count.ipynb"
    code, output, errors = typed(
        f"tune rates {fixed} -s rate=0.1...0.9 -p steps=2 --trials 2 --max-concurrent 2 --work"
    )
    assert code == 0 and "2 completed" in output and "2 of 2" in output, errors
    assert re.search(r"rates\s+completed\s+loss", typed("tuning")[1])
    asked = {
        "name": "from a file", "dataset_key": "sums-v1", "base_model_id": "tiny",
        "metric_name": "loss", "metric_mode": "min", "pipeline": "count.ipynb",
        "search_space": {"steps": {"type": "choice", "values": [1, 2]}},
    }  # fmt: skip
    (root / "search.json").write_text(json.dumps(asked))
    code, output, _ = typed("tune search.json")
    assert code == 0 and "workers take its trials" in output
    start_of_id = output[:8]
    assert "0 of 1" in typed(f"tuning {start_of_id}")[1]
    assert "cancelled" in typed(f"tuning {start_of_id} --cancel")[1]


# The server


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_server_listens_answers_and_stops(root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(root, "serve", "--port", str(port))
    try:
        for _ in range(300):
            try:
                assert ask(port, "/api/health") == {"status": "healthy"}
                break
            except urllib.error.URLError:
                assert server.poll() is None, server.stderr.read()
                time.sleep(0.1)
        trace = {"trace_version": "1.0", "prompt": "?", "final_answer": "2", "steps": STEPS}
        kept = ask(port, "/api/traces", trace)
        assert ask(port, f"/api/traces/{kept['id']}")["payload"]["final_answer"] == "2"
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 130 and "Traceback" not in errors, errors


def test_without_the_extra_everything_but_the_server_works(root):
    code = (
        "import sys\n"
        "for name in ('fastapi', 'uvicorn', 'optuna', 'jax'): sys.modules[name] = None\n"
        "from tunix_rt.cli.app import main\n"
        "main(sys.argv[1:])"
    )

    def typed(*words):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    assert typed("--help")[0] == 0
    assert typed("queue", "count.ipynb")[0] == 0
    code_of, _, errors = typed("serve")
    assert code_of == 1 and "pip install 'tunix_rt[serve]'" in errors
    assert "Traceback" not in errors


def test_every_command_explains_itself_with_an_example(root, typed):
    _, output, _ = typed("--help")
    names = re.findall(r"^  ([a-z_-]+) ", output.partition("Pipelines:")[2], re.M)
    ours = {"serve", "worker", "queue", "runs", "cancel", "tune", "leaderboard", "gate", "promote"}
    assert ours | {"db", "backup", "restore", "import-run", "baseline", "models"} <= set(names)
    for name in ours:
        code, output, _ = typed(f"{name} --help")
        assert code == 0 and f"Example: tunix-rt {name}" in output, name
    assert os.environ["TUNIX_RT_ROOT"] == str(root) and not (root / "outputs").exists()
