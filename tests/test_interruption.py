"""Cut the power in the middle of a real training and of a real demo: the numbers must not change.

Everything runs through the command line, in processes of their own, in a root of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
TRAIN = ["-p", "max_steps=24", "-p", "checkpoint_every=4", "-p", "log_every=1"]
TRAIN += ["-p", "row_tokens=64", "-p", "batch_rows=4", "-p", "validate_every=8"]
DEMO = ["-p", "size=toy", "-p", "held_out=8", "-p", "max_new_tokens=16"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A root with nothing in it but one dataset."
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(CHECKOUT / "data/datasets/golden-v2", folder / "data/datasets/golden-v2")
    return folder


def start(root: Path, *words: str) -> subprocess.Popen[bytes]:
    "Start `tunix-rt` in a process group of its own."
    return subprocess.Popen(
        [sys.executable, "-c", "from tunix_rt.cli.app import main; main()", *words],
        cwd=root,
        env={**os.environ, "TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(root: Path, *words: str) -> None:
    "Run `tunix-rt` to its end, which must be a good one."
    process = start(root, *words)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output.decode()[-3000:]


def cut_when(root: Path, happened: Callable[[], bool], *words: str) -> None:
    "Start `tunix-rt` and kill it, without a goodbye, as soon as something has happened."
    process = start(root, *words)
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[0].decode()[-3000:]
        assert time.monotonic() < deadline, "it never came to the place where it was to be cut"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    "The part of metrics.jsonl that must not depend on luck."
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def test_training_cut_twice_ends_with_the_same_bytes(root: Path) -> None:
    whole, cut = root / "outputs/runs/whole", root / "outputs/runs/cut"
    finish(root, "train", *TRAIN, "--run-dir", str(whole))
    for step in (4, 12):
        saved = cut / "checkpoints" / str(step)
        cut_when(root, saved.is_dir, "train", *TRAIN, "--run-dir", str(cut))
        assert json.loads((cut / "run.json").read_text())["status"] == "running"
        assert not (cut / "model").exists(), "half a model is visible"
    finish(root, "train", *TRAIN, "--run-dir", str(cut))

    assert losses(cut) == losses(whole)
    weights = [(run / "model/model.safetensors").read_bytes() for run in (whole, cut)]
    assert weights[0] == weights[1]
    assert len(json.loads((cut / "run.json").read_text())["resumed_at"]) == 2


def test_demo_cut_between_its_parts_ends_with_the_same_predictions(root: Path) -> None:
    whole, cut = root / "outputs/runs/demo-whole", root / "outputs/runs/demo-cut"
    finish(root, "demo", *DEMO, "--run-dir", str(whole))

    def asked_before() -> bool:
        return Path(f"{cut}-before", "run.json").is_file()

    cut_when(root, asked_before, "demo", *DEMO, "--run-dir", str(cut))
    trained = json.loads(Path(f"{cut}-train", "run.json").read_text())
    assert trained["status"] == "completed"
    finish(root, "demo", *DEMO, "--run-dir", str(cut))

    again = json.loads(Path(f"{cut}-train", "run.json").read_text())
    assert again["completed_at"] == trained["completed_at"], "a finished part was made again"
    for part in ("before", "after"):
        said = [Path(f"{run}-{part}", "predictions.jsonl").read_bytes() for run in (whole, cut)]
        assert said[0] == said[1]
    assert "right answers" in (cut / "report.html").read_text()
