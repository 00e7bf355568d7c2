"""A plan must agree with the compiler, and the step must be as frugal as the plan believes.

Steps are compiled, not run, for a processor that pretends to be eight devices; so the work is done
in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from compile_fast import COMPILE_FAST

CASES: dict[str, dict[str, Any]] = {
    "full, forgets nothing": {},
    "full, keeps products": {"remat": "dots"},
    "full, forgets all": {"remat": "full"},
    "full, two rows at a time": {"remat": "full", "micro_batch_size": 2},
    "full, a list": {"scan_layers": False},
    "LoRA, forgets nothing": {"rank": 8},
    "LoRA, forgets all": {"rank": 8, "remat": "full"},
    "LoRA, a list": {"rank": 8, "scan_layers": False},
    "full, fsdp 8": {"remat": "full", "fsdp": 8},
    "LoRA, fsdp 4 tensor 2": {"rank": 8, "remat": "full", "fsdp": 4, "tensor": 2},
    "Qwen with a head of its own": {"model": "qwen2.5-0.5b", "tied": False},
    "SmolLM3, LoRA": {"model": "smollm3-3b", "rank": 8, "remat": "full"},
    "LoRA, a wide vocabulary in turns": {"rank": 8, "micro_batch_size": 4, "words": 262_144},
}
ALONE = [name for name, given in CASES.items() if not {"fsdp", "words"} & {*given}]
BATCH, TOKENS, WORDS = 16, 128, 16_384
USUAL: dict[str, Any] = {"model": "gemma-3-1b", "tied": True, "words": WORDS}


@cache
def seen() -> dict[str, Any]:
    "What the compiler says about every case, and what was planned."
    flags = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_plan_agrees_with_the_compiler(case: str) -> None:
    found = seen()[case]
    assert found["planned"] == pytest.approx(found["total"], rel=0.15), found


@pytest.mark.parametrize("case", CASES)
def test_what_lies_there_all_the_time_is_exact(case: str) -> None:
    found = seen()[case]
    batch = found["batch"] * TOKENS * 13
    assert found["arguments"] == found["held"] + batch + 4, "the state, the batch and a counter"


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_written_over(case: str) -> None:
    found = seen()[case]
    assert found["outputs"] - found["aliased"] < 4096, "only the figures of the step are new"


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_what_is_forgotten_is_not_held(kind: str) -> None:
    most, least = (seen()[f"{kind}, forgets {what}"]["temporaries"] for what in ("nothing", "all"))
    assert least < most / 2, "of three layers one is held at a time; embedding and logits stay"


def test_keeping_products_lies_between() -> None:
    found = [seen()[f"full, {how}"]["temporaries"] for how in ("forgets all", "keeps products")]
    assert found[0] < found[1] < seen()["full, forgets nothing"]["temporaries"]


def test_rows_in_turns_need_less_than_all_at_once() -> None:
    turns, at_once = (seen()[f"full, {how}"] for how in ("two rows at a time", "forgets nothing"))
    assert turns["temporaries"] < at_once["temporaries"] / 2


@pytest.mark.parametrize("case", ALONE)
def test_scores_of_all_tokens_never_exist(case: str) -> None:
    assert seen()[case]["largest"] < BATCH * TOKENS * WORDS / 2


class Chosen(Exception):
    "Carries a training config out of what would have used it."


def chosen(config: Any) -> Any:
    "Stop with the config."
    raise Chosen(config)


@pytest.mark.parametrize("typed", [{}, {"batch_size": 32}, {"seq_length": 64}, {"rows": 4}])
def test_a_plan_takes_the_rows_that_training_takes(
    typed: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    import tunix_rt.api as rt
    from tunix_rt.cli.app import build_app
    from tunix_rt.core.settings import settings
    from tunix_rt.training import memory_plan

    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    given = {{"rows": "micro_batch_size"}.get(name, name): value for name, value in typed.items()}
    monkeypatch.setattr(memory_plan, "plan_memory", lambda model, config, *_, **on: chosen(config))
    words = [w for name, n in given.items() for w in (f"--{name.replace('_', '-')}", str(n))]
    planned = CliRunner().invoke(build_app(), ["doctor", "--plan", "tiny", *words]).exception
    monkeypatch.setattr(rt, "train", lambda model, rows, config, *_, **how: chosen(config))
    data = rt.make_dataset("arithmetic-steps", train=8, held_out=2)[0]
    with pytest.raises(Chosen) as trained:
        rt.sft(rt.create_model("tiny", data), data, validation_traces=0, quiet=True, **given)
    settings.cache_clear()
    assert isinstance(planned, Chosen), planned
    for name in ("batch_size", "seq_length", "micro_batch_size"):
        assert getattr(planned.args[0], name) == getattr(trained.value.args[0], name), name


def test_a_deep_stack_is_a_short_program() -> None:
    lines = seen()["lines"]
    assert lines["stack 12"] == lines["stack 6"]
    assert lines["list 4"] > 1.5 * lines["list 2"]


def test_what_is_trained_is_float32_whatever_is_computed_in() -> None:
    kinds = seen()["kinds"]
    assert kinds == {"trained": ["float32"], "frozen": ["bfloat16"], "products": True}


def main() -> None:
    "Plan, trace and compile everything."
    from dataclasses import replace

    import jax
    import numpy as np

    from tunix_rt.models.config import GemmaConfig, preset
    from tunix_rt.models.lora import LoraConfig
    from tunix_rt.models.sharding import row_shards
    from tunix_rt.training.config import TrainConfig
    from tunix_rt.training.memory import (
        TrainSetup,
        held_bytes,
        measure_memory,
        memory_breakdown,
        sum_of_parts,
        trace_step,
    )

    def shape(name: str, tied: bool = True, words: int = WORDS) -> GemmaConfig:
        small = preset(name)
        return small.resized(
            vocabulary=words, width=256, layers=3, query_heads=4, key_heads=1, head_width=64,
            hidden=1024, pattern=small.pattern[1:4], tied=tied,
        )  # fmt: skip

    config = shape("gemma-3-1b")

    def setup_of(given: dict[str, Any]) -> TrainSetup:
        given = dict(given)
        names = ("remat", "micro_batch_size", "optimizer", "dtype")
        train_config = {name: given.pop(name) for name in names if name in given}
        rank = given.pop("rank", 0)
        own = shape(*(given.pop(name, usual) for name, usual in USUAL.items()))
        alone = TrainSetup(own, lora=LoraConfig(rank=rank) if rank else None, kind="cpu")
        rows = BATCH * given.get("fsdp", 1) // (2 if "fsdp" in given else 1)
        return replace(
            alone,
            train_config=TrainConfig(batch_size=rows, seq_length=TOKENS, **train_config),
            **given,
        )

    def one(setup: TrainSetup) -> dict[str, Any]:
        made = measure_memory(setup)
        shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", made.compiled.as_text())
        return {
            "planned": sum_of_parts(memory_breakdown(setup)),
            "held": sum(held_bytes(setup)),
            "batch": setup.train_config.batch_size // row_shards(setup.mesh),
            "largest": max(int(np.prod([int(n) for n in each.split(",")])) for each in shapes),
            **{name: getattr(made, name) for name in ("arguments", "outputs", "aliased")},
            "temporaries": made.temporaries,
            "total": made.total,
        }

    found: dict[str, Any] = {}
    for name in sys.argv[1:] or CASES:
        found[name] = one(setup_of(CASES[name]))
        print(name, found[name], file=sys.stderr, flush=True)
    found["lines"] = {
        f"{'stack' if scan_layers else 'list'} {layers}": len(
            trace_step(
                replace(setup_of({}), config=config.resized(layers=layers), scan_layers=scan_layers)
            )[0]
            .as_text()
            .splitlines()
        )
        for scan_layers, layers in ((True, 6), (True, 12), (False, 2), (False, 4))
    }
    coarse = replace(setup_of({"rank": 8, "dtype": "bfloat16"}), base="bfloat16")
    lowered, step = trace_step(coarse)
    state, frozen, _ = lowered.in_avals[0]
    kinds = {"trained": state.params, "frozen": frozen}
    found["kinds"] = {
        name: sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})
        for name, tree in kinds.items()
    }
    found["kinds"]["products"] = bool(re.search(r"dot_general.*xbf16>", lowered.as_text()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
