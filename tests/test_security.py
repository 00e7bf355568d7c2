"The faults that strangers send: refused with a reason, and the rest does not notice."

import json
import logging
import re
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress

import httpx
import pytest
from databases import new_database
from serving import TOKEN, free_port, make_root, make_run, server_process, serving, sum_trace

from tunix_rt.core.settings import Settings, settings
from tunix_rt.serve.auth import COOKIE, AccessError, cookie_value
from tunix_rt.serve.server import serve
from tunix_rt.store.engine import open_store
from tunix_rt.store.traces import count_traces

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request, tmp_path_factory):
    "One server for many requests that are refused: a client, with its store and a run to ask for."
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        address = f"sqlite:///{root / 'shared.db'}"
        if request.param == "postgresql":
            address = stack.enter_context(new_database())
        make_root(patch, root)
        store = stack.enter_context(closing(open_store(address)))
        client = stack.enter_context(serving(store))
        client.store, client.run = store, make_run(store, root, 1)
        (root / "secret").write_text("key")
        folder = root / "outputs" / "runs" / "train-1"
        (folder / "innocent.txt").symlink_to(root / "secret")
        yield client
    settings.cache_clear()


def body(**changes) -> str:
    return json.dumps(sum_trace(1) | changes)


def deep(depth: int) -> str:
    return '{"prompt": ' + "[" * depth + "]" * depth + "}"


BODIES = {
    "NaN": body(meta={"x": "NaN"}).replace('"NaN"', "NaN"),
    "infinity": body(meta={"x": 1}).replace('"x": 1', '"x": 1e999'),
    "2^70": body(meta={"x": 2**70}),
    "5,000 digits": body(meta={"x": 1}).replace('"x": 1', '"x": ' + "9" * 5000),
    "lone surrogate": body(prompt="\ud800"),
    "lone surrogate in a key": body(meta={"\udfff": 1}),
    "NUL": body(prompt="a\0b"),
    "NUL in meta": body(meta={"x": ["a\0"]}),
    "true for a number": body(steps=[{"i": True, "type": "a", "content": "b"}]),
    "a float for a number": body(steps=[{"i": 1.0, "type": "a", "content": "b"}]),
    "a number for a text": body(prompt=7),
    "the same key twice": body().replace('"prompt"', '"prompt": "other", "prompt"', 1),
    "not UTF-8": body().encode().replace(b"What", b"\xff\xfe"),
    "UTF-16": body().encode("utf-16"),
    "100,000 brackets": deep(100_000),
    "200 brackets in meta": body(meta={"x": 1}).replace('"x": 1', '"x": ' + "[" * 200 + "]" * 200),
    "no JSON": "{",
    "nothing": "",
    "a list": "[]",
    "a text": '"trace"',
}


@pytest.mark.parametrize("fault", BODIES)
def test_bodies_that_some_program_would_read_otherwise(shared, fault):
    before, sent = count_traces(shared.store), BODIES[fault]
    sent = sent.encode() if isinstance(sent, str) else sent
    for path, content in (("/api/traces", sent), ("/api/traces/batch", b"[" + sent + b"]")):
        answer = shared.post(path, content=content, headers=JSON)
        assert answer.status_code == 422 or (path.endswith("batch") and answer.status_code == 400)
        assert isinstance(answer.json()["detail"], str) and len(answer.text) < 5000
    assert count_traces(shared.store) == before
    assert shared.post("/api/traces", content=body(), headers=JSON).status_code == 201


@pytest.mark.parametrize(
    "path, changes",
    [
        ("/api/tunix/sft/manifest", {"num_epochs": True}),
        ("/api/tunix/sft/manifest", {"num_epochs": 2**70}),
        ("/api/tunix/sft/manifest", {"learning_rate": "0.1"}),
        ("/api/tunix/run", {"dry_run": "yes"}),
        ("/api/tunix/run", {"model_id": "a\0b"}),
        ("/api/datasets/build", {"seed": 2**64}),
        ("/api/datasets/build", {"limit": 1.5}),
        ("/api/models", {"name": "a\nb"}),
    ],
)
def test_other_requests_are_read_as_strictly(shared, path, changes):
    known = {"dataset_key": "sums-v1", "model_id": "tiny", "output_dir": "out", "name": "m"}
    known |= {"dataset_name": "x", "dataset_version": "v1"}
    answer = shared.post(path, content=json.dumps(known | changes), headers=JSON)
    assert answer.status_code == 422, answer.text
    assert next(iter(changes)) in answer.json()["detail"] or "the body" in answer.json()["detail"]


def test_a_body_that_is_not_declared_as_json(shared):
    answer = shared.post("/api/traces", content=body(), headers={"content-type": "text/plain"})
    assert answer.status_code == 422 and "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/api/traces", "/api/models", "/api/datasets/upload"])
