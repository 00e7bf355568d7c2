"""Known faults of reinforcement learning on language models: each formula that is wrong, and ours.

The number in a test's name is that of the list which the project keeps. Every test shows that the
faulty formula gives another result on the same input, so it would fail if ours became that. Faults
12, 13, 17 and 18 are of preferences, rewards and data, and are tested there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix_rt.core.errors import TrainingError
from tunix_rt.inference.engine import Completion, SamplingParams, generate
from tunix_rt.inference.sampling import request_keys
from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.lora import LoraConfig, add_lora
from tunix_rt.models.tokenizer import encode_prompts, end_of_turn, train_tokenizer
from tunix_rt.rewards.functions import load_rewards, score_completions
from tunix_rt.rl.advantages import EPSILON, group_advantages
from tunix_rt.rl.policy_batch import Answer, PolicyShape, pack_answers
from tunix_rt.rl.policy_loss import LOSSES, kl_penalty, policy_objective, token_weights
from tunix_rt.rl.rollouts import encode_questions, step_seed
from tunix_rt.traces.schema import Trace
from tunix_rt.training.config import TrainConfig
from tunix_rt.training.logprobs import batch_logprobs
from tunix_rt.training.train_step import make_step

TEXTS = ["What is 47 plus 86?\nones: 7 + 6 = 13, write 3, carry 1\n<answer>133</answer>"] * 20
TOKENIZER = train_tokenizer(TEXTS, vocabulary=128)
PROMPTS = encode_prompts(TOKENIZER, ["What is 1 plus 2?", "What is 7 plus 6?"])


@pytest.fixture(scope="module")
def model() -> Gemma:
    shape = preset("tiny").resized(
        vocabulary=len(TOKENIZER), width=32, layers=1, query_heads=2, key_heads=1, head_width=16,
        hidden=64, positions=128,
    )  # fmt: skip
    return Gemma(shape, nnx.Rngs(0))


def sampled(model: Gemma, temperature: float = 1.0) -> list[Completion]:
    how = SamplingParams(
        max_new_tokens=12, temperature=temperature, samples=4, seed=5, logprobs=True
    )
    return generate(model, TOKENIZER, PROMPTS, how, batch_size=8)


def answers_to(said: list[Completion]) -> list[Answer]:
    "The completions as answers, of which every second one did better."
    return [
        Answer(PROMPTS[one.prompt], one.written, one.logprobs or [], 1.0 - number % 2 * 2)
        for number, one in enumerate(said)
    ]


def pack_them(answers: list[Answer], name: str = "dapo") -> Any:
    return pack_answers(answers, PolicyShape(64, 8), LOSSES[name], max_length=12)


def plain_answers(*lengths: int, counted: tuple[bool, ...] = ()) -> list[Answer]:
    counted = counted or (True,) * len(lengths)
    return [
        Answer([9, 9], [7] * size, [-1.0] * size, -1.0, counted=one)
        for size, one in zip(lengths, counted, strict=True)
    ]


def test_01_a_long_wrong_answer_is_pushed_down_as_hard_as_a_short_one() -> None:
    lengths = np.array([2, 8])
    for ours in ("dr_grpo", "dapo"):
        weights = token_weights(lengths, LOSSES[ours].normalize, 10)
        assert weights[0] == pytest.approx(weights[1])
    faulty = 1 / (len(lengths) * lengths)  # The mean of each answer's own mean
    assert faulty[0] == pytest.approx(4 * faulty[1])


def test_02_slices_of_a_batch_add_up_to_the_batch(model: Gemma) -> None:
    answers = answers_to(sampled(model))
    answers = [
        replace(one, tokens=one.tokens[: 3 + 2 * n], logprobs=one.logprobs[: 3 + 2 * n])
        for n, one in enumerate(answers)
    ]
    batch, found = pack_them(answers), {}
    for rows in (0, 2):
        config = TrainConfig(batch_size=8, seq_length=64, micro_batch_size=rows, learning_rate=1e-3)
        objective = policy_objective(config, LOSSES["dapo"])
        state, step = make_step(model, objective, config, count=lambda batch: 1.0, padded=True)
        _, figures = step(state, batch)
        found[rows] = [float(figures[name]) for name in ("loss", "gradient_norm", "entropy")]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-4, atol=1e-6)
    mask, signed = batch.loss_mask, np.where(batch.loss_mask, batch.advantages, 0)
    whole = signed.sum() / mask.sum()
    slices = [(signed[at : at + 2].sum(), mask[at : at + 2].sum()) for at in range(0, 8, 2)]
    faulty = np.mean([total / count for total, count in slices if count])
    assert abs(faulty - whole) > 0.02


def test_03_what_is_masked_is_in_no_denominator() -> None:
    batch = pack_them(plain_answers(4, 12, counted=(True, False)))
    assert batch.weights.sum() == pytest.approx(1.0)
    faulty = batch.loss_mask / 16  # Divided by all tokens that were sampled
    assert faulty.sum() == pytest.approx(0.25)


def test_03_a_batch_of_masked_answers_is_zero_and_not_nan() -> None:
    batch = pack_them(plain_answers(4, 12, counted=(False, False)))
    assert np.isfinite(batch.weights).all() and not batch.weights.any()
    with np.errstate(invalid="ignore"):
        faulty = np.float64(0) / batch.loss_mask.sum()
    assert np.isnan(faulty)


def test_04_the_gradient_of_the_kl_is_that_of_the_kl() -> None:
    scores, ref = jnp.array([0.0, 2.0, -2.0]), jax.nn.log_softmax(jnp.array([2.0, 0.0, 0.0]))
    odds = jax.nn.softmax(scores)

    def exact(scores: jax.Array) -> jax.Array:
        return (jax.nn.softmax(scores) * (jax.nn.log_softmax(scores) - ref)).sum()

    def sampled_often(estimate: Any) -> Any:  # Answers of the policy, which do not move with it
        return jax.grad(lambda x: (odds * estimate(jax.nn.log_softmax(x), ref)).sum())(scores)

    right = np.asarray(jax.grad(exact)(scores))
    np.testing.assert_allclose(sampled_often(kl_penalty), right, atol=1e-6)
    k1 = sampled_often(lambda logp, ref: logp - ref)
    k3 = sampled_often(lambda logp, ref: jnp.exp(ref - logp) - (ref - logp) - 1)
    assert np.abs(right).max() > 0.3
    np.testing.assert_allclose(k1, np.zeros(3), atol=1e-6)
    assert np.abs(np.asarray(k3) - right).max() > 0.1


def test_05_nearly_equal_rewards_are_no_signal() -> None:
    rewards = np.array([[0.5, 0.5 + 1e-9, 0.5, 0.5 - 1e-9]])
    assert not group_advantages(rewards, "std").values.any()
    faulty = (rewards - rewards.mean()) / rewards.std(ddof=1)
    assert np.abs(faulty).max() > 1
    three = np.array([[0.1 + 0.2, 0.3, 0.3, 0.3]])  # They differ in the last bit
    assert not group_advantages(three, "std").mixed.any()
    assert EPSILON > 0


def test_06_a_missing_reward_is_left_out_of_the_baseline() -> None:
    rewards = np.array([[1.0, np.nan, 0.0, 1.0]])
    found = group_advantages(rewards).values[0]
    np.testing.assert_allclose(found, [1 / 3, 0, -2 / 3, 1 / 3])
    as_zero = np.nan_to_num(rewards)
    faulty = (as_zero - as_zero.mean())[0]
    assert faulty[1] == -0.5 and faulty[0] == 0.5  # Punished for the judge's failure


def test_07_a_reward_of_zero_is_a_reward() -> None:
    def first_missing(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if index == 0 else float(index == 3) for index in range(len(completions))]

    trace = Trace.model_validate({"prompt": "1 + 1", "steps": [], "final_answer": "2"})
    texts = [Completion(0, n, [7], "x", "length", None, 1, 1) for n in range(4)]
    scored = score_completions(
        load_rewards([first_missing]), [trace] * 4, texts, conversational=False
    )
    assert np.isnan(scored.total[0]) and scored.total[1:].tolist() == [0, 0, 1]
    found = group_advantages(scored.total[None])
    assert found.counted[0].tolist() == [False, True, True, True]
    faulty = [value or None for value in scored.total[1:].tolist()]
    assert faulty == [None, None, 1.0]  # A group of one: nothing to learn


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_08_the_trainer_uses_the_temperature_of_the_sampler(
    model: Gemma, temperature: float
) -> None:
    batch = pack_them(answers_to(sampled(model, temperature)))
    config = TrainConfig(batch_size=8, seq_length=64)
    gap = "sampling/sampling_logp_difference/max"
    ours = policy_objective(config, LOSSES["dapo"], temperature=temperature)
    assert float(jax.jit(ours)(model, batch)[1][gap]) < 1e-4
    faulty = policy_objective(config, LOSSES["dapo"])
    assert float(jax.jit(faulty)(model, batch)[1][gap]) > 0.05


def test_08_a_truncated_distribution_is_recorded_as_such(model: Gemma) -> None:
    how = SamplingParams(max_new_tokens=12, temperature=1.0, top_k=3, seed=1, logprobs=True)
    said = generate(model, TOKENIZER, PROMPTS, how, batch_size=8)
    batch = pack_them(answers_to(said))
    rows = map(jnp.asarray, (batch.tokens, batch.positions, batch.segment_ids))
    plain = np.asarray(jax.jit(batch_logprobs)(model, *rows).logprobs)[batch.loss_mask]
    recorded = batch.sampler_logprobs[batch.loss_mask]
    # Three tokens share all of the probability, so each has more than in the whole softmax.
    assert (recorded >= plain - 1e-5).all() and (recorded - plain).mean() > 0.5
    faulty = np.exp(plain)  # The ratio to the untruncated softmax is wrong at every token
    assert (faulty < np.exp(recorded) - 1e-4).all()


def test_09_a_gap_between_sampler_and_trainer_is_seen_and_weighed(model: Gemma) -> None:
    batch = pack_them(answers_to(sampled(model)))
    objective = policy_objective(TrainConfig(batch_size=8, seq_length=64), LOSSES["dapo"])
    slope = jax.jit(nnx.value_and_grad(objective, has_aux=True))
    gap = "sampling/sampling_logp_difference/max"
    assert float(slope(model, batch)[0][1][gap]) < 1e-4
    moved = nnx.clone(model)
    moved.embedding[...] = moved.embedding[...] * 1.5
    (loss, figures), _ = slope(moved, batch)
    assert float(figures[gap]) > 0.05
    faulty = -(batch.weights * batch.advantages).sum()  # The sampler's word is not asked
    assert abs(float(loss) - faulty) > 1e-3


def test_10_each_of_several_end_tokens_ends_an_answer(model: Gemma) -> None:
    ends = [end_of_turn(TOKENIZER), TOKENIZER.eos_token_id]
    assert len(set(ends)) == 2
    for end in ends:
        sure = nnx.clone(model)  # A model that says one token whenever it can
        hidden = sure.embedding[...]
        sure.embedding[...] = hidden.at[:].set(0.01 * hidden).at[end].set(hidden[PROMPTS[0][-1]])
        how = SamplingParams(max_new_tokens=64, temperature=1.0, samples=8, seed=2)
        said = generate(sure, TOKENIZER, PROMPTS, how, batch_size=16)
        ended = [one for one in said if one.stop_reason == end]
        assert ended and {one.finish_reason for one in ended} == {"stop"}
        assert all(one.written[-1] == end for one in ended)
    faulty = [one.written[-1] == ends[0] for one in ended]
    assert not any(faulty)  # By one end token alone, these would all count as cut off


def test_11_the_mask_comes_from_lengths_and_not_from_tokens() -> None:
    pad = TOKENIZER.pad_token_id
    answer = Answer([5, 6], [7, pad, 8, pad], [-1.0] * 4, 1.0)
    batch = pack_answers([answer], PolicyShape(16, 1), LOSSES["dapo"], max_length=4)
    assert batch.loss_mask[0].nonzero()[0].tolist() == [2, 3, 4, 5]
    faulty = (batch.tokens != pad)[0]
    assert faulty.nonzero()[0].tolist() == [0, 1, 2, 4]


def test_14_a_prompt_that_leaves_no_room_is_dropped_whole_and_counted() -> None:
    prompts = ["1 + 1?", "1 + 1?" * 40]
    traces = [Trace.model_validate({"prompt": p, "steps": [], "final_answer": "2"})
              for p in prompts]  # fmt: skip
    found = encode_questions(TOKENIZER, traces, positions=64, max_new_tokens=16)
    assert (len(found.prompts), found.dropped) == (1, 1)
    whole = encode_prompts(TOKENIZER, prompts)
    assert found.prompts == whole[:1]
    faulty = whole[1][-48:]  # The room that is left
    assert TOKENIZER.bos_token_id in whole[1] and TOKENIZER.bos_token_id not in faulty
    with pytest.raises(TrainingError, match="none leaves room"):
        encode_questions(TOKENIZER, traces, positions=16, max_new_tokens=16)


def test_15_sampled_ids_are_trained_on_and_never_read_again_from_text(model: Gemma) -> None:
    said = sampled(model)
    batch = pack_them(answers_to(said))
    held = batch.tokens[batch.loss_mask]
    assert sorted(held.tolist()) == sorted(t for one in said for t in one.written)
    words = TOKENIZER.get_vocab()
    merged = next(word for word in words if len(word) > 1 and word.isalpha())
    letters = [words[letter] for letter in merged]  # A model may well spell a word out
    again = TOKENIZER.encode(TOKENIZER.decode(letters), add_special_tokens=False)
    assert len(again) < len(letters)  # Read again, these would not be the tokens that were drawn


def test_16_no_two_draws_share_a_seed() -> None:
    keys = request_keys(np.uint32([(s, p, n) for s in (0, 1) for p in (0, 1) for n in (0, 1)]))
    assert len(set(map(str, jax.random.key_data(keys)))) == 8
    seeds = {step_seed(run, step, again) for run in (0, 1) for step in range(9) for again in (0, 1)}
    assert len(seeds) == 36
    faulty = {run + step + again for run in (0, 1) for step in range(9) for again in (0, 1)}
    assert len(faulty) < 36


def test_16_the_policy_has_no_dropout(model: Gemma) -> None:
    adapted = nnx.clone(model)
    add_lora(adapted, LoraConfig(rank=4, dropout=0.5), nnx.Rngs(1))
    for block in adapted.layers:
        for low in block.adapters.values():
            low.b[...] = low.b[...] + 0.1
    batch = pack_them(answers_to(sampled(adapted)))
    gap, config = "sampling/sampling_logp_difference/max", TrainConfig(batch_size=8, seq_length=64)
    objective = policy_objective(config, LOSSES["dapo"])
    assert float(jax.jit(objective)(adapted, batch, jax.random.key(0))[1][gap]) < 1e-4
    rows = [jnp.asarray(x) for x in (batch.tokens, batch.positions, batch.segment_ids)]
    faulty = np.asarray(jax.jit(batch_logprobs)(adapted, *rows, key=jax.random.key(0)).logprobs)
    assert np.abs(faulty - batch.sampler_logprobs)[batch.loss_mask].max() > 0.05
