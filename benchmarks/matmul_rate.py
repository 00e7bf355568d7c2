"""Measure this machine's float32 matrix multiplication, the yardstick of the SFT table."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from workload import report


def main() -> None:
    "Time the product of two square matrices, and report the best of 25."
    side = 2048
    left, right = jax.random.normal(jax.random.key(0), (2, side, side))
    multiply = jax.jit(jnp.matmul)
    multiply(left, right).block_until_ready()
    times = []
    for _ in range(25):
        start = time.perf_counter()
        multiply(left, right).block_until_ready()
        times.append(time.perf_counter() - start)
    report(gflops=2 * side**3 / min(times) / 1e9)


if __name__ == "__main__":
    main()
