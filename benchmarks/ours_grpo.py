"""Learn from rewards with tunix_rt; started by `python benchmarks/grpo.py --contenders ours`.

Float32, AdamW, the loop's own step: sampling, rewards, groups, packing, update, figures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
from ours_model import build_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from workload import (
    ANSWER_TOKENS,
    GENERATIONS,
    PROMPTS,
    SIZES,
    Size,
    StepClock,
    arguments,
    even_share,
    prompts,
)

from tunix_rt.models.devices import choose_device
from tunix_rt.models.tokenizer import CONTROL
from tunix_rt.rewards.functions import load_rewards
from tunix_rt.rl import grpo
from tunix_rt.rl.policy_batch import policy_shape
from tunix_rt.rl.rollouts import GRPOConfig, Questions
from tunix_rt.traces.schema import Trace
from tunix_rt.training.preemption import StopRequest

WARM_UP = 2  # Steps before the clock counts


def build_tokenizer(
    size: Size,  # Sets the vocabulary
) -> PreTrainedTokenizerFast:  # One word for each token
    "Build a tokenizer whose control tokens the model cannot say, so that no answer ends early."
    words = [f"w{index}" for index in range(size.vocabulary)]
    words[0] = CONTROL[0]
    words += CONTROL[1:]
    table = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    pad, eos, bos, unk, *turns = CONTROL
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(table),
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        unk_token=unk,
        additional_special_tokens=turns,
    )


def even(completion_ids: list[list[int]], **columns: object) -> list[float]:
    "Reward the share of even token ids."
    return [even_share(tokens) for tokens in completion_ids]


def build_run(
    size: Size,  # The model
    steps: int,  # Steps to take
    seq_length: int,  # Tokens in a row of answers; 0 chooses
) -> grpo.GRPOState:  # Before the first step, as the pipeline sets it up
    "Set up a run as `rt.grpo` does."
    config = GRPOConfig(
        loss_type="dapo",
        max_steps=steps,
        prompts_per_step=PROMPTS,
        num_generations=GENERATIONS,
        max_new_tokens=ANSWER_TOKENS,
        max_resample=0,
    )
    asked = prompts(size).tolist()
    about = {"steps": [{"i": 0, "type": "none", "content": "none"}], "final_answer": "none"}
    traces = [Trace.model_validate({"prompt": f"prompt {n}", **about}) for n in range(len(asked))]
    questions = Questions(traces, asked, 0)
    longest = questions.longest + ANSWER_TOKENS
    row = policy_shape(1, longest, seq_length=seq_length).seq_length
    micro = choose_device().micro_batch_size(64, row)
    shape = policy_shape(
        PROMPTS * GENERATIONS, longest, multiple=micro, seq_length=seq_length, share_prompts=True
    )
    return grpo.start_grpo(
        build_model(size),
        build_tokenizer(size),
        questions,
        load_rewards([even]),
        config,
        grpo.train_config_for(config, shape, micro_batch_size=micro, learning_rate=1e-5),
        shape,
        folder=Path(tempfile.mkdtemp()),
        identity={},
        loop_config=grpo.GRPOLoopConfig(quiet=True),
        held_out=(),
        mesh=None,
        attention="xla",
        asked=StopRequest(),
        scoring={"conversational": False},
    )


def main() -> None:
    "Take a first step, one to warm up, then `--steps` against the clock."
    options = arguments(steps=5, seq=0)
    size, clock = SIZES[options.size], StepClock()
    run = build_run(size, WARM_UP + options.steps, options.seq)
    collect = grpo.collect_groups
    lengths = []

    def collect_and_check(*args: object, **kwargs: object) -> object:
        groups = collect(*args, **kwargs)
        lengths.extend(said.completion_tokens for said in groups.completions)
        return groups

    grpo.collect_groups = clock.timed(collect_and_check)
    clock.start()
    grpo.compile_ahead(run)
    for _ in range(WARM_UP + options.steps):
        grpo.grpo_step(run)
        jax.block_until_ready(run.state)
        clock.step_done()
    assert set(lengths) == {ANSWER_TOKENS}
    clock.report(WARM_UP, PROMPTS * GENERATIONS * ANSWER_TOKENS)


if __name__ == "__main__":
    main()
