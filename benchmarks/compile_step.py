"""Compile one training step for devices that need not be there, and report the bytes it takes.

Started by `python benchmarks/v5e8_memory.py`. No weight is made: the model is a tree of shapes, and
the step is the one that training takes. With `--platform tpu` XLA's own compiler for TPU v5e does
the work, out of libtpu; with `--platform cpu` the mesh is of virtual processors.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
from jax.experimental import topologies
from workload import report

from tunix_rt.models.config import preset
from tunix_rt.models.lora import LoraConfig
from tunix_rt.training.config import TrainConfig
from tunix_rt.training.memory import TrainSetup, measure_memory, memory_breakdown, sum_of_parts

DEFAULTS = {
    "platform": "tpu",  # Or "cpu"
    "model": "gemma-3-1b",
    "layers": 0,  # Fewer than the model has, to try something out
    "rank": 0,  # Of adapters; 0 trains every parameter
    "base_dtype": "float32",  # Of parameters that are only read
    "dtype": "bfloat16",  # To compute in
    "mesh": "1,8,1",  # data, fsdp, tensor
    "rows": 1,  # On each device, in one update
    "micro_batch_size": 0,  # On each device, computed at a time; 0 for all
    "seq_length": 1024,
    "remat": "full",
    "scan_layers": 1,  # 0 for a list of layers
    "attention": "xla",
    "optimizer": "adamw",
}


def devices(
    platform: str,  # "tpu" for a v5e-8 that is only described, "cpu" for virtual ones
) -> list[Any]:
    "List what to compile for."
    if platform == "cpu":
        return jax.devices("cpu")
    return list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices)


def setup_of(
    options: Any,  # From the command line
) -> TrainSetup:
    "Describe what is trained, as it would be on a TPU."
    data, fsdp, tensor = (int(side) for side in options.mesh.split(","))
    config = preset(options.model)
    train_config = TrainConfig(
        batch_size=options.rows * data * fsdp,
        micro_batch_size=options.micro_batch_size * data * fsdp,
        seq_length=options.seq_length,
        optimizer=options.optimizer,
        dtype=options.dtype,
        remat=options.remat,
    )
    return TrainSetup(
        config.resized(layers=options.layers or config.layers),
        train_config,
        LoraConfig(rank=options.rank) if options.rank else None,
        base=options.base_dtype,
        data=data,
        fsdp=fsdp,
        tensor=tensor,
        scan_layers=bool(options.scan_layers),
        name=options.model,
    )


def main() -> None:
    "Plan, trace, compile and report."
    parser = argparse.ArgumentParser()
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    options = parser.parse_args()
    setup = setup_of(options)
    parts = memory_breakdown(setup)
    begun = time.process_time()
    seen = measure_memory(setup, attention=options.attention, devices=devices(options.platform))
    spent = time.process_time() - begun
    report(
        arguments=seen.arguments,
        temporaries=seen.temporaries,
        outputs=seen.outputs,
        aliased=seen.aliased,
        total=seen.total,
        planned=sum_of_parts(parts),
        parts=parts,
        lines=len(seen.compiled.as_text().splitlines()),
        trace_seconds=seen.trace_seconds,
        compile_seconds=seen.compile_seconds,
        processor_seconds=spent,
    )


if __name__ == "__main__":
    main()
