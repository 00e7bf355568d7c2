"""Learning from rewards through the command line: cut off and resumed, with adapters, on a mesh.

Every run is a process of its own, in a root of its own, with a reward from a file beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compile_fast import COMPILE_FAST
from safetensors.numpy import load_file
from test_interruption import cut_when, finish

HERE = Path(__file__).parent
REWARD = """
def spaces(completions, answer, **columns):
    "A reward written for TRL: the share of spaces; a missing answer is no score."
    assert len(completions) == len(answer)
    return [text.count(" ") / len(text) if text else None for text in completions]
"""
SMALL = ["reward_funcs=mine.py:spaces", "prompts_per_step=3", "num_generations=4"]
SMALL += ["max_new_tokens=8", "min_mixed=0", "validation_traces=2", "learning_rate=0.001"]
SMALL += ["generation_batch_size=16", "max_resample=0"]


def words(*given: str, run_dir: Path) -> list[str]:
    "The arguments of `tunix-rt grpo`."
    return ["grpo", *(word for pair in given for word in ("-p", pair)), "--run-dir", str(run_dir)]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


@pytest.fixture
def base(root: Path) -> Path:
    "A small model with room for an answer."
    from flax import nnx

    from tunix_rt.models.config import preset
    from tunix_rt.models.gemma import Gemma
    from tunix_rt.models.tokenizer import train_tokenizer
    from tunix_rt.models.weights import save_model

    texts = ["What is 47 plus 86?\nones: 7 + 6 = 13, write 3, carry 1\n<answer>133</answer>"] * 20
    tokenizer = train_tokenizer(texts, vocabulary=128)
    shape = preset("tiny").resized(
        vocabulary=len(tokenizer), width=32, layers=1, query_heads=2, key_heads=1, head_width=16,
        hidden=64, positions=256,
    )  # fmt: skip
    save_model(root / "base", Gemma(shape, nnx.Rngs(0)), tokenizer)
    return root / "base"


def test_a_killed_run_resumes_to_the_same_numbers(root: Path, base: Path) -> None:
    whole, cut = root / "outputs/runs/whole", root / "outputs/runs/cut"
    given = [*SMALL, f"model={base}", "max_steps=6", "checkpoint_every=2", "eval_every=3"]

    def half_way() -> bool:
        return (cut / "checkpoints" / "2").is_dir()

    cut_when(root, half_way, *words(*given, run_dir=cut))
    finish(root, *words(*given, run_dir=cut))
    finish(root, *words(*given, run_dir=whole))

    facts = json.loads((cut / "run.json").read_text())
    assert facts["results"]["resumed_from"] in (2, 4)
    for name in ("reward", "gradient_norm", "entropy", "completions/mean_length", "eval/accuracy"):
        pair = [[line.get(name) for line in lines(run)] for run in (whole, cut)]
        assert pair[0] == pair[1], name
    weights = [load_file(run / "model" / "model.safetensors") for run in (whole, cut)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    written = sorted(path.name for path in (cut / "completions").iterdir())
    assert written == ["completions_00001.parquet", "completions_00006.parquet"]


def test_adapters_of_a_hugging_face_gemma_are_read_by_peft(root: Path) -> None:
    hugging_face = pytest.importorskip("hugging_face")
    folder = hugging_face.publish(hugging_face.make("third-short"), root / "gemma")
    run = root / "outputs/runs/lora"
    finish(
        root,
        *words(*SMALL, f"model={folder}", "max_steps=3", "lora_rank=4", "export=both", run_dir=run),
    )
    from peft import AutoPeftModelForCausalLM

    theirs = AutoPeftModelForCausalLM.from_pretrained(str(run / "adapter"))
    moved = [
        float(value.detach().abs().max())
        for name, value in theirs.named_parameters()
        if "lora_B" in name
    ]
    assert moved and min(moved) > 0  # B begins at 0, and was trained
    facts = json.loads((run / "run.json").read_text())
    assert facts["results"]["steps"] == 3


def test_a_mesh_of_eight_gives_the_losses_of_one_device(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    flags = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
    subprocess.run(
        [sys.executable, HERE / "grpo_worker.py", str(found)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=600,
    )
    results = json.loads(found.read_text())
    alone = results.pop("1 device")
    assert set(results) == {"data=2 fsdp=2 tensor=2", "fsdp=8"}
    for mesh, figures in results.items():
        for name, values in alone.items():
            close = {"rtol": 2e-3, "atol": 2e-5, "err_msg": f"{mesh} {name}"}
            np.testing.assert_allclose(figures[name], values, **close)


def test_what_cannot_teach_is_refused_before_the_first_step(root: Path, base: Path) -> None:
    run = root / "outputs/runs/refused"
    process = subprocess.run(
        [
            sys.executable, "-c", "from tunix_rt.cli.app import main; main()",
            *words(*SMALL[1:], "reward_funcs=correct", f"model={base}", run_dir=run),
        ],
        cwd=root, env={**os.environ, "TUNIX_RT_ROOT": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert process.returncode == 1
    assert "there is nothing to learn" in process.stdout + process.stderr
    assert not (run / "metrics.jsonl").exists()
