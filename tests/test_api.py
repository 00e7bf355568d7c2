"Every endpoint of the contract, its shapes and its refusals, on both databases."

import asyncio
import gzip
import io
import json
import time
import zipfile
from uuid import UUID, uuid4

import pytest
from serving import make_run, serving, sum_trace
from test_formats import FILES, READ, REFUSED

from tunix_rt.data.datasets import build_dataset, load_dataset
from tunix_rt.jobs.logs import append_log
from tunix_rt.jobs.queue import get_queued
from tunix_rt.jobs.worker import work
from tunix_rt.serve.app import create_app
from tunix_rt.serve.sse import RunPoller, read_events, stream_log
from tunix_rt.store.tables import IdempotentReply, RunRow
from tunix_rt.store.traces import count_traces

NOBODY = uuid4()

CONTRACT = """
GET /api/health
GET /api/redi/health
GET /metrics
POST /api/traces
POST /api/traces/batch
GET /api/traces
GET /api/traces/compare
GET /api/traces/{trace_id}
POST /api/traces/{trace_id}/score
GET /api/ungar/status
POST /api/ungar/high-card-duel/generate
GET /api/ungar/high-card-duel/export.jsonl
POST /api/datasets/build
POST /api/datasets/ingest
GET /api/datasets/{dataset_key}/export.jsonl
GET /api/tunix/status
POST /api/tunix/sft/export
POST /api/tunix/sft/manifest
POST /api/tunix/run
GET /api/tunix/runs
GET /api/tunix/runs/{run_id}
GET /api/tunix/runs/{run_id}/status
GET /api/tunix/runs/{run_id}/logs
POST /api/tunix/runs/{run_id}/cancel
GET /api/tunix/runs/{run_id}/artifacts
GET /api/tunix/runs/{run_id}/artifacts/{filename}/download
GET /api/tunix/runs/{run_id}/metrics
POST /api/tunix/runs/{run_id}/evaluate
GET /api/tunix/runs/{run_id}/evaluation
GET /api/tunix/evaluations
POST /api/regression/baselines
POST /api/regression/check
POST /api/tuning/jobs
POST /api/tuning/jobs/{job_id}/start
GET /api/tuning/jobs
GET /api/tuning/jobs/{job_id}
POST /api/models
GET /api/models
GET /api/models/{model_id}
POST /api/models/{model_id}/versions/promote
GET /api/models/versions/{version_id}
GET /api/models/versions/{version_id}/download
"""


def test_the_document_has_all_endpoints_of_the_contract():
    paths = create_app().openapi()["paths"]
    there = {f"{method.upper()} {path}" for path, ways in paths.items() for method in ways}
    asked = set(CONTRACT.split("\n")) - {""}
    assert len(asked) == 42 and asked <= there


