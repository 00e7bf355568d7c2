"""Ours beside Hugging Face's: the same files must give the same numbers and the same words."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is checked against PyTorch, a developer's tool")

from hugging_face import CASES, VOCABULARY, continuation, make, publish, scores

from tunix_rt.models.gemma import Gemma, hidden_states, logits
from tunix_rt.models.sampling import Sampling, generate
from tunix_rt.models.weights import load_model, save_model

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


def ours(model: Gemma, tokens: np.ndarray = TOKENS, dtype: Any = jnp.float32) -> np.ndarray:
    "The logits of our decoder over whole rows."
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = hidden_states(
        model, jnp.asarray(tokens), positions, jnp.ones_like(positions), dtype=dtype
    )
    return np.asarray(logits(model, hidden))


@pytest.mark.parametrize("case", CASES)
def test_the_same_files_give_the_same_logits(case: str, published: Any) -> None:
    model, _ = load_model(published(case))
    expected = scores(theirs(case), TOKENS)
    assert np.abs(expected).max() > 1, "a comparison of near-zeros proves nothing"
    np.testing.assert_allclose(ours(model), expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_is_the_same_over_64_tokens(case: str, published: Any) -> None:
    model, words = load_model(published(case))
    said = generate(model, words, PROMPTS, Sampling(max_new_tokens=64))
    for prompt, completion in zip(PROMPTS, said, strict=True):
        assert completion.tokens == continuation(theirs(case), prompt, 64)
    assert any(len(set(completion.tokens)) > 8 for completion in said), "it only stutters"


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_they_read(case: str, published: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, words = load_model(published(case))
    save_model(tmp_path / "model", model, words)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    np.testing.assert_allclose(scores(again, TOKENS), ours(model), atol=1e-4)
