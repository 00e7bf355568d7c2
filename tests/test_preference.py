"Losses of preferences beside TRL's formulas, and a run that is cut short and resumed."

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_rt.models.tokenizer import end_of_turn, train_tokenizer
from tunix_rt.rl.preference_loss import (
    CHOSEN,
    MISMATCHED,
    REJECTED,
    PreferenceConfig,
    count_pairs,
    preference_losses,
)
from tunix_rt.rl.preference_pairs import (
    PreferencePair,
    encode_preferences,
    pack_pairs,
    row_length,
)

PAIRS = [
    PreferencePair("1 + 1?", "2", "3 3 3"),
    PreferencePair("Name a color.", "red, or blue", "17"),
    PreferencePair("What is 9 + 8?", "17", "it is 3"),
]
TOKENIZER = train_tokenizer(["user", "model", "2 3 17 red, or blue it is 1 + 1? color"] * 4, 128)


def example(loss_type: str) -> tuple[Any, np.ndarray]:
    "One row with all pairs, and log-probabilities of a policy and a reference."
    loss = PreferenceConfig(loss_type).loss
    encoded = encode_preferences(TOKENIZER, PAIRS, loss, max_length=128)
    rows = pack_pairs(encoded.units, max(512, row_length(encoded, loss)))
    assert len(rows.tokens) == 1
    draw = np.random.default_rng(0)
    policy, reference = (
        (-np.abs(draw.normal(1, 0.5, rows.roles.shape)) * (rows.roles > 0)).astype(np.float32)
        for _ in range(2)
    )
    return rows._replace(ref_logprobs=reference), policy


def answers(torch: Any, values: Any, rows: Any, role: int) -> tuple[Any, Any]:
    "The sums over one answer of each pair, and their lengths."
    pairs = range(1, int(rows.pair_ids.max()) + 1)
    at = [torch.tensor((rows.pair_ids == pair) & (rows.roles == role)) for pair in pairs]
    some = [each for each in at if each.any()]
    return (
        torch.stack([values[each].sum() for each in some]),
        torch.tensor([int(each.sum()) for each in some]),
    )


def in_trl(torch: Any, policy: Any, rows: Any, config: PreferenceConfig) -> Any:
    "The mean loss by the formulas of TRL 1.16 (dpo_trainer, cpo_trainer, orpo_trainer, kto)."
    F, beta = torch.nn.functional, config.loss.beta
    ref = torch.tensor(rows.ref_logprobs)
    w, w_len = answers(torch, policy, rows, CHOSEN)
    l, l_len = answers(torch, policy, rows, REJECTED)  # noqa: E741
    ref_w, ref_l = (answers(torch, ref, rows, role)[0] for role in (CHOSEN, REJECTED))
    if config.loss_type == "dpo":
        return -F.logsigmoid(beta * ((w - ref_w) - (l - ref_l))).mean()
    if config.loss_type == "ipo":
        delta = (w - ref_w) / w_len - (l - ref_l) / l_len
        return ((delta - 1 / (2 * beta)) ** 2).mean()
    if config.loss_type == "simpo":
        gamma = config.gamma_beta_ratio * beta
        return -F.logsigmoid(beta * (w / w_len - l / l_len - gamma / beta)).mean()
    if config.loss_type == "orpo":
        w, l = w / w_len, l / l_len  # noqa: E741
        odds = (w - l) - (torch.log1p(-torch.exp(w)) - torch.log1p(-torch.exp(l)))
        return (-w).mean() - (beta * F.logsigmoid(odds)).mean()
    moved = answers(torch, policy.detach() - ref, rows, MISMATCHED)[0]
    kl = moved.mean().clamp(min=0)
    good = 1 - torch.sigmoid(beta * (w - ref_w - kl))
    bad = 1 - torch.sigmoid(beta * (kl - (l - ref_l)))
    return torch.cat((good, bad)).mean()


@pytest.mark.parametrize("loss_type", ["dpo", "ipo", "simpo", "orpo", "kto"])
def test_losses_and_gradients_are_those_of_trl(loss_type: str) -> None:
    torch = pytest.importorskip("torch")
    config, (rows, policy) = PreferenceConfig(loss_type), example(loss_type)
    leaf = torch.tensor(policy, requires_grad=True)
    expected = in_trl(torch, leaf, rows, config)
    expected.backward()
    batch = jax.tree.map(jnp.asarray, rows)

    def ours(logprobs: jax.Array) -> jax.Array:
        return preference_losses(logprobs, batch, config)[0].sum() / count_pairs(batch)

    value, slope = jax.value_and_grad(ours)(jnp.asarray(policy))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, leaf.grad.numpy(), atol=2e-6)


@pytest.mark.parametrize("loss_type", ["dpo", "kto"])
def test_a_chat_has_one_beginning_and_one_end_of_each_turn(loss_type: str) -> None:
    stop, beginning = end_of_turn(TOKENIZER), TOKENIZER.bos_token_id
    carrying = [
        PreferencePair(pair.prompt, f"{pair.chosen}<end_of_turn>\n<eos>", pair.rejected)
        for pair in PAIRS
    ]
    loss = PreferenceConfig(loss_type).loss
    plain, marked = (
        encode_preferences(TOKENIZER, pairs, loss, max_length=128) for pairs in (PAIRS, carrying)
    )
    for unit, other in zip(plain.units, marked.units, strict=True):
        for part, same in zip(unit, other, strict=True):
            assert part.tokens.tolist() == same.tokens.tolist()
            assert (part.tokens == beginning).sum() == 1
            assert (part.tokens[part.start :] == stop).sum() == 1
            assert part.tokens[-1] == stop


def test_a_run_that_was_cut_short_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunix_rt.api import create_model, make_dataset
    from tunix_rt.core.files import read_json, write_json
    from tunix_rt.core.settings import settings
    from tunix_rt.preferences import preference

    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()
    questions, _ = make_dataset("arithmetic-steps", train=24, held_out=4)
    traces = list(questions.train_traces())
    pairs = [PreferencePair(t.prompt, t.final_answer, f"{t.final_answer}0") for t in traces]

    def session(folder: str) -> Any:
        model = create_model("tiny", traces)
        return preference(
            model, pairs, validation_pairs=4, max_steps=4, batch_size=2, checkpoint_every=2,
            log_every=1, run_dir=folder, quiet=True,
        )  # fmt: skip

    whole = session("outputs/runs/whole")
    cut, kept = tmp_path / "outputs/runs/cut", whole.run.folder
    shutil.copytree(kept, cut)
    shutil.rmtree(cut / "checkpoints" / "4")
    shutil.rmtree(cut / "model")
    facts = read_json(cut / "run.json")
    write_json(cut / "run.json", facts | {"status": "failed", "run_id": str(uuid4())})
    stamp = (cut / "reference.npz").stat().st_mtime_ns
    again = session("outputs/runs/cut")
    settings.cache_clear()
    assert again.results["resumed_from"] == 2
    assert (cut / "reference.npz").stat().st_mtime_ns == stamp, "the reference is computed once"
    assert again.metrics["loss"].tolist() == whole.metrics["loss"].tolist()
    first, second = (folder / "model" / "model.safetensors" for folder in (kept, cut))
    assert first.read_bytes() == second.read_bytes()