def good(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(answer, status, words=""):
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and words in detail, detail
    return detail


def test_traces_from_arrival_to_score(api):
    first = good(api.post("/api/traces", json=sum_trace(1) | {"unknown": "dropped"}), 201)
    assert first.pop("ignored") == ["unknown"]
    assert set(first) == {"id", "created_at", "trace_version"} and first["trace_version"] == "1.0"
    batch = good(api.post("/api/traces/batch", json=[sum_trace(n) for n in (2, 3)]), 201)
    assert batch["created_count"] == 2

    page = good(api.get("/api/traces?limit=2"))
    ids = [each["id"] for each in (first, *batch["traces"])]
    assert [each["id"] for each in page["data"]] == [ids[2], ids[1]]
    assert page["pagination"].items() >= {"limit": 2, "offset": 0, "next_offset": 2}.items()
    for query in ("limit=2&offset=2", f"limit=2&after={page['pagination']['next_after']}"):
        rest = good(api.get(f"/api/traces?{query}"))
        assert [each["id"] for each in rest["data"]] == [ids[0]]
        assert rest["pagination"]["next_offset"] is None
    assert len(good(api.get("/api/traces?text=3 %2B 3"))["data"]) == 1

    shown = good(api.get(f"/api/traces/{ids[1]}"))
    assert set(shown) == {"id", "created_at", "trace_version", "payload"}
    assert shown["payload"]["prompt"] == "What is 2 + 2?"

    path = f"/api/traces/{ids[0]}/score"
    score = good(api.post(path, json={"criteria": "baseline"}), 201)
    assert score["trace_id"] == ids[0] and score["score"] == pytest.approx(5 + 50 * 9 / 500)
    assert {"step_count", "avg_step_length", "total_chars", "scored_at"} <= set(score["details"])
    both = good(api.get("/api/traces/compare", params={"base": ids[0], "other": ids[1]}))
    assert both["base"]["score"] == score["score"]
    assert both["other"]["score"] == pytest.approx(5 + 50 * 9 / 500), "computed, not stored"


def test_questions_without_working_become_a_set(api, store):
    bare = [sum_trace(n, source="bare") | {"steps": []} for n in (1, 2)]
    good(api.post("/api/traces", json=bare[0]), 201)
    (id,) = good(api.post("/api/traces/batch", json=bare[1:]), 201)["traces"]
    query, packed = {"source_name": "sent"}, gzip.compress(json.dumps(bare[0]).encode())
    for content in (json.dumps(bare), packed):
        sent = good(api.post("/api/datasets/upload", params=query, content=content), 201)
    assert sent["ingested_count"] == 1
    score = good(api.post(f"/api/traces/{id['id']}/score", json={"criteria": "baseline"}), 201)
    assert score["score"] == 0
    asked = {"dataset_name": "bare", "dataset_version": "v1", "filters": {"source": "bare"}}
    assert good(api.post("/api/datasets/build", json=asked), 201)["trace_count"] == 2
    assert len(api.get("/api/datasets/bare-v1/export.jsonl?format=trace").text.splitlines()) == 2
    assert api.get(f"/traces/{id['id']}").status_code == 200
    order = {"dataset_key": "bare-v1", "model_id": "tiny"}
    for more in ({}, {"dry_run": False}):
        path = "/api/tunix/run?mode=async"
        refused(api.post(path, json=order | more), 422, "no worked example")
    model = {"model_id": "tiny", "evaluation_set": "bare-v1"}
    assert good(api.post("/api/tunix/evaluate", json=model), 201)["status"] == "pending"


def test_practice_is_queued_with_rewards_of_the_package_only(api, store):
    asked = {"dataset_key": "sums-v1", "model_id": "tiny", "max_steps": 2, "num_generations": 4}
    run = good(api.post("/api/tunix/grpo", json=asked), 201)
    kept = get_queued(store, UUID(run["run_id"]))
    assert (kept.pipeline, kept.status, kept.dataset_key) == ("grpo", "pending", "sums-v1")
    assert kept.parameters["reward_funcs"] == "correct" and kept.parameters["max_steps"] == 2
    for odd in ("os:system", "mine.py:brevity", "rubric(cache='data')", "correct, a.b:c(1)"):
        refused(api.post("/api/tunix/grpo", json=asked | {"reward_funcs": odd}), 400, "over HTTP")
    for odd in ({"model_id": None}, {"num_generations": 1}, {"dataset_key": "../etc"}):
        assert api.post("/api/tunix/grpo", json=asked | odd).status_code in (403, 422)
    missing = asked | {"evaluation_set": "none-v1"}
    refused(api.post("/api/tunix/grpo", json=missing), 404, "there is no dataset")


def test_traces_that_are_refused(api, store):
    refused(api.post("/api/traces/batch", json=[]), 400, "1 to 1000")
    refused(api.post("/api/traces/batch", json=[sum_trace(1)] * 1001), 400, "1,001")
    assert "body.1.steps" in refused(
        api.post("/api/traces/batch", json=[sum_trace(1), sum_trace(2) | {"steps": None}]), 422
    )
    long = sum_trace(1) | {"prompt": "x" * 50_000}
    assert good(api.post("/api/traces", json=long), 201)
    refused(api.post("/api/traces", content=b"x" * 1_048_577), 413, "TUNIX_RT_TRACE_MAX_BYTES")
    steps = [{"i": i, "type": "s", "content": "x" * 20_000} for i in range(60)]
    refused(api.post("/api/traces/batch", json=[sum_trace(1) | {"steps": steps}]), 413, "trace 0")
    refused(api.get(f"/api/traces/{NOBODY}"), 404, str(NOBODY))
    refused(api.get("/api/traces/7"), 422, "path.trace_id")
    known = good(api.get("/api/traces"))["data"][0]["id"]
    refused(api.get(f"/api/traces/compare?base={known}&other={NOBODY}"), 404, "other")
    refused(api.post(f"/api/traces/{NOBODY}/score", json={"criteria": "baseline"}), 404)
    for query in ("limit=0", "limit=101", "offset=-1", f"offset={2**70}", "source=%00"):
        refused(api.get(f"/api/traces?{query}"), 422, "query.")
    refused(api.get("/api/nothing"), 404, "/openapi.json")
    assert count_traces(store) == 1


def test_games(api):
    assert good(api.get("/api/ungar/status"))["available"] is True
    path = "/api/ungar/high-card-duel"
    played = good(api.post(f"{path}/generate", json={"count": 4, "seed": 7}), 201)
    assert len(played["trace_ids"]) == 4 and len(played["preview"]) == 3
    assert set(played["preview"][0]) == {"trace_id", "game", "result", "my_card"}
    unkept = good(api.post(f"{path}/generate", json={"count": 1, "persist": False}), 201)
    assert unkept["trace_ids"] == []
    api.post("/api/traces", json=sum_trace(1))
    answer = api.get(f"{path}/export.jsonl?limit=3")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["metadata"]["seed"] for line in lines] == [10, 9, 8]
    one = api.get(f"{path}/export.jsonl", params={"trace_ids": played["trace_ids"][1]})
    assert json.loads(one.text)["final_answer"] == "reveal"
    refused(api.post(f"{path}/generate", json={"count": 101}), 422)
    refused(api.get(f"{path}/export.jsonl?trace_ids=1,2"), 422, "commas")


