"Rewards against those who look for holes, and a judge that is a model of our own."

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tunix_rt.core.errors import ScoringError
from tunix_rt.data.datasets import load_dataset
from tunix_rt.inference.engine import Completion
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma, hidden_states, logits
from tunix_rt.models.tokenizer import encode_prompts, encode_responses, train_tokenizer
from tunix_rt.rewards.builtin import correct, read_completions
from tunix_rt.rewards.check import check_rewards
from tunix_rt.rewards.functions import BUILTIN, is_builtin, load_rewards, score_completions
from tunix_rt.rewards.judges import ModelJudge, grade_all, rubric_reward
from tunix_rt.traces.render import render_response
from tunix_rt.traces.schema import Trace


def said(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(0, 0, [ord(c) for c in text], text, finish_reason, None, 3, len(text) + 1)


ATTACKS = {
    "nothing": lambda t, good: "",
    "spaces": lambda t, good: " \n\t ",
    "the prompt": lambda t, good: t.prompt,
    "the prompt in tags": lambda t, good: (
        f"<reasoning>{t.prompt}</reasoning>\n<answer>{t.prompt}</answer>"
    ),
    "the prompt's last words": lambda t, good: (
        f"<reasoning>so</reasoning><answer>{' '.join(t.prompt.split()[-6:])}</answer>"
    ),
    "tags around nothing": lambda t, good: "<reasoning>\n</reasoning>\n<answer></answer>",
    "twice": lambda t, good: good * 2,
    "a hundred times": lambda t, good: good * 100,
    "the answer twice": lambda t, good: f"{good}\n<answer>{t.final_answer}</answer>",
    "an answer before": lambda t, good: f"<answer>{t.final_answer}</answer>{good}",
    "no working": lambda t, good: f"<answer>{t.final_answer}</answer>",
    "working and a guess in one": lambda t, good: (
        f"<reasoning>so<answer>{t.final_answer}</answer></reasoning>"
    ),
    "several answers": lambda t, good: (
        f"<reasoning>so</reasoning><answer>{t.final_answer} or {t.final_answer}1</answer>"
    ),
    "a list": lambda t, good: (
        f"<reasoning>so</reasoning><answer>0, 1, {t.final_answer}, {t.final_answer}9</answer>"
    ),
    "words after it": lambda t, good: f"{good} That is it.",
    "words before it": lambda t, good: f"Well. {good}",
    "open": lambda t, good: good.removesuffix("</answer>"),
    "half a tag": lambda t, good: good.removesuffix(">"),
    "other tags": lambda t, good: good.replace("answer>", "result>"),
    "very long": lambda t, good: good.replace("</answer>", " " + "x" * 60_000 + "</answer>"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("key", ["golden-v2", "dev-reasoning-v1"])
def test_no_attack_earns_anything(key: str, attack: str):
    traces = [trace for trace in load_dataset(key) if trace.steps]
    texts = [ATTACKS[attack](trace, render_response(trace)) for trace in traces]
    batch = score_completions(load_rewards("correct"), traces, list(map(said, texts)))
    earned = [text for text, total in zip(texts, batch.total, strict=True) if total != 0]
    assert earned == []


@pytest.mark.parametrize("key", ["golden-v2", "dev-reasoning-v1"])
def test_what_is_right_earns_and_what_was_cut_off_does_not(key: str):
    traces = [trace for trace in load_dataset(key) if trace.steps]
    good = [render_response(trace) for trace in traces]
    rewards = load_rewards("correct")
    assert score_completions(rewards, traces, list(map(said, good))).total.tolist() == [1.0] * len(
        traces
    )
    cut = [said(text, "length") for text in good]
    assert score_completions(rewards, traces, cut).total.tolist() == [0.0] * len(traces)
    assert check_rewards(rewards, traces).ok


PIECES = ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "4", " ", "\n", "2 + 2 = 4", "x"]


@examples(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=60))
def test_any_text_is_worth_something_and_only_the_form_pays(text: str):
    trace = Trace(prompt="What is 2 + 2?", steps=[], final_answer="4")
    rewards = "correct, format, step_validity, length(target=9), repetition"
    values = score_completions(load_rewards(rewards), [trace], [said(text)]).values[0]
    assert values[0] in (0, 1) and values[1] >= values[0] and -1 <= values[3] <= 0 >= values[4]
    if values[0]:
        assert text.strip().startswith("<reasoning>") and text.strip().endswith("</answer>")
        assert text.count("<answer>") == text.count("</answer>") == 1


def test_a_reward_is_tried_with_the_tokens_of_the_model():
    traces = list(load_dataset("dev-reasoning-v1"))[:40]
    words = train_tokenizer([render_response(trace) for trace in traces], vocabulary=300)
    counts = [len(ids) for ids in encode_responses(words, [render_response(t) for t in traces])]
    lengths: list[int] = []

    def counting(completion_ids, completion_tokens, **columns):
        lengths.extend(completion_tokens)
        assert all(
            n - len(ids) in (0, 1) for n, ids in zip(completion_tokens, completion_ids, strict=True)
        )
        return [0.0] * len(completion_ids)

    rewards = load_rewards(["correct", counting, f"overlong(max_length={max(counts)}, cache=1)"])
    check = check_rewards(rewards, traces, tokenizer=words, limit=len(traces))
    assert check.ok and check.tried == len(traces) and not check.missed
    assert lengths[::6] == counts  # The right response, with the end of the turn
    assert lengths[2::6] == [count - 1 for count in counts]  # The same, cut off before it
    assert lengths[5::6] == [1] * len(traces)  # Silence ends the turn, and says nothing
    assert check.offers[2].rewards["overlong"] == -1.0


def test_names_are_ours_and_paths_are_not():
    assert all(map(is_builtin, BUILTIN)) and is_builtin("overlong(max_length=9, cache=3)")
    for spec in ("os:system", "mine.py:correct", "tunix_rt.rewards.builtin:correct", "nothing"):
        assert not is_builtin(spec)
    with pytest.raises(ScoringError, match="overlong"):
        load_rewards("overlong(max_length=16, cache=32)")


JAR = Trace(
    prompt="Write a line.",
    steps=[],
    final_answer="(judged by its rubric)",
    meta={"match": "rubric", "rubric": "It names a jar."},
)


def overfitted(texts: dict[str, str]) -> tuple[Gemma, object]:
    "A model that replies to a few prompts as it was trained to."
    words = train_tokenizer([*texts, *texts.values()] * 3, vocabulary=700)
    shape = preset("tiny").resized(
        vocabulary=len(words), width=64, layers=1, query_heads=2, key_heads=1, head_width=32,
        hidden=128, positions=1024,
    )  # fmt: skip
    model = Gemma(shape, nnx.Rngs(0))
    prompts = encode_prompts(words, list(texts))
    replies = encode_responses(words, list(texts.values()))
    longest = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
    tokens = np.zeros((len(texts), longest), np.int32)
    counts = np.zeros((len(texts), longest), bool)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        tokens[row, : len(prompt) + len(reply)] = prompt + reply
        counts[row, len(prompt) : len(prompt) + len(reply)] = True
    positions = np.broadcast_to(np.arange(longest), tokens.shape)
    segments = np.ones_like(tokens)

    def loss(model):
        hidden = hidden_states(model, *map(jnp.asarray, (tokens, positions, segments)))
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits(model, hidden)[:, :-1], tokens[:, 1:]
        )
        return (each * counts[:, 1:]).sum() / counts.sum()

    optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    for _ in range(120):
        value = step(model, optimizer)
    assert float(jax.device_get(value)) < 0.02
    return model, words


