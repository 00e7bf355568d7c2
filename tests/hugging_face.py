"""Tiny random models made by `transformers`, to compare ours with.

PyTorch and the models of `transformers` take long to import, and every test process reads this
file. So they are imported where they are needed, by the one that needs them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if find_spec("torch") is None:
    pytest.skip("PyTorch is a developer's tool, and not here", allow_module_level=True)

import transformers
from chat_templates import ENDS, byte_tokenizer

from tunix_rt.models.tokenizer import Tokenizer, end_of_turn, train_tokenizer

VOCABULARY = 128
TEXTS = ["What is 47 plus 86?\nones: 7 + 6 = 13, write 3, carry 1\n<answer>133</answer>"] * 20

SECOND: dict[str, Any] = {  # Soft caps tight enough to bend, a window shorter than the rows
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 4.0,
    "max_position_embeddings": 256,
}
THIRD: dict[str, Any] = {  # Five sliding layers to one global, positions scaled by 8
    **SECOND,
    "num_hidden_layers": 7,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SHORT: dict[str, Any] = {  # One layer of either kind, which compiles soon
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
FEWER: dict[str, Any] = {  # For other heads or eyes, which have nothing to do with the rhythm
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
OTHER: dict[str, Any] = {  # What Qwen, Llama and SmolLM have in common here
    "vocab_size": 320,  # A byte-level tokenizer needs more
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
LLAMA3 = {  # Pairs of features on both sides of either border, and between them
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10_000.0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {  # case -> model_type, template, settings
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2-sliding": (
        "qwen2", "qwen2",
        {
            "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16, "tie_word_embeddings": False}),
    "llama": ("llama", "llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "smollm2": ("llama", "smollm2", {"num_attention_heads": 6, "rms_norm_eps": 1e-5}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 4, "num_key_value_heads": 1}),
    "smollm3-sliding": (
        "smollm3", "smollm3",
        {
            "use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
    ),
}  # fmt: skip
CASES = ("second", "second-mqa", "second-plain", "third", "third-mqa", "third-eyes")


def tokenizer(
    case: str = "",  # Key of FAMILIES; a Gemma otherwise
) -> Tokenizer:  # It fits the tiny vocabulary
    "Make the tokenizer of a tiny model."
    if case in FAMILIES:
        return byte_tokenizer(FAMILIES[case][1])
    return train_tokenizer(TEXTS, vocabulary=VOCABULARY)


def make(
    case: str,  # One of CASES or FAMILIES, or "second-short" or "third-short"
    seed: int = 0,  # Of its weights
) -> transformers.PreTrainedModel:  # In float32, ready to be compared with
    """Build a random model whose norms, too, are random.

    Small embeddings before a large last norm: else a random model repeats its last token forever.
    """
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = _shape(case).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(std=0.3 if value.ndim == 1 else 1.5 * value[0].numel() ** -0.5)
            if "embed_tokens" in name:
                value.mul_(0.3)
            if name.endswith("norm.weight") and case in FAMILIES:
                value.add_(1)  # They keep the gain itself, not its offset from one
            if name.endswith("model.norm.weight"):
                value.add_(3)
    words = tokenizer(case)
    model.generation_config.eos_token_id = ends(words, case)
    model.generation_config.pad_token_id = 0
    model.words = words  # type: ignore[assignment]
    return model


def _shape(case: str) -> transformers.PreTrainedModel:
    eager = {"attn_implementation": "eager"}
    if case in FAMILIES:
        kind, _, settings = FAMILIES[case]
        given = OTHER | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0} | settings
        config = transformers.AutoConfig.for_model(kind, **given, **eager)
        return transformers.AutoModelForCausalLM.from_config(config)
    if case == "second":
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SECOND, **eager))
    if case == "second-short":
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SECOND | SHORT, **eager))
    if case == "third-short":
        return transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**THIRD | SHORT, **eager)
        )
    if case == "second-mqa":  # 3 * 16 = 48: heads as wide as the model
        heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SECOND | heads, **eager))
    if case == "second-plain":  # No caps, every head with keys of its own
        plain = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        return transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(
                **SECOND | SHORT | plain | {"num_key_value_heads": 4}, **eager
            )
        )
    if case == "third":
        return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**THIRD, **eager))
    if case == "third-mqa":
        one = {"num_key_value_heads": 1, "rope_parameters": None}
        return transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**THIRD | FEWER | one, **eager)
        )
    text, vision = (
        transformers.Gemma3TextConfig(**THIRD | FEWER),
        transformers.SiglipVisionConfig(**VISION),
    )
    whole = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3, **eager
    )
    return transformers.Gemma3ForConditionalGeneration(whole)


def ends(words: Tokenizer, case: str = "") -> list[int]:
    "The tokens at which a response ends."
    if case in FAMILIES:
        return words.convert_tokens_to_ids(list(ENDS[FAMILIES[case][1]]))
    return [words.eos_token_id, end_of_turn(words)]


def publish(
    model: transformers.PreTrainedModel,  # From `make`
    folder: Path,  # Created
    **how: Any,  # For `save_pretrained`, such as max_shard_size="20KB"
) -> Path:  # The same folder
    "Save a model and its tokenizer as Hugging Face does."
    model.save_pretrained(folder, **how)
    model.words.save_pretrained(folder)  # type: ignore[operator, union-attr]
    return folder


def scores(
    model: transformers.PreTrainedModel,  # Any of them
    tokens: np.ndarray,  # [B, T]
) -> np.ndarray:  # Logits, [B, T, V]
    "Ask a model of theirs for its logits."
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def continuation(
    model: transformers.PreTrainedModel,  # Any of them
    prompt: list[int],  # Tokens
    new: int,  # How many to write at most
) -> list[int]:  # Without the token that ended it
    "Let a model of theirs write greedily."
    import torch

    end = model.generation_config.eos_token_id
    given = torch.tensor([prompt])
    with torch.no_grad():
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0,
        )
    found = written[0, len(prompt) :].tolist()
    return found[:-1] if found and found[-1] in end else found