def test_datasets(api, root):
    api.post("/api/traces/batch", json=[sum_trace(n, level=n % 2) for n in range(10)])
    asked = {"dataset_name": "odd sums", "dataset_version": "v1", "filters": {"level": 1}}
    built = good(api.post("/api/datasets/build", json=asked), 201)
    assert built["dataset_key"] == "odd_sums-v1" and built["trace_count"] == 5
    assert built["manifest_path"] == "data/datasets/odd_sums-v1/manifest.json"
    assert good(api.post("/api/datasets/build", json=asked), 201) == built
    assert (built["matched"], built["duplicates"], built["limited"]) == (5, 0, 0)
    manifest = good(api.get("/api/datasets/odd_sums-v1"))
    assert manifest["provenance"]["source"] == "tunix_rt_backend_api"
    listed = good(api.get("/api/datasets?limit=3"))["data"]
    marks = {each["dataset_key"]: each["shipped"] for each in listed}
    assert marks == {"dev-reasoning-v1": True, "golden-v2": True, "odd_sums-v1": False}
    assert good(api.get("/api/datasets?limit=1"))["pagination"]["next_offset"] == 1
    assert good(api.get("/api/datasets/golden-v2"))["trace_count"] == 100
    page = api.get("/datasets").text
    assert page.count("shipped with tunix_rt") == 2 and api.get("/datasets/golden-v2").is_success
    assert not (root / "data/datasets/golden-v2").exists(), "shipped datasets are only read"
    for format in ("trace", "tunix_sft", "training_example", "messages", "prompt_completion"):
        answer = api.get(f"/api/datasets/odd_sums-v1/export.jsonl?format={format}")
        assert answer.status_code == 200 and len(answer.text.splitlines()) == 5
        record = json.loads(answer.text.splitlines()[0])
        assert record["source_trace_id"] == record["id"] and record["trace_version"] == "1.0"
        assert record["created_at"] == manifest["created_at"]
    refused(api.get("/api/datasets/none-v1/export.jsonl"), 404, "none-v1")
    refused(api.get("/api/datasets/odd_sums-v1/export.jsonl?format=xml"), 422)
    asked["dataset_version"] = "v2"
    random = asked | {"selection_strategy": "random"}
    refused(api.post("/api/datasets/build", json=random), 422, "seed")
    nothing = asked | {"filters": {"level": 9}}
    refused(api.post("/api/datasets/build", json=nothing), 422, "no trace matches")
    refused(api.post("/api/datasets/build", json=asked | {"dataset_name": "../x"}), 422)
    api.post("/api/traces", json=sum_trace(1) | {"prompt": "what is 1 + 1 ?"})
    near = {"dataset_name": "near", "dataset_version": "v1", "dedup": {"column": "prompt"}}
    built = good(api.post("/api/datasets/build", json=near), 201)
    assert (built["trace_count"], built["near_duplicates"], built["limited"]) == (10, 1, 0)
    assert good(api.get("/api/datasets/near-v1"))["dedup"]["dropped"] == 1
    assert (root / "data/datasets/near-v1/near_duplicates.jsonl").is_file()
    refused(api.post("/api/datasets/build", json=near | {"dedup": {"column": "answer"}}), 422)
    refused(api.post("/api/datasets/build", json=near | {"dedup": {"ngram": 3}}), 422, "ngram")
    assert not (root / "data" / "datasets" / "odd_sums-v2").exists()


