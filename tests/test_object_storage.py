"""A run in a bucket, by the command line: killed in the middle of an upload and resumed elsewhere.

The bucket is one of a real S3 server on loopback. It needs `moto[server]` and `s3fs`, which nightly
puts aside (`make cloud`), because s3fs pins its fsspec; without them this is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_model import talking_model

CHECKOUT = Path(__file__).parents[1]
ASIDE = os.environ.get("TUNIX_RT_TEST_CLOUD") or str(CHECKOUT / ".venv/cloud/site-packages")
pytestmark = pytest.mark.skipif(
    not Path(ASIDE, "s3fs").is_dir() or not Path(ASIDE, "moto").is_dir(),
    reason="moto and s3fs are not installed: make cloud",
)
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester"}
TRAIN = [
    "train", "-p", "dataset=s3://bucket/datasets/arithmetic-steps-v1", "-p", "max_steps=24",
    "-p", "checkpoint_every=3", "-p", "log_every=1", "-p", "batch_size=8", "-p", "seq_length=64",
    "-p", "validation_traces=2",
]  # fmt: skip


def python(code: str, *words: str, site: Path, **variables: str) -> subprocess.Popen[str]:
    "Start Python with the packages that lie aside, after all others."
    (site / "sitecustomize.py").write_text(f"import sys\nsys.path.append({ASIDE!r})\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    kept.pop("TUNIX_RT_TEST_KERNELS", None)  # Forked kernels have imported already
    path = os.pathsep.join([str(site), str(CHECKOUT)])
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**kept, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **variables},
        cwd=site,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    "An S3 server, on the port that this returns."
    port, site = free_port(), tmp_path_factory.mktemp("s3")
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    server = python(code, site=site)
    threading.Thread(target=server.stdout.read, daemon=True).start()
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the S3 server ended"
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


class Machine:
    "A machine of its own: its root, its mirrors, its home, and a road to the bucket."

    scheme = "s3"

    def __init__(self, folder: Path, port: int, **variables: str):
        self.folder = folder
        folder.mkdir()
        self.variables = {
            "HOME": str(folder), "TUNIX_RT_ROOT": str(folder),
            "TUNIX_RT_MIRRORED": str(folder / "m"),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1", **(variables or KEYS),
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        "Start a command."
        code = "from tunix_rt.cli.app import main; main()"
        return python(code, *words, site=self.folder, **self.variables)

    def run(self, *words: str, fails: bool = False) -> str:
        "Run a command to its end, and return what it prints."
        process = self.start(*words)
        output, _ = process.communicate(timeout=400)
        assert (process.returncode != 0) == fails, (words, output[-3000:])
        return " ".join(output.split()) if fails else output

    def ask_store(self, code: str) -> object:
        "Run code with `fs`, the store, and return what it puts into `found`."
        code = (
            f"import fsspec, json; fs = fsspec.filesystem({self.scheme!r}); {code}; "
            f"print(json.dumps(found))"
        )
        process = python(code, site=self.folder, **self.variables)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return json.loads(output.splitlines()[-1])


class Road:
    """A way to the server that is blocked in the middle of an upload.

    It begins to count when an inventory that lists a checkpoint has been sent. The fourth file of a
    later checkpoint does not get through.
    """

    def __init__(self, port: int, run: bytes, verb: bytes = b"PUT "):
        self.server, self.target = socket.create_server(("127.0.0.1", 0)), ("127.0.0.1", port)
        self.run, self.armed, self.passes = verb + run, False, 3
        self.blocked = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.getsockname()[1]

    def accept(self) -> None:
        while True:
            near, _ = self.server.accept()
            far = socket.create_connection(self.target)
            for pair in ((near, far, True), (far, near, False)):
                threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def count(self, data: bytes) -> None:
        if self.armed:
            self.passes -= data.count(self.run + b"/checkpoints/")
        self.armed |= b'"checkpoints/' in data and b'"sha256"' in data
        if self.passes < 0:
            self.blocked.set()

    def carry(self, source: socket.socket, target: socket.socket, upward: bool) -> None:
        try:
            while data := source.recv(65536):
                if upward:
                    self.count(data)
                    if self.blocked.is_set():
                        return  # and the connection stays open, as on a network that hangs
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, port: int) -> Machine:
    "A machine that has made the bucket, a dataset in it, and a model beside it."
    machine = Machine(tmp_path_factory.mktemp("machines") / "office", port)
    machine.ask_store("fs.mkdir('bucket'); found = 0")
    output = machine.run(
        "generate", "arithmetic-steps", "--train", "60", "--held-out", "6",
        "--home", "s3://bucket/datasets",
    )  # fmt: skip
    assert "in s3://bucket/datasets/arithmetic-steps-v1" in output
    talking_model(machine.folder / "start")
    code = (
        "from pathlib import Path; from tunix_rt.core.remote import publish; "
        "publish(Path('start').resolve(), 's3://bucket/start')"
    )
    process = python(code, site=machine.folder, **machine.variables)
    assert process.wait(60) == 0, process.stdout.read()
    return machine


MODEL = ["-p", "model=s3://bucket/start"]


@pytest.fixture(scope="module")
def whole(office: Machine, port: int) -> Path:
    "The same run on one machine, in a folder of its own."
    machine = Machine(office.folder.parent / "whole", port)
    machine.run(*TRAIN, *MODEL, "--run-dir", "outputs/whole")
    return machine.folder / "outputs/whole"


def test_killed_in_the_middle_of_an_upload_and_resumed_elsewhere(
    office: Machine, port: int, whole: Path
):
    road = Road(port, b"/bucket/runs/mine")
    first = Machine(office.folder.parent / "first", road.port)
    process = first.start(*TRAIN, *MODEL, "--run-dir", "s3://bucket/runs/mine")
    assert road.blocked.wait(300), process.communicate(timeout=5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    listed = office.ask_store("found = json.loads(fs.cat('bucket/runs/mine/inventory.json'))")
    names = office.ask_store("found = fs.find('bucket/runs/mine')")
    there = {name.split("/")[4] for name in names if "/checkpoints/" in name}
    whole_ones = {name.split("/")[1] for name in listed["files"] if "checkpoints/" in name}
    assert whole_ones and there > whole_ones, (there, whole_ones)

    second = Machine(office.folder.parent / "second", port)
    output = second.run(*TRAIN, *MODEL, "--run-dir", "s3://bucket/runs/mine")
    mine = second.folder / "m/s3/bucket/runs/mine"
    record = json.loads((mine / "run.json").read_text())
    assert "s3://bucket/runs/mine" in output and len(record["resumed_at"]) == 1
    assert record["results"]["resumed_from"] == max(map(int, whole_ones))
    assert losses(mine) == losses(whole)
    weights = [f / "model/model.safetensors" for f in (mine, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("left", [1, 2])
def test_two_machines_train_into_a_bucket_and_those_that_are_left_finish(
    office: Machine, port: int, whole: Path, left: int
):
    url = f"s3://bucket/runs/pair-{left}"
    words = [*TRAIN, *MODEL, "--run-dir", url, "--resume", "--unfinished-code", "75"]

    def machines(name: str, count: int) -> list[Machine]:
        several = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
        several["JAX_NUM_PROCESSES"] = str(count)
        return [
            Machine(office.folder.parent / f"{name}-{left}-{i}", port, **KEYS, **several,
                    JAX_PROCESS_ID=str(i))
            for i in range(count)
        ]  # fmt: skip

    road = Road(port, f"/{url[5:]}".encode())
    first, second = machines("before", 2)
    first.variables["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{road.port}"
    both = [each.start(*words) for each in (first, second)]
    assert road.blocked.wait(300), both[0].communicate(timeout=5)
    for process in both:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    listed = office.ask_store(f"found = json.loads(fs.cat('{url[5:]}/inventory.json'))")
    complete = {name.split("/")[1] for name in listed["files"] if "checkpoints/" in name}
    assert complete
    assert list((first.folder / "m" / url.replace("://", "/")).glob("checkpoints/*"))
    assert not list((second.folder / "m" / url.replace("://", "/")).glob("checkpoints*"))

    others = machines("after", left)
    again = [each.start(*words) for each in others]
    for process in again:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-3000:]
    mine = others[0].folder / "m" / url.replace("://", "/")
    assert json.loads((mine / "run.json").read_text())["results"]["resumed_from"] == max(
        map(int, complete)
    )
    assert [step for step, _ in losses(mine)] == [step for step, _ in losses(whole)]
    pairs = zip(losses(mine), losses(whole), strict=True)
    assert all(one[1] == pytest.approx(other[1], abs=1e-4) for one, other in pairs)


def test_a_third_machine_shows_evaluates_and_compares_it(office: Machine, port: int):
    third = Machine(office.folder.parent / "third", port)
    assert "completed" in third.run("show", "s3://bucket/runs/mine")
    assert "traces" in third.run("show", "s3://bucket/datasets/arithmetic-steps-v1")
    for name in ("one", "two"):
        third.run(
            "evaluate", "-p", "model=s3://bucket/runs/mine", "-p", "limit=3",
            "-p", "dataset=s3://bucket/datasets/arithmetic-steps-held-out-v1",
            "-p", "max_new_tokens=8", "--run-dir", f"s3://bucket/runs/{name}",
        )  # fmt: skip
    assert not (third.folder / "m/s3/bucket/runs/mine/checkpoints").exists()
    assert "two" in third.run("compare", "s3://bucket/runs/one", "s3://bucket/runs/two")


def test_what_is_wrong_out_there_is_said_in_a_sentence(office: Machine, port: int):
    says = office.run("show", "s3://nowhere/datasets/x-v1", fails=True)
    assert "no such bucket" in says or "there is nothing at s3://nowhere" in says
    says = office.run("generate", "arithmetic-steps", "--home", "s3://nowhere/x", fails=True)
    assert "no such bucket. Check its name, or create it" in says
    stranger = Machine(office.folder.parent / "stranger", port, TUNIX_RT_NOTHING="")
    says = stranger.run("show", "s3://bucket/runs/mine", fails=True)
    assert "does not accept our credentials" in says and "aws configure" in says
    alone = Machine(office.folder.parent / "alone", free_port())
    says = alone.run("show", "s3://bucket/runs/mine", fails=True)
    assert "the store does not answer" in says and "AWS_ENDPOINT_URL" in says
    office.ask_store(
        "name = 'bucket/datasets/arithmetic-steps-v1/traces.jsonl'; "
        "fs.pipe(name, fs.cat(name).replace(b'carry', b'cargo', 1)); found = 0"
    )
    fresh = Machine(office.folder.parent / "fresh", port)
    says = fresh.run("show", "s3://bucket/datasets/arithmetic-steps-v1", fails=True)
    assert "traces.jsonl is damaged: its sha256 is" in says and "Restore the object" in says
