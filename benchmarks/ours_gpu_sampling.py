"""Sample with tunix_rt on an accelerator; started by `python benchmarks/gpu_sampling.py`.

Bfloat16 parameters, cache and arithmetic, greedy, through the same call that evaluation makes.
"""

from __future__ import annotations

import time

import jax.numpy as jnp
from ours_model import build_model
from ours_sampling import build_tokenizer, never_stop
from workload import EOS, NEW_TOKENS, SIZES, arguments, report, rows_of_prompts

from tunix_rt.inference.engine import SamplingParams, generate
from tunix_rt.models.tokenizer import end_of_turn


def main() -> None:
    "Sample once to compile, then against the clock, long answers and answers half as long."
    options = arguments(rows=1, repeats=3)
    size = SIZES[options.size]
    tokenizer = build_tokenizer(size)
    model = build_model(size, jnp.bfloat16)
    never_stop(model, [EOS, end_of_turn(tokenizer)])
    asked = rows_of_prompts(size, options.rows).tolist()

    def sample(new: int) -> float:
        settings = SamplingParams(max_new_tokens=new)
        start = time.perf_counter()
        said = generate(
            model, tokenizer, asked, settings, batch_size=options.rows, dtype=jnp.bfloat16
        )
        seconds = time.perf_counter() - start
        assert {one.completion_tokens for one in said} == {new}
        return seconds

    first = sample(NEW_TOKENS)
    sample(NEW_TOKENS // 2)
    report(
        first_call=first,
        seconds=[sample(NEW_TOKENS) for _ in range(options.repeats)],
        half=[sample(NEW_TOKENS // 2) for _ in range(options.repeats)],
    )


if __name__ == "__main__":
    main()