def test_files_taken_in(api, root, store):
    lines = [json.dumps(sum_trace(n)) for n in (1, 2, 2)]
    (root / "data" / "imports" / "good.jsonl").write_text("\n".join(lines))
    done = good(
        api.post("/api/datasets/ingest", json={"path": "good.jsonl", "source_name": "x"}), 201
    )
    assert done["ingested_count"] == 2 and done["duplicates"] == 1
    meta = good(api.get(f"/api/traces/{done['trace_ids'][0]}"))["payload"]["meta"]
    assert (meta["source"], meta["ingest_source_file"]) == ("x", "good.jsonl")

    bad = "\n".join([*lines, "{}", "nonsense"])
    (root / "data" / "imports" / "bad.jsonl").write_text(bad)
    asked = {"path": "bad.jsonl", "source_name": "x"}
    detail = refused(api.post("/api/datasets/ingest", json=asked), 400, "was refused, because")
    assert "bad.jsonl:4" in detail and "bad.jsonl:5" in detail
    some = good(api.post("/api/datasets/ingest", json=asked | {"skip_invalid": True}), 201)
    assert [line["line"] for line in some["bad_lines"]] == [4, 5]
    refused(api.post("/api/datasets/ingest", json=asked | {"path": "none.jsonl"}), 400)
    refused(api.post("/api/datasets/ingest", json=asked | {"path": "../../x"}), 400, "outside")

    before, query = count_traces(store), {"source_name": "sent"}
    sent = api.post("/api/datasets/upload", params=query, content="\n".join(lines))
    assert good(sent, 201)["ingested_count"] == 2
    refused(api.post("/api/datasets/upload", params=query, content=bad), 400, "upload.jsonl:4")
    assert count_traces(store) == before + 2
    again = api.post("/api/datasets/upload", params=query, content="\n".join(lines))
    assert good(again, 201)["already_stored"] == 2
    few = {"dataset_name": "few", "dataset_version": "v1", "limit": 1}
    built = good(api.post("/api/datasets/build", json=few | {"filters": {"source": "sent"}}), 201)
    assert (built["matched"], built["duplicates"], built["limited"]) == (4, 2, 1)


def test_content_posted_twice(api):
    sent = [sum_trace(1, level="once"), sum_trace(1, level="again")]
    ids = [each["id"] for each in good(api.post("/api/traces/batch", json=sent), 201)["traces"]]
    lines = api.post("/api/tunix/sft/export", json={"trace_ids": ids}).text.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == ids and ids[0] != ids[1]
    assert [record["source_trace_id"] for record in records] == ids
    assert [record["metadata"]["level"] for record in records] == ["once", "again"]
    assert all(record["created_at"] and record["trace_version"] for record in records)
    path = "/api/ungar/high-card-duel"
    games = [
        good(api.post(f"{path}/generate", json={"count": 1, "seed": 7}), 201)["trace_ids"][0]
        for _ in range(2)
    ]
    lines = api.get(f"{path}/export.jsonl", params={"trace_ids": ",".join(games)}).text
    assert [json.loads(line)["id"] for line in lines.splitlines()] == games


def test_files_in_other_formats(api, root):
    folder = root / "data" / "imports"
    for name, shape in READ:
        query = {"source_name": "here", "format": shape}
        content = (FILES / name).read_bytes()
        sent = good(api.post("/api/datasets/upload", params=query, content=content), 201)
        payload = good(api.get(f"/api/traces/{sent['trace_ids'][0]}"))["payload"]
        prompt, steps, answer, meta = READ[name, shape]
        assert [payload["prompt"], payload["final_answer"]] == [prompt, answer], name
        assert [step["content"] for step in payload["steps"]] == steps
        assert payload["meta"].items() >= {"source": "here", **meta}.items()
        (folder / name).write_bytes(content)
        asked = {"path": name, "source_name": "here", "format": shape}
        assert good(api.post("/api/datasets/ingest", json=asked), 201)["notes"] == sent["notes"]
    for (name, shape), reason in REFUSED.items():
        query = {"source_name": "here", "format": shape}
        sent = api.post("/api/datasets/upload", params=query, content=(FILES / name).read_bytes())
        refused(sent, 400, reason.removeprefix(f"{name}:2: "))
    gsm8k = (FILES / "gsm8k.jsonl").read_bytes()
    path, query = "/api/datasets/upload", {"source_name": "here"}
    refused(api.post(path, params=query, content=gsm8k), 400, "format=gsm8k")
    refused(api.post(path, params=query | {"format": "xml"}, content=gsm8k), 422, "query.format")
    bare = json.dumps({"question": "2 + 2?", "answer": "4"})
    query["format"] = "reasoning"
    refused(api.post(path, params=query, content=bare), 400, "without_working=true")
    sent = api.post(path, params=query | {"without_working": True}, content=bare)
    assert "no reasoning" in next(iter(good(sent, 201)["notes"]))


