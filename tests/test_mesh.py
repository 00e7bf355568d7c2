"""Several devices learn what one learns, hold what they should, and hand their checkpoints on.

The trainings run in processes of their own, on a processor that pretends to be eight devices.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compile_fast import COMPILE_FAST

HERE = Path(__file__).resolve().parent
TRAINED = [
    "full adamw [1, 4, 2]",
    "full stacked muon [2, 2, 2]",
    "lora stacked adamw [2, 2, 2]",
    "lora muon [8, 1, 1]",
    "full qwen adamw [2, 2, 2]",
]
MOVED = ["full stacked muon moved", "lora stacked adamw moved"]


def start(devices: int, *words: Any) -> subprocess.Popen[str]:
    "Start a worker that sees so many devices."
    flags = f"--xla_force_host_platform_device_count={devices} {COMPILE_FAST}"
    return subprocess.Popen(
        [sys.executable, HERE / "mesh_worker.py", *map(str, words)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    "Wait for a worker, which must come to a good end, and read what it found."
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def free_port() -> int:
    "Ask the system for a port that nobody listens on."
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    "Everything the workers have to tell."
    folder = tmp_path_factory.mktemp("mesh")
    address = f"127.0.0.1:{free_port()}"
    hosts = [start(2, "host", address, index, folder / "hosts") for index in range(2)]
    told = {f"host {index}": finish(host) for index, host in enumerate(hosts)}
    return told | finish(start(8, "compare", folder / "moved", folder / "hosts"))


@pytest.mark.parametrize("case", TRAINED)
def test_a_mesh_learns_what_one_device_learns(found: dict[str, Any], case: str) -> None:
    assert found[case]["losses"] == pytest.approx(found[case]["expected"], abs=1e-4)
    assert found[case]["losses"][-1] < found[case]["losses"][0]


def test_parameters_and_moments_are_really_shared_out(found: dict[str, Any]) -> None:
    for case in ("full adamw [1, 4, 2]", "full stacked muon [1, 8, 1]"):
        for part in ("params", "moments"):
            held, whole = found[case][part]
            assert whole / 8 <= held < whole / 7, (case, part)
    held, whole = found["full adamw [8, 1, 1]"]["params"]
    assert held == whole, "along data every device holds all of it"


@pytest.mark.parametrize("case", MOVED)
def test_a_checkpoint_moves_to_another_mesh_and_to_one_device(
    found: dict[str, Any], case: str
) -> None:
    moved = found[case]
    assert moved["same"], "what was restored differs from what was saved"
    assert moved["held"][0] < moved["held"][1], "on the other mesh it is shared out as well"
    assert moved["losses"] == pytest.approx(moved["expected"], abs=1e-4)
    assert moved["restored"] == pytest.approx(moved["expected"], abs=1e-4)


def test_only_adapters_are_saved_when_only_they_are_trained(found: dict[str, Any]) -> None:
    assert found["lora stacked adamw moved"]["names"] == ["a", "b"]
    assert "embedding" in found["full stacked muon moved"]["names"]


def test_the_table_never_travels_and_scores_never_pile_up(found: dict[str, Any]) -> None:
    rows, time, words, slice_tokens = 32, 64, 8192, 512
    for kind in ("full", "lora"):
        seen = found[f"{kind} compiled"]
        sizes = [[int(size) for size in shape.split(",")] for shape in seen["gathered"]]
        assert sizes, "nothing was gathered, so the text was not understood"
        assert all(max(shape) < words // 8 for shape in sizes), "somebody fetched the vocabulary"
        assert seen["largest"] <= slice_tokens * words // 8 < rows * time * words // 8


def test_a_frozen_table_gets_no_gradient(found: dict[str, Any]) -> None:
    assert found["lora compiled"]["table_in_float32"] == 0
    assert found["full compiled"]["table_in_float32"] > 0


def test_two_processes_train_as_one(found: dict[str, Any]) -> None:
    expected = found["full adamw [1, 4, 2]"]["expected"]
    for index in range(2):
        host = found[f"host {index}"]
        assert host["met"] == f"process {index} of 2, 2 of 4 devices"
        assert host["losses"] == pytest.approx(expected, abs=1e-4)
        assert host["rows"] == 8, "each hands over its half of sixteen rows"
        held, whole = host["held"]
        assert whole / 4 <= held < whole / 3.5
    for went_on in found["after hosts"]["losses"].values():
        assert went_on == pytest.approx(found["after hosts"]["expected"], abs=1e-4)


def test_one_process_writes_for_all_where_no_disk_is_shared(found: dict[str, Any]) -> None:
    for index in range(2):
        led = found[f"host {index}"]["led"]
        assert led["before"] == [[], None] and led["after"] == [3, {"seconds": 1.5}]
        assert led["same"], "each device has the part that it had"
        assert led["files"] == (index == 0)
        assert "not on a disk that process 1 sees" in led["refusal"]
        assert "s3://bucket/runs/mine" in led["refusal"]
