"""Compile one training step for devices that need not be there, and report the bytes it takes.

Started by `python benchmarks/v5e.py`. No weight is made: the model is a tree of shapes, and the
step is the one that training takes. With `--platform tpu` XLA's own compiler for TPU v5e does the
work, out of libtpu; with `--platform cpu` the mesh is of virtual processors.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from workload import report

from tunix_rt.models.config import preset
from tunix_rt.models.gemma import Gemma
from tunix_rt.models.lora import Lora, add_lora
from tunix_rt.models.mesh import make_mesh
from tunix_rt.training.batches import Rows
from tunix_rt.training.recipe import Recipe
from tunix_rt.training.sft import sft_objective
from tunix_rt.training.step import make_step

DEFAULTS = {
    "platform": "tpu",  # Or "cpu"
    "model": "gemma-3-1b",
    "layers": 0,  # Fewer than the model has, to try something out
    "rank": 0,  # Of adapters; 0 trains every parameter
    "base_dtype": "float32",  # Of the stored parameters
    "dtype": "bfloat16",  # To compute in
    "mesh": "1,8,1",  # data, fsdp, tensor
    "rows": 1,  # On each device, in one update
    "slice_rows": 0,  # On each device, computed at a time; 0 for all
    "row_tokens": 1024,
    "remat": "full",
    "attention": "xla",
    "optimiser": "adamw",
}
PARTS = ("argument", "output", "alias", "temp", "generated_code", "peak_memory")


def devices(
    platform: str,  # "tpu" for a v5e-8 that is only described, "cpu" for virtual ones
) -> list[Any]:
    "List what to compile for."
    if platform == "cpu":
        return jax.devices("cpu")
    return list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices)


def build(
    options: Any,  # From the command line
) -> Gemma:
    "Make the model."
    config = preset(options.model)
    config = config.resized(layers=options.layers or config.layers)
    model = Gemma(config, nnx.Rngs(0), jnp.dtype(options.base_dtype), stacked=True)
    if options.rank:
        add_lora(model, Lora(rank=options.rank), nnx.Rngs(1))
    return model


def main() -> None:
    "Trace, compile and report."
    parser = argparse.ArgumentParser()
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    options = parser.parse_args()
    sides = [int(side) for side in options.mesh.split(",")]
    mesh = make_mesh(*sides, devices=devices(options.platform))
    rows = options.rows * sides[0] * sides[1]
    recipe = Recipe(
        batch_rows=rows,
        slice_rows=options.slice_rows * sides[0] * sides[1],
        row_tokens=options.row_tokens,
        optimiser=options.optimiser,
        dtype=options.dtype,
        remat=options.remat,
    )
    model = nnx.eval_shape(lambda: build(options))
    objective = sft_objective(recipe)
    state, step = make_step(model, objective, recipe, mesh=mesh)
    numbers = jax.ShapeDtypeStruct((rows, options.row_tokens), jnp.int32)
    marks = jax.ShapeDtypeStruct(numbers.shape, jnp.bool_)
    batch = Rows(tokens=numbers, segments=numbers, positions=numbers, counted=marks)

    start = time.perf_counter()
    lowered = step.lower(state, batch)
    traced = time.perf_counter() - start
    with step.active():
        compiled = lowered.compile()
    memory = compiled.memory_analysis()
    found = {part: int(getattr(memory, f"{part}_size_in_bytes", 0)) for part in PARTS[:-1]}
    report(
        **found,
        peak=int(memory.peak_memory_in_bytes),
        trace_seconds=traced,
        compile_seconds=time.perf_counter() - start - traced,
    )


if __name__ == "__main__":
    main()
