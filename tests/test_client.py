"The client against a server in a process of its own, and against the server's document."

import inspect
import json
import threading
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from serving import make_run, server_process, sum_trace

from tunix_rt.runs.logs import append_log
from tunix_rt.serve import client
from tunix_rt.serve.app import create_app
from tunix_rt.serve.schemas.runs import RunRequest
from tunix_rt.store.engine import open_store
from tunix_rt.store.tables import RunRow
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
    assert functions.keys() == endpoints.keys()
    for name, function in functions.items():
        method, path, way = endpoints[name]
        source = inspect.getsource(function)
        for piece in path.replace("{", "}").split("}")[::2]:
            assert piece.strip("/") in source.replace("{name}", "{part(filename)}"), (name, path)
        takes = set(inspect.signature(function).parameters)
        for parameter in way.get("parameters", []):
            known = {"mode", parameter["name"].replace("-", "_")}
            assert known & takes or parameter["in"] == "header", (name, parameter["name"])
        assert method in ("get", "delete") or "key" in takes or "_records" in source, name


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
    asked = client.BuildRequest(dataset_name="day", dataset_version="v1")
    assert client.build_dataset(server, asked).trace_count == 21
    assert len(list(client.export_dataset(server, "day-v1", "messages"))) == 21

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
    with pytest.raises(client.Refused, match="404"):
        client.get_tunix_run(server, uuid4())
    with pytest.raises(client.Refused, match="409"):
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
