"""Writing gives the same text, alone or in company, on one device or on eight."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix_rt.inference import decode_loop as writing
from tunix_rt.inference import engine as sampling
from tunix_rt.inference.engine import Completion, generate
from tunix_rt.inference.kv_cache import cache_bytes
from tunix_rt.inference.sampling import SamplingParams
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.tokenizer import train_tokenizer

HERE = Path(__file__).resolve().parent
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CONFIG = dataclasses.replace(
    preset("tiny"), vocabulary=128, layers=2, width=32, hidden=64, head_width=16, window=12
)
WORDS = train_tokenizer(["Ann has 3 apples and buys 4 more."], vocabulary=128)
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(6, 120, RANDOM.integers(3, 32)).tolist() for _ in range(24)]
LONGER = [prompt + prompt for prompt in PROMPTS]
PLAYFUL = SamplingParams(max_new_tokens=40, temperature=1.3, seed=3, stop=("3", "m"))


@pytest.fixture(scope="module")
def model() -> Gemma:
    "A model whose text is varied enough to end at different lengths."
    made = Gemma(CONFIG, nnx.Rngs(0))
    made.embedding[...] = made.embedding[...] * 0.3
    made.norm[...] = made.norm[...] + 3
    return made


@pytest.fixture(scope="module")
def spoken(model: Gemma) -> list[Completion]:
    "What is said when a few rows are filled again and again."
    return generate(model, WORDS, PROMPTS, PLAYFUL, batch_size=4)


def test_company_and_order_of_coming_in_change_nothing(
    model: Gemma, spoken: list[Completion]
) -> None:
    lengths = {one.completion_tokens for one in spoken}
    assert len(lengths) > 8, "they all end together, so nothing was refilled"
    assert generate(model, WORDS, PROMPTS, PLAYFUL, batch_size=32) == spoken
    again = generate(model, WORDS, PROMPTS[:5], PLAYFUL, batch_size=4)
    assert again == spoken[:5]


def test_stopped_answers_hold_nothing_after_their_end(spoken: list[Completion]) -> None:
    stopped = [one for one in spoken if one.finish_reason == "stop"]
    assert stopped and len(stopped) < len(spoken)
    for one in stopped:
        assert not any(words in one.text for words in PLAYFUL.stop)
        assert len(one.tokens) <= one.completion_tokens <= len(one.tokens) + 1


def test_shapes_stay_few_however_mixed_the_traffic(model: Gemma) -> None:
    before = [
        program._cache_size()
        for program in (writing.decode_loop, writing.admit_prompts, writing.grow)
    ]
    for seed, limit in enumerate((33, 40, 47, 64)):
        asked = dataclasses.replace(PLAYFUL, seed=seed, max_new_tokens=limit, stop=())
        generate(model, WORDS, LONGER[seed:], asked, batch_size=4)
    after = [
        program._cache_size()
        for program in (writing.decode_loop, writing.admit_prompts, writing.grow)
    ]
    wrote, admitted, grew = (now - then for now, then in zip(after, before, strict=True))
    sizes = {sampling.decode_batch_size(count, 4) for count in range(1, 5)}
    widths = {sampling.batch_width(len(prompt)) for prompt in LONGER}
    places = 3  # 96, 128 and what stands at the end of the ladder
    assert wrote <= places and grew <= places
    assert admitted <= len(sizes) * len(widths) * places


def test_rows_are_refilled_rather_than_left_idle(
    model: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, idle = [], []
    go_on = sampling.decode_until_pause

    def watched(engine: sampling.Engine) -> list[Completion]:
        before, waiting = int(engine.state.cursor), len(engine.waiting)
        said = go_on(engine)
        steps.append(int(engine.state.cursor) - before)
        idle.append(len(engine.idle_rows()) if waiting else 0)
        return said

    monkeypatch.setattr(sampling, "decode_until_pause", watched)
    said = generate(model, WORDS, PROMPTS, PLAYFUL, batch_size=4)
    needed = sum(one.completion_tokens for one in said)
    one_batch_after_another = sum(
        max(one.completion_tokens for one in said[first : first + 4]) for first in range(0, 24, 4)
    )
    assert needed / 4 - 24 <= sum(steps) < one_batch_after_another
    assert idle[0] >= 1, "it did not come back for the first idle row"


def test_a_cache_takes_what_was_foretold(model: Gemma) -> None:
    for rows, places, dtype in ((3, 10, jnp.float32), (8, 96, jnp.bfloat16)):
        state = writing.empty_state(
            config=CONFIG, batch_size=rows, places=places, room=64, dtype=dtype
        )
        held = sum(part.nbytes for part in jax.tree.leaves(state.kept))
        assert held == cache_bytes(CONFIG, rows, places, dtype)
        sliding, everywhere = (layer.values.shape[2] for layer in state.kept)
        assert (sliding, everywhere) == (min(12, places), places)


def test_bfloat16_writes_as_well(model: Gemma) -> None:
    said = generate(model, WORDS, PROMPTS[:2], SamplingParams(max_new_tokens=8), dtype=jnp.bfloat16)
    assert [one.completion_tokens for one in said] == [8, 8]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    "What a processor that pretends to be eight devices has to tell."
    flags = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
    done = subprocess.run(
        [sys.executable, HERE / "sampling_worker.py"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["plain", "stacked eight lora", "lora"])
def test_eight_devices_say_what_one_says(found: dict[str, Any], kind: str) -> None:
    assert found[kind]["mesh"] == found[kind]["alone"]
    assert any(len(set(tokens)) > 8 for tokens in found[kind]["alone"]), "it only stutters"


def test_kernels_and_caches_stay_where_they_are(found: dict[str, Any]) -> None:
    assert found["gathered"], "nothing was gathered, so the text was not understood"
    heaviest = max(int(np.prod(shape)) for shape in found["gathered"])
    lightest = min(int(np.prod(shape)) for shape in found["kernels"])
    assert heaviest < lightest / 8, "somebody fetched parameters or a cache"
    assert found["held"] == found["planned"] == found["whole"] // 8
