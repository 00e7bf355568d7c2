"""Measure how fast this device reads and writes its memory, the yardstick of decoding."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from workload import arguments, report


def main() -> None:
    "Time one pass that reads an array and writes another, and report the best of 25."
    options = arguments(mib=1024, rows=0)
    x = jnp.ones(options.mib << 19, jnp.bfloat16)
    scale = jax.jit(lambda x: x * 2)
    scale(x).block_until_ready()
    times = []
    for _ in range(25):
        start = time.perf_counter()
        scale(x).block_until_ready()
        times.append(time.perf_counter() - start)
    device = jax.devices()[0].device_kind
    report(bytes_per_second=2 * x.nbytes / min(times), device=device)


if __name__ == "__main__":
    main()