def test_an_endless_body_is_cut_off(store, root, path):
    "Chunked, so that its length is known to nobody; the server stops listening at its limit."
    small = {"trace_max_bytes": 100_000, "request_max_bytes": 200_000, "upload_max_bytes": 300_000}
    sent = 0

    def endless():
        nonlocal sent
        while sent < 10_000_000:
            sent += 10_000
            yield b"x" * 10_000

    with serving(store, **small) as api:
        answer = api.post(path + "?source_name=x", content=endless(), headers=JSON)
        assert answer.status_code == 413 and "larger than" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"
        announced = api.post(path, content=b"{}", headers=JSON | {"content-length": "9" * 30})
        assert announced.status_code == 413
    assert list(root.rglob("upload*")) == []


OUTSIDE = ("..", "../..", "../../etc/passwd", "/etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e")
ODD = ("%252e%252e/secret", "..;/secret", "..\\secret", "a%00b", "a" * 2000, "innocent.txt", "")


@pytest.mark.parametrize("name", OUTSIDE + ODD)
def test_names_that_lead_outside(shared, name):
    listed = shared.get(f"/api/tunix/runs/{shared.run}/artifacts").json()["artifacts"]
    assert "innocent.txt" not in {each["name"] for each in listed}
    for path in (
        f"/api/tunix/runs/{shared.run}/artifacts/{name}/download",
        f"/api/datasets/{name}/export.jsonl",
        f"/api/datasets/{name}",
    ):
        answer = shared.get(path)
        led_back = answer.url.path in ("/", "/api/datasets", "/api/datasets/")  # by the client
        assert answer.status_code in (403, 404, 422) or led_back, path
        assert answer.text != "key" and "root:" not in answer.text
    asked = {"path": name or "..", "source_name": "x"}
    assert shared.post("/api/datasets/ingest", json=asked).status_code in (400, 422)
    if ".." in name.split("/") or name.startswith(("/", "%", "..")):
        asked = {"dataset_key": "sums-v1", "model_id": name, "dry_run": False}
        answer = shared.post("/api/tunix/run?mode=async", json=asked)
        assert answer.status_code == 403, answer.text


def test_parameters_cannot_carry_code(shared):
    space = {"x\nimport os": {"type": "choice", "values": [1]}}
    asked = {"name": "s", "dataset_key": "sums-v1", "base_model_id": "tiny", "search_space": space}
    assert shared.post("/api/tuning/jobs", json=asked).status_code == 422


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "localhost@evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://localhost"}, 201),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, 201),
    ],
)
def test_foreign_names_and_foreign_pages(shared, headers, status):
    before = count_traces(shared.store)
    answer = shared.post("/api/traces", content=body(), headers=JSON | headers)
    assert answer.status_code == status
    assert count_traces(shared.store) == before + (status == 201)


HOST = b"Host: localhost\r\n\r\n"
TO = b" HTTP/1.1\r\n"
POST = b"POST /api/traces HTTP/1.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n" + HOST
EVIL = b"Host: evil.example\r\n"
ODD_REQUESTS = {
    "two hosts": (b"GET /api/traces" + TO + EVIL + HOST, 400),
    "two hosts, reversed": (b"GET /api/traces" + TO + HOST[:-2] + EVIL + b"\r\n", 400),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 40\r\n" + HOST + b"{}", 400),
    "a length and chunks": (CHUNKED.replace(b"Host", b"Content-Length: 4\r\nHost"), 400),
    "chunks of another kind": (CHUNKED.replace(b"chunked", b"chunked, identity"), 400),
    "a chunk of a negative size": (CHUNKED + b"-1\r\n", 0),
    "a folded header": (b"GET /" + TO + b"X: a\r\n b\r\n" + HOST, 0),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "no host": (b"GET /api/traces HTTP/1.1\r\n\r\n", 421),
    "another server": (b"GET http://evil.example/api/traces" + TO + EVIL + b"\r\n", 421),
    "a proxy": (b"CONNECT evil.example:443" + TO + EVIL + b"\r\n", 0),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "NUL in the address": (b"GET /api/\0traces" + TO + HOST, 400),
    "NUL in a header": (b"GET /api/traces" + TO + b"X: \0\r\n" + HOST, 400),
    "bytes over ASCII in the address": (b"GET /\xff\xfe" + TO + HOST, 0),
    "a path that leads back": (b"GET /static/../api/traces" + TO + HOST, 404),
    "a coded path that leads back": (b"GET /static/%2e%2e%2fapi%2ftraces" + TO + HOST, 404),
    "two slashes": (b"GET //api/traces" + TO + HOST, 401),
    "an open path with more": (b"GET /api/health/../traces" + TO + HOST, 401),
    "an open path that ends early": (b"GET /api/health%00/../traces" + TO + HOST, 401),
    "half of a code": (b"GET /api/%e0%a4%a" + TO + HOST, 401),
}


