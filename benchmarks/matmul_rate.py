"""Measure this machine's matrix multiplication, the yardstick of the SFT tables."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from workload import arguments, report


def main() -> None:
    "Time the product of two square matrices, and report the best of 25."
    options = arguments(side=2048, dtype="float32", steps=0)
    side = options.side
    left, right = jax.random.normal(jax.random.key(0), (2, side, side), options.dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(left, right).block_until_ready()
    times = []
    for _ in range(25):
        start = time.perf_counter()
        multiply(left, right).block_until_ready()
        times.append(time.perf_counter() - start)
    report(gflops=2 * side**3 / min(times) / 1e9, device=jax.devices()[0].device_kind)


if __name__ == "__main__":
    main()
