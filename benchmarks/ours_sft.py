"""Fine-tune with tunix_rt; started by `python benchmarks/sft.py --contenders ours`.

Packed rows, float32, AdamW, the same step and the same batches that the training loop takes.
"""

from __future__ import annotations

import time

import jax
import numpy as np
from ours_model import build_model
from workload import SIZES, Size, arguments, report, sequences

from tunix_rt.models.devices import choose_device
from tunix_rt.training.config import TrainConfig
from tunix_rt.training.packing import PackedBatch, TokenizedExample, get_batch, pack
from tunix_rt.training.sft import sft_objective
from tunix_rt.training.train_step import make_step

WARM_UP = 2  # Steps on other sequences before the clock starts


def packed(
    size: Size,  # Row length
    tokens: list[np.ndarray],  # Sequences to pack
) -> PackedBatch:  # Every token counts, as for the peers
    "Pack sequences as training does."
    examples = [TokenizedExample(sequence, np.ones(len(sequence), bool)) for sequence in tokens]
    return pack(examples, size.seq)


def main() -> None:
    "Warm up on other sequences, then time `--steps`."
    options = arguments(steps=0, slice=-1)
    size = SIZES[options.size]
    steps = options.steps or size.steps

    chosen = choose_device().micro_batch_size(size.batch, size.seq)  # As the train pipeline does
    train_config = TrainConfig(
        max_steps=WARM_UP + steps,
        batch_size=size.batch,
        seq_length=size.seq,
        micro_batch_size=options.slice if options.slice >= 0 else chosen,
        learning_rate=1e-4,
    )
    warm_up = packed(size, sequences(size, 6 * size.batch, seed=1))
    rows = packed(size, sequences(size))
    model = build_model(size)
    state, step = make_step(model, sft_objective(train_config), train_config)

    first = 0.0
    start = time.perf_counter()
    for number in range(WARM_UP):
        state, figures = step(state, get_batch(warm_up, number, size=size.batch, seed=0))
        jax.block_until_ready(state)
        first = first or time.perf_counter() - start

    seen = []
    start, cpu = time.perf_counter(), time.process_time()
    for number in range(steps):
        batch = get_batch(rows, number, size=size.batch, seed=0)
        state, figures = step(state, batch)
        seen.append(batch)
    jax.block_until_ready(state)
    seconds, core_seconds = time.perf_counter() - start, time.process_time() - cpu

    held = [batch.segment_ids > 0 for batch in seen]
    reach = [(batch.positions + 1)[mask] for batch, mask in zip(seen, held, strict=True)]
    report(
        tokens=int(sum(mask.sum() for mask in held)),
        pairs=int(sum(part.sum() for part in reach)),
        slots=steps * size.batch * size.seq,
        steps=steps,
        seconds=seconds,
        core_seconds=core_seconds,
        first_step=first,
        loss=float(figures["loss"]),
    )


if __name__ == "__main__":
    main()
