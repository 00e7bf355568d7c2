"Forms that queue a run or do something else: what they show, refuse beside the field, and do."

import re
from uuid import UUID

import pytest
from serving import make_run, serving, sum_trace

from tunix_rt.jobs.queue import enqueue, get_queued, list_queued
from tunix_rt.registry import preflight
from tunix_rt.rl.preference_pairs import messages_of, read_preferences
from tunix_rt.runs.pipelines import find_pipeline, read_parameters
from tunix_rt.serve.http_parameters import OVER_HTTP, WITHHELD
from tunix_rt.store.traces import add_traces
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking.baselines import list_baselines
from tunix_rt.tracking.evaluations import evaluate_run
from tunix_rt.tuning.jobs import list_jobs

HTML = {"Accept": "text/html"}


@pytest.fixture
def pages(own_store, root):
    "A browser without scripts, on one database."
    with serving(own_store) as client:
        client.headers |= HTML
        yield client


@pytest.fixture
def own_store(tmp_path):
    from tunix_rt.store.engine import open_store

    store = open_store(f"sqlite:///{tmp_path / 'forms.db'}")
    yield store
    store.close()


def fields_of(text: str) -> dict[str, str]:
    "The names of a form's fields, with what stands in them."
    found = dict(re.findall(r'<input id="f-\w+" name="(\w+)" value="([^"]*)"', text))
    for name, inner in re.findall(r'<select id="f-\w+" name="(\w+)".*?>(.*?)</select>', text, re.S):
        chosen = re.search(r"<option selected>([^<]*)", inner)
        found[name] = chosen[1] if chosen else ""
    return found


def error_of(text: str, name: str) -> str:
    "What a page says beside a field."
    found = re.search(rf'id="h-{name}"><span class="error" role="alert">([^<]*)', text)
    return found[1] if found else ""


@pytest.mark.parametrize("pipeline", OVER_HTTP)
def test_every_parameter_has_a_field(pages, pipeline):
    text = pages.get(f"/queue/new?pipeline={pipeline}").text
    declared = read_parameters(find_pipeline(pipeline))
    assert set(fields_of(text)) == set(declared) - set(WITHHELD)
    assert f"tunix-rt queue {pipeline}" in text and f"pipeline=&#39;{pipeline}&#39;" in text


def test_a_run_is_queued_as_it_was_typed(pages, own_store):
    form = fields_of(pages.get("/queue/new?pipeline=train&dataset=sums-v1").text)
    assert form["dataset"] == "sums-v1"
    typed = form | {"max_steps": "40", "learning_rate": "1e-3", "scan_layers": "true"}
    sent = typed | {"_pipeline": "train", "_do": "queue"}
    answer = pages.post("/queue/new", data=sent, follow_redirects=False)
    assert answer.status_code == 303
    run = get_queued(own_store, UUID(answer.headers["location"].rpartition("/")[2]))
    assert run.parameters == {
        "dataset": "sums-v1", "max_steps": 40, "learning_rate": 0.001, "scan_layers": True,
    }  # fmt: skip
    assert (run.status, run.mode, run.dataset_key) == ("pending", "local", "sums-v1")
    again = pages.get(f"/queue/new?from={run.id}")
    assert fields_of(again.text)["max_steps"] == "40" and str(run.id)[:8] in again.text


def test_errors_stand_beside_their_fields(pages, own_store):
    sent = {
        "_pipeline": "train", "max_steps": "many", "model": "../../etc", "remat": "none",
        "dataset": "golden-v9",
    }  # fmt: skip
    answer = pages.post("/queue/new", data=sent)
    assert answer.status_code == 422
    assert "max_steps should be int" in error_of(answer.text, "max_steps")
    assert "not a plain name" in error_of(answer.text, "model")
    assert fields_of(answer.text)["max_steps"] == "many"
    sent |= {"max_steps": "40", "model": "no-such-model"}
    answer = pages.post("/queue/new", data=sent)
    assert "there is no model" in error_of(answer.text, "model")
    assert "there is no dataset" in error_of(answer.text, "dataset")
    sent |= {"model": "tiny", "dataset": "sums-v1", "evaluation_set": "sums-v1"}
    answer = pages.post("/queue/new", data=sent)
    assert "overlap with the evaluation set" in error_of(answer.text, "evaluation_set")
    assert list_queued(own_store).runs == []
    odd = pages.post("/queue/new", data={"_pipeline": "kaggle_submission"})
    assert odd.status_code == 404


