"""Fine-tune with tunix_rt on an accelerator; started by `python benchmarks/gpu_sft.py`.

Computes in bfloat16. LoRA: a frozen bfloat16 base and float32 adapters. Full: float32 parameters
and AdamW moments. The layers are one stack, so that depth costs no compiling.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ours_model import build_model
from workload import SIZES, arguments, report

from tunix_rt.models.attention_backends import choose_attention
from tunix_rt.models.lora import LoraConfig, add_lora
from tunix_rt.training.config import TrainConfig
from tunix_rt.training.packing import PackedBatch
from tunix_rt.training.sft import sft_objective
from tunix_rt.training.train_step import make_step

WARM_UP = 2  # Steps before the clock starts


def peak_bytes() -> int | None:
    "Read the most device memory that was ever in use, where the device counts it."
    loss_mask = jax.devices()[0].memory_stats()
    return loss_mask["peak_bytes_in_use"] if loss_mask else None


def main() -> None:
    "Warm up, then time `--steps` over the batches that everyone gets."
    options = arguments(mode="lora", remat="none", batches="", steps=0, rank=16)
    size = SIZES[options.size]
    steps = options.steps or size.steps
    with np.load(options.batches) as held:
        rows = PackedBatch(**held)
    batches = [
        PackedBatch(*(part[start : start + size.batch] for part in rows))
        for start in range(0, (WARM_UP + steps) * size.batch, size.batch)
    ]

    lora = options.mode == "lora"
    model = build_model(size, jnp.bfloat16 if lora else jnp.float32, scan_layers=True)
    if lora:
        add_lora(model, LoraConfig(rank=options.rank, alpha=2.0 * options.rank), nnx.Rngs(1))
    train_config = TrainConfig(
        max_steps=WARM_UP + steps,
        batch_size=size.batch,
        seq_length=size.seq,
        learning_rate=1e-4,
        dtype="bfloat16",
        remat=options.remat,
    )
    attention = choose_attention(
        "auto",
        model.config,
        seq_length=size.seq,
        dtype=jnp.bfloat16,
        kind=jax.default_backend(),
    )
    objective = sft_objective(train_config, attention=attention.name)
    state, step = make_step(model, objective, train_config)
    del model

    first = 0.0
    start = time.perf_counter()
    for batch in batches[:WARM_UP]:
        state, figures = step(state, batch)
        jax.block_until_ready(state)
        first = first or time.perf_counter() - start
    start = time.perf_counter()
    for batch in batches[WARM_UP:]:
        state, figures = step(state, batch)
    jax.block_until_ready(state)
    report(
        seconds=time.perf_counter() - start,
        steps=steps,
        first_step=first,
        loss=float(figures["loss"]),
        peak_bytes=peak_bytes(),
        attention=str(attention),
    )


if __name__ == "__main__":
    main()
