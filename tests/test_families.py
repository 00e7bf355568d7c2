"""Qwen, Llama and SmolLM beside `transformers` and `peft`: packed rows, training, exports."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hugging_face import FAMILIES, VOCABULARY, make, publish, scores

from tunix_rt.core.errors import ModelError
from tunix_rt.models.gemma import Adapter, Gemma, hidden_states, logits
from tunix_rt.models.lora import LoraConfig, add_lora, quantize
from tunix_rt.models.peft import load_any, save_adapter
from tunix_rt.models.tokenizer import end_tokens
from tunix_rt.models.weights import load_weights, save_model
from tunix_rt.training.config import TrainConfig
from tunix_rt.training.logprobs import batch_logprobs
from tunix_rt.training.packing import PackedBatch
from tunix_rt.training.sft import sft_objective
from tunix_rt.training.train_step import make_step

DRAW = np.random.default_rng(3)
ROWS = [DRAW.integers(6, VOCABULARY, (1, length)) for length in (11, 24)]
BATCH = PackedBatch(  # Both sequences in one row, and padding behind them
    *(np.zeros((1, 40), np.int32) for _ in range(3)), np.zeros((1, 40), bool)
)
for number, (start, row) in enumerate(zip((0, 11), ROWS, strict=True), 1):
    place = slice(start, start + row.shape[1])
    BATCH.tokens[0, place], BATCH.segment_ids[0, place] = row[0], number
    BATCH.positions[0, place] = np.arange(row.shape[1])
    BATCH.loss_mask[0, start + 4 : place.stop] = True
TRAINED = ("qwen2", "qwen3", "llama", "smollm3")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    "Make and write each kind of folder once."
    root = tmp_path_factory.mktemp("families")
    return cache(lambda case: publish(theirs(case), root / case))


@cache
def theirs(case: str) -> Any:
    "One model of each kind serves all tests."
    return make(case)


@nnx.jit
def packed(model: Gemma) -> tuple[jax.Array, jax.Array]:
    "Logits and log-probabilities of the packed row."
    parts = [jnp.asarray(part) for part in (BATCH.tokens, BATCH.positions, BATCH.segment_ids)]
    return logits(model, hidden_states(model, *parts)), batch_logprobs(model, *parts).logprobs


def apart(model: Any) -> list[np.ndarray]:
    "Their logits of each sequence alone."
    return [scores(model, row)[0] for row in ROWS]


@pytest.mark.parametrize("case", FAMILIES)
def test_packed_and_padded_rows_of_a_stack_are_what_each_is_alone(
    case: str, published: Any
) -> None:
    model, _ = load_weights(published(case), scan_layers=True)
    found, logprobs = (np.asarray(part)[0] for part in packed(model))
    for start, row, expected in zip((0, 11), ROWS, apart(theirs(case)), strict=True):
        place = slice(start, start + row.shape[1])
        np.testing.assert_allclose(found[place], expected, atol=1e-4)
        odds = np.asarray(jax.nn.log_softmax(expected[:-1]))
        wanted = odds[np.arange(len(odds)), row[0, 1:]]
        np.testing.assert_allclose(logprobs[place][1:], wanted, atol=1e-4)


@pytest.mark.parametrize("case", TRAINED)
def test_adapters_are_trained_and_mean_the_same_to_peft(
    case: str, published: Any, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    below = published(case)
    model, words = load_any(below)
    add_lora(model, LoraConfig(rank=3, alpha=9.0), nnx.Rngs(0))
    settings = TrainConfig(
        max_steps=8, batch_size=1, seq_length=40, learning_rate=0.02, warmup_steps=1,
        optimizer="adamw",
    )  # fmt: skip
    state, step = make_step(model, sft_objective(settings), settings)
    losses = []
    for _ in range(6):
        state, figures = step(state, BATCH)
        losses.append(float(figures["loss"]))
    assert losses[-1] < losses[0] - 0.3
    nnx.update(model, state.params)
    save_adapter(tmp_path / "adapter", model, words, base=str(below))
    save_model(tmp_path / "model", model, words)

    eager = {"attn_implementation": "eager"}
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", **eager)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **eager)
    found = np.asarray(packed(model)[0])[0, :11]
    np.testing.assert_allclose(apart(adapted)[0], found, atol=2e-4)
    np.testing.assert_allclose(apart(merged)[0], found, atol=2e-4)
    again = nnx.state(load_any(tmp_path / "adapter")[0], Adapter)
    jax.tree.map(np.testing.assert_array_equal, again, nnx.state(model, Adapter))
    assert np.abs(apart(theirs(case))[0] - found).max() > 0.1


@pytest.mark.parametrize("case", FAMILIES)
def test_a_configuration_comes_back_as_it_was(case: str, published: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    below = tmp_path / "below"
    below.mkdir()
    for file in published(case).iterdir():
        (below / file.name).write_bytes(file.read_bytes())
    given = json.loads((below / "config.json").read_text()) | {"initializer_range": 0.03, "ours": 1}
    (below / "config.json").write_text(json.dumps(given))
    model, words = load_weights(below)
    save_model(tmp_path / "model", model, words)
    before, after = (AutoConfig.from_pretrained(f).to_dict() for f in (below, tmp_path / "model"))
    told = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "sliding_window", "head_dim")
    for key in before.keys() - set(told) - {"transformers_version", "_name_or_path"}:
        assert after[key] == before[key], key
    ends = [GenerationConfig.from_pretrained(f).eos_token_id for f in (below, tmp_path / "model")]
    assert set(ends[0]) == set(ends[1]) == set(end_tokens(words))


@pytest.mark.parametrize(("case", "kind"), [("qwen2-sliding", "int8"), ("smollm3", "bfloat16")])
def test_halves_and_bytes_come_close(case: str, kind: str, published: Any) -> None:
    model, _ = load_weights(published(case), scan_layers=True)
    if kind == "int8":
        quantize(model)
    else:
        nnx.update(model, jax.tree.map(lambda x: x.astype(kind), nnx.state(model)))
    found, expected = np.asarray(packed(model)[0])[0, :11], apart(theirs(case))[0]
    assert 0.001 < np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()


def test_a_head_of_its_own_is_read_where_the_configuration_says_so(
    published: Any, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    model, _ = load_weights(published("qwen3"))
    assert np.abs(np.asarray(model.head[...] - model.embedding[...])).max() > 0.1
    config = json.loads((published("qwen3") / "config.json").read_text())
    for file in published("qwen3").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ModelError, match="differs from the embedding"):
        load_weights(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    load_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lm_head"):
        load_weights(tmp_path)