def test_memory_and_time_are_said_before_queueing(pages, own_store):
    earlier = enqueue(own_store, "train", {"dataset": "sums-v1", "max_steps": 100})
    with own_store.writing() as session:
        row = session.get_one(type(earlier), earlier.id)
        row.status, row.duration_seconds = "completed", 200.0
    sent = {"_pipeline": "train", "dataset": "sums-v1", "max_steps": "1000", "device": "cpu"}
    text = pages.post("/queue/check", data=sent).text
    assert "on each cpu: fits" in text and "Nothing stands in its way" in text
    assert "about 33 min" in text, text
    assert "-p max_steps=1000" in text and "&#39;max_steps&#39;: 1000" in text
    huge = sent | {"model": "gemma-3-27b", "vocabulary": "262144"}
    text = pages.post("/queue/check", data=huge).text
    assert "does not fit" in text and "the memory plan says" in text
    text = pages.post("/queue/check", data=sent | {"micro_batch_size": "3"}).text
    assert "micro_batch_size is 3" in text
    assert preflight.PLANNER.process is not None


def test_other_things_are_done_by_forms(pages, own_store, root):
    pages.post("/api/traces/batch", json=[sum_trace(n, level=n % 2) for n in range(10)])
    commands = {"search": "tunix-rt tune", "dataset": "curl", "import": "curl"}
    commands |= {"baseline": "tunix-rt baseline", "promote": "tunix-rt promote"}
    for name, command in commands.items():
        page = pages.get(f"/queue/{name}")
        assert page.status_code == 200 and command in page.text and "api." in page.text
    asked = {"dataset_name": "odd", "dataset_version": "v1", "filters": "level=1", "limit": "3"}
    answer = pages.post("/queue/dataset", data=asked, follow_redirects=False)
    assert answer.headers["location"] == "/datasets/odd-v1"
    wrong = pages.post("/queue/dataset", data=asked | {"dataset_name": "", "limit": "none"})
    assert wrong.status_code == 422
    assert "Field required" in error_of(wrong.text, "dataset_name")
    assert "valid integer" in error_of(wrong.text, "limit")
    echo = pages.post("/queue/dataset/by-hand", data=asked)
    assert "level" in echo.text and "Field required" not in echo.text

    run = make_run(own_store, root, 5)
    evaluate_run(own_store, run)
    bar = {"name": "bar", "run_id": str(run), "metric": "score"}
    pages.post("/queue/baseline", data=bar)
    assert [each.name for each in list_baselines(own_store).baselines] == ["bar"]
    refused = pages.post("/queue/baseline", data=bar | {"metric": "luck"})
    assert refused.status_code == 422 and "luck" in refused.text

    into = {"model": "adder", "run_id": str(run), "alias": "champion"}
    answer = pages.post("/models/promote", data=into, follow_redirects=False)
    assert answer.headers["location"].startswith("/models/")
    wrong = pages.post("/models/promote", data=into | {"model": "a/b", "tolerance": "much"})
    assert "should match pattern" in error_of(wrong.text, "model")
    assert "valid number" in error_of(wrong.text, "tolerance")

    space = "learning_rate=0.001...0.1\nbatch_size=2,4"
    search = {"name": "s", "dataset_key": "sums-v1", "base_model_id": "tiny", "num_samples": "2"}
    search |= {"metric_name": "loss", "metric_mode": "min", "search_space": space}
    answer = pages.post("/queue/search", data=search, follow_redirects=False)
    (job,) = list_jobs(own_store).jobs
    assert answer.headers["location"] == f"/tuning/{job.id}" and job.status == "running"
    assert job.search_space["learning_rate"]["type"] == "loguniform"
    odd = pages.post("/queue/search", data=search | {"search_space": "model=a,b"})
    assert odd.status_code == 422 and "cannot vary" in odd.text

    (root / "data/imports/good.jsonl").write_text('{"question": "2+2?", "answer": "#### 4"}\n')
    take = {"path": "good.jsonl", "source_name": "x", "format": "gsm8k", "without_working": "true"}
    answer = pages.post("/queue/import", data=take, follow_redirects=False)
    assert answer.headers["location"] == "/traces?source=x"
    outside = pages.post("/queue/import", data=take | {"path": "../../etc/passwd"})
    assert outside.status_code == 422 and "outside" in outside.text


