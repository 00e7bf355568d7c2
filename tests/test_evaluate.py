"""Evaluate models that were not trained here, and stop evaluations in the middle.

What is killed runs in a process of its own, through the command line, in a root of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flax import nnx

import tunix_rt as rt
from tunix_rt.cli.app import main
from tunix_rt.core.errors import RunError, ScoringError
from tunix_rt.core.settings import settings
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.tokenizer import train_tokenizer
from tunix_rt.models.weights import save_model
from tunix_rt.runs.lock import held
from tunix_rt.scoring.predictions import read_predictions

TEXTS = ["Question: What is 47 plus 86?\nAnswer: 7 + 6 = 13, carry 1\n#### 133"] * 20
MAIN = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # also in a job of the background
from tunix_rt.cli.app import main

main()
"""
ASKED = {
    "dataset": "golden-v2",
    "limit": 60,
    "batch_size": 1,
    "temperature": 1.0,
    "max_new_tokens": 48,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A root with a small random model, `model/`, in it."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    words = train_tokenizer(TEXTS, vocabulary=128)
    shape = preset("tiny").resized(
        vocabulary=len(words), width=32, layers=1, query_heads=2, key_heads=1, head_width=16,
        hidden=64, positions=1024,
    )  # fmt: skip
    save_model(tmp_path / "model", Gemma(shape, nnx.Rngs(0)), words)
    yield tmp_path
    settings.cache_clear()


def pretrained(folder: Path) -> Path:
    "Take away what a pretrained model does not have: the chat template."
    (folder / "chat_template.jinja").unlink()
    return folder


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    "Start `tunix-rt` in a process group of its own."
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        cwd=root,
        env={**os.environ, "TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def cut_when(process: subprocess.Popen[str], happened: Callable[[], bool], number: int) -> str:
    "Send a signal as soon as something has happened, and return what was printed."
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "it never came to the place where it was to be cut"
        time.sleep(0.01)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.communicate(timeout=120)[0]


def test_evaluation_that_is_killed_resumes_to_the_same_predictions(root: Path) -> None:
    words = ["evaluate", "-p", "model=model"]
    for name, value in ASKED.items():
        words += ["-p", f"{name}={value}"]
    cut, file = root / "outputs/runs/cut", root / "outputs/runs/cut/predictions.jsonl"

    def lines() -> int:
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    cut_when(start(root, *words, "--run-dir", str(cut)), lambda: lines() >= 3, signal.SIGKILL)
    while held(cut):  # by the kernel, which follows its caller
        time.sleep(0.05)
    killed = lines()
    assert 3 <= killed < 60
    assert json.loads((cut / "run.json").read_text())["status"] == "running"

    # Ctrl-C says how to resume, and what it says is true.
    process = start(root, *words, "--run-dir", str(cut))
    printed = cut_when(process, lambda: lines() >= killed + 3, signal.SIGINT)
    assert process.returncode == 130, printed[-3000:]
    assert f"{killed} of 60 answers were there already" in printed
    facts = json.loads((cut / "run.json").read_text())
    assert facts["status"] == "cancelled" and "answers are kept" in facts["error"]["message"]
    assert killed < lines() < 60
    command = printed[printed.index("tunix-rt evaluate") :].split()
    assert command[-2:] == ["--run-dir", str(cut)]

    process = start(root, *command[1:])
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed[-3000:]
    assert "60/60" in printed and "tokens/s" in printed
    whole = root / "outputs/runs/whole"
    rt.evaluate("model", **ASKED, quiet=True, run_dir=str(whole))
    assert file.read_bytes() == (whole / "predictions.jsonl").read_bytes()
    scores = [json.loads((run / "evaluation.json").read_text())["scores"] for run in (cut, whole)]
    assert scores[0] == scores[1]


def test_answers_of_other_weights_are_not_mixed(root: Path) -> None:
    how = {**ASKED, "limit": 3, "quiet": True, "run_dir": str(root / "outputs/runs/mixed")}
    model = rt.load_model("model")
    rt.evaluate(model, **how)
    record = root / "outputs/runs/mixed/run.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps(facts | {"status": "failed"}))
    model.module.embedding[...] = model.module.embedding[...] + 1
    model.origin = "changed"
    with pytest.raises(RunError, match="of other weights"):
        rt.evaluate(model, **how)


def test_pretrained_model_is_asked_in_plain_text(root: Path, capsys: pytest.CaptureFixture) -> None:
    pretrained(root / "model")
    how = {"limit": 2, "max_new_tokens": 8, "quiet": True}
    run = root / "outputs/runs/plain"
    rt.evaluate(
        "model", "golden-v2", shots=2, shots_dataset="dev-reasoning-v1",
        instruction="Answer with a number.", run_dir=str(run), **how,
    )  # fmt: skip
    assert "has no chat template" in capsys.readouterr().out
    facts = json.loads((run / "run.json").read_text())
    assert facts["prompt_style"] == "plain" and len(facts["shots"]) == 2
    assert facts["parameters"]["shots"] == 2
    assert facts["sampling"]["stop"] == ["\nQuestion:"]
    page = (run / "report.html").read_text()
    assert "2 of dev-reasoning-v1" in page and "Answer with a number." in page
    bare = rt.evaluate("model", "golden-v2", prompt_style="chat", **how)
    assert "may never have seen" in capsys.readouterr().out
    shown = [read_predictions(run / "predictions.jsonl")[0].prompt_tokens]
    assert shown[0] > 100 and bare.prompts == 2


def test_trained_model_is_asked_as_it_was_trained(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    pretrained(root / "model")
    model = rt.load_model("model")
    run = root / "outputs/runs/trained"
    rt.sft(model, "golden-v2", max_steps=1, validation_traces=0, quiet=True, run_dir=str(run))
    capsys.readouterr()
    for asked in (model, "outputs/runs/trained"):
        rt.evaluate(asked, "dev-reasoning-v1", limit=2, max_new_tokens=8, quiet=True)
        assert "has no chat template" not in capsys.readouterr().out


def test_examples_are_refused_where_they_would_help_too_much(root: Path) -> None:
    how = {"limit": 2, "max_new_tokens": 8, "quiet": True}
    with pytest.raises(ScoringError, match="no split train"):
        rt.evaluate("model", "golden-v2", shots=2, **how)
    with pytest.raises(ScoringError, match="is evaluated"):
        rt.evaluate("model", "dev-reasoning-v1", shots=2, **how)
    with pytest.raises(ScoringError, match="give its answer away"):
        rt.evaluate("model", "dev-reasoning-v1", shots=9, shots_dataset="dev-reasoning-v1",
                    **how | {"limit": 0})  # fmt: skip
    with pytest.raises(ScoringError, match="Give fewer shots"):
        rt.evaluate("model", "golden-v2", shots=20, shots_dataset="dev-reasoning-v1", **how)


def test_settings_of_the_model_are_taken_on_request(root: Path) -> None:
    how = {"limit": 2, "max_new_tokens": 4, "quiet": True, "generation_config": True}
    (root / "model/generation_config.json").unlink()
    with pytest.raises(ScoringError, match=r"no generation_config\.json"):
        rt.evaluate("model", "golden-v2", **how)
    published = {"do_sample": True, "top_k": 64, "top_p": 0.95, "eos_token_id": [1, 5]}
    (root / "model/generation_config.json").write_text(json.dumps(published))
    run = root / "outputs/runs/sampled"
    rt.evaluate("model", "golden-v2", top_k=10, run_dir=str(run), **how)
    used = json.loads((run / "run.json").read_text())["sampling"]
    assert (used["temperature"], used["top_k"], used["top_p"]) == (1.0, 10, 0.95)
    assert "top_k 10, top_p 0.95" in (run / "report.html").read_text()


def test_model_that_does_not_exist_is_refused_before_a_run_is_made(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "-p", "model=nowhere"])
    assert "nowhere is not a model" in capsys.readouterr().err
    assert not (root / "outputs").exists()
