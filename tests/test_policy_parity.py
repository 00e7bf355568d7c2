"""Our policy losses and advantages beside TRL's: equal inputs give equal gradients.

The formulas of TRL 1.16 (GRPOTrainer, RLOOTrainer) are written here in torch, on padded answers as
TRL holds them, with autograd for the gradient. Ours run on packed rows, as in training. Where TRL
and this library differ on purpose, a test says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_rt.rl.advantages import group_advantages
from tunix_rt.rl.policy_batch import Answer, PolicyShape, pack_answers
from tunix_rt.rl.policy_loss import LOSSES, PolicyLoss, kl_penalty, token_losses

torch = pytest.importorskip("torch")

LENGTHS = np.array([3, 1, 7, 5, 2, 6, 4, 8])  # Tokens of eight answers, two groups of four
LONGEST, GROUP = 8, 4
SAME = ("dr_grpo", "dapo", "grpo", "gspo", "cispo", "rloo")  # Losses that TRL has, too


class Case(NamedTuple):
    "Eight answers; token ids count up from 1, so that an id finds its log-probability."

    new: np.ndarray  # Log-probability of each token under the current policy, [tokens + 1]
    old: np.ndarray  # The same under the policy that sampled, [tokens + 1]
    advantages: np.ndarray  # Of each answer, [8]


def make_case(seed: int, spread: float) -> Case:
    "Draw log-probabilities that have moved by about `spread` since they were sampled."
    draw = np.random.default_rng(seed)
    old = -np.abs(draw.normal(1.5, 0.8, LENGTHS.sum() + 1))
    moved = np.minimum(old + draw.normal(0, spread, old.shape), -1e-3)
    rewards = draw.random((2, GROUP)).round(1)
    return Case(moved, old, group_advantages(rewards, "std").values.ravel())


def token_ids() -> list[list[int]]:
    "The ids of each answer's tokens."
    ends = np.cumsum(LENGTHS)
    return [list(range(end - size + 1, end + 1)) for end, size in zip(ends, LENGTHS, strict=True)]


def packed(case: Case, loss: PolicyLoss) -> Any:
    "The batch as training packs it, with the old log-probabilities in it."
    answers = [
        Answer([0, 0], ids, case.old[ids].tolist(), advantage)
        for ids, advantage in zip(token_ids(), case.advantages, strict=True)
    ]
    batch = pack_answers(answers, PolicyShape(16, 8), loss, max_length=LONGEST)
    old = np.where(batch.loss_mask, case.old[batch.tokens], 0)
    return jax.tree.map(jnp.asarray, batch._replace(old_logprobs=old))


def ours(case: Case, loss: PolicyLoss) -> tuple[float, np.ndarray, dict[str, float]]:
    "Loss, its gradient at each token, and the figures for the log."
    batch = packed(case, loss)

    def total(new: jax.Array) -> Any:
        losses, figures = token_losses(new[batch.tokens], batch, loss)
        return losses.sum(), figures

    (value, figures), slope = jax.value_and_grad(total, has_aux=True)(jnp.asarray(case.new))
    return float(value), np.asarray(slope)[1:], {name: float(x) for name, x in figures.items()}


def padded(values: np.ndarray, fill: float = 0.0) -> Any:
    "A row for each answer, as TRL pads them, [8, 8]."
    rows = [values[ids].tolist() + [fill] * (LONGEST - len(ids)) for ids in token_ids()]
    return torch.tensor(rows, dtype=torch.float64)


def theirs_grpo(
    new: Any, old: Any, mask: Any, advantages: Any, loss: PolicyLoss, name: str
) -> tuple[Any, Any]:
    "TRL's loss of one accumulation window, and the ratios."
    advantages = advantages.unsqueeze(1)
    log_ratio = new - old
    if name == "gspo":  # importance_sampling_level="sequence" with loss_type="grpo"
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    ratio = torch.exp(log_ratio)
    if name == "cispo":
        each = -torch.clamp(ratio, max=loss.epsilon_high).detach() * advantages * new
    else:
        cut = torch.clamp(ratio, 1 - loss.epsilon, 1 + loss.epsilon_high)
        each = -torch.min(ratio * advantages, cut * advantages)
    if name in ("grpo", "gspo"):
        return ((each * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean(), ratio
    divisor = len(mask) * LONGEST if name == "dr_grpo" else mask.sum()
    return (each * mask).sum() / divisor, ratio


def theirs_rloo(
    new: Any, old: Any, mask: Any, advantages: Any, loss: PolicyLoss, name: str
) -> tuple[Any, Any]:
    "TRL's RLOO: one ratio for each answer."
    ratio = torch.exp(((new - old) * mask).sum(1))
    cut = torch.clamp(ratio, 1 - loss.epsilon, 1 + loss.epsilon_high)
    return torch.max(-advantages * ratio, -advantages * cut).mean(), ratio


def theirs(case: Case, loss: PolicyLoss, name: str) -> tuple[float, np.ndarray, Any]:
    "Loss, its gradient at each token, and the ratios."
    new = padded(case.new).requires_grad_()
    mask = padded(np.ones(len(case.new)))
    formula = theirs_rloo if name == "rloo" else theirs_grpo
    advantages = torch.tensor(case.advantages)
    value, ratio = formula(new, padded(case.old), mask, advantages, loss, name)
    value.backward()
    return float(value.detach()), new.grad[mask.bool()].numpy(), ratio.detach()


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("name", SAME)
def test_losses_and_gradients_are_those_of_trl(name: str, spread: float) -> None:
    for seed in range(3):
        case, loss = make_case(seed, spread), LOSSES[name]
        value, slope, _ = ours(case, loss)
        expected, gradient, _ = theirs(case, loss, name)
        assert value == pytest.approx(expected, abs=2e-6)
        np.testing.assert_allclose(slope, gradient, atol=2e-6)
        assert np.abs(gradient).max() > 1e-3


def test_the_cases_reach_the_clipped_side() -> None:
    for name in ("dapo", "gspo", "cispo", "rloo"):
        loss = LOSSES[name]
        *_, ratio = theirs(make_case(0, 0.5), loss, name)
        above = 1.6 if name == "cispo" else 1 + loss.epsilon_high
        assert (ratio > above).any() and (ratio < 1 - loss.epsilon).any()
    narrow = PolicyLoss("std", "token", "tokens", epsilon_high=1.1, clipped=False)
    case = make_case(0, 0.5)
    np.testing.assert_allclose(
        ours(case, narrow)[1], theirs(case, narrow, "cispo")[1], atol=2e-6
    )  # The cap of CISPO, where ratios do pass it


@pytest.mark.parametrize("name", ["dr_grpo", "dapo", "grpo"])
def test_shares_of_clipped_tokens_are_those_of_trl(name: str) -> None:
    case, loss = make_case(1, 0.5), LOSSES[name]
    _, _, figures = ours(case, loss)
    *_, ratio = theirs(case, loss, name)
    mask, advantages = padded(np.ones(len(case.new))), torch.tensor(case.advantages)[:, None]
    low = (ratio < 1 - loss.epsilon) & (advantages < 0)
    high = (ratio > 1 + loss.epsilon_high) & (advantages > 0)
    for part, clipped in (("low", low), ("high", high), ("region", low | high)):
        expected = float((clipped * mask).sum() / mask.sum())
        assert figures[f"clip_ratio/{part}_mean"] / LENGTHS.sum() == pytest.approx(expected)


REWARDS = [
    [[1, 0, 0, 1], [0.2, 0.9, 0.4, 0.5]],
    [[1, 0, np.nan, 1], [np.nan, np.nan, 0.4, 0.5]],  # A judge failed
    [[1, 1, 1, 1], [0, 0, 0, 0]],  # Nothing to compare
]


def torch_std(groups: Any) -> Any:
    "The sample standard deviation of what is there."
    there = (~torch.isnan(groups)).sum(1, keepdim=True)
    spread = torch.nanmean((groups - torch.nanmean(groups, 1, keepdim=True)) ** 2, 1, keepdim=True)
    return torch.sqrt(spread * there / (there - 1).clamp(min=1))


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("estimator", ["mean", "std", "leave_one_out"])
def test_advantages_are_those_of_trl(rewards: list[list[float]], estimator: str) -> None:
    groups = torch.tensor(rewards, dtype=torch.float64)
    centered = groups - torch.nanmean(groups, 1, keepdim=True)
    if estimator == "leave_one_out":
        there = (~torch.isnan(groups)).sum(1, keepdim=True)
        others = (torch.nansum(groups, 1, keepdim=True) - groups) / (there - 1)
        centered = groups - others
    if estimator == "std":
        centered = centered / (torch_std(groups) + 1e-4)
    expected = torch.nan_to_num(centered, nan=0.0).numpy()
    found = group_advantages(np.array(rewards, float), estimator)
    np.testing.assert_allclose(found.values, expected, atol=1e-9)


def test_a_kl_penalty_shows_their_value_and_follows_another_gradient() -> None:
    "TRL differentiates k3 as a loss; its gradient on samples of the policy is not that of the KL."
    scores, ref = (
        torch.tensor([0.0, 2.0, -2.0], requires_grad=True),
        torch.log_softmax(torch.tensor([2.0, 0.0, 0.0]), 0),
    )
    logp = torch.log_softmax(scores, 0)
    odds = logp.exp().detach()
    k3 = torch.exp(ref - logp) - (ref - logp) - 1
    found = kl_penalty(jnp.asarray(logp.detach().numpy()), jnp.asarray(ref.numpy()))
    np.testing.assert_allclose(found, k3.detach().numpy(), atol=1e-6)

    (of_k3,) = torch.autograd.grad((odds * k3).sum(), scores, retain_graph=True)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), scores)

    def expected(scores: jax.Array) -> jax.Array:  # Over the answers that the policy gives
        penalty = kl_penalty(jax.nn.log_softmax(scores), jnp.asarray(ref.numpy()))
        return (jnp.asarray(odds.numpy()) * penalty).sum()

    slope = jax.grad(expected)(jnp.asarray(scores.detach().numpy()))
    np.testing.assert_allclose(slope, exact, atol=1e-6)
    assert np.abs(of_k3.numpy() - exact.numpy()).max() > 0.1


def test_an_answer_cut_off_leaves_the_denominator_here_and_not_there() -> None:
    "TRL's dapo counts the tokens that are left, as ours; its grpo counts masked answers, too."
    case = make_case(2, 0.0)
    for name, same in (("dapo", True), ("grpo", False)):
        loss = LOSSES[name]
        answers = [
            Answer([0, 0], ids, case.old[ids].tolist(), advantage, counted=index > 1)
            for index, (ids, advantage) in enumerate(zip(token_ids(), case.advantages, strict=True))
        ]
        batch = pack_answers(answers, PolicyShape(16, 8), loss, max_length=LONGEST)
        mask = padded(np.ones(len(case.new)))
        mask[:2] = 0
        new = padded(case.new).requires_grad_()
        old, advantages = padded(case.old), torch.tensor(case.advantages)
        theirs_grpo(new, old, mask, advantages, loss, name)[0].backward()
        slope = -(batch.weights * batch.advantages)[np.asarray(batch.loss_mask)]
        order = np.argsort(batch.tokens[batch.loss_mask])
        close = np.allclose(slope[order], new.grad[mask.bool()].numpy(), atol=1e-6)
        assert close == same