def test_odd_addresses_of_pages_are_refused(pages):
    assert pages.get("/queue/new?from=x").status_code == 400
    assert pages.get(f"/audit?before={10**30}").status_code == 422


def test_a_form_of_another_site_does_nothing(pages, own_store):
    sent = {"_pipeline": "train", "dataset": "sums-v1"}
    answer = pages.post("/queue/new", data=sent, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403 and list_queued(own_store).runs == []


def test_the_api_is_described_without_another_server(pages):
    page = pages.get("/docs")
    assert (
        page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
    )
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert not [each for each in addresses if each.startswith(("http", "//"))]
    scripts = [each for each in addresses if each.startswith("/static/")]
    assert all(pages.get(each).status_code == 200 for each in scripts)


def test_ratings_become_pairs_that_a_training_is_queued_on(pages, own_store, root):
    right, wrong = sum_trace(3), sum_trace(3) | {"final_answer": "7"}
    ids = [each.id for each in add_traces(own_store, map(Trace.model_validate, (right, wrong)))]
    assert "None can be made" in pages.get("/traces/pairs").text
    for id, stars in zip(ids, (5, 1), strict=True):
        pages.post(f"/traces/{id}/rate", data={"stars": str(stars)})
    text = pages.get("/traces/pairs?source=tests").text
    assert "<strong>1</strong> pair can be made" in text and 'value="rated-v1"' in text
    asked = {"name": "rated-v1", "search": '{"source": "tests"}'}
    sent = pages.post("/traces/pairs", data=asked, follow_redirects=False)
    form = fields_of(pages.get(sent.headers["location"]).text)
    assert (form["pairs"], form["validation_pairs"]) == ("rated-v1", "0")
    assert pages.post("/traces/pairs", data=asked).status_code == 422  # there already
    for name in ("../x", "a/b", ".x", ""):
        assert pages.post("/traces/pairs", data=asked | {"name": name}).status_code == 422, name
    queued = form | {"_pipeline": "preference", "_do": "queue"}
    answer = pages.post("/queue/new", data=queued, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    run = get_queued(own_store, UUID(answer.headers["location"].rpartition("/")[2]))
    kept = read_preferences(root / run.parameters["pairs"]).items
    assert [messages_of(pair.prompt)[-1].content for pair in kept] == [right["prompt"]]
    again = fields_of(pages.get(f"/queue/new?from={run.id}").text)
    assert pages.post("/queue/check", data=again | queued | {"pairs": again["pairs"]}).is_success
    again |= {"_pipeline": "preference", "_do": "queue"}
    assert pages.post("/queue/new", data=again, follow_redirects=False).status_code == 303
    rated = pages.post("/api/traces/preferences", json={"name": "labels", "kind": "rated"})
    assert rated.json() == {"name": "labels", "kind": "rated", "count": 2}
    listed = pages.get("/api/traces/preferences", headers={"Accept": "application/json"})
    assert listed.json() == {"data": ["labels", "rated-v1"]}
