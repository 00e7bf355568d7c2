"""A real pretrained Gemma, from a GGUF file through training to every export.

`make real` installs the model and runs this; the ordinary gate skips it. What is compared with runs
in float32 on the same weights: `transformers`, `peft`, and llama.cpp where xllamacpp is installed.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_model import (
    AWKWARD,
    PROMPTS,
    QUESTIONS,
    REMEDY,
    llama_server,
    llama_tokenizes,
    llama_writes,
    real_model,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get("TUNIX_RT_REAL"), reason="`make real` runs it"),
]
GSM8K = Path(__file__).resolve().parents[2] / "shared/cases/gsm8k"
NEW = 64  # Tokens written after each prompt
STEPS = 10  # Updates of the training, each of 2 rows of 256 tokens
EAGER = {"attn_implementation": "eager"}


@pytest.fixture(scope="module")
def file() -> Path:
    "The GGUF file."
    found = real_model()
    if found is None:
        pytest.skip(REMEDY)
    return found


@pytest.fixture(scope="module")
def folder(file: Path) -> Path:
    "The folder that it was converted to, once, in the cache."
    from tunix_rt.models.weights import find_model

    return find_model(file)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[tuple[Any, Any]]:
    "Our model and its tokenizer."
    from tunix_rt.models.loading import load_model, resolve_source

    yield load_model(resolve_source(str(folder)), scan_layers=True)
    gc.collect()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Iterator[Any]:
    "The same weights in transformers."
    yield load_theirs(folder)
    gc.collect()


def load_theirs(folder: Path) -> Any:
    "Load a model folder with transformers, in float32 on two threads."
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **EAGER)


def continuations(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    "Let transformers or peft write greedily, all at once, up to the token that ends each."
    import torch

    longest = max(map(len, prompts))
    given = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        found = model.generate(
            input_ids=given, attention_mask=real, max_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )[:, longest:].tolist()  # fmt: skip
    ends = model.generation_config.eos_token_id
    stops = [next((at for at, one in enumerate(row) if one in ends), new) for row in found]
    return [row[:stop] for row, stop in zip(found, stops, strict=True)]


def asked(words: Any) -> list[list[int]]:
    "Twenty prompts: texts to continue, and questions in the chat template."
    from tunix_rt.models.tokenizer import encode_prompts

    return [words(text).input_ids for text in PROMPTS] + encode_prompts(words, QUESTIONS)


def written(model: Any, words: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    "Let ours write greedily."
    from tunix_rt.inference.engine import SamplingParams, generate

    done = generate(model, words, prompts, SamplingParams(max_new_tokens=new), batch_size=32)
    return [one.tokens for one in done]


def test_the_config_is_that_of_gemma_3_270m(ours: tuple[Any, Any]):
    from tunix_rt.models.config import preset

    if os.environ["TUNIX_RT_REAL"] != "1":
        pytest.skip("another model was named")
    assert ours[0].config == preset("gemma-3-270m")


def test_tokenizer_and_template_are_those_of_transformers(file: Path, ours: tuple[Any, Any]):
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    from tunix_rt.models.tokenizer import CHAT_TEMPLATE

    arch, described, _ = get_gguf_tokenizer(str(file))
    theirs, _ = convert_gguf_tokenizer(arch, described)
    words = ours[1]
    assert len(words) == theirs.get_vocab_size()
    pairs = [one + other for one, other in pairwise(AWKWARD)]
    texts = [*AWKWARD, *PROMPTS, *QUESTIONS, *pairs]
    for text in texts:
        found = words(text, add_special_tokens=False).input_ids
        assert found == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert words.decode(found) == theirs.decode(found, skip_special_tokens=False), repr(text)
    assert words("x").input_ids[0] == words.bos_token_id
    if os.environ["TUNIX_RT_REAL"] == "1":
        assert len(words) == 262_144
        assert words.chat_template == CHAT_TEMPLATE  # it is a base model, whose file has none


def test_logits_are_those_of_transformers(ours: tuple[Any, Any], theirs: Any):
    import jax.numpy as jnp
    import torch
    from flax import nnx

    from tunix_rt.models.gemma import hidden_states, logits

    model, words = ours
    long = words("The window of a sliding layer is 512 tokens wide. " * 60).input_ids[:700]
    forward = nnx.jit(lambda m, t, p, s: logits(m, hidden_states(m, t, p, s)))
    worst = 0.0
    for prompt in [*asked(words)[::2], long]:
        size = 64 if len(prompt) <= 64 else 704
        tokens, real = np.zeros((2, 1, size), np.int32)
        tokens[0, : len(prompt)], real[0, : len(prompt)] = prompt, 1
        found = forward(model, jnp.asarray(tokens), jnp.arange(size)[None], jnp.asarray(real))
        with torch.no_grad():
            wanted = theirs(torch.tensor([prompt])).logits[0].numpy()
        off = np.abs(np.asarray(found[0, : len(prompt)]) - wanted).max() / np.ptp(wanted)
        worst = max(worst, float(off))
        del found, wanted
    print(f"logits differ by {worst:.1e} of their range at most")
    assert worst < 1e-3


def test_greedy_text_is_that_of_transformers(ours: tuple[Any, Any], theirs: Any):
    model, words = ours
    prompts = asked(words)
    assert len(prompts) == 20
    both = written(model, words, prompts, NEW), continuations(theirs, prompts, NEW)
    for prompt, found, wanted in zip(prompts, *both, strict=True):
        assert found == wanted, words.decode(prompt)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    "A short LoRA fine-tuning on GSM8K, exported in every layout."
    if not (GSM8K / "train.jsonl").is_file():
        pytest.skip(f"{GSM8K} is not here, and its problems are not part of this project")
    import tunix_rt as rt
    from tunix_rt.core.settings import settings
    from tunix_rt.data.formats import ImportReport, read_format
    from tunix_rt.models.lora import LoraConfig

    root = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNIX_RT_ROOT", str(root))
        settings.cache_clear()
        report = ImportReport(file="train.jsonl", source="gsm8k")
        traces = list(read_format(GSM8K / "train.jsonl", "gsm8k", harvest=report))[:400]
        data = rt.make_dataset(traces, name="gsm8k")
        model = rt.load_model(str(folder), lora=LoraConfig(rank=8, alpha=16.0))
        done = rt.sft(
            model, data, max_steps=STEPS, batch_size=2, seq_length=256, validation_traces=8,
            optimizer="adamw", learning_rate=1e-3, warmup_steps=2, log_every=1,
            validate_every=STEPS // 2, export="both,gguf-f32",
        )  # fmt: skip
        yield done
        settings.cache_clear()


def test_the_loss_on_gsm8k_falls(trained: Any):
    losses = list(trained.metrics["validation_loss"].dropna())  # on the same rows
    print("losses:", [round(loss, 3) for loss in losses])
    assert len(losses) >= 2 and np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.05


def test_what_was_trained_is_the_same_in_transformers_peft_and_gguf(trained: Any):
    from peft import AutoPeftModelForCausalLM

    from tunix_rt.models.loading import load_model, resolve_source
    from tunix_rt.models.tokenizer import encode_prompts

    model, words, run = trained.model.module, trained.model.tokenizer, trained.run.folder
    prompts = encode_prompts(words, QUESTIONS)
    wanted = written(model, words, prompts, 48)
    whole = load_theirs(run / "model")
    assert continuations(whole, prompts, 48) == wanted
    del whole
    beside = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", **EAGER)
    assert continuations(beside, prompts, 48) == wanted
    del beside
    again, _ = load_model(resolve_source(str(run / "gguf")), scan_layers=True)
    assert written(again, words, prompts, 48) == wanted


def test_llama_cpp_writes_the_same_text(trained: Any):
    from tunix_rt.models.tokenizer import encode_prompts

    server = llama_server(trained.run.folder / "gguf" / "model-f32.gguf")
    model, words = trained.model.module, trained.model.tokenizer
    prompts = encode_prompts(words, QUESTIONS)
    wanted = written(model, words, prompts, 32)
    for tokens, found in zip(wanted, llama_writes(server, prompts, 32), strict=True):
        assert found[: len(tokens)] == tokens
    # In a GGUF file runs of spaces are tokens with spaces, so a literal "▁▁▁" is three tokens to
    # llama.cpp, with the file that this model came in as with ours.
    texts = [text for text in AWKWARD if not {"\x00", "▁"} & set(text)]
    assert llama_tokenizes(server, texts) == [words(text).input_ids for text in texts]
