"What version 0.1 left behind is read, resumed and worked on: see tests/data/v0_1/README.md."

import json
import shutil
import tarfile
from contextlib import closing
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from serving import serving

from tunix_rt.cli.show import show_text, way_on
from tunix_rt.core.errors import RunError
from tunix_rt.core.files import canonical_json, read_jsonl_log, sha256_file
from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import freeze_recipe, load_dataset
from tunix_rt.data.exports import FORMATS, export_lines
from tunix_rt.data.formats import detect_format, import_file
from tunix_rt.evaluation.compare import compare_evaluations
from tunix_rt.evaluation.evaluate import evaluate, load_evaluation
from tunix_rt.jobs.logs import read_log as read_printed
from tunix_rt.jobs.queue import get_queued, list_queued
from tunix_rt.jobs.worker import work
from tunix_rt.registry.model_refs import pin_model
from tunix_rt.registry.models import find_version, list_models
from tunix_rt.registry.promotion import verify_version
from tunix_rt.runs.execute import execute
from tunix_rt.runs.folder import inventory, read_run
from tunix_rt.runs.lookup import find_run, list_runs, train_sets
from tunix_rt.runs.old_names import with_new_names
from tunix_rt.scoring.predictions import read_predictions
from tunix_rt.store.backup import restore
from tunix_rt.store.datasets import build_from_store
from tunix_rt.store.engine import current, open_store
from tunix_rt.store.migrations import HEAD
from tunix_rt.store.traces import count_traces, latest_score, list_traces
from tunix_rt.tracking.baselines import list_baselines
from tunix_rt.tracking.evaluations import latest_evaluation, list_items
from tunix_rt.tracking.leaderboard import leaderboard
from tunix_rt.tracking.regression import check_regression
from tunix_rt.tuning.controller import advance_jobs
from tunix_rt.tuning.jobs import get_job, list_jobs, start_job
from tunix_rt.tuning.study import open_study, study_storage

