"""Sample with transformers on an accelerator; started by `python benchmarks/gpu_sampling.py`.

Settings: bfloat16, eager attention (it honors the soft caps), greedy, no stop token, and a cache
that grows (`dynamic`) or is allocated once, with the compiled step that comes with it (`static`).
"""

from __future__ import annotations

import time

import torch
from transformers_gpu_sft import DEVICE, build_model, wait
from workload import NEW_TOKENS, SIZES, arguments, report, rows_of_prompts


def main() -> None:
    "Sample once to warm up, then against the clock, long answers and answers half as long."
    options = arguments(rows=1, repeats=3, cache="dynamic")
    size = SIZES[options.size]
    model = build_model(size, torch.bfloat16, "eager").eval()
    model.generation_config.eos_token_id = None
    tokens = torch.from_numpy(rows_of_prompts(size, options.rows)).long().to(DEVICE)
    settings = {"cache_implementation": options.cache} if options.cache != "dynamic" else {}

    def sample(new: int) -> float:
        wait()
        start = time.perf_counter()
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            do_sample=False,
            **settings,
        )
        wait()
        seconds = time.perf_counter() - start
        assert output.shape == (len(tokens), tokens.shape[1] + new)
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