def said_on_the_wire(port: int, sent: bytes) -> bytes:
    "What a server answers to some bytes, until it closes or is silent."
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(sent)
        found = b""
        line.settimeout(1.5)
        with suppress(OSError):
            while piece := line.recv(65536):
                found += piece
                line.settimeout(0.3)
        return found


def test_requests_that_programs_read_differently(root):
    "Two hosts, two lengths, chunks beside a length: refused, so that no proxy can be deceived."
    address = f"sqlite:///{root / 'odd.db'}"
    open_store(address).close()
    with server_process(address, root, TUNIX_RT_TOKEN=TOKEN) as (process, url):
        port = int(url.rpartition(":")[2])
        for name, (sent, status) in ODD_REQUESTS.items():
            answer = said_on_the_wire(port, sent)
            assert answer.count(b"HTTP/1.1 ") <= 1, (name, answer)
            found = int(answer.split()[1]) if answer else 0
            assert found == status if status else found < 500, (name, answer)
            assert b'"data"' not in answer and b"evil" not in answer.split(b"\r\n\r\n")[0], name
        assert httpx.get(f"{url}/api/health").status_code == 200
        assert process.poll() is None
        log = (root / "server.log").read_text()
        assert "Traceback" not in log, log


def test_a_way_back_stays_here(api):
    for came in ("http://localhost//evil.example/x", "http://localhost/\\evil.example", "//evil"):
        page = api.get("/traces/none", headers={"accept": "text/html", "referer": came})
        assert page.status_code == 422 and "evil" not in page.text


