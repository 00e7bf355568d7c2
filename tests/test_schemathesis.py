"Requests made up from the OpenAPI document, valid and not: no fault of ours, no answer beside it."

import json
from collections import defaultdict

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance
from serving import TOKEN, make_run

from tunix_rt.core.settings import Settings
from tunix_rt.jobs.queue import enqueue
from tunix_rt.registry.models import create_registered_model
from tunix_rt.registry.promotion import promote
from tunix_rt.serve.app import create_app
from tunix_rt.serve.schemas.traces import EXAMPLE
from tunix_rt.store.preferences import keep_preferences
from tunix_rt.store.ratings import add_rating
from tunix_rt.store.tokens import create_token
from tunix_rt.store.traces import add_traces
from tunix_rt.traces.schema import Trace
from tunix_rt.tracking.evaluations import evaluate_run
from tunix_rt.tuning.jobs import create_job

QUICK = settings(
    max_examples=5,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
]
schemathesis.serializer.alias("application/x-ndjson", "text/plain")
TRACE = json.dumps(EXAMPLE)
ORDER = {"dataset_key": "sums-v1", "model_id": "tiny"}
SEARCH = {
    "name": "search",
    "dataset_key": "sums-v1",
    "base_model_id": "tiny",
    "metric_name": "loss",
    "search_space": {"learning_rate": {"type": "choice", "values": [0.1, 0.2]}},
}
KINDS = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture
def known(store, root):
    "One of everything, so that requests which name something find it."
    run = make_run(store, root, 3)
    evaluate_run(store, run)
    model = create_registered_model(store, "adder")
    traced = add_traces(store, [Trace.model_validate(EXAMPLE)])[0].id
    (root / "data" / "imports" / "good.jsonl").write_text(TRACE)
    ids = {
        "trace_id": traced,
        "run_id": run,
        "model_id": model.id,
        "version_id": promote(store, model.id, run).id,
        "rating_id": add_rating(store, traced, author="ann", stars=4).id,
        "waiting_id": enqueue(store, "train", {"dataset": "sums-v1"}).id,
        "job_id": create_job(store, **SEARCH).id,
    }
    other = Trace.model_validate(EXAMPLE | {"final_answer": "another"})
    add_rating(store, add_traces(store, [other])[0].id, author="ann", stars=1)
    keep_preferences(store, "rated-v1")
    create_token(store, "spare", "read", by="tests")
    others = {"dataset_key": "sums-v1", "filename": "run.json", "alias": "champion"}
    others |= {"pipeline": "train", "name": "spare", "baseline_name": "b"}
    others["preferences_name"] = "rated-v1"
    return {name: str(id) for name, id in ids.items()} | others


GOOD = {
    "GET /api/traces/compare": {"query": {"base": "trace_id", "other": "trace_id"}},
    "POST /api/traces/batch": {"body": [EXAMPLE]},
    "POST /api/traces/{trace_id}/score": {"body": {"criteria": "baseline"}},
    "GET /api/traces/search": {"query": {"text": "carry", "sort": "relevance"}},
    "POST /api/traces/{trace_id}/ratings": {"body": {"thumb": "up", "author": "bob"}},
    "POST /api/traces/{trace_id}/versions": {"body": EXAMPLE | {"final_answer": "forty-two"}},
    "POST /api/tunix/runs/{run_id}/cancel": {"path_parameters": {"run_id": "waiting_id"}},
    "POST /api/datasets/ingest": {"body": {"path": "good.jsonl", "source_name": "tests"}},
    "POST /api/datasets/build": {"body": {"dataset_name": "all", "dataset_version": "v1"}},
    "POST /api/datasets/upload": {"query": {"source_name": "t"}, "body": TRACE},
    "POST /api/tunix/sft/export": {"body": {"dataset_key": "sums-v1"}},
    "POST /api/tunix/sft/manifest": {"body": ORDER | {"output_dir": "out"}},
    "POST /api/tunix/run": {"body": ORDER},
    "POST /api/tunix/evaluate": {"body": {"run_id": "run_id", "evaluation_set": "sums-v1"}},
    "POST /api/tunix/grpo": {"body": {"run_id": "run_id", "dataset_key": "sums-v1"}},
    "POST /api/regression/baselines": {
        "body": {"run_id": "run_id", "name": "b", "metric": "score"}
    },
    "POST /api/regression/check": {"body": {"run_id": "run_id", "baseline_name": "b"}},
    "POST /api/traces/preferences": {"body": {"name": "kept", "kind": "rated"}},
    "PATCH /api/tunix/runs/{run_id}/notes": {"body": {"note": "seen"}},
    "POST /api/tuning/jobs": {"body": SEARCH},
    "POST /api/models/{model_id}/versions/promote": {"body": {"source_run_id": "run_id"}},
    "POST /api/tokens": {"body": {"name": "made", "role": "read"}},
    "PUT /api/models/{model_id}/aliases/{alias}": {"body": {"version_id": "version_id"}},
    "DELETE /api/traces": {"query": {"source": "tests", "dry_run": "true"}},
    **{
        f"DELETE /api/{path}": {"query": {"dry_run": "true"}}  # others still need it
        for path in (
            "traces/{trace_id}",
            "datasets/{dataset_key}",
            "tunix/runs/{run_id}",
            "models/versions/{version_id}",
            "models/{model_id}",
            "regression/baselines/{baseline_name}",
            "traces/preferences/{preferences_name}",
        )
    },
}


def ask_well(operation, known, answers):
    "Send the one request that has an answer, and hold that against the document."
    fields = {"path_parameters": {p.name: known[p.name] for p in operation.path_parameters}}
    for part, value in GOOD.get(operation.label, {}).items():
        if isinstance(value, dict):
            value = {k: known.get(v, v) if isinstance(v, str) else v for k, v in value.items()}
        fields[part] = value
    case = operation.Case(**fields)
    answer = case.call(base_url="http://localhost", headers=BEARER)
    answers[operation.label].add(answer.status_code)
    case.validate_response(answer, checks=CHECKS)


def attack(operation, kind, answers, **fixed):
    "Send some requests to one endpoint, and hold each answer against the document."

    @seed(20261124)
    @QUICK
    @given(case=operation.as_strategy(generation_mode=kind, **fixed))
    def one(case):
        answer = case.call(base_url="http://localhost", headers=BEARER)
        answers[operation.label].add(answer.status_code)
        case.validate_response(
            answer,
            checks=CHECKS,
        )

    one()


def test_every_endpoint_keeps_its_word(store, known):
    app = create_app(Settings(token=TOKEN, allowed_hosts="testserver"), store)
    document = schemathesis.openapi.from_asgi("/openapi.json", app, headers=BEARER)
    refused, answers = [], defaultdict(set)
    for found in document.get_all_operations():
        operation = found.ok()
        try:
            ask_well(operation, known, answers)
            for kind in KINDS:
                attack(operation, kind, answers)
        except Unsatisfiable:
            pass  # nothing about such a request could be wrong
        except Exception as error:
            refused.append(f"{operation.label}: {error}")
    assert not refused, "\n\n".join(refused)
    unheard = [label for label, statuses in answers.items() if min(statuses) >= 300]
    assert unheard == []  # each was asked at least once in a way that it could answer