def test_a_model_of_our_own_judges(tmp_path):
    from tunix_rt.evaluation.llm_judge import judge_request

    poems = [f"<reasoning>so</reasoning><answer>{line}</answer>" for line in ("A jar.", "A cup.")]
    pairs = read_completions([JAR] * 2, poems, ["stop"] * 2, [9] * 2)
    requests = [judge_request(*pair) for pair in pairs]
    verdicts = [json.dumps({"scores": [score], "reason": "so"}) for score in (9, 2)]
    texts = [f"{request.instructions}\n{request.question}" for request in requests]
    model, words = overfitted(dict(zip(texts, verdicts, strict=True)))

    judge = ModelJudge(model, words, name="critic", max_new_tokens=40)
    assert [grade.score for grade in grade_all(judge, pairs)] == [0.9, 0.2]
    reward = load_rewards(rubric_reward(judge, cache=tmp_path))
    completions = [*map(said, poems), said("A jar.")]
    assert score_completions(reward, [JAR] * 3, completions).total.tolist() == [0.9, 0.2, 0.0]
    hurried = ModelJudge(model, words, name="hurried", max_new_tokens=3)
    assert grade_all(hurried, pairs) == [None, None]
    assert correct(
        trace=[JAR], completions=poems[:1], finish_reason=["stop"], completion_tokens=[9]
    ) == [None]
