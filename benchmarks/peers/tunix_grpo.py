"""Learn from rewards with google-tunix's GRPOLearner; started by `python benchmarks/grpo.py`.

Settings: float32, its own sampler with the smallest cache that fits, no rematerialization, no KL
penalty (its default costs a forward pass of a reference), token-mean loss, optax.adamw, one mesh of
one device for every role.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import optax
from flax import nnx
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix_model import build_model
from tunix_sampling import NumberTokenizer
from workload import (
    ANSWER_TOKENS,
    GENERATIONS,
    PROMPT_LENGTH,
    PROMPTS,
    SIZES,
    StepClock,
    arguments,
    even_share,
    prompts,
)

WARM_UP = 2  # Steps before the clock counts


def even(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    "Reward the share of even token ids."
    answers = [[int(word) for word in text.split()] for text in completions]
    assert {len(tokens) for tokens in answers} == {ANSWER_TOKENS}
    return [even_share(tokens) for tokens in answers]


def timed_batches(
    texts: list[str],  # The prompts of every step
    steps: int,  # Steps to take
    model: nnx.Module,  # Waited for, so that a step handed out is a step done
    clock: StepClock,  # Told where steps end
) -> Iterator[dict[str, np.ndarray]]:
    "Yield the prompts once a step, and tell the clock when the step before is finished."
    for number in range(steps + 1):
        if number:
            jax.block_until_ready(nnx.state(model))
            clock.step_done()
        if number < steps:
            yield {"prompts": np.array(texts)}


def build_cluster(
    model: nnx.Module,  # The policy, which also samples
    steps: int,  # Steps to take
) -> rl_cluster.RLCluster:  # Everything on one device
    "Put trainer and sampler together as google-tunix's examples do."
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-5),
            eval_every_n_steps=1_000_000,
            max_steps=steps + 1,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=ANSWER_TOKENS,
            max_prompt_length=PROMPT_LENGTH,
            kv_cache_size=PROMPT_LENGTH + ANSWER_TOKENS,
            temperature=1.0,
            eos_tokens=[-1],
        ),
    )
    return rl_cluster.RLCluster(actor=model, tokenizer=NumberTokenizer(), cluster_config=config)


def main() -> None:
    "Take a first step, one to warm up, then `--steps` against the clock."
    options = arguments(steps=5)
    size, clock = SIZES[options.size], StepClock()
    steps = WARM_UP + options.steps
    cluster = build_cluster(build_model(size), steps)
    how = GRPOConfig(num_generations=GENERATIONS, beta=0.0, loss_agg_mode="token-mean")
    learner = GRPOLearner(cluster, algo_config=how, reward_fns=even)
    # This one function samples, rewards and compares.
    sample = learner._generate_and_compute_advantage
    learner._generate_and_compute_advantage = clock.timed(sample)
    # The sampler puts a beginning-of-sequence token first, so each text is one token short.
    texts = [" ".join(map(str, row[1:])) for row in prompts(size)]
    clock.start()
    learner.train(timed_batches(texts, steps, cluster.actor_trainer.model, clock))
    clock.report(WARM_UP, PROMPTS * GENERATIONS * ANSWER_TOKENS)


if __name__ == "__main__":
    main()
