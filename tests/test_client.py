"The client against a server in a process of its own, and against the server's document."

import importlib.util
import inspect
import json
import shutil
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, Response
from fastapi import Path as InPath
from fastapi.testclient import TestClient
from serving import make_run, server_process, sum_trace

from tunix_rt.client import api as client
from tunix_rt.core.settings import Settings
from tunix_rt.data.datasets import build_dataset
from tunix_rt.jobs.logs import append_log
from tunix_rt.jobs.queue import get_queued
from tunix_rt.registry.models import create_registered_model, set_alias, version_folder
from tunix_rt.registry.promotion import promote
from tunix_rt.serve.app import create_app
from tunix_rt.serve.idempotency import CLAIMED, STALE, IdempotencyMiddleware
from tunix_rt.serve.schemas.datasets import IngestedFile
from tunix_rt.serve.schemas.runs import RunRequest
from tunix_rt.store.engine import open_store
from tunix_rt.store.tables import IdempotentReply, RunRow, now
from tunix_rt.traces.schema import Trace


def test_endpoints_and_functions_are_the_same():
    document = create_app().openapi()
    endpoints = {}
    for path, ways in document["paths"].items():
        for method, way in ways.items():
            endpoints[way["operationId"]] = (method, path, way)
    functions = {
        name: getattr(module, name)
        for module in client.ENDPOINTS
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    assert functions.keys() == endpoints.keys(), "run `sh .ci/sync`: it writes what is missing"
    for name, function in functions.items():
        method, path, way = endpoints[name]
        source = inspect.getsource(function)
        for piece in path.replace("{", "}").split("}")[::2]:
            assert piece.strip("/") in source, (name, path)
        takes = set(inspect.signature(function).parameters)
        for parameter in way.get("parameters", []):
            known = {"mode", parameter["name"].replace("-", "_")}
            assert known & takes or parameter["in"] == "header", (name, parameter["name"])
        assert method in ("get", "delete") or "key" in takes or "stream_records" in source, name


@pytest.fixture(scope="module")
def writer():
    "The module that writes the functions from the routes."
    path = Path(__file__).parents[1] / ".ci" / "endpoints.py"
    spec = importlib.util.spec_from_file_location("endpoints", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_functions_are_those_that_follow_from_the_routes(writer):
    written = writer.write_module(writer.list_routes())
    assert written == writer.TARGET.read_text(encoding="utf-8"), "run `sh .ci/sync`"


def test_a_new_route_changes_the_file_and_its_function_calls_it(writer):
    router, sent = APIRouter(prefix="/api/things"), []

    @router.put("/{thing_id}/{file:path}")
    def put_thing(
        thing_id: UUID,
        file: Annotated[str, InPath(description="Name of a file")],
        asked: client.ModelRequest,
        loud: Annotated[bool, Query(description="Volume")] = False,
        color: Annotated[Literal["red", "blue"] | None, Query()] = None,
    ) -> list[IngestedFile]:
        "Put a thing."

    written = writer.write_module([*writer.list_routes(), *router.routes])
    assert written != writer.TARGET.read_text(encoding="utf-8")
    scope = {}
    exec(written, scope)
    assert "put_thing" in scope["__all__"]
    assert str(inspect.signature(scope["put_thing"])).replace('"', "'") == (
        "(client: 'Client', thing_id: 'UUID', file: 'str', asked: 'ModelRequest', "
        "loud: 'bool' = False, color: 'Literal['red', 'blue'] | None' = None, "
        "key: 'str | None' = None) -> 'list[IngestedFile]'"
    )
    assert "Put a thing." in scope["put_thing"].__doc__
    assert "asked: Content of the request; needs name" in scope["put_thing"].__doc__

    def answer(request):
        sent.append(request)
        return httpx.Response(200, json=[])

    there = client.connect(transport=httpx.MockTransport(answer))
    asked = client.ModelRequest(name="adder")
    assert scope["put_thing"](there, UUID(int=7), "a b/c", asked, key="monday") == []
    assert (sent[0].method, sent[0].headers["idempotency-key"]) == ("PUT", "monday")
    assert sent[0].url.raw_path.decode() == f"/api/things/{UUID(int=7)}/a%20b/c?loud=false"
    assert json.loads(sent[0].content) == {"name": "adder"}


def test_a_route_from_which_no_function_follows_is_refused(writer):
    router = APIRouter()

    @router.post("/events", responses={200: {"content": {"text/event-stream": {}}}})
    def follow_events() -> Response: ...

    @router.post("/many")
    def post_many(asked: list[IngestedFile]) -> IngestedFile: ...

    @router.get("/{thing}")
    def get_thing(thing: str) -> IngestedFile: ...

    advice = ("write one of the same name", "write one of the same name", "Query.description=")
    for route, said in zip(router.routes, advice, strict=True):
        with pytest.raises(ValueError, match=said):
            writer.write_module([route])


@pytest.fixture
def server(root):
    address = f"sqlite:///{root / 'client.db'}"
    with closing(open_store(address)) as store, server_process(address, root) as (_, url):
        server = client.connect(url)
        server.store = store
        yield server
        server.close()


def test_a_day_with_the_client(server, root, tmp_path):
    assert client.get_api_health(server).status == "healthy"
    traces = [Trace.model_validate(sum_trace(number)) for number in range(20)]
    stored = client.create_trace(server, traces[0])
    assert client.get_trace(server, stored.id).payload == traces[0]
    assert client.create_traces(server, traces[1:]).created_count == 19
    assert client.list_traces(server, limit=5, category="sum").pagination.next_offset == 5
    (tmp_path / "more.jsonl").write_text(json.dumps(sum_trace(77)) + "\n")
    assert client.upload_dataset(server, tmp_path / "more.jsonl", "sent").ingested_count == 1
    eggs = {"question": "3 hens lay 2 eggs each. How many?", "answer": "3*2 = 6\n#### 6"}
    (tmp_path / "eggs.jsonl").write_text(json.dumps(eggs) + "\n")
    sent = client.upload_dataset(server, tmp_path / "eggs.jsonl", "sent", format="gsm8k")
    assert client.get_trace(server, sent.trace_ids[0]).payload.final_answer == "6"
    asked = client.BuildRequest(dataset_name="day", dataset_version="v1")
    assert client.build_dataset(server, asked).trace_count == 22
    assert len(list(client.export_dataset(server, "day-v1", "messages"))) == 22

    dry = client.execute_tunix_run(server, RunRequest(dataset_key="day-v1", model_id="tiny"))
    assert (dry.status, dry.mode) == ("completed", "dry-run")
    run = make_run(server.store, root, 8)
    assert client.evaluate_run(server, run).score == 100
    assert client.get_leaderboard(server).data[0].run_id == run
    model = client.create_model_artifact(server, client.ModelRequest(name="adder"))
    promote = client.PromoteRequest(source_run_id=run)
    version = client.promote_model_version(server, model.id, promote)
    client.set_model_alias(server, model.id, "champion", version.id)
    assert client.list_model_artifacts(server)[0].aliases == {"champion": "v1"}
    packed = client.download_model_version(server, version.id, tmp_path / "adder.zip")
    assert packed.read_bytes()[:2] == b"PK"
    config = client.download_artifact(server, run, "model/config.json", tmp_path / "c.json")
    assert json.loads(config.read_text()) == {"right": 8}
    with pytest.raises(client.APIError, match="404"):
        client.get_tunix_run(server, uuid4())
    with pytest.raises(client.APIError, match="409"):
        client.create_model_artifact(server, client.ModelRequest(name="adder"))


class Broken(httpx.BaseTransport):
    "A line that loses every second answer after the server has done the work."

    def __init__(self):
        self.inner, self.count = httpx.HTTPTransport(), 0

    def handle_request(self, request):
        self.count += 1
        answer = self.inner.handle_request(request)
        if self.count % 2:
            answer.read()
            raise httpx.ReadError("the line broke")
        return answer


def test_nothing_is_done_twice_over_a_broken_line(server):
    shaky = client.connect(server.address, transport=Broken())
    shaky.pause = 0.01
    traces = [Trace.model_validate(sum_trace(number)) for number in range(4)]
    for trace in traces:
        client.create_trace(shaky, trace)
    client.create_traces(shaky, traces)
    asked = RunRequest(dataset_key="sums-v1", model_id="tiny", dry_run=False)
    client.execute_tunix_run(shaky, asked)
    assert len(client.list_traces(server, limit=100).data) == 8
    assert len(client.list_tunix_runs(server).data) == 1


def test_a_log_is_followed_from_where_it_broke_off(server, monkeypatch):
    run = RunRow(pipeline="train", status="running")
    with server.store.writing() as session:
        session.add(run)
    append_log(server.store, run.id, [("stdout", "one\n")])

    def go_on():
        time.sleep(1.5)
        append_log(server.store, run.id, [("stderr", "two\n")])
        with server.store.writing() as session:
            session.get_one(RunRow, run.id).status = "completed"

    thread = threading.Thread(target=go_on)
    thread.start()
    told = list(client.stream_tunix_run_logs(server, run.id))
    thread.join()
    assert [e.data["chunk"] for e in told if e.kind == "log"] == ["one\n", "two\n"]
    assert told[-1].data == {"status": "completed"}
    assert any(event.kind == "heartbeat" for event in told)


def test_a_server_that_is_not_there(tmp_path: Path):
    nobody = client.connect("http://127.0.0.1:9")
    nobody.pause = 0.01
    with pytest.raises(client.Unreachable, match="is it running"):
        client.get_api_health(nobody)


def break_things(store, root):
    "Damage a file of each kind, and say which requests will find out."
    run = make_run(store, root, 3)
    asking = root / "outputs" / "runs" / "evaluate-3" / "predictions.jsonl"
    model = create_registered_model(store, "adder")
    version = promote(store, model.id, run)
    shutil.rmtree(version_folder(version))
    asking.write_text(asking.read_text() + '{"prompt": 7}\n')
    build_dataset([Trace.model_validate(sum_trace(9))], name="bent", version="v1")
    with (root / "data" / "datasets" / "bent-v1" / "traces.jsonl").open("a") as file:
        file.write("{}\n")
    (root / "data" / "datasets" / "torn-v1").mkdir()
    (root / "data" / "datasets" / "torn-v1" / "manifest.json").write_text('{"dataset')
    (root / "data" / "imports" / "bad.jsonl").write_text("{}\nno\n")
    (root / "outputs" / "runs" / "train-3" / "model" / "config.json").unlink()
    train = {"dataset_key": "bent-v1", "model_id": "tiny"}
    return [
        ("POST", "/api/datasets/ingest", {"path": "bad.jsonl", "source_name": "t"}),
        ("POST", "/api/datasets/ingest", {"path": "none.jsonl", "source_name": "t"}),
        ("POST", "/api/datasets/ingest", {"path": "../../run.json", "source_name": "t"}),
        ("POST", "/api/datasets/ingest", {"path": str(root), "source_name": "t"}),
        ("POST", "/api/datasets/upload?source_name=t", "no\n"),
        ("GET", "/api/datasets/torn-v1", None),
        ("GET", "/api/datasets/..%2f..%2fetc", None),
        ("POST", "/api/tunix/sft/export", {"dataset_key": "torn-v1"}),
        ("POST", "/api/tunix/run", train),
        ("POST", "/api/tunix/run", train | {"dataset_key": "torn-v1"}),
        ("POST", "/api/tunix/run", train | {"model_id": "../../etc"}),
        ("POST", "/api/tunix/run?mode=async", train | {"model_id": "adder@v1", "dry_run": False}),
        ("POST", "/api/tunix/evaluate", {"run_id": str(run), "evaluation_set": "none-v1"}),
        ("POST", "/api/tunix/evaluate", {"model_id": "adder@v1", "evaluation_set": "sums-v1"}),
        ("POST", f"/api/tunix/runs/{run}/evaluate", {}),
        ("GET", f"/api/tunix/runs/{run}/artifacts/..%2frun.json/download", None),
        ("GET", f"/api/tunix/runs/{run}/artifacts/none.txt/download", None),
        ("POST", f"/api/models/{model.id}/versions/promote", {"source_run_id": str(run)}),
        ("GET", f"/api/models/versions/{version.id}/download", None),
    ]


def test_no_refusal_says_where_our_folders_are(api, store, root):
    "What is wrong is named from the root on; a stranger need not know what lies above it."
    told = []
    for method, path, body in break_things(store, root):
        sent = {"content": body} if isinstance(body, str) else {"json": body}
        if isinstance(body, str):
            sent["headers"] = {"Content-Type": "application/x-ndjson"}
        answer = api.request(method, path, **(sent if body is not None else {}))
        said = answer.json()
        assert answer.status_code >= 400 or said["status"] == "failed", (path, answer.text)
        assert str(root) not in answer.text and "/tmp/" not in answer.text, (path, answer.text)
        told.append(said.get("detail") or said["message"])
    assert any("bad.jsonl:1" in each for each in told) and any(
        "upload.jsonl" in each for each in told
    )


def test_an_examination_is_asked_for_by_run_or_by_name(api, store, root):
    run = make_run(store, root, 3, model_id="adder")
    model = create_registered_model(store, "adder")
    version = promote(store, model.id, run)
    set_alias(store, model.id, "champion", version.id)
    asked = {"evaluation_set": "sums-v1", "limit": 5}
    path = "/api/tunix/evaluate"
    for wrong in ({}, {"run_id": str(run), "model_id": "tiny"}):
        assert api.post(path, json=asked | wrong).status_code == 422

    by_run = get_queued(
        store, UUID(api.post(path, json=asked | {"run_id": str(run)}).json()["run_id"])
    )
    assert (by_run.pipeline, by_run.parent_run_id, by_run.model_id) == ("evaluate", run, "adder")
    assert by_run.parameters["model"] == "outputs/runs/train-3"
    named = api.post(path, json=asked | {"model_id": "adder@champion"}).json()
    waiting = get_queued(store, UUID(named["run_id"]))
    assert waiting.parameters["model"] == f"outputs/models/{version.sha256}"
    assert (waiting.model_id, waiting.status) == ("adder@v1", "pending")
    assert waiting.request["model_version"]["sha256"] == version.sha256
    assert api.post(path, json=asked | {"model_id": "adder@v9"}).status_code == 404


def test_a_server_that_died_over_a_request_has_not_lost_its_run(api, store):
    "The claim lapses, the request comes again, and finds what the first attempt had done."
    key = {"Idempotency-Key": "night"}
    train = {"dataset_key": "sums-v1", "model_id": "tiny", "dry_run": False}
    search = {
        "name": "search",
        "dataset_key": "sums-v1",
        "base_model_id": "tiny",
        "metric_name": "loss",
        "search_space": {"learning_rate": {"type": "choice", "values": [0.1, 0.2]}},
    }
    for path, body, name in (
        ("/api/tunix/run?mode=async", train, "run_id"),
        ("/api/tuning/jobs", search, "id"),
    ):
        first = api.post(path, json=body, headers=key).json()[name]
        with store.writing() as session:
            claim = session.get_one(IdempotentReply, "night")
            claim.status_code, claim.body, claim.created_at = CLAIMED, "", now() - 2 * STALE
        assert api.post(path, json=body, headers=key).json()[name] == first
        with store.writing() as session:
            session.delete(session.get_one(IdempotentReply, "night"))
    assert len(api.get("/api/tunix/runs").json()["data"]) == 1
    assert len(api.get("/api/tuning/jobs").json()) == 1


def test_a_claim_is_renewed_as_long_as_its_request_is_at_work(store, monkeypatch):
    monkeypatch.setattr("tunix_rt.serve.idempotency.RENEWED", 0.05)
    app, seen = FastAPI(), []
    app.add_middleware(IdempotencyMiddleware, store=lambda: store)

    @app.post("/long")
    def long() -> bool:
        for _ in range(2):
            with store.reading() as session:
                claim = session.get_one(IdempotentReply, "night")
            seen.append((claim.status_code, claim.created_at))
            time.sleep(0.5)
        return True

    with TestClient(app) as client:
        answers = [client.post("/long", headers={"Idempotency-Key": "night"}) for _ in range(2)]
    assert [answer.json() for answer in answers] == [True, True]
    assert len(seen) == 2 and seen[0][0] == seen[1][0] == CLAIMED and seen[0][1] < seen[1][1]


def test_a_lapsed_claim_is_not_taken_over_while_its_request_is_at_work(store):
    "An ingest of minutes keeps the database from renewing its claim."
    app, calls, heard = FastAPI(), [], []
    app.add_middleware(IdempotencyMiddleware, store=lambda: store)

    @app.post("/long")
    def long() -> int:
        calls.append(1)
        if len(calls) == 1:
            with store.writing() as session:
                session.get_one(IdempotentReply, "night").created_at = now() - 2 * STALE
            heard.append(send().status_code)
        return len(calls)

    with TestClient(app) as client:

        def send():
            return client.post("/long", headers={"Idempotency-Key": "night"})

        assert [send().json(), send().json()] == [1, 1]
    assert heard == [409] and len(calls) == 1


def test_the_document_says_who_needs_a_token(store, root):
    for token, asked in ((None, [{"bearer": []}, {}]), ("a" * 20, [{"bearer": []}])):
        document = create_app(Settings(token=token), store).openapi()
        assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
        ways = {
            path: way["security"]
            for path, ways in document["paths"].items()
            for way in ways.values()
        }
        assert ways.pop("/api/health") == ways.pop("/api/ready") == []
        assert all(way == asked for way in ways.values()), ways
