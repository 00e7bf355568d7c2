"""Fine-tune with google-tunix's PeftTrainer; started by `python benchmarks/sft.py`.

Settings: float32, every row padded to the full length (the trainer refuses packing, and other
shapes compile again), no rematerialization, optax.adamw, the trainer's own jit and loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import numpy as np
import optax
from flax import nnx
from tunix.sft import utils
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from tunix_model import build_model
from workload import PAD, SIZES, Size, arguments, counted, report, sequences


def padded(
    rows: list[np.ndarray],  # Token ids of one batch
    size: Size,  # Sets the length
) -> TrainingInput:  # Tokens and mask, [B, T]
    "Pad a batch to the full length."
    tokens = np.full((len(rows), size.seq), PAD, np.int32)
    for row, target in zip(rows, tokens, strict=True):
        target[: len(row)] = row
    return TrainingInput(input_tokens=tokens, input_mask=tokens != PAD)


def model_input(
    batch: TrainingInput,  # What the loader yields
) -> dict[str, jax.Array]:  # What the default loss takes
    "Add positions and the causal mask, as google-tunix's examples do."
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(batch.input_mask),
        "attention_mask": utils.make_causal_attn_mask(batch.input_mask),
    }


def timed_batches(
    batches: list[TrainingInput],  # Two to warm up, the rest timed
    model: nnx.Module,  # Waited for, so that a step handed out is a step done
    clock: dict[str, float],  # Receives the times at which steps were finished
) -> Iterator[TrainingInput]:
    "Yield batches, and note when the first one, the warm-up and the last one are finished."

    def now() -> float:
        jax.block_until_ready(nnx.state(model))
        return time.perf_counter()

    yield batches[0]
    clock["first"] = now()
    yield batches[1]
    clock["warm"], clock["warm_cpu"] = now(), time.process_time()
    yield from batches[2:]
    clock["done"], clock["done_cpu"] = now(), time.process_time()


def main() -> None:
    "Warm up for two steps on other sequences, then time `--steps`."
    options = arguments(steps=0)
    size = SIZES[options.size]
    steps = options.steps or size.steps

    warm_up = sequences(size, 2 * size.batch, seed=1)
    rows = sequences(size)[: steps * size.batch]
    everything = warm_up + rows
    starts = range(0, len(everything), size.batch)
    batches = [padded(everything[start : start + size.batch], size) for start in starts]

    model = build_model(size)
    trainer = PeftTrainer(model, optax.adamw(1e-4), TrainingConfig(eval_every_n_steps=1_000_000))
    trainer = trainer.with_gen_model_input_fn(model_input)
    clock: dict[str, float] = {}
    start = time.perf_counter()
    trainer.train(timed_batches(batches, model, clock))
    report(
        **counted(map(len, rows)),
        slots=steps * size.batch * size.seq,
        steps=steps,
        seconds=clock["done"] - clock["warm"],
        core_seconds=clock["done_cpu"] - clock["warm_cpu"],
        first_step=clock["first"] - start,
    )


if __name__ == "__main__":
    main()