MADE = Path(__file__).parent / "data/v0_1"
DATASETS = {
    "arithmetic-steps-held-out-v1": "becb1095dea2",
    "arithmetic-steps-v1": "a4a7de4b72f0",
    "parity-exam-v1": "90951f689023",
    "parity-v1": "f02f3d1b10a3",
    "sums-v1": "c7725974d74a",
}
TRAINING = {  # Of finished, interrupted and killed, and of the run that waits
    "dataset": "parity-v1", "model": "outputs/small", "max_steps": 200, "batch_size": 4,
    "seq_length": 64, "micro_batch_size": 2, "optimizer": "adamw", "learning_rate": 0.03,
    "warmup_steps": 5, "final_lr_ratio": 0.1, "grad_clip": 0.5, "scan_layers": True,
    "validation_traces": 4,
    "checkpoint_every": 1000, "validate_every": 100, "log_every": 10,
}  # fmt: skip
SEARCHED = {"row_tokens", "clip", "final_rate", "optimiser", "learning_rate"}
SENT_ONCE = (
    b'{"prompt": "What is 2 + 2?", "final_answer": "4", '
    b'"steps": [{"i": 0, "type": "sum", "content": "2 + 2 = 4"}]}'
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A copy of everything, as the root of this process."
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    with tarfile.open(tmp_path / "outputs/runs.tar.gz") as packed:
        packed.extractall(tmp_path / "outputs")
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    for name in ("DATABASE_URL", "TUNIX_RT_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def store(root):
    "The database, opened by today's code."
    with closing(open_store()) as opened:
        yield opened


def runs(root):
    return root / "outputs/runs"


def figures(folder):
    "Steps and losses of a training."
    lines = read_jsonl_log(folder / "metrics.jsonl")
    return [line["step"] for line in lines], [line["loss"] for line in lines]


# Folders


def test_datasets_hold_their_fingerprints(root, store):
    assert {path.name for path in (root / "data/datasets").iterdir()} == set(DATASETS)
    for key, begins in DATASETS.items():
        data = load_dataset(key)
        assert data.key == key and data.fingerprint.startswith(begins)
        assert sha256_file(data.folder / "traces.jsonl") == data.fingerprint
        assert len(list(data)) == len(data) > 0
        assert key in show_text(key)
    remade = freeze_recipe("arithmetic-steps", version="v1", train=6, held_out=4, seed=42)
    assert all(DATASETS[data.key] == data.fingerprint[:12] for data in remade)
    chosen = {"filters": {"part": "learn"}, "limit": 1000}
    again = build_from_store(store, name="parity", version="v1", **chosen)
    assert again.fingerprint == load_dataset("parity-v1").fingerprint


def test_exports_are_the_same_bytes_and_come_back_in(root):
    data = load_dataset("parity-exam-v1")
    assert {path.stem for path in (root / "exports").iterdir()} <= set(FORMATS)
    for path in (root / "exports").iterdir():
        records = [json.loads(line) for line in export_lines(data, path.stem)]
        for record in records:  # 0.1 lost the types of steps; its fields are still the same bytes
            record.pop("step_types", None)
        lines = (canonical_json(record) + "\n" for record in records)
        assert "".join(lines) == path.read_text(), path.name
    for name in ("messages", "prompt_completion"):
        path, into = root / f"exports/{name}.jsonl", root / f"{name}.jsonl"
        taken = import_file(path, detect_format(path), source="0.1", into=into)
        assert (taken.accepted, taken.bad) == (len(data), 0)


def test_run_folders_say_what_they_are(root):
    statuses = {
        "finished": "completed",
        "interrupted": "cancelled",
        "killed": "interrupted",
        "adapter": "completed",
        "asked": "completed",
    }
    assert len(list_runs()) == 9
    for name, status in statuses.items():
        run = read_run(runs(root) / name)
        assert run.status == status and find_run(run.run_id[:8]).folder == run.folder
        assert run.pipeline in show_text(name) and status in show_text(name)
        assert run.facts["code"]["version"] == "0.1.0"
        if run.completed:
            assert inventory(run.folder) == run.facts["files"] and not run.resumable
            assert way_on(run) == ""
        else:
            assert run.resumable
            assert way_on(run).startswith("tunix-rt train -p dataset=parity-v1 ")
            assert way_on(run).endswith(f"--run-dir {run.folder}")
        if run.pipeline == "train":
            key = run.facts["dataset"]["key"]
            assert load_dataset(key).fingerprint == run.facts["dataset"]["sha256"]
            assert figures(run.folder)[0]
        cells = json.loads(run.notebook.read_text())["cells"]
        assert cells and run.log.read_text()
    finished = read_run(runs(root) / "finished")
    assert {name: finished.parameters[name] for name in TRAINING} == TRAINING
    assert finished.results["steps"] == 200
    assert train_sets(finished.model) == ["parity-v1"]


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(root):
    finished, folder = runs(root) / "finished", runs(root) / "interrupted"
    with pytest.raises(RunError, match="other parameters"):
        execute("train", TRAINING | {"grad_clip": 1.0}, folder, echo=False)
    before = figures(folder)
    run = execute("train", TRAINING, folder, echo=False)
    assert run.completed and not run.facts["stopped_early"] and len(run.facts["resumed_at"]) == 1
    assert "resumed from step 97" in run.log.read_text()
    steps, losses = figures(folder)
    assert steps == figures(finished)[0] == list(range(10, 201, 10)) and before[0][-1] == 90
    assert losses[:9] == before[1] == figures(finished)[1][:9]
    np.testing.assert_allclose(losses, figures(finished)[1], rtol=0.05, atol=0.01)
    known = read_run(finished).results
    for name in ("steps", "stopped_by", "tokens"):
        assert run.results[name] == known[name]
    assert run.results["validation_loss"] == pytest.approx(known["validation_loss"], abs=0.05)
    assert run.facts["files"].keys() == read_run(finished).facts["files"].keys()


def test_adapters_lie_on_their_base(root):
    from tunix_rt.models.loading import load_model, resolve_source

    model, _ = load_model(resolve_source("outputs/runs/adapter", "outputs/small"))
    assert model.lora is not None and (model.lora.rank, model.lora.alpha) == (2, 4)
    for layer in model.layers:
        assert all(np.any(np.asarray(pair.b[...])) for pair in layer.adapters.values())


def test_an_evaluation_reads_and_compares(root):
    asked = read_run(runs(root) / "asked")
    [other] = [run for run in list_runs("evaluate") if run.folder != asked.folder]
    kept, data = load_evaluation(asked.evaluation), load_dataset("parity-exam-v1")
    assert kept.scores["answer_correctness"].mean == pytest.approx(5 / 6)
    predictions = read_predictions(asked.predictions)
    assert [p.prompt for p in predictions] == [trace.prompt for trace in data]
    again = evaluate(
        predictions, data, name=kept.name, dataset_key=data.key,
        dataset_fingerprint=data.fingerprint, seed=asked.parameters["seed"],
    )  # fmt: skip
    assert {name: again.scores[name] for name in kept.scores} == kept.scores
    assert kept.scorers["answer_correctness"].version == "1"  # what was stored keeps its version
    assert again.scorers["answer_correctness"].version == "2"
    found = compare_evaluations(load_evaluation(other.folder), kept).main
    assert found.difference == pytest.approx(5 / 6)
    assert "<html" in asked.report.read_text()


# The database


def test_an_answer_that_was_given_is_given_again(store):
    with serving(store) as client:
        sent = {"Idempotency-Key": "sent once", "content-type": "application/json"}
        answer = client.post("/api/traces", content=SENT_ONCE, headers=sent)
        assert answer.status_code == 201 and answer.headers["Idempotent-Replayed"] == "true"
        assert answer.json()["id"] == "9e1e98ba-7e59-1ae6-1c87-8514bd591913"
        told = client.get(f"/api/traces/{answer.json()['id']}").json()
        assert told["payload"]["final_answer"] == "4" and count_traces(store) == 39


def test_the_pages_show_it_all(store):
    with serving(store) as client:
        paths = ["/", "/traces", "/datasets", "/runs", "/leaderboard", "/tuning", "/models"]
        paths += [f"/runs/{run.id}" for run in list_queued(store).runs]
        paths += [f"/tuning/{job.id}" for job in list_jobs(store).jobs]
        paths += [f"/models/{family.id}" for family in list_models(store).models]
        for path in paths:
            page = client.get(path, headers={"Accept": "text/html"})
            assert page.status_code == 200, (path, page.text)


def test_everything_in_the_database_is_listed(root, store):
    assert current(store) == HEAD
    assert len(list_traces(store, limit=100).traces) == count_traces(store) == 39
    scored = [trace.id for trace in list_traces(store, limit=100).traces]
    assert [id for id in scored if latest_score(store, id, "baseline")] != []

    known = list_queued(store, limit=100).runs
    assert [(run.pipeline, run.status) for run in known] == [
        ("train", "cancelled"), ("evaluate", "pending"), ("train", "pending"),
        ("train", "completed"), ("train", "completed"), ("evaluate", "completed"),
        ("train", "completed"), ("train", "completed"), ("evaluate", "completed"),
        ("train", "completed"),
    ]  # fmt: skip
    [worked] = [r for r in known if r.worker == "worker-1" and r.pipeline == "train"]
    printed = "".join(line.chunk for line in read_printed(store, worked.id))
    assert "parity-v1: 20 traces to learn from" in printed
    assert printed.endswith(get_queued(store, worked.id).stdout[-100:])
    assert all(read_run(run.path).run_id == str(run.id) for run in known if run.folder)

    best, other = leaderboard(store).rows
    finished = UUID(read_run(runs(root) / "finished").run_id)
    assert best.evaluation.run_id == finished and other.evaluation.run_id == worked.id
    kept = latest_evaluation(store, finished)
    assert kept.score == pytest.approx(500 / 6) and len(list_items(store, kept.id).items) == 6
    [bar] = list_baselines(store).baselines
    assert (bar.name, bar.metric, bar.run_id) == ("main", "score", finished)
    assert check_regression(store, finished, "main").verdict == "pass"


def test_a_search_keeps_its_trials_and_another_begins(store):
    later, sizes = (get_job(store, job.id) for job in list_jobs(store).jobs)
    assert (sizes.name, sizes.status, len(sizes.trials)) == ("sizes", "completed", 2)
    assert set(sizes.search_space) == set(sizes.best_params) == SEARCHED
    assert sizes.best_value == min(trial.value for trial in sizes.trials)
    for trial in sizes.trials:
        asked = get_queued(store, trial.run_id).parameters
        assert (
            trial.status == "completed"
            and with_new_names("train", trial.params).items() <= asked.items()
        )
    with study_storage(store) as storage:
        study = open_study(storage, sizes)
        assert [trial.value for trial in study.trials] == [trial.value for trial in sizes.trials]

    assert (later.name, later.status) == ("later", "created")
    start_job(store, later.id)
    assert advance_jobs(store) == 1
    [trial] = get_job(store, later.id).trials
    asked = get_queued(store, trial.run_id).parameters
    assert set(trial.params) == {"batch_size", "row_tokens", "optimiser", "final_rate"}
    assert asked["batch_size"] == trial.params["batch_size"] and asked["seq_length"] == 64
    assert (asked["micro_batch_size"], asked["grad_clip"], asked["scan_layers"]) == (2, 0.5, True)
    assert asked["final_lr_ratio"] == trial.params["final_rate"]


def test_a_promoted_model_answers_to_its_alias(store):
    version = find_version(store, "reasoner", "champion")
    assert version.version == "v1" and verify_version(store, version.id).ok
    folder, known = pin_model("reasoner@champion", store)
    assert known["model_version"]["version"] == "reasoner@v1"

    from tunix_rt.inference.engine import SamplingParams, generate
    from tunix_rt.models.loading import load_model, resolve_source
    from tunix_rt.models.tokenizer import encode_prompts

    model, tokenizer = load_model(resolve_source(folder))
    traces = list(load_dataset("parity-exam-v1"))
    prompts = encode_prompts(tokenizer, [trace.prompt for trace in traces])
    said = generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=64))
    right = [
        f"<answer>{t.final_answer}</answer>" in s.text for t, s in zip(traces, said, strict=True)
    ]
    assert sum(right) >= 4  # It was 5 of 6


def test_a_worker_takes_the_run_that_waits(root, store):
    [waiting] = list_queued(store, pipeline="train", status="pending").runs
    assert waiting.parameters == TRAINING
    assert work(store, worker="today", once=True) == 1
    done, finished = get_queued(store, waiting.id), runs(root) / "finished"
    assert (done.status, done.metrics["steps"]) == ("completed", 200), done.message
    run = read_run(done.path)
    assert {name: run.parameters[name] for name in TRAINING} == TRAINING
    assert figures(run.folder)[0] == figures(finished)[0]
    np.testing.assert_allclose(figures(run.folder)[1], figures(finished)[1], rtol=0.05, atol=0.01)
    assert (run.model / "model.safetensors").is_file()


def test_a_backup_comes_back(root):
    with closing(open_store(f"sqlite:///{root / 'other.db'}")) as other:
        restore(other, root / "0.1.backup")
        assert len(list_queued(other).runs) == 10 and count_traces(other) == 39
        sizes = get_job(other, list_jobs(other).jobs[1].id)
        assert len(sizes.trials) == 2
        assert find_version(other, "reasoner", "champion").version == "v1"
        assert len(leaderboard(other).rows) == 2