def test_training_asked_for(api):
    assert good(api.get("/api/tunix/status"))["runtime_required"] is False
    answer = api.post("/api/tunix/sft/export", json={"dataset_key": "sums-v1"})
    first = json.loads(answer.text.splitlines()[0])
    assert first["prompts"].startswith("<start_of_turn>user\n")
    assert first["metadata"]["format"] == "tunix_sft"
    refused(api.post("/api/tunix/sft/export", json={}), 400, "dataset_key")
    refused(api.post("/api/tunix/sft/export", json={"dataset_key": "none"}), 404)
    refused(api.post("/api/tunix/sft/export", json={"trace_ids": [str(NOBODY)]}), 404)

    asked = {"dataset_key": "sums-v1", "model_id": "google/gemma-3-1b-it", "output_dir": "out: 1"}
    manifest = good(api.post("/api/tunix/sft/manifest", json=asked), 201)
    lines = manifest["manifest_yaml"].splitlines()
    assert '  output_dir: "out: 1"' in lines and 'runner: "tunix"' in lines
    assert manifest["format"] == "tunix_sft"
    refused(api.post("/api/tunix/sft/manifest", json=asked | {"dataset_key": "none"}), 404)
    for field, value in (("learning_rate", 0), ("batch_size", 513), ("max_seq_length", 127)):
        refused(api.post("/api/tunix/sft/manifest", json=asked | {field: value}), 422, field)

    dry = good(api.post("/api/tunix/run", json=asked))
    assert (dry["status"], dry["mode"], dry["exit_code"]) == ("failed", "dry-run", 1)
    assert "there is no model 'google/gemma-3-1b-it'" in dry["message"]
    refused(api.post("/api/tunix/run", json=asked | {"dry_run": False}), 404, "no model")
    asked["model_id"] = "tiny"
    dry = good(api.post("/api/tunix/run", json=asked | {"colour": "blue"}))
    assert (dry["status"], dry["mode"], dry["exit_code"]) == ("completed", "dry-run", 0)
    assert dry["ignored"] == ["colour"] and "memory: " in dry["stdout"]
    assert dry["output_dir"] == "out: 1"
    refused(api.post("/api/tunix/run", json=asked | {"dataset_key": "none"}), 404)
    refused(api.post("/api/tunix/run", json=asked | {"model_id": "../../etc"}), 403)


def test_every_parameter_of_every_pipeline(api, store, root):
    "Beside the ten fields of the contract, under the names of the notebooks."
    train = {"dataset_key": "sums-v1", "model_id": "tiny", "dry_run": False}
    asked = train | {"parameters": {"lora_rank": 8, "max_steps": 400, "evaluation_set": ""}}
    run = good(api.post("/api/tunix/run?mode=async", json=asked))
    kept = get_queued(store, UUID(run["run_id"]))
    assert kept.parameters.items() >= {"lora_rank": 8, "max_steps": 400, "warmup_steps": 20}.items()
    assert run["output_dir"].startswith("outputs/runs/train-")
    other = {"pipeline": "practice", "dry_run": False, "parameters": {"rounds": 2, "model": "tiny"}}
    run = good(api.post("/api/tunix/run?mode=async", json=other | {"dataset_key": "sums-v1"}))
    kept = get_queued(store, UUID(run["run_id"]))
    assert (kept.pipeline, kept.parameters["rounds"], kept.dataset_key) == (
        "practice",
        2,
        "sums-v1",
    )
    for odd, status, words in (
        ({"lora_rnk": 8}, 400, "did you mean 'lora_rank'"),
        ({"run_dir": "/etc"}, 400, "leave it out"),
        ({"model": "gemma-3-1b"}, 400, "were both sent"),
        ({"continue_from": "../../etc"}, 403, "not the name of a run"),
        ({"evaluation_set": "sums-v1"}, 422, "overlap with the evaluation set"),
    ):
        path = "/api/tunix/run?mode=async"
        refused(api.post(path, json=train | {"parameters": odd}), status, words)
    refused(api.post("/api/tunix/run", json={"pipeline": "kaggle_submission"}), 404, "no pipeline")
    refused(api.post("/api/tunix/run", json={"model_id": "tiny"}), 422, "dataset_key is missing")
    shown = {each["name"]: each for each in good(api.get("/api/pipelines"))}
    names = [each["name"] for each in shown["evaluate"]["parameters"]]
    assert "shots" in names and "run_dir" not in names
    exam = {
        "model_id": "tiny",
        "evaluation_set": "sums-v1",
        "shots": 4,
        "shots_dataset": "golden-v2",
    }
    run = good(api.post("/api/tunix/evaluate", json=exam), 201)
    assert get_queued(store, UUID(run["run_id"])).parameters["shots"] == 4
    path = "/api/tunix/evaluate"
    refused(api.post(path, json=exam | {"shot": 4}), 422, "did you mean 'shots'")
    refused(api.post(path, json=exam | {"scorers": "os:system"}), 400, "over HTTP a scorer")


def test_a_dry_run_waits_for_a_worker_too(api, store, root):
    asked = {"dataset_key": "sums-v1", "model_id": "tiny"}
    waiting = good(api.post("/api/tunix/run?mode=async", json=asked))
    assert (waiting["status"], waiting["mode"]) == ("pending", "dry-run")
    work(store, once=True)
    done = good(api.get(f"/api/tunix/runs/{waiting['run_id']}"))
    assert done["status"] == "completed" and "train would run with" in done["stdout"]


