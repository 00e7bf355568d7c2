"""GGUF files, against `transformers` as another reader, and through the command line.

Refusals and the formats of numbers are shown in nbs/models/57_gguf.ipynb and 68_gguf_export.ipynb.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_model import TEXTS

from tunix_rt.core.errors import ModelError
from tunix_rt.core.settings import settings
from tunix_rt.models.config import GemmaConfig, preset
from tunix_rt.models.gemma import Gemma, hidden_states, logits
from tunix_rt.models.gguf import convert_gguf, converted, gguf_tokenizer, merges, read_gguf, spelled
from tunix_rt.models.gguf_export import save_gguf
from tunix_rt.models.loading import load_model, resolve_source
from tunix_rt.models.peft import load_any
from tunix_rt.models.tokenizer import train_tokenizer

gguf = pytest.importorskip("gguf")

WORDS = train_tokenizer(TEXTS, vocabulary=128)
THIRD = preset("tiny").resized(
    vocabulary=128, layers=6, sliding_every=6, rope_base=1e6, rope_base_sliding=1e4, window=8,
    positions=256,
)  # fmt: skip
SECOND = THIRD.resized(
    family="gemma2", query_key_norm=False, sliding_every=2, layers=2, rope_base=1e4,
    attention_soft_cap=50.0, logit_soft_cap=30.0,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(6, 128, (2, 24))


def random_model(config: GemmaConfig) -> Gemma:
    "A model whose norms, too, are random."
    model = Gemma(config, nnx.Rngs(0))
    draw = np.random.default_rng(0)

    def other(value: jax.Array) -> jax.Array:
        if value.ndim > 1:
            return value * 1.5
        return jnp.asarray(draw.normal(size=value.shape, scale=0.3), value.dtype)

    nnx.update(model, jax.tree.map(other, nnx.state(model, nnx.Param)))
    return model


def scores(model: Gemma) -> np.ndarray:
    "The logits of our decoder."
    places = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden = hidden_states(model, jnp.asarray(TOKENS), places, jnp.ones_like(places))
    return np.asarray(logits(model, hidden))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    "A cache of its own."
    monkeypatch.setenv("TUNIX_RT_CONVERTED", str(tmp_path / "converted"))
    settings.cache_clear()
    yield tmp_path / "converted"
    settings.cache_clear()


@pytest.mark.parametrize("config", [SECOND, THIRD, THIRD.resized(rope_factor=8.0)])
def test_a_written_file_holds_the_same_model(config: GemmaConfig, tmp_path: Path):
    model = random_model(config)
    save_gguf(tmp_path / "model.gguf", model, WORDS, kind="f32")
    for name in ("model.gguf", "."):
        again, words = load_model(resolve_source(str(tmp_path / name)))
        assert again.config == config
        np.testing.assert_allclose(scores(again), scores(model), atol=1e-4)
        assert words(TEXTS[0]).input_ids == WORDS(TEXTS[0]).input_ids


def test_transformers_reads_what_we_write(tmp_path: Path):
    pytest.importorskip("torch")
    import torch
    from transformers import AutoModelForCausalLM

    for name, config in {"second": SECOND, "third": THIRD}.items():
        model = random_model(config)
        save_gguf(tmp_path / f"{name}.gguf", model, WORDS, kind="f32", name=name)
        theirs = AutoModelForCausalLM.from_pretrained(
            tmp_path,
            gguf_file=f"{name}.gguf",
            query_pre_attn_scalar=32,  # no file says it: it takes that of the published sizes
            attn_implementation="eager",
            dtype=torch.float32,
        )
        with torch.no_grad():
            found = theirs(torch.from_numpy(TOKENS)).logits.numpy()
        np.testing.assert_allclose(found, scores(model), atol=2e-3)


def test_merges_are_those_of_transformers():
    from transformers.tokenization_utils_base import generate_merges

    draw = random.Random(0)
    pieces = list("▁abc")
    while len(pieces) < 300:
        piece = draw.choice(pieces) + draw.choice(pieces)
        if piece not in pieces:
            pieces.append(piece)
    ids = {piece: number for number, piece in enumerate(pieces)}
    theirs = generate_merges(ids, {piece: -number for piece, number in ids.items()})
    assert merges(pieces) == theirs
    assert spelled(["   ", "a b", "\n"]) == ["▁▁▁", "a b", "\n"]


def test_a_damaged_file_is_refused_and_never_crashes(tmp_path: Path):
    save_gguf(tmp_path / "good.gguf", random_model(SECOND), WORDS)
    good, draw = (tmp_path / "good.gguf").read_bytes(), random.Random(0)
    header = read_gguf(tmp_path / "good.gguf").tensors[0].start
    for number in range(60):
        spoilt = bytearray(good)
        if number % 3 == 0:
            del spoilt[draw.randrange(len(good)) :]
        else:
            for _ in range(draw.randint(1, 4)):
                spoilt[draw.randrange(header)] = draw.randrange(256)
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(spoilt)
        try:
            convert_gguf(path, tmp_path / f"folder-{number}")
        except ModelError as error:
            assert path.name in str(error)
            assert not (tmp_path / f"folder-{number}").exists()
        assert not list(tmp_path.glob(".*.tmp-*"))


def test_a_file_that_changed_is_converted_again(tmp_path: Path, cache: Path):
    path = tmp_path / "model.gguf"
    save_gguf(path, random_model(SECOND), WORDS)
    first = converted(path)
    path.rename(tmp_path / "model.gguf.old")
    save_gguf(path, random_model(SECOND.resized(layers=1)), WORDS)
    second = converted(path)
    assert first != second and len(list(cache.iterdir())) == 2
    assert gguf_tokenizer(read_gguf(path)).chat_template == WORDS.chat_template


def test_training_starts_from_a_file_and_ends_in_one(tmp_path: Path, cache: Path):
    save_gguf(tmp_path / "base.gguf", random_model(SECOND), WORDS, kind="f32")
    given = {
        "model": tmp_path / "base.gguf", "dataset": "golden-v2", "seq_length": 128,
        "batch_size": 8, "max_steps": 2, "lora_rank": 2, "validation_traces": 0,
        "export": "both,gguf-f32",
    }  # fmt: skip
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    command = [sys.executable, "-c", "from tunix_rt.cli.app import main; main()"]
    run = tmp_path / "run"
    done = subprocess.run(
        [*command, "train", *words, "--run-dir", str(run)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    whole, beside = (scores(load_any(run / name)[0]) for name in ("model", "adapter"))
    file, _ = load_model(resolve_source(str(run / "gguf" / "model-f32.gguf")))
    np.testing.assert_allclose(whole, beside, atol=1e-4)
    np.testing.assert_allclose(whole, scores(file), atol=1e-4)
    assert np.abs(whole - scores(random_model(SECOND))).max() > 1e-4, "nothing was trained"
