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
from compile_fast import COMPILE_FAST
from flax import nnx

from tunix_rt.inference import decode_loop as writing
from tunix_rt.inference import engine as sampling
from tunix_rt.inference.engine import Completion, generate
from tunix_rt.inference.kv_cache import cache_bytes
from tunix_rt.inference.sampling import SamplingParams, filter_logits
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma, hidden_states, logits
from tunix_rt.models.lora import LoraConfig, add_lora
from tunix_rt.models.tokenizer import end_of_turn, train_tokenizer

HERE = Path(__file__).resolve().parent
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
    widths = {sampling.batch_width(len(prompt)) for prompt in LONGER}
    places = 3  # 96, 128 and what stands at the end of the ladder
    assert wrote <= places and grew <= places
    assert admitted <= len(widths) * places


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


def test_samples_of_a_prompt_share_one_reading_of_it(
    model: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    prefill = sampling.prefill

    def watched(model: Gemma, grid: np.ndarray, lengths: np.ndarray, dtype: Any) -> Any:
        read.extend(int(length) for length in lengths if length > 1)
        return prefill(model, grid, lengths, dtype)

    monkeypatch.setattr(sampling, "prefill", watched)
    often = dataclasses.replace(PLAYFUL, samples=8)
    together = generate(model, WORDS, PROMPTS[:6], often, batch_size=64)
    assert sorted(read) == sorted(map(len, PROMPTS[:6]))
    read.clear()
    assert generate(model, WORDS, PROMPTS[:6], often, batch_size=32) == together
    assert len(read) == 12, "batches of four are half of a prompt's samples"
    first = dataclasses.replace(PLAYFUL, samples=3)
    assert generate(model, WORDS, PROMPTS[:6], first, batch_size=16) == [
        one for one in together if one.sample < 3
    ]


def test_the_last_requests_move_into_fewer_rows(
    model: Gemma, spoken: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    go_on = sampling.decode_until_pause

    def watched(engine: sampling.Engine) -> list[Completion]:
        rows.append(len(engine.serving))
        return go_on(engine)

    monkeypatch.setattr(sampling, "decode_until_pause", watched)
    assert generate(model, WORDS, PROMPTS, PLAYFUL, batch_size=32, prompt_length=32) == spoken
    assert rows[0] == 32 and rows[-1] == 8


def test_a_second_call_compiles_nothing(model: Gemma) -> None:
    "Not with other weights, other prompts, other seeds, nor seeds for every prompt."
    how = dataclasses.replace(PLAYFUL, samples=2, logprobs=True, top_p=0.95)
    compiled: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about.get("fun_name", event))

    generate(model, WORDS, PROMPTS, how, batch_size=32, prompt_length=64)
    other = nnx.clone(model)
    nnx.update(other, jax.tree.map(lambda leaf: leaf * 1.01, nnx.state(other)))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        again = dataclasses.replace(how, seed=2**33 - 1)
        said = generate(other, WORDS, LONGER, again, batch_size=32, prompt_length=64)
        seeds = list(range(-3, 21))
        generate(other, WORDS, PROMPTS[::-1], how, batch_size=32, prompt_length=64, seeds=seeds)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert len(said) == 48


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


@jax.jit
def plain_scores(model: Gemma, row: jax.Array, length: jax.Array) -> jax.Array:
    "Score every token of one sequence without a cache."
    places = jnp.arange(row.shape[1])[None]
    return logits(model, hidden_states(model, row, places, (places < length).astype(jnp.int32)))[0]


def plain_logprobs(model: Gemma, one: Completion, how: SamplingParams) -> np.ndarray:
    "Compute the log-probabilities of a completion by a plain forward pass over the same ids."
    ids = one.tokens + ([one.stop_reason] if isinstance(one.stop_reason, int) else [])
    row, read = np.zeros((1, 128), np.int32), one.prompt_tokens
    row[0, : read + len(ids)] = PROMPTS[one.prompt] + ids
    scores = plain_scores(model, row, read + len(ids))[read - 1 : read - 1 + len(ids)]
    scores = np.asarray(scores, np.float64)
    if how.temperature:
        scores = np.asarray(filter_logits(jnp.float32(scores / how.temperature), how), np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores[np.arange(len(ids)), ids]


@pytest.mark.parametrize(
    ("how", "lora"),
    [
        pytest.param(SamplingParams(temperature=1.0), False, id="temperature 1"),
        pytest.param(SamplingParams(temperature=0.7), False, id="temperature 0.7"),
        pytest.param(SamplingParams(temperature=0.7), True, id="temperature 0.7, LoRA"),
        pytest.param(SamplingParams(temperature=1.0, top_k=5), False, id="top_k 5"),
        pytest.param(SamplingParams(temperature=1.0, top_p=0.9), True, id="top_p 0.9, LoRA"),
        pytest.param(SamplingParams(temperature=0.0), False, id="greedy"),
    ],
)
def test_logprobs_are_those_of_a_plain_forward_pass(
    model: Gemma, how: SamplingParams, lora: bool
) -> None:
    if lora:
        model = nnx.clone(model)
        add_lora(model, LoraConfig(rank=4), nnx.Rngs(1))
        for block in model.layers:
            for low in block.adapters.values():
                low.b[...] = low.b[...] + 0.02
    how = dataclasses.replace(how, max_new_tokens=40, seed=3)
    one_width = {"batch_size": 8, "prompt_length": 32}  # and so one program that reads prompts
    silent = generate(model, WORDS, PROMPTS, how, **one_width)
    said = generate(model, WORDS, PROMPTS, dataclasses.replace(how, logprobs=True), **one_width)
    assert [dataclasses.replace(one, logprobs=None) for one in said] == silent
    for one in said:
        assert one.logprobs is not None and len(one.logprobs) == one.completion_tokens
        np.testing.assert_allclose(one.logprobs, plain_logprobs(model, one, how), atol=1e-4)


def test_it_is_known_which_end_token_or_text_ended_a_response(model: Gemma) -> None:
    "Gemma ends a turn with one token and a text with another."
    how = SamplingParams(max_new_tokens=60, temperature=1.3, seed=3, logprobs=True)
    said = generate(model, WORDS, PROMPTS * 8, how)
    ends = {end_of_turn(WORDS), WORDS.eos_token_id}
    assert {one.stop_reason for one in said} == {None, *ends}
    for one in said:
        assert (one.stop_reason is None) == (one.finish_reason == "length")
        exact = one.tokens + ([] if one.stop_reason is None else [one.stop_reason])
        assert one.logprobs is not None and len(exact) == len(one.logprobs) == one.completion_tokens
    for one in generate(model, WORDS, PROMPTS, dataclasses.replace(PLAYFUL, logprobs=True)):
        if isinstance(one.stop_reason, str):
            whole = WORDS.decode(one.tokens, skip_special_tokens=False)
            assert whole.startswith(one.text + one.stop_reason)
        assert one.logprobs is not None and len(one.logprobs) == one.completion_tokens


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


KINDS = ["plain", "stacked eight lora", "lora"]


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_record_the_logprobs_of_one(found: dict[str, Any], kind: str) -> None:
    for one, other, plain in zip(*found[kind]["logprobs"], strict=True):
        np.testing.assert_allclose(one, plain, atol=1e-4)
        np.testing.assert_allclose(other, plain, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_say_what_one_says(found: dict[str, Any], kind: str) -> None:
    assert found[kind]["mesh"] == found[kind]["alone"]
    assert any(len(set(tokens)) > 8 for tokens in found[kind]["alone"]), "it only stutters"


def test_kernels_and_caches_stay_where_they_are(found: dict[str, Any]) -> None:
    assert found["gathered"], "nothing was gathered, so the text was not understood"
    heaviest = max(int(np.prod(shape)) for shape in found["gathered"])
    lightest = min(int(np.prod(shape)) for shape in found["kernels"])
    assert heaviest < lightest / 8, "somebody fetched parameters or a cache"
    assert found["held"] == found["planned"] == found["whole"] // 8