KNOCKS = [
    ({}, 401),
    ({"authorization": "Bearer guess"}, 401),
    ({"authorization": f"Basic {TOKEN}"}, 401),
    ({"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
    ({"cookie": f"{COOKIE}={TOKEN}"}, 401),
    ({"cookie": f'{COOKIE}="\\377'}, 401),
    ({"authorization": f"Bearer {TOKEN}"}, 200),
    ({"cookie": f"other=1; {COOKIE}={cookie_value(TOKEN)}"}, 200),
]


def test_a_token_where_there_is_one(store, root):
    with serving(store, token=TOKEN) as api:
        assert api.get("/api/health").status_code == 200
        for headers, status in KNOCKS:
            for path in ("/api/traces", "/metrics", "/openapi.json"):
                assert api.get(path, headers=headers).status_code == status, headers


def test_nobody_listens_beyond_loopback_without_a_token():
    for host in ("0.0.0.0", "::", "192.168.0.1"):
        with pytest.raises(AccessError, match="TUNIX_RT_TOKEN"):
            serve(host, free_port(), settings=Settings(token=None))
    with pytest.raises(AccessError, match="guessed"):
        serve("0.0.0.0", free_port(), settings=Settings(token="short"))


def test_secrets_stay_out_of_the_log_and_of_answers(store, root, caplog, monkeypatch):
    secrets = (TOKEN, "sk-judge", "hunter2")
    with serving(store, token=TOKEN, judge_key="sk-judge") as api:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        with caplog.at_level(logging.DEBUG, "tunix_rt"):
            api.get("/api/traces?text=hunter2", headers=bearer)
            api.get("/api/traces", headers={"authorization": "Bearer hunter2"})
            monkeypatch.setattr("tunix_rt.serve.routers.traces.list_stored", lambda *_, **__: 1 / 0)
            fault = api.get("/api/traces", headers=bearer | {"x-request-id": "ask-me"})
    assert fault.status_code == 500 and fault.json()["request_id"] == "ask-me"
    assert "ZeroDivisionError" not in fault.text and "ZeroDivisionError" in caplog.text
    assert len([r for r in caplog.records if r.name == "tunix_rt.serve.requests"]) == 3
    assert not any(secret in caplog.text for secret in secrets)


def test_a_browser_is_told_not_to_run_what_strangers_sent(api, store, root):
    script = "<script>alert(1)</script>"
    id = api.post("/api/traces", json=sum_trace(1) | {"prompt": script}).json()["id"]
    answer = api.get(f"/api/traces/{id}")
    assert answer.headers["content-type"] == "application/json"
    run = make_run(store, root, 1)
    (root / "outputs" / "runs" / "train-1" / "report.html").write_text(script)
    report = api.get(f"/api/tunix/runs/{run}/artifacts/report.html/download")
    assert report.headers["content-disposition"].startswith("attachment")
    for each in (answer, report):
        assert each.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in each.headers["content-security-policy"]


DRAWN = (
    r"$\text{<form/hx-post=/tokens/hx-trigger=load>}$",
    r"$\style{position:fixed}{x}$ $\class{bar}{x}$ $\href{/logout}{x}$",
    r"\(\mathrm{<img/src=x>} \unicode{x3c}b\)",
)


def test_a_formula_puts_no_element_into_a_page(api):
    "Its converter does not escape, and htmx would send what a form in it says, without a click."
    for formula in DRAWN:
        id = api.post("/api/traces", json=sum_trace(1) | {"final_answer": formula}).json()["id"]
        page = api.get(f"/traces/{id}").text
        shown = page[page.index('<div class="markdown"') :]
        math = shown[shown.index("<math") : shown.rindex("</math>")]
        assert not re.search("<(?!/?m[a-z]+[ >])|style=|class=|href=|hx-[a-z]+ *= *[\"']", math), (
            math
        )


def test_more_values_than_a_statement_has_room_for(api):
    api.post("/api/traces", json=sum_trace(1, level=2999))
    for number, filters in enumerate((
        {"level": list(range(2100, 3000))},
        {f"f{n}": None for n in range(900)},
        {"source": [*(f"s{n}" for n in range(900)), "tests"]},
        {".".join("a" * 120): None},
    )):  # fmt: skip
        asked = {"dataset_name": f"many-{number}", "dataset_version": "v1", "filters": filters}
        answer = api.post("/api/datasets/build", json=asked)
        assert answer.status_code == 201 and answer.json()["trace_count"] == 1, answer.text
    asked["filters"] = {"level": list(range(3000))}
    answer = api.post("/api/datasets/build", json=asked)
    assert answer.status_code == 422 and "room for 1,000" in answer.json()["detail"]


@pytest.mark.parametrize("damaged", ["null", "[]", '{"trace_ids": 5}'])
def test_a_damaged_manifest_hides_no_search(api, root, damaged):
    api.post("/api/traces", json=sum_trace(1))
    (root / "data" / "datasets" / "broken-v1").mkdir()
    (root / "data" / "datasets" / "broken-v1" / "manifest.json").write_text(damaged)
    assert api.get("/api/traces/search").json()["total"] == 1
    assert api.get("/api/traces/search?dataset=broken-v1").status_code == 422
    assert api.get("/traces").status_code == 200


def test_a_database_that_is_away_is_503_and_comes_back(store, root, monkeypatch):
    from tunix_rt.core.errors import StoreError

    def away(*_, **__):
        raise StoreError("the database did not do as asked (gone)")

    with serving(store) as api:
        with monkeypatch.context() as patch:
            patch.setattr("tunix_rt.serve.trace_writer.insert_one", away)
            patch.setattr("tunix_rt.serve.routers.health.ready", away)
            for answer in (api.post("/api/traces", json=sum_trace(1)), api.get("/api/ready")):
                assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert api.get("/api/health").status_code == 200
        assert api.post("/api/traces", json=sum_trace(1)).status_code == 201


def test_kill_after_acknowledgement_loses_nothing(database_url, root):
    "Four clients post as fast as they can; the server is killed in the middle."
    open_store(database_url).close()
    heard, lock = [], threading.Lock()
    with server_process(database_url, root) as (process, address):

        def post(start):
            with httpx.Client(base_url=address) as client:
                for number in range(start, start + 10_000):
                    try:
                        answer = client.post("/api/traces", json=sum_trace(number))
                    except httpx.TransportError:
                        return
                    with lock:
                        heard.append(answer.json()["id"])

        threads = [threading.Thread(target=post, args=(10_000 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        while len(heard) < 60:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    with closing(open_store(database_url)) as store:
        kept = count_traces(store)
        assert len(heard) <= kept <= len(heard) + 4
    with server_process(database_url, root) as (_, address):
        for id in heard[-5:]:
            assert httpx.get(f"{address}/api/traces/{id}").status_code == 200


def test_stopping_lets_listeners_go_and_requests_end(tmp_path, root):
    from tunix_rt.store.tables import RunRow

    address = f"sqlite:///{root / 'stop.db'}"
    with closing(open_store(address)) as store:
        run = RunRow(pipeline="train", status="running", lease_until=None)
        with store.writing() as session:
            session.add(run)
    with server_process(address, root) as (process, url):
        with httpx.stream("GET", f"{url}/api/tunix/runs/{run.id}/logs", timeout=20) as answer:
            lines = answer.iter_lines()
            assert "heartbeat" in next(lines)
            begun = time.monotonic()
            process.terminate()
            list(lines)
        assert process.wait(20) in (0, -signal.SIGTERM) and time.monotonic() - begun < 10
