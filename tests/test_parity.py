"""Ours beside Hugging Face's: the same files must give the same numbers and the same words."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hugging_face import CASES, FAMILIES, VOCABULARY, continuation, make, publish, scores

from tunix_rt.inference.engine import SamplingParams, generate
from tunix_rt.models.gemma import Gemma, hidden_states, logits
from tunix_rt.models.weights import load_weights, save_model

TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (3, 40))
PROMPTS = [row[:length].tolist() for row, length in zip(TOKENS, (5, 21, 33), strict=True)]


@cache
def theirs(case: str) -> Any:
    "One model of each kind serves all tests."
    return make(case)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    "Write each kind of folder once."
    root = tmp_path_factory.mktemp("published")
    return cache(lambda case: publish(theirs(case), root / case))


@pytest.fixture(scope="module")
def loaded(published: Any) -> Any:
    "Read each kind of folder once: our model, its tokenizer, and the logits over whole rows."

    def read(case: str) -> tuple[Gemma, Any, np.ndarray]:
        model, words = load_weights(published(case))
        return model, words, np.asarray(ours(model, jnp.asarray(TOKENS)))

    return cache(read)


@nnx.jit
def ours(model: Gemma, tokens: jax.Array) -> jax.Array:
    "The logits of our decoder over whole rows."
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return logits(model, hidden_states(model, tokens, positions, jnp.ones_like(positions)))


@pytest.mark.parametrize("case", (*CASES, *FAMILIES))
def test_the_same_files_give_the_same_logits(case: str, loaded: Any) -> None:
    _, _, found = loaded(case)
    expected = scores(theirs(case), TOKENS)
    assert np.abs(expected).max() > 1, "a comparison of near-zeros proves nothing"
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("case", (*CASES, "qwen2", "qwen3", "llama", "smollm3-sliding"))
def test_greedy_text_is_the_same_over_64_tokens(case: str, loaded: Any) -> None:
    model, words, _ = loaded(case)
    said = generate(model, words, PROMPTS, SamplingParams(max_new_tokens=64))
    for prompt, completion in zip(PROMPTS, said, strict=True):
        assert completion.tokens == continuation(theirs(case), prompt, 64)
    assert any(len(set(completion.tokens)) > 8 for completion in said), "it only stutters"


@pytest.mark.parametrize("case", (*CASES, *FAMILIES))
def test_what_we_write_they_read(case: str, loaded: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, words, found = loaded(case)
    save_model(tmp_path / "model", model, words)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    np.testing.assert_allclose(scores(again, TOKENS), found, atol=1e-4)
