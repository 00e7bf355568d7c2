"""Cut the power in the middle of a real demo: what its models say must not change.

Everything runs through the command line, in processes of their own, in a root of its own. A real
training that is cut, and ends with the same losses and the same weights, is in test_worker.py.
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

DEMO = ["-p", "size=toy", "-p", "max_steps=2", "-p", "held_out=4", "-p", "max_new_tokens=8"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    "A root with nothing in it."
    return tmp_path


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


def test_demo_cut_between_its_parts_ends_with_the_same_predictions(root: Path) -> None:
    whole, cut = root / "outputs/runs/demo-whole", root / "outputs/runs/demo-cut"

    def asked_before() -> bool:
        return Path(f"{cut}-before", "run.json").is_file()

    cut_when(root, asked_before, "demo", *DEMO, "--run-dir", str(cut))
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    trained = json.loads(Path(f"{cut}-train", "run.json").read_text())
    assert trained["status"] == "completed"
    # The demo that nobody cuts gets the same training, which was over when the power went.
    shutil.copytree(f"{cut}-train", f"{whole}-train")
    finish(root, "demo", *DEMO, "--run-dir", str(cut))
    finish(root, "demo", *DEMO, "--run-dir", str(whole))

    for run in (cut, whole):
        again = json.loads(Path(f"{run}-train", "run.json").read_text())
        assert again["completed_at"] == trained["completed_at"], "a finished part was made again"
    for part in ("before", "after"):
        said = [Path(f"{run}-{part}", "predictions.jsonl").read_bytes() for run in (whole, cut)]
        assert said[0] == said[1]
    assert "right answers" in (cut / "report.html").read_text()


@pytest.mark.nightly
def test_demo_cut_after_practice_does_not_practice_again(root: Path) -> None:
    words = ["demo", *DEMO, "-p", "practice=true", "--run-dir", str(root / "outputs/runs/demo")]
    demo, record = root / "outputs/runs/demo", root / "outputs/runs/demo-practice/run.json"
    cut_when(root, lambda: record.is_file() and '"completed"' in record.read_text(), *words)
    before = record.read_bytes()
    finish(root, *words)
    assert record.read_bytes() == before
    page, told = (demo / "report.html").read_text(), json.loads((demo / "run.json").read_text())
    # Two steps teach nothing, so no answer was right, and both the page and the record say so.
    assert "practiced on" in page and "no round helped (nothing right)" in page
    assert told["results"]["practice"]["rounds"] == 0
    asked = list((root / "data/datasets").glob("arithmetic-steps-questions-*/traces.jsonl"))
    assert len(asked) == 2, "questions to watch, and questions to practice on"
    for questions in asked:
        assert all(json.loads(line)["steps"] == [] for line in questions.read_text().splitlines())
