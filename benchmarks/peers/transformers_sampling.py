"""Sample with transformers' `generate`; started by `python benchmarks/sampling.py`.

Settings: float32, eager attention (soft caps), greedy, the default growing cache, no stop token.
"""

from __future__ import annotations

import time

import torch
from trl_sft import build_model
from workload import NEW_TOKENS, SIZES, arguments, prompts, report


def main() -> None:
    "Sample once to warm up, then three times against the clock."
    options = arguments(repeats=3, cache="dynamic")
    size = SIZES[options.size]
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = build_model(size).eval()
    model.generation_config.eos_token_id = None
    tokens = torch.from_numpy(prompts(size)).long()
    settings = {"cache_implementation": options.cache} if options.cache != "dynamic" else {}

    def sample() -> float:
        start = time.perf_counter()
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            **settings,
        )
        seconds = time.perf_counter() - start
        assert output.shape == (len(tokens), tokens.shape[1] + NEW_TOKENS)
        return seconds

    first = sample()
    cpu = time.process_time()
    seconds = [sample() for _ in range(options.repeats)]
    cpu = (time.process_time() - cpu) / options.repeats
    report(first_call=first, seconds=seconds, core_seconds=cpu)


if __name__ == "__main__":
    main()
