"""No request of anybody delays another's: each of these once stopped the server, or might have.

A process of its own asks for `/api/health`, on an old connection and on new ones, and for a list of
traces, while an attack runs; its worst wait is the figure. On a quiet machine that for health stays
under 250 ms, which WEDGE_SECONDS=0.25 asserts. The default leaves room for two cores that others
share, and is tried three times; the faults that these tests were written for took 2 to 38 seconds.
"""

import contextlib
import gzip
import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from serving import TOKEN, free_port, make_root, make_run, sum_trace

from tunix_rt.core.settings import settings
from tunix_rt.data.datasets import build_dataset
from tunix_rt.jobs.logs import append_log
from tunix_rt.store.engine import open_store
from tunix_rt.store.tables import RunRow
from tunix_rt.store.traces import add_traces
from tunix_rt.traces.schema import Trace

LIMIT = float(os.environ.get("WEDGE_SECONDS", "1.0"))  # Longest wait of anybody else
READ = 3  # Times that for a list, which shares its threads with other reads
DESCRIPTORS = 400  # File descriptors of the server, so that a test can use them up
IDLE = 2  # Seconds that the server waits for a client
MIB = 2**20

SERVE = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
from tunix_rt.serve.server import serve
serve(port=int(__import__("sys").argv[1]))
"""

PROBE = """
import http.client, json, sys, threading, time
port, token = int(sys.argv[1]), sys.argv[2]
worst, begun = {}, {}

def ask(name, path, keep):
    connection = None
    while True:
        begun[name] = time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path, headers={"Authorization": "Bearer " + token})
            good = connection.getresponse()
            good.read()
            failed = good.status != 200
        except OSError:
            failed, connection = True, None
        took = time.monotonic() - begun[name]
        worst[name] = max(worst.get(name, 0), 60 if failed and not keep else took)
        if connection and not keep:
            connection.close()
            connection = None
        time.sleep(0.02)

for name, path, keep in (
    ("health", "/api/health", True),
    ("new", "/api/health", False),
    ("read", "/api/traces?limit=1", True),
):
    threading.Thread(target=ask, args=(name, path, keep), daemon=True).start()
for line in sys.stdin:
    if line.strip() == "begin":
        worst.clear()
        print("{}", flush=True)
    else:
        now = time.monotonic()
        found = {name: max(worst.get(name, 0), now - begun[name]) for name in begun}
        print(json.dumps(found), flush=True)
