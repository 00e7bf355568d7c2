"""Folders that people bring: what the decoder computes is opened, the rest is refused by name.

Each case takes a small model or adapter that opens, changes one thing in its folder, and says which
words the refusal must hold. What is the same in other words must still open.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tunix_rt.core.errors import ModelError
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.loading import load_model, resolve_source
from tunix_rt.models.lora import LoraConfig, add_lora
from tunix_rt.models.peft import save_adapter
from tunix_rt.models.tokenizer import CHAT_TEMPLATE, train_tokenizer
from tunix_rt.models.weights import save_model

Change = Callable[[Path], Any]
GONE = "(taken out)"  # A key that is taken out

CONFIG, ADAPTER, WORDS = "config.json", "adapter_config.json", "tokenizer_config.json"
LINEAR = {"rope_type": "linear", "factor": 8.0}
PLAIN = {"rope_type": "default", "rope_theta": 300.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MARK, POINTER = (
    b"\xef\xbb\xbf",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
)


def says(file: str, **changes: Any) -> Change:
    "Change values in a JSON file."

    def change(folder: Path) -> None:
        given = json.loads((folder / file).read_text()) | changes
        kept = {key: value for key, value in given.items() if value is not GONE}
        (folder / file).write_text(json.dumps(kept))

    return change


def config(**changes: Any) -> Change:
    "Change values in config.json."
    return says(CONFIG, **changes)


def adapter(**changes: Any) -> Change:
    "Change values in adapter_config.json."
    return says(ADAPTER, **changes)


def wrapped(family: str, **changes: Any) -> Change:
    "Put the configuration into that of another model."

    def change(folder: Path) -> None:
        inner = json.loads((folder / CONFIG).read_text())
        whole = {"model_type": family, "text_config": inner, **changes}
        (folder / CONFIG).write_text(json.dumps(whole))

    return change


def holds(file: str, content: bytes, *, before: bool = False) -> Change:
    "Replace a file, or put something in front of it."

    def change(folder: Path) -> None:
        path = folder / file
        path.write_bytes(content + path.read_bytes() if before else content)

    return change


def number(file: str, tensor: str, value: float) -> Change:
    "Change one number of the first tensor of that name."

    def change(folder: Path) -> None:
        tensors = dict(load_file(folder / file))
        name = next(name for name in tensors if tensor in name)
        tensors[name] = tensors[name].copy()
        tensors[name].flat[5] = value
        save_file(tensors, folder / file)

    return change


def template(old: str, new: str) -> Change:
    "Change the chat template."
    assert old in CHAT_TEMPLATE
    text = CHAT_TEMPLATE.replace(old, new)
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


SAID, LAST = "message.content | trim", "{{ '<start_of_turn>model\\n' }}{% endif"
SIZES = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "num_hidden_layers",
    "vocab_size", "intermediate_size", "max_position_embeddings",
)  # fmt: skip
REALS = (
    "query_pre_attn_scalar", "rms_norm_eps", "rope_theta", "rope_local_base_freq",
)  # fmt: skip

REFUSED: dict[str, tuple[str, str, Change]] = {  # name -> which folder, words, what is changed
    "paligemma": ("third", "type 'paligemma'", wrapped("paligemma")),
    "paligemma of a gemma 2": ("second", "type 'paligemma'", wrapped("paligemma")),
    "llava": ("third", "type 'llava'", wrapped("llava")),
    "shieldgemma": ("third", "type 'shieldgemma2'", wrapped("shieldgemma2")),
    "wrapped and untied": ("third", "tie_word", wrapped("gemma3", tie_word_embeddings=False)),
    "wrapped gemma 2": ("second", "must be of type 'gemma3_text'", wrapped("gemma3")),
    "wrapped nothing": (
        "third", "text_config must be", config(model_type="gemma3", text_config=None)
    ),
    "classifier": (
        "second", "Gemma2ForSequenceClassification",
        config(architectures=["Gemma2ForSequenceClassification"]),
    ),
    "headless": ("third", "'Gemma3TextModel'", config(architectures=["Gemma3TextModel"])),
    "encoder": ("third", "is_encoder_decoder: True", config(is_encoder_decoder=True)),
    "family null": ("third", "type 'None'", config(model_type=None)),
    "more layer types": ("third", "of 4 layers", config(layer_types=["full_attention"] * 4)),
    "other layer types": ("third", "'linear'", config(layer_types=["linear", "full_attention"])),
    "layer types as text": ("third", "knows lists", config(layer_types="full_attention")),
    "layer types null": ("third", "None in it", config(layer_types=[None, None])),
    **{
        f"rhythm {value!r}": (
            "third", "sliding_window_pattern",
            config(layer_types=GONE, sliding_window_pattern=value),
        )
        for value in (0, None, "2")
    },
    "ten million layers": (
        "third", "at most 1,000", config(num_hidden_layers=10**7, layer_types=GONE)
    ),
    "window 0": ("third", "sliding_window: 0", config(sliding_window=0)),
    **{
        f"factor {value!r}": (
            "third", "factor: ", config(rope_scaling={"rope_type": "linear", "factor": value})
        )
        for value in (0, -8, None, "8", [8], True)
    },
    "factor missing": ("third", "factor: None", config(rope_scaling={"rope_type": "linear"})),
    "factor alone": ("third", "without a rope_type", config(rope_scaling={"factor": 8.0})),
    "scaling as text": ("third", "rope_scaling: 'linear'", config(rope_scaling="linear")),
    "scaling of others": ("third", "'yarn'", config(rope_scaling={"rope_type": "yarn"})),
    "scaling of llama, half": (
        "llama", "'low_freq_factor'", config(rope_scaling={"rope_type": "llama3", "factor": 8.0})
    ),
    "scaling of llama, backwards": (
        "llama", "the first must be smaller", config(rope_scaling=LLAMA3 | {"low_freq_factor": 9.0})
    ),
    **{
        f"another family: {name}": ("qwen", f"type '{name}'{why}", config(model_type=name))
        for name, why in (
            ("mistral", ", and this decoder"), ("gemma", ", and"), ("phi3", ", and"),
            ("qwen3_moe", ", a mixture"), ("gpt_oss", ", a mixture"), ("qwen3_5_text", ", most of"),
            ("gemma4_text", ", whose layers"), ("gemma3n_text", ", whose layers"),
        )
    },
    **{
        f"another family around it: {name}": ("qwen", f"type '{name}'{why}", wrapped(name))
        for name, why in (
            ("gemma4", ", whose"), ("gemma3n", ", whose"), ("qwen3_5", ", most"),
            ("mistral3", ", and"),
        )
    },
    "llama under another name": ("llama", "'LlamaForCausalLM'", config(model_type="qwen2")),
    "qwen with a bias": ("smollm3", "attention_bias: True", config(attention_bias=True)),
    "llama with a bias": ("llama", "mlp_bias: True", config(mlp_bias=True)),
    "another gate": ("qwen", "hidden_act: 'gelu'", config(hidden_act="gelu")),
    "half a rotation": (
        "llama", "partial_rotary_factor",
        config(rope_parameters=PLAIN | {"partial_rotary_factor": 0.5}),
    ),
    "a head that is not there": ("qwen", "1 missing (lm_head", config(tie_word_embeddings=False)),
    "untied by default": ("llama", "1 missing (lm_head", config(tie_word_embeddings=GONE)),
    "biases that are not there": (
        "llama", "k_proj.bias",
        config(model_type="qwen2", architectures=["Qwen2ForCausalLM"]),
    ),
    "norms that are not there": (
        "llama", "k_norm", config(model_type="qwen3", architectures=["Qwen3ForCausalLM"]),
    ),
    "too few flags of RoPE": ("smollm3", "no_rope_layers: [1]", config(no_rope_layers=[1])),
    "other flags of RoPE": ("smollm3", "no_rope_layers: [1, 2]", config(no_rope_layers=[1, 2])),
    "heads that do not divide": (
        "llama", "does not divide", config(head_dim=None, num_attention_heads=3)
    ),
    "sliding and scaled": (
        "qwen", "sliding layers",
        config(
            rope_scaling=LINEAR, use_sliding_window=True, sliding_window=4,
            layer_types=["full_attention", "sliding_attention"],
        ),
    ),
    "scaled gemma 2": ("second", "sliding layers", config(rope_scaling=LINEAR)),
    "scaled sliding layers": (
        "third", "sliding layers",
        config(rope_parameters={"full_attention": PLAIN, "sliding_attention": LINEAR}),
    ),
    "flat positions": ("third", "rope_parameters once", config(rope_parameters=PLAIN)),
    "nested positions": (
        "second", "by kind of layer", config(rope_parameters={"full_attention": PLAIN})
    ),
    "part of a head": (
        "third", "partial_rotary_factor",
        config(rope_parameters={"full_attention": PLAIN | {"partial_rotary_factor": 0.5}}),
    ),
    **{
        f"{key} {value!r}": ("third", f"{key}: ", config(**{key: value}))
        for key in SIZES
        for value in (0, -2, None, "2", 2.5, [2], True)
    },
    **{
        f"{key} {value!r}": ("third", f"{key}: ", config(**{key: value}))
        for key in REALS
        for value in (0, -1, None, "2", [2])
    },
    **{
        f"{key} {value!r}": ("third", f"{key}: ", config(**{key: value}))
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
        for value in (0, -1, "2", [2], True)
    },
    "BOM": ("third", "byte order mark", holds(CONFIG, MARK, before=True)),
    "UTF-16": ("third", "byte order mark", holds(CONFIG, "{}".encode("utf-16"))),
    "latin": ("third", "not UTF-8", holds(CONFIG, b'{"a": "\xe9"}')),
    "no JSON": ("third", "not JSON", holds(CONFIG, b"")),
    **{
        f"a file of {text.decode()}": ("third", "names with values", holds(CONFIG, text))
        for text in (b"[]", b"null", b"3")
    },
    "NaN": ("third", "q_proj.weight holds nan", number("model.safetensors", "q_proj", np.nan)),
    "infinity": ("third", "holds inf", number("model.safetensors", "embed", np.inf)),
    "minus infinity": ("second", "holds -inf", number("model.safetensors", "1.mlp.up", -np.inf)),
    "NaN in a norm": ("third", "norm.weight holds", number("model.safetensors", "norm", np.nan)),
    "pointer to weights": ("third", "git lfs pull", holds("model.safetensors", POINTER)),
    "pointer to a tokenizer": ("third", "git lfs pull", holds("tokenizer.json", POINTER)),
    "BOM in a tokenizer": ("third", "byte order mark", holds(WORDS, MARK, before=True)),
    **{
        f"no {token}": ("third", f"no {token}", says(WORDS, **{token: GONE}))
        for token in ("bos_token", "eos_token")
    },
    "no BOS": ("third", "<bos> 0 times", template("{{ bos_token }}", "")),
    "two BOS": ("third", "<bos> 2 times", template("{{ bos_token }}", "<bos><bos>")),
    "no question": ("third", "as it is asked", template(SAID, "'Hello'")),
    "question cut": ("third", "as it is asked", template(SAID, "message.content[:9]")),
    "question escaped": ("third", "as it is asked", template(SAID, "message.content | e")),
    "question twice": ("third", "as it is asked", template(SAID, "message.content * 2")),
    "turn not opened": ("third", "does not open", template(LAST, "{% endif")),
    "turn opened otherwise": (
        "third", "not before an answer", template(LAST, LAST.replace("model\\n", "model\\n<think>"))
    ),
    "turn ends otherwise": ("third", "'<eos>", template("'<end_of_turn>", "'<eos>")),
    "template raises": (
        "third", "TemplateError", template("{{ bos", "{{ raise_exception('no') }}{{ bos")
    ),
    "template broken": ("third", "TemplateSyntaxError", template("{%- endfor %}", "")),
    **{
        f"rank {value!r}": ("adapter", "r: ", adapter(r=value))
        for value in (None, 0, -4, "4", 4.5, True, [4])
    },
    "rank missing": ("adapter", "nothing about 'r'", adapter(r=GONE)),
    "rank of another": ("adapter", "asks for (8, 32)", adapter(r=8)),
    **{
        f"alpha {value!r}": ("adapter", "lora_alpha: ", adapter(lora_alpha=value))
        for value in (None, 0, -4, "4", [4], True)
    },
    "alpha missing": ("adapter", "nothing about 'lora_alpha'", adapter(lora_alpha=GONE)),
    **{
        f"dropout {value!r}": ("adapter", "lora_dropout: ", adapter(lora_dropout=value))
        for value in (-1, 1, "0.1", [1])
    },
    **{
        f"targets {value!r}": ("adapter", "target_modules: ", adapter(target_modules=value))
        for value in (None, [], 3, [1], "*q(")
    },
    "targets missing": ("adapter", "target_modules: None", adapter(target_modules=GONE)),
    "fewer targets": ("adapter", "does not target model", adapter(target_modules=["q_proj"])),
    "more targets": ("adapter", "do not hold", adapter(target_modules="all-linear")),
    "target excluded": ("adapter", "does not target model", adapter(exclude_modules=["v_proj"])),
    "layer left out": ("adapter", "target model.layers.1", adapter(layers_to_transform=[0])),
    **{
        f"{key} {value!r}": ("adapter", f"{key}=", adapter(**{key: value}))
        for key, value in (
            ("peft_type", GONE), ("peft_type", "IA3"), ("peft_type", "lora"), ("bias", "all"),
            ("bias", ["none"]), ("task_type", "SEQ_CLS"), ("use_dora", True), ("use_rslora", "no"),
            ("init_lora_weights", "pissa"), ("modules_to_save", ["embed_tokens"]),
            ("rank_pattern", {"q_proj": 8}), ("lora_bias", True),
        )
    },
    **{
        f"base {value!r}": ("adapter", "is not known", adapter(base_model_name_or_path=value))
        for value in (GONE, None, "", 3, ["x"])
    },
    "adapter with a BOM": ("adapter", "byte order mark", holds(ADAPTER, MARK, before=True)),
    "adapter of []": ("adapter", "names with values", holds(ADAPTER, b"[]")),
    "adapter with NaN": (
        "adapter", "lora_A.weight holds nan", number("adapter_model.safetensors", "lora_A", np.nan)
    ),
    "adapter of nothing": (
        "adapter", "holds no adapter",
        lambda folder: save_file({}, folder / "adapter_model.safetensors"),
    ),
    "adapter with another template": (
        "adapter", "<bos> 0 times", template("{{ bos_token }}", "")
    ),
}  # fmt: skip

OPENED: dict[str, tuple[str, Change]] = {
    "third": ("third", lambda folder: None),
    "second": ("second", lambda folder: None),
    "adapter": ("adapter", lambda folder: None),
    "wrapped": ("third", wrapped("gemma3", architectures=["Gemma3ForConditionalGeneration"])),
    "no architecture": ("third", config(architectures=None)),
    "no window": ("third", config(sliding_window=None)),
    "older word for scaling": ("third", config(rope_scaling={"type": "linear", "factor": 8})),
    "a base that gemma 2 ignores": ("second", config(rope_local_base_freq=1e6)),
    "no template": ("third", lambda folder: (folder / "chat_template.jinja").unlink()),
    "rank as a float": ("adapter", adapter(r=4.0)),
    "no dropout": ("adapter", adapter(lora_dropout=None)),
    "scaled by the root": ("adapter", adapter(use_rslora=True)),
    "targets as a pattern": ("adapter", adapter(target_modules=r".*\.(q_proj|v_proj)")),
    "targets by longer names": (
        "adapter",
        adapter(target_modules=["self_attn.q_proj", "self_attn.v_proj"]),
    ),
    **{name: (name, lambda folder: None) for name in ("qwen", "llama", "smollm3")},
    "heads by default": ("llama", config(head_dim=GONE)),
    "a llama that is scaled": ("llama", config(rope_scaling=LLAMA3)),
    "a llama that is stretched": ("llama", config(rope_scaling=LINEAR)),
    "the newer form": ("llama", config(rope_theta=GONE, rope_parameters=PLAIN | LLAMA3)),
    "a qwen that slides": ("qwen", config(use_sliding_window=True, sliding_window=4)),
    "RoPE by interval": (
        "smollm3",
        config(no_rope_layers=None, no_rope_layer_interval=2, layer_types=GONE),
    ),
    "all layers": ("adapter", adapter(layers_to_transform=[0, 1])),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "One of each family, and an adapter on the Gemma 3, which all open."
    root = tmp_path_factory.mktemp("good")
    words = train_tokenizer(["What is 47 plus 86?"] * 20, vocabulary=128)
    third = preset("tiny").resized(
        vocabulary=128, width=32, layers=2, query_heads=2, key_heads=1, head_width=16, hidden=64,
        positions=64,
    )  # fmt: skip
    second = third.resized(family="gemma2", query_key_norm=False, attention_soft_cap=50.0)
    model = Gemma(third, nnx.Rngs(0))
    save_model(root / "third", model, words)
    save_model(root / "second", Gemma(second, nnx.Rngs(0)), words)
    for name, key in (("qwen", "qwen2.5-0.5b"), ("llama", "smollm2-135m"), ("smollm3",) * 2):
        shape = preset("smollm3-3b" if key == "smollm3" else key).resized(
            vocabulary=128, width=32, layers=2, query_heads=2, key_heads=1, head_width=16,
            hidden=64, query_scale=16.0, positions=64,
            pattern=(False, True) if name == "smollm3" else (),
        )  # fmt: skip
        save_model(root / name, Gemma(shape, nnx.Rngs(0)), words)
    add_lora(model, LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj")), nnx.Rngs(1))
    save_adapter(root / "adapter", model, words, base=str(root / "third"))
    return root


def changed(good: Path, kind: str, change: Change, folder: Path) -> Path:
    "Copy a folder that opens, and change it."
    shutil.copytree(good / kind, folder)
    change(folder)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_is_refused_by_name(case: str, good: Path, tmp_path: Path) -> None:
    kind, words, change = REFUSED[case]
    folder = changed(good, kind, change, tmp_path / "model")
    with pytest.raises(ModelError) as refusal:
        load_model(resolve_source(str(folder)))
    assert words in str(refusal.value)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("case", OPENED)
def test_a_folder_that_is_meant_the_same_opens(case: str, good: Path, tmp_path: Path) -> None:
    kind, change = OPENED[case]
    load_model(resolve_source(str(changed(good, kind, change, tmp_path / "model"))))


def test_an_adapter_on_an_adapter_is_refused(good: Path, tmp_path: Path) -> None:
    below = adapter(base_model_name_or_path=str(good / "adapter"))
    folder = changed(good, "adapter", below, tmp_path / "model")
    with pytest.raises(ModelError, match="holds adapters itself"):
        resolve_source(str(folder))


def test_an_adapter_is_refused_before_its_base_is_read(good: Path, tmp_path: Path) -> None:
    base = changed(good, "third", holds("model.safetensors", b""), tmp_path / "base")
    folder = changed(good, "adapter", adapter(r="4"), tmp_path / "model")
    with pytest.raises(ModelError, match="r: '4'"):
        load_model(resolve_source(str(folder), base=str(base)))