def test_a_run_by_the_beginning_of_its_id_is_a_model(api, store, root):
    run = make_run(store, root, 3, model_id="adder")
    asked = {"model_id": str(run)[:8], "evaluation_set": "sums-v1"}
    waiting = good(api.post("/api/tunix/evaluate", json=asked), 201)
    parameters = get_queued(store, UUID(waiting["run_id"])).parameters
    assert parameters["model"] == "outputs/runs/train-3"
    build_dataset(load_dataset("sums-v1"), name="other", version="v1")  # what it was trained on
    words = "overlap with the evaluation set"
    refused(api.post("/api/tunix/evaluate", json=asked), 422, words)
    gone = asked | {"model_id": "adder@v9"}
    refused(api.post("/api/tunix/evaluate", json=gone), 404)


def test_runs_listed_watched_and_cancelled(api, store):
    asked = {"dataset_key": "sums-v1", "model_id": "tiny", "dry_run": False}
    run = good(api.post("/api/tunix/run?mode=async", json=asked))
    assert run["status"] == "pending" and run["mode"] == "local"
    good(api.post("/api/tunix/run", json=asked | {"dry_run": True}))
    page = good(api.get("/api/tunix/runs"))
    assert [each["mode"] for each in page["data"]] == ["dry-run", "local"]
    only = good(api.get("/api/tunix/runs?mode=local&status=pending&dataset_key=sums-v1"))
    assert [each["run_id"] for each in only["data"]] == [run["run_id"]]
    refused(api.get("/api/tunix/runs?status=asleep"), 422)
    path = f"/api/tunix/runs/{run['run_id']}"
    assert good(api.get(path))["parameters"]["dataset"] == "sums-v1"
    assert set(good(api.get(f"{path}/status"))) == {
        *("run_id", "status", "queued_at", "started_at", "completed_at", "exit_code")
    }
    assert good(api.get(f"{path}/artifacts")) == {"artifacts": []}
    assert good(api.get(f"{path}/metrics")) == []
    assert good(api.post(f"{path}/cancel"))["status"] == "cancelled"
    refused(api.post(f"{path}/cancel"), 400)
    for rest in ("", "/status", "/logs", "/artifacts", "/metrics", "/evaluation"):
        refused(api.get(f"/api/tunix/runs/{NOBODY}{rest}"), 404)
    refused(api.post(f"/api/tunix/runs/{NOBODY}/cancel"), 404)


def events(text: str) -> list[tuple[str, dict]]:
    pieces = [piece.split("\n")[-2:] for piece in text.strip().split("\n\n")]
    return [(kind[7:], json.loads(data[6:])) for kind, data in pieces]