"""


def listener_run(store) -> RunRow:
    "A run that never ends, whose log can be followed."
    run = RunRow(pipeline="train", status="running", lease_until=None)
    with store.writing() as session:
        session.add(run)
    return run


def wait_for(server) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{server.address}/api/health")
            return
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A server with a token, few file descriptors, some data, and somebody who asks how it is."
    root, port = tmp_path_factory.mktemp("wedges"), free_port()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        make_root(patch, root)
        url = f"sqlite:///{root / 'wedges.db'}"
        traces = [Trace.model_validate(sum_trace(number)) for number in range(8000)]
        build_dataset(traces, name="large", version="v1")
        store = stack.enter_context(closing(open_store(url)))
        add_traces(store, traces)
        run, following = make_run(store, root, 1), listener_run(store)
        lines = "".join(f'{{"step": {n}, "loss": 2.5, "rate": 0.1}}\n' for n in range(50_000))
        (root / "outputs" / "runs" / "train-1" / "metrics.jsonl").write_text(lines)
        known = {"DATABASE_URL": url, "TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"}
        known |= {"TUNIX_RT_TOKEN": TOKEN, "TUNIX_RT_IDLE_SECONDS": str(IDLE)}
        log = root / "server.log"
        command = [sys.executable, "-c", SERVE, str(port)]
        process = subprocess.Popen(
            command, env=os.environ | known, cwd=root, stderr=stack.enter_context(log.open("a"))
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        found = SimpleNamespace(
            process=process, port=port, address=f"http://127.0.0.1:{port}", log=log, root=root,
            run=run, following=following.id, database=root / "wedges.db",
        )  # fmt: skip
        wait_for(found)
        found.probe = subprocess.Popen(
            [sys.executable, "-c", PROBE, str(port), TOKEN],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(found.probe.wait)
        stack.callback(found.probe.kill)
        time.sleep(0.5)
        yield found
    settings.cache_clear()


def told(server, word: str) -> dict[str, float]:
    server.probe.stdin.write(word + "\n")
    server.probe.stdin.flush()
    return json.loads(server.probe.stdout.readline())


BEARER = {"authorization": f"Bearer {TOKEN}"}
START = b"Host: localhost\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"


def request(path: str, body: bytes = b"", *headers: str, method: str = "POST") -> bytes:
    "One request as bytes."
    more = "".join(f"{header}\r\n" for header in headers)
    length = f"Content-Length: {len(body)}\r\n" if method != "GET" else ""
    return f"{method} {path} HTTP/1.1\r\n".encode() + START + f"{more}{length}\r\n".encode() + body


def send(server, *pieces: bytes, seconds: float = 20, listen: bool = True) -> bytes:
    "Send some bytes on a connection of their own, and give the start of what comes back."
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
        except OSError:
            pass  # refused before the end, which is what the limits are for
        try:
            return line.recv(4096) if listen else b""
        except OSError:
            return b""


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def together(work, count: int) -> list:
    "Do the same in so many threads."
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(work) for _ in range(count)]]


JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
PIECES = [b"x" * MIB] * 60


def one_header(server):
    "Sixty megabytes in one header, from a stranger."
    answer = send(server, b"GET /api/health HTTP/1.1\r\nX: ", *PIECES, b"\r\n\r\n")
    assert status(answer) in (431, 0)


def one_address(server):
    "The same in the address."
    answer = send(server, b"GET /", *PIECES, b" HTTP/1.1\r\n\r\n")
    assert status(answer) in (431, 0)


def one_chunk_extension(server):
    "And where it counts as nothing: in the extension of a chunk, and in a trailer."
    start = b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(send(server, start, b"1;x=", *PIECES)) in (431, 0)
    assert status(send(server, start, b"0\r\nX: ", *PIECES)) in (431, 0)


def many_small_headers(server):
    lines = b"GET /api/health HTTP/1.1\r\n" + b"a:\r\n" * 60_000 + b"\r\n"
    together(lambda: send(server, lines), 16)


def half_headers(server):
    "A slow loris: connections that have begun a request and say no more. They are closed."
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=15) for _ in range(50)]
    for line in lines:
        line.sendall(b"GET /api/health HTTP/1.1\r\nHost: local")
    for line in lines:
        with line, contextlib.suppress(ConnectionError):
            line.settimeout(IDLE + 4)
            assert status(line.recv(4096)) in (408, 0)  # and no timeout


def slow_bodies(server):
    "Bodies of which one byte arrives now and then."
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=15) for _ in range(30)]
    for line in lines:
        line.sendall(request("/api/traces", b"", JSON).replace(b"Length: 0", b"Length: 9000"))
    for _ in range(2 * IDLE + 3):
        time.sleep(0.5)
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall(b"[")
    for line in lines:
        with line, contextlib.suppress(ConnectionError):
            line.settimeout(IDLE + 4)
            assert status(line.recv(4096)) in (408, 422, 0)


def idle_connections(server):
    "More connections than the server has file descriptors."
    lines = []
    for _ in range(DESCRIPTORS + 100):
        with contextlib.suppress(OSError):
            lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
    time.sleep(1)
    for line in lines:
        line.close()


def held_logins(server):
    "The same with connections that send a form, a byte now and then, so that none of them is idle."
    start = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nx"
    lines = []
    for _ in range(DESCRIPTORS - 100):
        with contextlib.suppress(OSError):
            lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
            lines[-1].sendall(start)
    time.sleep(0.5)
    for line in lines:
        line.close()


def pipelined(server):
    "Five thousand requests in one go, from each of eight."
    lines = request("/api/health", method="GET") * 5000
    together(lambda: send(server, lines), 8)


def small_chunks(server):
    "A body in chunks of one byte each."
    start = request("/api/traces", b"", JSON).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    together(lambda: send(server, start, b"1\r\n[\r\n" * 400_000), 8)


def numbers(server):
    "Forty megabytes of numbers where an object is expected, and almost as many in a batch."
    assert (
        status(send(server, request("/api/models", b"[" + b"1," * 20_000_000 + b"1]", JSON))) == 413
    )
    send(server, request("/api/traces/batch", b"[" + b"1," * 15_000_000 + b"1]", JSON))
    body = b'{"name": [' + b"1," * 500_000 + b"1]}"
    together(lambda: send(server, request("/api/models", body, JSON)), 4)


def lists(server):
    "Lists, of which a parser makes one object for every three bytes."
    body = b'[{"prompt": [' + b"[]," * 9_000_000 + b"[]]}]"
    assert status(send(server, request("/api/traces/batch", body, JSON))) in (413, 422)
    body = b'{"name": [' + b"[]," * 340_000 + b"[]]}"
    together(lambda: send(server, request("/api/models", body, JSON)), 6)
    assert status(send(server, request("/api/models", b"[" * 1_000_000, JSON))) == 422


def large_batches(server):
    "Batches that are right, and have as many steps as they may; and one that is wrong everywhere."
    step = {"type": "a", "content": "b"}
    trace = sum_trace(1) | {"steps": [step | {"i": i} for i in range(1000)]}
    good = json.dumps([trace] * 150).encode()
    bad = json.dumps([trace | {"steps": [{"i": "x"}] * 1000}] * 200).encode()
    assert status(send(server, request("/api/traces/batch", good, JSON))) == 201
    assert status(send(server, request("/api/traces/batch", bad, JSON))) == 422


def large_traces(server):
    "Traces of a megabyte, from sixteen at a time; half of them with a meta full of lists."
    text = json.dumps(
        sum_trace(1)
        | {"steps": [{"i": i, "type": "a", "content": "b" * 20_000} for i in range(50)]}
    )
    odd = json.dumps(sum_trace(1) | {"meta": {"x": [[]] * 250_000}})
    bodies = [text.encode(), odd.encode()] * 8
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda body: send(server, request("/api/traces", body, JSON)), bodies))


def repeated_keys(server):
    "An object of fifty thousand keys, the last of which is there twice."
    keys = ",".join(f'"{n}":0' for n in range(49_000))
    body = f"{{{keys},"  # to be completed
    large = (body + '"48999":0}').encode()
    small = ("{" + ",".join(f'"{n}":0' for n in range(1700)) + ',"1699":0}').encode()
    together(lambda: send(server, request("/api/models", large, JSON)), 4)
    found = together(lambda: status(send(server, request("/api/models", small, JSON))), 16)
    assert set(found) == {422}


def forms(server):
    "A form of a million empty fields, and one of many parts, from strangers."
    together(lambda: send(server, request("/login", b"&" * 1_000_000, FORM)), 6)
    part = b'--b\r\nContent-Disposition: form-data; name="token"\r\n\r\nx\r\n'
    kind = "Content-Type: multipart/form-data; boundary=b"
    together(lambda: send(server, request("/login", part * 15_000, kind)), 6)


def compressed(server):
    "A body that would be fifty megabytes if anybody unpacked it."
    body = gzip.compress(b" " * 50 * MIB)
    answer = send(server, request("/api/traces", body, JSON, "Content-Encoding: gzip"))
    assert status(answer) in (415, 422)


def long_queries(server):
    query = "/api/traces?limit=1&" + "a=&" * 20_000
    together(lambda: [send(server, request(query, method="GET")) for _ in range(8)], 8)


def cookies(server):
    "Cookies that are hard to read, from strangers."
    cookie = b'Cookie: a="' + b'\\"' * 30_000 + b"\r\n"
    lines = b"GET /api/traces HTTP/1.1\r\nHost: localhost\r\n" + cookie + b"\r\n"
    assert 401 in together(lambda: status(send(server, lines)), 16)


def guesses(server):
    "Tokens that are guessed, as fast as it goes."

    def guess():
        with httpx.Client(
            base_url=server.address, headers={"authorization": "Bearer guess"}
        ) as client:
            return {client.get("/api/traces").status_code for _ in range(150)}

    assert set().union(*together(guess, 8)) == {401}


def upgrades(server):
    "Web sockets, of which there are none here."
    headers = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: x",
        "Sec-WebSocket-Version: 13",
    )
    lines = request("/api/health", b"", *headers, method="GET")
    together(lambda: [send(server, lines, seconds=2) for _ in range(15)], 8)


def unread_downloads(server):
    "Downloads that nobody reads."
    path = request("/api/datasets/large-v1/export.jsonl", method="GET")
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=15) for _ in range(60)]
    for line in lines:
        line.sendall(path)
    time.sleep(1.5)
    for line in lines:
        line.close()


def exports(server):
    "Twelve exports at once, read to the end, with formats that take work."

    def read(format="messages"):
        path = f"{server.address}/api/datasets/large-v1/export.jsonl?format={format}"
        return len(httpx.get(path, headers=BEARER, timeout=60).content)

    assert len(set(together(read, 12))) == 1


def pages(server):
    "Pages over everything, and the metrics, from eight at a time."
    paths = [
        "/traces?text=zzz",
        "/",
        "/metrics",
        "/runs",
        f"/runs/{server.run}",
        "/datasets/large-v1",
    ]

    def look():
        with httpx.Client(base_url=server.address, headers=BEARER, timeout=60) as client:
            return [client.get(path).status_code for path in paths]

    assert {200} == {status for found in together(look, 8) for status in found}


def long_answers(server):
    "Fifty thousand lines of metrics, as one list; and the document of the API."
    paths = [f"/api/tunix/runs/{server.run}/metrics", "/openapi.json", "/api/datasets/large-v1"] * 2

    def read(path):
        return httpx.get(server.address + path, headers=BEARER, timeout=60).status_code

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(read, paths)) == {200}


def listeners(server):
    "A hundred who follow a log, and do not read it."
    path = request(f"/api/tunix/runs/{server.following}/logs", method="GET")
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=15) for _ in range(100)]
    for line in lines:
        line.sendall(path)
    time.sleep(1.5)
    for line in lines:
        line.close()


def one_key(server):
    "Forty who send the same batch with the same key; it is stored once."
    body = json.dumps([sum_trace(n, storm=True) for n in range(1000)]).encode()
    lines = request("/api/traces/batch", body, JSON, "Idempotency-Key: storm")
    found = {status(answer) for answer in together(lambda: send(server, lines), 40)}
    assert found <= {201, 409} and 201 in found


def a_lock(server):
    "Somebody else writes for two seconds, and sixty writers wait for that; readers do not."
    body = json.dumps({"name": "x", "run_id": str(server.run), "metric": "score"}).encode()
    with closing(sqlite3.connect(server.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(
            target=together,
            args=(lambda: send(server, request("/api/regression/baselines", body, JSON)), 60),
        )
        waiting.start()
        time.sleep(2)
        other.execute("ROLLBACK")
        waiting.join()


ATTACKS = (
    one_header, one_address, one_chunk_extension, many_small_headers, half_headers, slow_bodies,
    idle_connections, held_logins, pipelined, small_chunks, numbers, lists, large_batches,
    large_traces, repeated_keys, forms, compressed, long_queries, cookies, guesses, upgrades,
    unread_downloads, exports, pages, long_answers, listeners, one_key, a_lock,
)  # fmt: skip


def measured(server, attack) -> dict[str, float]:
    "The worst waits of others during an attack, in seconds; what the attack itself asserts holds."
    told(server, "begin")
    begun = time.monotonic()
    try:
        attack(server)
    finally:
        time.sleep(0.2)
        worst = told(server, "end")
        took = time.monotonic() - begun
        waits = " ".join(f"{name} {1000 * seconds:6.0f} ms" for name, seconds in worst.items())
        print(f"\n{attack.__name__:20} {took:5.1f} s {waits} peak {peak(server)} MiB", end="")
    return worst


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nobody_else_waits(server, attack):
    "The best of five counts: a busy machine delays now and then, and a fault each time."
    for _ in range(5):
        worst = measured(server, attack)
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        read = worst.pop("read")
        if max(worst.values()) < LIMIT and read < (LIMIT if attack is a_lock else READ * LIMIT):
            return
    pytest.fail(f"others waited for {worst}, and for a list {read:.2f} seconds")


# Crowds: a thousand at once, who come, stay and leave together

CROWD, WORK = 1000, 0.35  # Connections; seconds of computing between a health check and its answer


def computed(process: int) -> float:
    "Seconds that a process has computed, in all its threads."
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Health(threading.Thread):
    "Asks for `/api/health`, and keeps what the server computed until each answer."

    def __init__(self, port: int, process: int) -> None:
        super().__init__(daemon=True)
        self.port, self.process, self.stopped, self.worst = port, process, False, 0.0

    def run(self) -> None:
        while not self.stopped:
            begun = computed(self.process)
            with contextlib.suppress(OSError):
                httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=60)
            self.worst = max(self.worst, computed(self.process) - begun)
            time.sleep(0.02)


@pytest.fixture
def roomy(tmp_path):
    "A server with file descriptors for a crowd, and a run whose log can be followed."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    port, url = free_port(), f"sqlite:///{tmp_path / 'crowd.db'}"
    known = {"DATABASE_URL": url, "TUNIX_RT_ROOT": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    serve = "import sys; from tunix_rt.serve.server import serve; serve(port=int(sys.argv[1]))"
    command = [sys.executable, "-c", serve]
    with closing(open_store(url)) as store, (tmp_path / "server.log").open("a") as log:
        following = listener_run(store).id
        process = subprocess.Popen(
            [*command, str(port)], env=os.environ | known, cwd=tmp_path, stderr=log
        )
        found = SimpleNamespace(
            process=process, port=port, address=f"http://127.0.0.1:{port}", store=store,
            following=following, log=tmp_path / "server.log",
        )  # fmt: skip
        try:
            wait_for(found)
            yield found
        finally:
            process.kill()
            process.wait()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def crowd_of(server, start: bytes) -> list[socket.socket]:
    "Many connections that send the same."
    lines = []
    for _ in range(CROWD):
        lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        lines[-1].sendall(start)
    return lines


FOLLOW = "GET /api/tunix/runs/{run}/logs HTTP/1.1\r\nHost: localhost\r\n\r\n"
CROWDS = {
    "streams": FOLLOW,
    "slow bodies": "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nx",
    "health": "GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("kind", CROWDS)
def test_a_crowd_delays_nobody(roomy, kind):
    """The measure is what the server computes meanwhile, which others on the machine do not change.

    Before requests and listeners took turns, it was 0.5 to 2 seconds."""
    start = CROWDS[kind].format(run=roomy.following).encode()
    for _ in range(3):
        asking = Health(roomy.port, roomy.process.pid)
        asking.start()
        lines = crowd_of(roomy, start)
        for number in range(8):
            append_log(roomy.store, roomy.following, [("stdout", f"step {number}\n" * 100)])
            time.sleep(0.15)
            if kind == "slow bodies":
                for line in lines:
                    with contextlib.suppress(OSError):
                        line.sendall(b"x")
        for line in lines:
            line.close()
        time.sleep(0.5)
        asking.stopped = True
        asking.join()
        print(f"\n{kind}: {1000 * asking.worst:.0f} ms", end="")
        if asking.worst < WORK:
            return
    pytest.fail(f"the server computed for {asking.worst:.2f} s before it answered")


def peak(server) -> int:
    "Largest memory of the server so far, in MiB."
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) // 1024


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def hold_back(process: int, stop: threading.Event, held: set[int]) -> None:
    "Stop the notebooks of a server as soon as they start, so that they last and take no time."

    def command(number: int) -> bytes:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{number}/cmdline").read_bytes()
        return b""

    while not stop.is_set():
        for child in children(process):
            # Only what executes a notebook. A child that has not begun its program yet shares the
            # memory of the server, which waits for it; a stopped git would keep its lock.
            if child not in held and b"executor" in command(child):
                held.add(child)
                os.kill(child, 19)
        time.sleep(0.01)


def test_runs_that_clients_wait_for_hold_up_no_upload(server):
    "Six clients wait for a training; an upload and a build go on."
    stop, held = threading.Event(), set[int]()
    threading.Thread(target=hold_back, args=(server.process.pid, stop, held)).start()
    asked = {"dataset_key": "sums-v1", "model_id": "tiny", "dry_run": False}
    body = json.dumps(asked).encode()
    waiting = [
        threading.Thread(target=send, args=(server, request("/api/tunix/run", body, JSON)))
        for _ in range(6)
    ]
    try:
        for each in waiting:
            each.start()
        deadline = time.monotonic() + 20
        while len(held) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        with httpx.Client(base_url=server.address, headers=BEARER, timeout=60) as client:
            lines, tries = "\n".join(json.dumps(sum_trace(n)) for n in range(10)), []
            while len(tries) < 3 and min(tries, default=99) >= 3 * LIMIT:  # kernels start beside it
                begun, name = time.monotonic(), f"x{len(tries)}"
                sent = client.post(f"/api/datasets/upload?source_name={name}", content=lines)
                built = {"dataset_name": name, "dataset_version": "v1", "filters": {"source": name}}
                made = client.post("/api/datasets/build", json=built)
                tries.append(time.monotonic() - begun)
                assert (sent.status_code, made.status_code) == (201, 201)
            print(f"\nupload and build {min(tries):.2f} s beside {len(held)} notebooks")
            assert min(tries) < 3 * LIMIT
            runs = client.get("/api/tunix/runs", params={"limit": 20}).json()["data"]
            for run in runs:
                client.post(f"/api/tunix/runs/{run['run_id']}/cancel")
    finally:
        stop.set()
        for child in held:
            with contextlib.suppress(OSError):
                os.kill(child, 9)


def test_what_is_left_behind(server):
    "After all that: its memory never was large, and what it acknowledged is there."
    print(f"\npeak {peak(server)} MiB")
    assert peak(server) < 700
    with httpx.Client(base_url=server.address, headers=BEARER, timeout=10) as client:
        made = client.post("/api/traces", json=sum_trace(5))
        assert client.get(f"/api/traces/{made.json()['id']}").status_code == 200
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256
