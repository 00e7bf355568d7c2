"""Sample with tunix_rt; started by `python benchmarks/sampling.py --contenders ours`.

Float32, greedy, through the same call that evaluation makes.
"""

from __future__ import annotations

import time

import jax.numpy as jnp
from ours_model import build_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from workload import EOS, NEW_TOKENS, SIZES, Size, arguments, prompts, report

from tunix_rt.inference.engine import SamplingParams, generate
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.tokenizer import CONTROL, end_of_turn


def build_tokenizer(
    size: Size,  # Sets the vocabulary
) -> PreTrainedTokenizerFast:  # One word for each token
    "Build a tokenizer that can decode whatever a model with random weights says."
    words = [*CONTROL, *(f"w{index}" for index in range(len(CONTROL), size.vocabulary))]
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


def never_stop(
    model: Gemma,  # Changed in place
    ends: list[int],  # Tokens that would end a response
) -> None:
    "Give the ending tokens a logit of zero, which the best of hundreds always beats."
    model.embedding[...] = model.embedding[...].at[jnp.array(ends)].set(0.0)


def main() -> None:
    "Sample once to compile, then three times against the clock."
    options = arguments(repeats=3)
    size = SIZES[options.size]
    tokenizer = build_tokenizer(size)
    model = build_model(size)
    never_stop(model, [EOS, end_of_turn(tokenizer)])
    asked = prompts(size).tolist()
    settings = SamplingParams(max_new_tokens=NEW_TOKENS)

    def sample() -> float:
        start = time.perf_counter()
        completions = generate(model, tokenizer, asked, settings)
        seconds = time.perf_counter() - start
        assert {one.completion_tokens for one in completions} == {NEW_TOKENS}
        return seconds

    first = sample()
    cpu = time.process_time()
    seconds = [sample() for _ in range(options.repeats)]
    cpu = (time.process_time() - cpu) / options.repeats
    report(first_call=first, seconds=seconds, core_seconds=cpu)


if __name__ == "__main__":
    main()
