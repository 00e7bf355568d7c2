"""Chat templates of every family: what is trained on is what the model says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import ENDS, SPECIAL, TEMPLATES, byte_tokenizer

from tunix_rt.core.errors import ModelError
from tunix_rt.models.tokenizer import (
    check_chat_template,
    encode_prompts,
    encode_responses,
    end_of_turn,
    end_tokens,
    load_tokenizer,
    render_chats,
    save_tokenizer,
)
from tunix_rt.traces.schema import parse_trace
from tunix_rt.training.packing import show_loss_mask, tokenize_traces

QUESTION, ANSWER = "What is 47 plus 86?\nПривет 🙂", "ones: 13\n<answer>133</answer>"
LAST = {"llama": "<|eot_id|>"}  # The others end a turn with <|im_end|>
OPENED = {
    "qwen2": "<|im_start|>assistant\n",
    "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "llama": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "smollm2": "<|im_start|>assistant\n",
    "smollm3": "<|im_start|>assistant\n<think>\n\n</think>\n",
}


@pytest.mark.parametrize("family", SPECIAL)
def test_the_published_template_is_accepted(family: str) -> None:
    check_chat_template(byte_tokenizer(family), "a folder")


@pytest.mark.parametrize("family", SPECIAL)
def test_prompt_and_response_are_the_tokens_of_the_whole_chat(family: str) -> None:
    words = byte_tokenizer(family)
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    prompt, response = encode_prompts(words, [QUESTION])[0], encode_responses(words, [ANSWER])[0]
    assert words.decode(prompt).endswith(OPENED[family])
    assert words.decode(response) == ANSWER + LAST.get(family, "<|im_end|>")
    (whole,) = render_chats(words, [chat], opened=False)
    together = words(whole, add_special_tokens=False).input_ids
    assert together[: len(prompt) + len(response)] == prompt + response
    assert not words.decode(together[len(prompt) + len(response) :]).strip()


@pytest.mark.parametrize("family", SPECIAL)
def test_only_the_answer_and_its_end_are_trained_on(family: str) -> None:
    words = byte_tokenizer(family)
    trace = parse_trace(
        {
            "trace_version": "1.0", "prompt": QUESTION, "final_answer": "133",
            "steps": [{"i": 0, "type": "compute", "content": "ones: 13"}],
        }
    )  # fmt: skip
    made = tokenize_traces(words, [trace], seq_length=400).examples[0]
    shown = show_loss_mask(words, made)
    hidden, said = shown.split("⟧")
    assert hidden.startswith("⟦") and hidden.endswith(OPENED[family])
    assert said.startswith("<reasoning>") and "⟦" not in said
    assert said.endswith("<answer>133</answer>" + LAST.get(family, "<|im_end|>"))


@pytest.mark.parametrize("family", SPECIAL)
def test_every_listed_end_stops_a_response(family: str, tmp_path: Path) -> None:
    words = byte_tokenizer(family)
    save_tokenizer(tmp_path, words)
    ids = words.convert_tokens_to_ids(list(ENDS[family]))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')  # The other one comes first
    again = load_tokenizer(tmp_path)
    assert set(end_tokens(again)) == set(ids)
    assert again.convert_ids_to_tokens(end_of_turn(again)) == LAST.get(family, "<|im_end|>")


def test_a_prompt_is_the_same_tomorrow() -> None:
    for family in ("llama", "smollm3"):
        text = byte_tokenizer(family).decode(encode_prompts(byte_tokenizer(family), ["Hi"])[0])
        assert "26 Jul" in text and "2024" in text


def test_classes_named_in_tokenizer_config_are_read(tmp_path: Path) -> None:
    for family, name in (("qwen2", "Qwen2Tokenizer"), ("smollm2", "GPT2Tokenizer")):
        words, folder = byte_tokenizer(family), tmp_path / family
        words.save_pretrained(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"tokenizer_class": name})
        )
        again = load_tokenizer(folder)
        check_chat_template(again, folder)
        prompt = encode_prompts(again, [QUESTION])[0]
        assert again.decode(prompt) == words.decode(encode_prompts(words, [QUESTION])[0])
        assert again.decode(encode_responses(again, [ANSWER])[0]).startswith(ANSWER)


@pytest.mark.parametrize("family", SPECIAL)
def test_a_pretrained_model_gets_the_template_of_its_tokens(family: str, tmp_path: Path) -> None:
    words = byte_tokenizer(family)
    words.chat_template = None
    words.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    check_chat_template(again, tmp_path)
    assert again.decode(encode_prompts(again, ["Hi"])[0]).count("Hi") == 1


def test_a_template_that_always_thinks_is_refused() -> None:
    words = byte_tokenizer("qwen3")
    words.chat_template = TEMPLATES["qwen3"].replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    )
    with pytest.raises(ModelError, match="not before an answer"):
        check_chat_template(words, "a folder")