def test_a_log_is_sent_to_its_end_and_from_where_one_left_off(api, store):
    run = RunRow(pipeline="train", status="running")
    with store.writing() as session:
        session.add(run)
    append_log(store, run.id, [("stdout", "one\n"), ("stderr", "two\n"), ("stdout", "three\n")])
    with store.writing() as session:
        session.get_one(RunRow, run.id).status = "failed"
    path = f"/api/tunix/runs/{run.id}/logs"
    answer = api.get(path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    assert [kind for kind, _ in told] == ["log", "log", "log", "status"]
    assert set(told[0][1]) == {"seq", "stream", "chunk", "created_at"}
    assert told[-1][1] == {"status": "failed"}
    seq = told[1][1]["seq"]
    assert events(api.get(f"{path}?since_seq={seq}").text) == told[2:]
    assert events(api.get(path, headers={"Last-Event-ID": str(seq)}).text) == told[2:]


def test_from_predictions_to_a_champion(api, store, root):
    better, worse = (make_run(store, root, right, model_id="tiny") for right in (8, 2))
    path = f"/api/tunix/runs/{better}"
    refused(api.get(f"{path}/evaluation"), 404)
    refused(api.post(f"{path}/evaluate", json={"judge_override": "mock"}), 400, "mock")
    scored = good(api.post(f"{path}/evaluate", json={}), 201)
    assert (scored["score"], scored["verdict"], scored["item_count"]) == (100, "pass", 8)
    assert scored["judge"]["name"] == "answer_correctness"
    good(api.post(f"/api/tunix/runs/{worse}/evaluate"), 201)
    assert good(api.get(f"{path}/evaluation"))["evaluation_id"] == scored["evaluation_id"]
    board = good(api.get("/api/tunix/evaluations?evaluation_set=sums-v1"))["data"]
    assert [row["run_id"] for row in board] == [str(better), str(worse)]
    assert [row["standing"] for row in board] == ["best", "behind"]

    bar = {"name": "bar", "run_id": str(better), "metric": "score"}
    assert good(api.post("/api/regression/baselines", json=bar), 201)["value"] == 100
    assert len(good(api.get("/api/regression/baselines"))["data"]) == 1
    refused(api.post("/api/regression/baselines", json=bar | {"metric": "luck"}), 400, "luck")
    check = {"run_id": str(worse), "baseline_name": "bar"}
    found = good(api.post("/api/regression/check", json=check))
    assert (found["verdict"], found["delta"], found["delta_percent"]) == ("fail", -75, -75)
    refused(api.post("/api/regression/check", json=check | {"baseline_name": "x"}), 404)

    model = good(api.post("/api/models", json={"name": "adder"}), 201)
    refused(api.post("/api/models", json={"name": "adder"}), 409)
    refused(api.post("/api/models", json={"name": "a/b"}), 422)
    home = f"/api/models/{model['id']}"
    unknown = {"source_run_id": str(NOBODY)}
    refused(api.post(f"{home}/versions/promote", json=unknown), 400, "there is no run")
    refused(api.post(f"/api/models/{NOBODY}/versions/promote", json=unknown), 404)
    gated = {"source_run_id": str(worse), "gate": "bar"}
    refused(api.post(f"{home}/versions/promote", json=gated), 400)
    asked = {"source_run_id": str(better), "description": "the first"}
    version = good(api.post(f"{home}/versions/promote", json=asked))
    assert (version["version"], version["status"]) == ("v1", "ready")
    assert good(api.post(f"{home}/versions/promote", json=asked))["id"] == version["id"]
    shown = good(api.put(f"{home}/aliases/champion", json={"version_id": version["id"]}))
    assert shown["aliases"] == {"champion": "v1"}
    assert good(api.get("/api/models"))[0]["latest_version"]["id"] == version["id"]
    assert good(api.get(f"{home}/versions"))["data"][0]["sha256"] == version["sha256"]
    place = f"/api/models/versions/{version['id']}"
    assert good(api.get(f"{place}/verify"))["ok"] is True
    packed = zipfile.ZipFile(io.BytesIO(api.get(f"{place}/download").content))
    assert "adder-v1/config.json" in packed.namelist() and packed.testzip() is None
    assert good(api.delete(f"{home}/aliases/champion"))["aliases"] == {}
    refused(api.get(f"/api/models/{NOBODY}"), 404)
    refused(api.get(f"/api/models/versions/{NOBODY}/download"), 404)


def test_what_a_run_left_behind(api, store, root):
    id = make_run(store, root, 1)
    path = f"/api/tunix/runs/{id}"
    files = good(api.get(f"{path}/artifacts"))["artifacts"]
    sizes = {each["name"]: each["size"] for each in files}
    assert sizes["model/model.safetensors"] == 100_000
    assert all(each["path"].startswith("train-1/") for each in files)
    answer = api.get(f"{path}/artifacts/model/config.json/download")
    assert answer.json()["right"] == 1
    assert "attachment" in answer.headers["content-disposition"]
    refused(api.get(f"{path}/artifacts/none.txt/download"), 404)
    assert good(api.get(f"{path}/metrics")) == [{"step": 1, "loss": 2.5}]
    log = root / "outputs/runs/train-1/metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": \n[2]\n{"step": 3}\n')
    answer = api.get(f"{path}/metrics")
    assert [line["step"] for line in answer.json()] == [1, 3]
    assert answer.headers["x-skipped-lines"] == "2"


def test_a_search(api):
    space = {"learning_rate": {"type": "loguniform", "min": 0.001, "max": 0.1}}
    asked = {"name": "search", "dataset_key": "sums-v1", "base_model_id": "tiny"}
    asked |= {"search_space": space, "metric_name": "loss", "metric_mode": "min"}
    job = good(api.post("/api/tuning/jobs", json=asked), 201)
    assert (job["status"], job["num_samples"]) == ("created", 1)
    assert [each["id"] for each in good(api.get("/api/tuning/jobs"))] == [job["id"]]
    started = good(api.post(f"/api/tuning/jobs/{job['id']}/start"))
    assert started["job_id"] == job["id"] and started["status"] == "running"
    refused(api.post(f"/api/tuning/jobs/{job['id']}/start"), 400)
    assert "trials" in good(api.get(f"/api/tuning/jobs/{job['id']}"))
    good(api.post(f"/api/tuning/jobs/{job['id']}/cancel"))
    refused(api.get(f"/api/tuning/jobs/{NOBODY}"), 404)
    backwards = {"learning_rate": {"type": "uniform", "min": 1.0, "max": 0.1}}
    refused(api.post("/api/tuning/jobs", json=asked | {"search_space": backwards}), 422, "below")
    unknown = {"no_such": {"type": "choice", "values": [1]}}
    refused(api.post("/api/tuning/jobs", json=asked | {"search_space": unknown}), 422, "no_such")
    refused(api.post("/api/tuning/jobs", json=asked | {"dataset_key": "none-v1"}), 404)


def test_health_and_figures(api, store, root):
    assert good(api.get("/api/health")) == {"status": "healthy"}
    assert good(api.get("/api/ready"))["database"] == store.dialect
    redi = good(api.get("/api/redi/health"))
    assert redi["status"] == "down" and "REDIAI_BASE_URL" in redi["error"]
    make_run(store, root, 1, duration_seconds=3.0)
    api.post("/api/traces", json=sum_trace(1))
    text = api.get("/metrics").text
    assert 'tunix_runs_total{mode="local",status="completed"} 2.0' in text
    assert 'tunix_runs_duration_seconds_sum{mode="local",status="completed"} 3.0' in text
    assert 'tunix_db_write_latency_ms_count{operation="create_trace"} 1.0' in text


def test_the_same_request_is_done_once(api, store):
    key = {"Idempotency-Key": "k1"}
    first = api.post("/api/traces", json=sum_trace(1), headers=key)
    again = api.post("/api/traces", json=sum_trace(1), headers=key)
    assert again.json() == first.json() and again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    refused(api.post("/api/traces", json=sum_trace(2), headers=key), 422, "another request")
    batch = {"Idempotency-Key": "k2"}
    asked = [sum_trace(n) for n in (3, 4)]
    answers = [api.post("/api/traces/batch", json=asked, headers=batch).json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] and count_traces(store) == 3
    run = {"dataset_key": "sums-v1", "model_id": "tiny", "dry_run": False}
    key = {"Idempotency-Key": "k3"}
    ids = [
        api.post("/api/tunix/run?mode=async", json=run, headers=key).json()["run_id"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1] and len(good(api.get("/api/tunix/runs"))["data"]) == 1
    assert get_queued(store, UUID(ids[0])).status == "pending"


def test_a_key_whose_trace_was_not_kept_is_free(api, store, monkeypatch):
    "The answer and the trace are one transaction, so neither is there without the other."
    key = {"Idempotency-Key": "k1"}
    with monkeypatch.context() as patch:
        patch.setattr("tunix_rt.serve.trace_writer.insert_rows", lambda *_: 1 / 0)
        assert api.post("/api/traces", json=sum_trace(1), headers=key).status_code == 500
    with store.reading() as session:
        assert session.get(IdempotentReply, "k1") is None
    good(api.post("/api/traces", json=sum_trace(1), headers=key), 201)
    assert count_traces(store) == 1


def test_many_listeners_hold_no_connection(store, root, monkeypatch):
    "Forty streams at once on a pool of ten, while traces are posted; each chunk is read once."
    reads = []

    def counted(*asked):
        reads.append(asked)
        return read_events(*asked)

    monkeypatch.setattr("tunix_rt.serve.sse.read_events", counted)
    run = RunRow(pipeline="train", status="running")
    with store.writing() as session:
        session.add(run)

    async def listen(watch):
        return [told async for told in stream_log(watch, run.id)]

    async def crowd():
        watch = RunPoller(store, every=0.02)
        listeners = [asyncio.create_task(listen(watch)) for _ in range(40)]
        await asyncio.sleep(0.3)
        held = store.engine.pool.checkedout()
        append_log(store, run.id, [("stdout", "news\n")])
        with store.writing() as session:
            session.get_one(RunRow, run.id).status = "completed"
        told = await asyncio.gather(*listeners)
        await watch.close()
        return held, told

    begun = time.monotonic()
    held, told = asyncio.run(crowd())
    assert held <= 1 and time.monotonic() - begun < 20
    assert all("news" in each[0] and "completed" in each[-1] for each in told)
    assert len(reads) < 8


def test_a_neighbor_in_trouble_does_not_stop_us(store, root):
    with serving(store, rediai_url="http://127.0.0.1:9") as api:
        begun = time.monotonic()
        answers = [good(api.get("/api/redi/health")) for _ in range(5)]
        assert answers[0]["status"] == "down" and time.monotonic() - begun < 5


def test_who_listens_hears_of_trouble_of_any_kind(store, root, monkeypatch):
    def broken(store, ids):
        raise RuntimeError("of a driver")

    async def listen():
        watch = RunPoller(store, every=0.02)
        heard = [text async for text in stream_log(watch, uuid4())]
        await watch.close()
        return heard

    monkeypatch.setattr("tunix_rt.serve.sse.run_states", broken)
    heard = asyncio.run(asyncio.wait_for(listen(), 20))
    assert "event: error" in heard[-1] and "could not be read" in heard[-1]
