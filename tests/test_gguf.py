"""GGUF files, against `transformers` as another reader, and through the command line.

Refusals and the formats of numbers are shown in nbs/models/57_gguf.ipynb and 68_gguf_export.ipynb.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from importlib.util import find_spec
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
from tunix_rt.models.tokenizer import CHATML, HEADERS, train_tokenizer

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


OTHERS = {
    "llama": ("llama-3.2-1b", "llama-bpe", {}),
    "llama, a head of its own": (
        "llama-3.2-1b",
        "llama-bpe",
        {"tied": False, "rope_scaling": None},
    ),
    "smollm2": ("smollm2-135m", "smollm", {}),
    "qwen2": ("qwen2.5-0.5b", "qwen2", {}),
    "qwen3": ("qwen3-0.6b", "qwen2", {}),
}
AWKWARD = [
    "What's 47 plus 8600?\n\n  carry 1",
    "naïve  café 😀\r\n",
    "<|im_end|>12 345 ",
    "e\u0301",
]


def byte_level(pre: str) -> Any:
    "A tokenizer of the family, fitted as its publishers do."
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    from tunix_rt.models.gguf import PATTERNS

    words = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    words.normalizer = normalizers.NFC() if pre == "qwen2" else None
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not PATTERNS[pre])
    cut = pre_tokenizers.Digits(individual_digits=True)
    if PATTERNS[pre]:
        cut = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pre]), "isolated")
    words.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if pre == "llama-bpe":
        special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words.train_from_iterator(
        [*TEXTS, *AWKWARD],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return words


def write_as_llama_cpp(path: Path, model: Gemma, words: Any, pre: str) -> None:
    "Write a model as llama.cpp's converter does, with nothing of ours but the names of tensors."
    import json as plain

    from tunix_rt.models.weights import as_published, whole_tensors

    config, arch = model.config, model.config.family
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.positions), writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers), writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.query_heads), writer.add_head_count_kv(config.key_heads)
    writer.add_layer_norm_rms_eps(config.epsilon), writer.add_rope_freq_base(config.rope_base)
    writer.add_key_length(config.head_width), writer.add_value_length(config.head_width)
    writer.add_vocab_size(config.vocabulary), writer.add_file_type(0)
    held = plain.loads(words.to_str())["model"]
    vocabulary = sorted(held["vocab"], key=held["vocab"].get)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    special = {one.content for one in words.get_added_tokens_decoder().values()}
    writer.add_token_types([3 if one in special else 1 for one in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in held["merges"]])
    writer.add_eos_token_id(2 if arch != "llama" or pre == "smollm" else 3)
    writer.add_bos_token_id(0), writer.add_add_bos_token(pre == "llama-bpe")
    kinds = gguf.MODEL_ARCH_NAMES.items()
    names = gguf.get_tensor_name_map(next(k for k, v in kinds if v == arch), config.layers)
    for name, found in whole_tensors(model):
        value = np.asarray(as_published(name, found, np.dtype("f4")))
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.query_heads if "q_proj" in name else config.key_heads
            rows = value.reshape(heads, 2, len(value) // heads // 2, -1)
            value = rows.swapaxes(1, 2).reshape(value.shape)
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(value))
    if config.rope_scaling:
        factor, low, high, old = config.rope_scaling
        place = np.arange(0, config.head_width, 2) / config.head_width
        waves = 2 * np.pi * config.rope_base**place
        smooth = (old / waves - low) / (high - low)
        middle = 1 / ((1 - smooth) / factor + smooth)
        factors = np.where(waves < old / high, 1, np.where(waves > old / low, factor, middle))
        writer.add_tensor("rope_freqs.weight", factors.astype("f4"))
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()


def other_model(case: str, words: Any, rows: int = 0) -> Gemma:
    "A small model of one of the other families."
    shape, _, more = OTHERS[case]
    config = preset(shape).resized(
        vocabulary=rows or words.get_vocab_size(), width=64, layers=2, query_heads=4, key_heads=2,
        head_width=16, query_scale=16.0, hidden=96, positions=16_384, pattern=(), **more,
    )  # fmt: skip
    return random_model(config)


def wrapped(words: Any, pre: str) -> Any:
    "The tokenizer with its roles and a chat template, as a model folder has it."
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    begin, end = ("<|begin_of_text|>", "<|eot_id|>") if pre == "llama-bpe" else (None, "<|im_end|>")
    if begin:
        words.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=begin, eos_token=end, clean_up_tokenization_spaces=False,
        chat_template=HEADERS if begin else CHATML,
    )  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_families_are_written_as_llama_cpp_writes_them(case: str, tmp_path: Path):
    words, pre = byte_level(OTHERS[case][1]), OTHERS[case][1]
    model, tokenizer = other_model(case, words), wrapped(words, pre)
    for name in ("model", "theirs"):
        (tmp_path / name).mkdir()
    save_gguf(tmp_path / "model" / "model.gguf", model, tokenizer, kind="f32")
    write_as_llama_cpp(tmp_path / "theirs" / "model.gguf", model, words, pre)
    ours, theirs = (read_gguf(tmp_path / name / "model.gguf") for name in ("model", "theirs"))
    differ = {"tokenizer.ggml.bos_token_id", "general.file_type"}  # ours names none where none is
    for key in theirs.metadata.keys() - differ:
        assert ours.metadata[key] == theirs.metadata[key], key
    held = {one.name: one for one in ours.tensors}
    assert held.keys() == {one.name for one in theirs.tensors}
    for one in theirs.tensors:
        mine, same = (
            np.fromfile(each.file, "f4", each.size // 4, offset=each.start).reshape(each.shape)
            for each in (held[one.name], one)
        )
        np.testing.assert_allclose(mine, same, rtol=1e-6, err_msg=one.name)
    again, opened = load_model(resolve_source(str(tmp_path / "model")))
    assert again.config.resized(unused="") == model.config
    np.testing.assert_allclose(scores(again), scores(model), atol=1e-5)
    for text in AWKWARD:
        assert opened(text).input_ids == tokenizer(text).input_ids
    if case in ("llama", "qwen2", "qwen3") and find_spec("torch"):
        found = read_by_transformers(tmp_path / "model", case)
        np.testing.assert_allclose(found, scores(model), atol=2e-3)


def test_rows_without_a_token_are_no_tokens_when_the_file_is_opened(tmp_path: Path):
    words = byte_level("qwen2")
    save_gguf(tmp_path / "model.gguf", other_model("qwen2", words, 310), wrapped(words, "qwen2"))
    listed = read_gguf(tmp_path / "model.gguf").metadata["tokenizer.ggml.tokens"]
    again, opened = load_model(resolve_source(str(tmp_path / "model.gguf")))
    assert (len(listed), again.config.vocabulary, len(opened)) == (310, 310, len(words.get_vocab()))


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("TUNIX_RT_REAL"), reason="`make real` installs llama.cpp")
@pytest.mark.parametrize("case", ["gemma 3", *OTHERS])
def test_llama_cpp_opens_what_we_write(case: str, tmp_path: Path):
    from real_model import llama_scores, llama_server, llama_tokenizes

    from tunix_rt.inference.engine import SamplingParams, generate

    if case == "gemma 3":
        words, model = WORDS, random_model(THIRD)
    else:
        inner = byte_level(OTHERS[case][1])
        words, model = wrapped(inner, OTHERS[case][1]), other_model(case, inner)
    save_gguf(tmp_path / "model.gguf", model, words, kind="f32")
    server = llama_server(tmp_path / "model.gguf")
    prompts = [words(text).input_ids for text in ("What is 47 plus 86?", "7 + 6 = 13, write")]
    said = generate(model, words, prompts, SamplingParams(max_new_tokens=24))
    reported = 0
    for prompt, one in zip(prompts, said, strict=True):
        tokens = [*prompt, *one.tokens]
        ours = log_probabilities(model, tokens)
        for place in range(len(prompt), len(tokens)):
            # Two tokens of a random model may be as likely as each other to four digits, as the
            # tenth token of this Qwen 3. So each is scored on the same text before it.
            found = llama_scores(server, tokens[:place])
            reported += bool(found)
            for token, logprob in found.items():
                assert abs(logprob - ours[place - 1, token]) < 5e-3, (place, token)
    assert reported >= 16  # its server reports nothing where the likeliest is a part of a letter
    if case != "gemma 3":  # llama.cpp has no such rules as those of our small tokenizer
        texts = [
            *map(normalized, AWKWARD),
            TEXTS[0],
        ]  # composed, as the tokenizer of a Qwen makes them
        assert llama_tokenizes(server, texts) == [words(text).input_ids for text in texts]


@pytest.mark.parametrize("case", OTHERS)
def test_other_families_open_as_llama_cpp_writes_them(case: str, tmp_path: Path):
    pre, words = OTHERS[case][1], byte_level(OTHERS[case][1])
    model = other_model(case, words)
    config = model.config
    write_as_llama_cpp(tmp_path / "model.gguf", model, words, pre)
    again, tokenizer = load_model(resolve_source(str(tmp_path / "model.gguf")))
    assert again.config.resized(unused=config.unused) == config
    np.testing.assert_allclose(scores(again), scores(model), atol=1e-4)
    for text in AWKWARD + TEXTS[:1]:
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == words.encode(text).ids
        assert tokenizer.decode(found) == (text if pre != "qwen2" else normalized(text))
    assert (tokenizer("a").input_ids[0] == 0) == (pre == "llama-bpe")
    if case in ("llama", "qwen2", "qwen3") and find_spec("torch"):
        np.testing.assert_allclose(read_by_transformers(tmp_path, case), scores(model), atol=2e-3)


def log_probabilities(model: Gemma, tokens: list[int]) -> np.ndarray:
    "Our log-probabilities of every next token, [T, V]."
    places = jnp.arange(len(tokens))[None]
    hidden = hidden_states(model, jnp.asarray([tokens]), places, jnp.ones_like(places))
    return np.asarray(jax.nn.log_softmax(logits(model, hidden)))[0]


def normalized(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


def read_by_transformers(folder: Path, case: str) -> np.ndarray:
    "The logits of `transformers`, which opens GGUF files by code of its own."
    import torch
    from transformers import AutoModelForCausalLM

    more = {"head_dim": 16} if case == "qwen3" else {}  # it passes over key_length there
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", attn_implementation="eager", dtype=torch.float32, **more
    )
    with torch.no_grad():
        return theirs(torch.from_numpy(TOKENS)).logits.numpy()


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
