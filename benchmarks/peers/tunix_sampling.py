"""Sample with google-tunix's own Sampler; started by `python benchmarks/sampling.py`.

Settings: float32, greedy, a key-value cache of `--cache` positions (every step attends over all
of them, so the smallest cache that fits is the fastest), no stop token.
"""

from __future__ import annotations

import time

from tunix.generate.sampler import CacheConfig, Sampler
from tunix_model import build_model
from workload import BOS, EOS, NEW_TOKENS, PAD, PROMPT_LENGTH, SIZES, arguments, prompts, report


class NumberTokenizer:
    "Read and write token ids as numbers in text: the least a Sampler accepts."

    def encode(self, text: str, **_: object) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int], **_: object) -> str:
        return " ".join(map(str, tokens))

    def pad_id(self) -> int:
        return PAD

    def eos_id(self) -> int:
        return EOS

    def bos_id(self) -> int:
        return BOS

    def dedup_bos_ids(self, tokens: list[int]) -> list[int]:
        return tokens


def main() -> None:
    "Sample once to compile, then three times against the clock."
    options = arguments(cache=192, repeats=3)
    size = SIZES[options.size]
    sampler = Sampler(
        build_model(size),
        NumberTokenizer(),
        CacheConfig(options.cache, size.layers, size.kv_heads, size.head_width),
    )
    # The sampler puts a beginning-of-sequence token first, so each text is one token short.
    texts = [" ".join(map(str, row[1:])) for row in prompts(size)]

    def sample() -> float:
        start = time.perf_counter()
        output = sampler(
            texts,
            max_generation_steps=NEW_TOKENS,
            max_prompt_length=PROMPT_LENGTH,
            eos_tokens=[-1],
        )
        seconds = time.perf_counter() - start
        assert {len(tokens) for tokens in output.tokens} == {NEW_TOKENS}
        return seconds

    first = sample()
    cpu = time.process_time()
    seconds = [sample() for _ in range(options.repeats)]
    cpu = (time.process_time() - cpu) / options.repeats
    report(first_call=first, seconds=seconds, core_seconds=cpu)


if __name__ == "__main__":
    main()
