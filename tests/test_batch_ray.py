"""The parts of a job on a Ray cluster of two nodes: the bytes of one machine, whoever is killed.

It needs an environment with the extra ray, such as nightly makes: pip install -e '.[ray]' pytest
"""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray", reason="ray is not installed; see the top of this file")

import psutil
import ray
from ray.cluster_utils import Cluster

from tunix_rt.api import create_model
from tunix_rt.core.files import read_json, sha256_file
from tunix_rt.data.generators import generate_traces
from tunix_rt.models.weights import save_model
from tunix_rt.traces.schema import write_traces

STORE = 200 * 2**20  # Bytes of a node's object store
RUN = "from tunix_rt.cli.app import main; main()"


@pytest.fixture(scope="module")
def cluster():
    "Two nodes with a core each."
    made = Cluster()
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=STORE, include_dashboard=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A folder with a small model, questions, and what one machine makes of them."
    folder = tmp_path_factory.mktemp("batch")
    traces = list(generate_traces(train=48, held_out=0)[0])
    again = [t.model_copy(update={"prompt": f"Please tell: {t.prompt}"}) for t in traces[:10]]
    write_traces(folder / "questions.jsonl", [*traces, *again])
    model = create_model("tiny", traces)
    save_model(folder / "model", model.module, model.tokenizer)
    return folder


def start(root, line: str, address: str = "") -> subprocess.Popen:
    "Start a command of tunix-rt batch."
    env = {**os.environ, "TUNIX_RT_ROOT": str(root), "RAY_ADDRESS": address}
    if not address:
        del env["RAY_ADDRESS"]
    words = [sys.executable, "-c", RUN, "batch", *line.split()]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(root, line: str, address: str = "") -> str:
    "Run a command of tunix-rt batch to its end."
    process = start(root, line, address)
    output = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, output
    return output


SAMPLE = (
    "sample questions.jsonl --model model --samples 2 --max-new-tokens 16 --batch-size 16 "
    "--prompt-length 64 --part-size 4"
)


def files(folder) -> dict[str, str]:
    "Hash what a job left."
    found = sorted([*folder.glob("parts/*.jsonl"), folder / "traces.jsonl"])
    return {path.name: sha256_file(path) for path in found}


@pytest.fixture(scope="module")
def alone(root):
    "The job on one machine."
    run(root, f"{SAMPLE} --output alone")
    return root / "alone"


def test_two_nodes_make_the_bytes_of_one_machine(root, cluster, alone):
    run(root, f"{SAMPLE} --output both --on ray", cluster.address)
    assert files(root / "both") == files(alone)
    assert read_json(root / "both/manifest.json") == read_json(alone / "manifest.json")


def test_near_duplicates_on_two_nodes(root, cluster):
    for on, where in (("local", ""), ("ray", cluster.address)):
        line = f"dedup questions.jsonl --column prompt --threshold 0.6 --part-size 7 --on {on}"
        run(root, f"{line} --output dedup-{on}", where)
    assert files(root / "dedup-ray") == files(root / "dedup-local")
    assert read_json(root / "dedup-ray/manifest.json")["counts"]["left_out"] >= 5


def done(folder) -> list:
    "Parts that are on disk."
    return sorted(folder.glob("parts/*.json"))


def until_some(folder, process: subprocess.Popen, count: int) -> None:
    "Wait until a job has finished some parts."
    end = time.monotonic() + 300
    while len(done(folder)) < count:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def actors() -> list[psutil.Process]:
    "Actors of the cluster that this process started."
    found = psutil.Process().children(recursive=True)
    return [each for each in found if "MapWorker" in "".join(each.cmdline())]


def test_a_killed_actor_is_replaced(root, cluster, alone):
    process = start(root, f"{SAMPLE} --output actor --on ray", cluster.address)
    until_some(root / "actor", process, 2)
    victims = actors()
    assert victims
    victims[0].send_signal(signal.SIGKILL)
    output = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, output
    assert files(root / "actor") == files(alone)


def test_a_killed_driver_goes_on_where_it_stopped(root, cluster, alone):
    folder = root / "driver"
    process = start(root, f"{SAMPLE} --output driver --on ray", cluster.address)
    until_some(folder, process, 3)
    process.kill()
    process.wait()
    assert not (folder / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in done(folder)}
    run(root, f"{SAMPLE} --output driver --on ray", cluster.address)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "computed once"
    assert files(folder) == files(alone)
    rows = (b"".join(p.read_bytes() for p in sorted(folder.glob("parts/*.jsonl")))).splitlines()
    assert len(rows) == 58 and len(set(rows)) == 58
